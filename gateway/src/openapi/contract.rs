//! What the `.proto` files say, read from their descriptors: the messages with their comments, and which
//! method answers which route (`google.api.http`).

use std::collections::HashMap;

use prost::Message as _;
use prost_types::{DescriptorProto, EnumDescriptorProto, SourceCodeInfo};

/// The contract, by full names without the leading dot.
#[derive(Debug, Default)]
pub struct Contract {
    pub messages: HashMap<String, Message>,
    /// The words of an enumeration, `unspecified` left out.
    pub words: HashMap<String, Vec<String>>,
    pub routes: Vec<Route>,
}

#[derive(Debug)]
pub struct Message {
    pub about: Option<String>,
    pub fields: Vec<Field>,
}

#[derive(Clone, Debug)]
pub struct Field {
    pub name: String,
    pub about: Option<String>,
    pub kind: Kind,
    /// `optional` in the contract.
    pub optional: bool,
    pub repeated: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Integer { bits: u8 },
    Bool,
    Word(String),
    Message(String),
}

/// A method and what it answers to.
#[derive(Clone, Debug)]
pub struct Route {
    /// `Service.Method`.
    pub rpc: String,
    /// Lower case, as in a path item.
    pub method: &'static str,
    pub path: String,
    pub has_body: bool,
    pub request: String,
    pub answer: String,
}

impl Contract {
    /// Reads [`shoppee_proto::FILE_DESCRIPTOR_SET`].
    pub fn read() -> Result<Self, prost::DecodeError> {
        let mut contract = Self::default();
        for file in Set::decode(shoppee_proto::FILE_DESCRIPTOR_SET)?.file {
            let about = Comments::of(file.source_code_info.unwrap_or_default());
            for (index, message) in (0..).zip(&file.message_type) {
                let name = format!("{}.{}", file.package, message.name());
                contract.messages.insert(name, read_message(message, index, &about));
            }
            for listed in &file.enum_type {
                contract.words.insert(format!("{}.{}", file.package, listed.name()), words(listed));
            }
            for service in file.service {
                for method in service.method {
                    let rule = method.options.and_then(|options| options.http).unwrap_or_default();
                    for binding in std::iter::once(&rule).chain(&rule.additional_bindings) {
                        let Some((verb, path)) = binding.route() else { continue };
                        contract.routes.push(Route {
                            rpc: format!("{}.{}", service.name, method.name),
                            method: verb,
                            path: path.to_owned(),
                            has_body: !binding.body.is_empty(),
                            request: plain(&method.input_type),
                            answer: plain(&method.output_type),
                        });
                    }
                }
            }
        }
        Ok(contract)
    }
}

fn read_message(message: &DescriptorProto, index: i32, about: &Comments) -> Message {
    let fields = (0..).zip(&message.field).filter_map(|(at, field)| {
        use prost_types::field_descriptor_proto::{Label, Type};
        let kind = match field.r#type() {
            Type::String => Kind::Text,
            Type::Int64 => Kind::Integer { bits: 64 },
            Type::Int32 => Kind::Integer { bits: 32 },
            Type::Bool => Kind::Bool,
            Type::Enum => Kind::Word(plain(field.type_name())),
            Type::Message => Kind::Message(plain(field.type_name())),
            // Not used by the contract.
            Type::Double
            | Type::Float
            | Type::Uint64
            | Type::Fixed64
            | Type::Fixed32
            | Type::Group
            | Type::Bytes
            | Type::Uint32
            | Type::Sfixed32
            | Type::Sfixed64
            | Type::Sint32
            | Type::Sint64 => return None,
        };
        Some(Field {
            name: field.name().to_owned(),
            about: about.get(&[MESSAGES, index, FIELDS, at]),
            kind,
            optional: field.proto3_optional(),
            repeated: field.label() == Label::Repeated,
        })
    });
    Message { about: about.get(&[MESSAGES, index]), fields: fields.collect() }
}

/// `ORDER_STATUS_PAID` of `OrderStatus` is `paid`; the first value is no word.
fn words(listed: &EnumDescriptorProto) -> Vec<String> {
    let mut prefix = String::new();
    for letter in listed.name().chars() {
        if letter.is_ascii_uppercase() && !prefix.is_empty() {
            prefix.push('_');
        }
        prefix.push(letter.to_ascii_uppercase());
    }
    prefix.push('_');
    let word = |name: &str| name.strip_prefix(&prefix).unwrap_or(name).to_ascii_lowercase();
    listed.value.iter().filter(|value| value.number() != 0).map(|value| word(value.name())).collect()
}

fn plain(name: &str) -> String {
    name.trim_start_matches('.').to_owned()
}

/// Numbers of fields in descriptor.proto, which paths to comments are made of.
const MESSAGES: i32 = 4;
const FIELDS: i32 = 2;

struct Comments(HashMap<Vec<i32>, String>);

impl Comments {
    fn of(info: SourceCodeInfo) -> Self {
        let told = |text: String| {
            let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            lines.join(" ")
        };
        let places = info.location.into_iter();
        Self(places.filter_map(|at| Some((at.path, told(at.leading_comments?)))).collect())
    }

    fn get(&self, path: &[i32]) -> Option<String> {
        self.0.get(path).cloned()
    }
}

// descriptor.proto as far as it is needed here, with the annotation that prost's own types leave out.

#[derive(Clone, PartialEq, prost::Message)]
struct Set {
    #[prost(message, repeated, tag = "1")]
    file: Vec<File>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct File {
    #[prost(string, tag = "2")]
    package: String,
    #[prost(message, repeated, tag = "4")]
    message_type: Vec<DescriptorProto>,
    #[prost(message, repeated, tag = "5")]
    enum_type: Vec<EnumDescriptorProto>,
    #[prost(message, repeated, tag = "6")]
    service: Vec<Service>,
    #[prost(message, optional, tag = "9")]
    source_code_info: Option<SourceCodeInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Service {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    method: Vec<Method>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Method {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    input_type: String,
    #[prost(string, tag = "3")]
    output_type: String,
    #[prost(message, optional, tag = "4")]
    options: Option<MethodOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MethodOptions {
    /// `google.api.http`
    #[prost(message, optional, tag = "72295728")]
    http: Option<HttpRule>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HttpRule {
    #[prost(string, tag = "2")]
    get: String,
    #[prost(string, tag = "3")]
    put: String,
    #[prost(string, tag = "4")]
    post: String,
    #[prost(string, tag = "5")]
    delete: String,
    #[prost(string, tag = "6")]
    patch: String,
    #[prost(string, tag = "7")]
    body: String,
    #[prost(message, repeated, tag = "11")]
    additional_bindings: Vec<HttpRule>,
}

impl HttpRule {
    fn route(&self) -> Option<(&'static str, &str)> {
        [
            ("get", &self.get),
            ("put", &self.put),
            ("post", &self.post),
            ("delete", &self.delete),
            ("patch", &self.patch),
        ]
        .into_iter()
        .find_map(|(verb, path)| (!path.is_empty()).then_some((verb, path.as_str())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_annotations_arrive() {
        let contract = Contract::read().unwrap();
        let product = &contract.messages["shoppee.product.v1.Product"];
        assert!(product.about.is_some());
        let price = product.fields.iter().find(|field| field.name == "price").unwrap();
        assert_eq!(price.about.as_deref(), Some("Minor units of the currency."));
        let list: Vec<_> =
            contract.routes.iter().filter(|route| route.rpc == "OrderService.ListOrders").collect();
        let paths: Vec<_> = list.iter().map(|route| route.path.as_str()).collect();
        assert_eq!(paths, ["/api/v1/orders", "/api/v1/admin/orders"]);
        let words = &contract.words["shoppee.product.v1.ProductSort"];
        assert_eq!(words, &["newest", "price_asc", "price_desc", "name"]);
    }
}
