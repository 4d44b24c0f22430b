//! The descriptors of the `.proto` files: messages with their comments, and the methods' routes (`google.api.http`)
//! with their access rules.

use std::collections::HashMap;

use prost::Message as _;
use prost_types::{DescriptorProto, EnumDescriptorProto, SourceCodeInfo};
use shoppee_kit::access;
use shoppee_proto::access::v1::AccessRule;

/// Messages and enumerations by full name, without the leading dot, and all routes.
#[derive(Debug, Default)]
pub struct ApiDescriptors {
    pub messages: HashMap<String, Message>,
    /// The value names of each enumeration, without `unspecified`.
    pub enums: HashMap<String, Vec<String>>,
    pub routes: Vec<Route>,
}

#[derive(Debug)]
pub struct Message {
    pub description: Option<String>,
    pub fields: Vec<Field>,
}

#[derive(Clone, Debug)]
pub struct Field {
    pub name: String,
    pub description: Option<String>,
    pub kind: Kind,
    /// Marks a field declared `optional`.
    pub optional: bool,
    pub repeated: bool,
}

impl Field {
    /// Reports whether a request may lack the field: one message, or a field declared `optional`.
    pub fn may_be_absent(&self) -> bool {
        self.optional || (matches!(self.kind, Kind::Message(_)) && !self.repeated)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    String,
    Integer { bits: u8 },
    Double,
    Bool,
    Enum(String),
    Message(String),
}

/// A route of a method.
#[derive(Clone, Debug)]
pub struct Route {
    /// `Service.Method`.
    pub rpc: String,
    /// The HTTP method in lower case, as in a path item.
    pub method: &'static str,
    pub path: String,
    pub has_body: bool,
    pub request: String,
    pub response: String,
    pub rule: AccessRule,
}

impl ApiDescriptors {
    /// Parses [`shoppee_proto::FILE_DESCRIPTOR_SET`].
    pub fn read() -> Result<Self, prost::DecodeError> {
        let mut api = Self::default();
        for file in FileSet::decode(shoppee_proto::FILE_DESCRIPTOR_SET)?.file {
            let comments = Comments::new(file.source_code_info.unwrap_or_default());
            for (index, message) in (0..).zip(&file.message_type) {
                let name = format!("{}.{}", file.package, message.name());
                api.messages.insert(name, read_message(message, index, &comments));
            }
            for descriptor in &file.enum_type {
                let name = format!("{}.{}", file.package, descriptor.name());
                api.enums.insert(name, value_names(descriptor));
            }
            for service in file.service {
                for method in service.method {
                    let name = format!("{}.{}/{}", file.package, service.name, method.name);
                    let access = access::methods().get(&name).map(|method| &method.rule);
                    let rule = method.options.and_then(|options| options.http).unwrap_or_default();
                    for binding in std::iter::once(&rule).chain(&rule.additional_bindings) {
                        let Some((verb, path)) = binding.route() else { continue };
                        api.routes.push(Route {
                            rpc: format!("{}.{}", service.name, method.name),
                            method: verb,
                            path: path.to_owned(),
                            has_body: !binding.body.is_empty(),
                            request: strip_leading_dot(&method.input_type),
                            response: strip_leading_dot(&method.output_type),
                            rule: access.cloned().unwrap_or_default(),
                        });
                    }
                }
            }
        }
        Ok(api)
    }
}

fn read_message(message: &DescriptorProto, index: i32, comments: &Comments) -> Message {
    let fields = (0..).zip(&message.field).filter_map(|(at, field)| {
        use prost_types::field_descriptor_proto::{Label, Type};
        let kind = match field.r#type() {
            Type::String => Kind::String,
            Type::Int64 => Kind::Integer { bits: 64 },
            Type::Int32 => Kind::Integer { bits: 32 },
            Type::Double => Kind::Double,
            Type::Bool => Kind::Bool,
            Type::Enum => Kind::Enum(strip_leading_dot(field.type_name())),
            Type::Message => Kind::Message(strip_leading_dot(field.type_name())),
            // Not used in the public messages.
            Type::Float
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
            description: comments.get(&[MESSAGES, index, FIELDS, at]),
            kind,
            optional: field.proto3_optional(),
            repeated: field.label() == Label::Repeated,
        })
    });
    Message { description: comments.get(&[MESSAGES, index]), fields: fields.collect() }
}

/// Returns the JSON names of an enumeration's values: `ORDER_STATUS_PAID` of `OrderStatus` is `paid`. Skips the value 0.
fn value_names(descriptor: &EnumDescriptorProto) -> Vec<String> {
    let mut prefix = String::new();
    for letter in descriptor.name().chars() {
        if letter.is_ascii_uppercase() && !prefix.is_empty() {
            prefix.push('_');
        }
        prefix.push(letter.to_ascii_uppercase());
    }
    prefix.push('_');
    let value_name = |name: &str| name.strip_prefix(&prefix).unwrap_or(name).to_ascii_lowercase();
    descriptor
        .value
        .iter()
        .filter(|value| value.number() != 0)
        .map(|value| value_name(value.name()))
        .collect()
}

fn strip_leading_dot(name: &str) -> String {
    name.trim_start_matches('.').to_owned()
}

/// The field numbers in descriptor.proto that form the paths of comments.
const MESSAGES: i32 = 4;
const FIELDS: i32 = 2;

struct Comments(HashMap<Vec<i32>, String>);

impl Comments {
    fn new(info: SourceCodeInfo) -> Self {
        let join_lines = |text: String| {
            let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            lines.join(" ")
        };
        let places = info.location.into_iter();
        Self(places.filter_map(|at| Some((at.path, join_lines(at.leading_comments?)))).collect())
    }

    fn get(&self, path: &[i32]) -> Option<String> {
        self.0.get(path).cloned()
    }
}

// The needed part of descriptor.proto, with the annotation that prost's own types omit.

#[derive(Clone, PartialEq, prost::Message)]
struct FileSet {
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
    fn comments_and_annotations_are_read() {
        let api = ApiDescriptors::read().unwrap();
        let product = &api.messages["shoppee.product.v1.Product"];
        assert!(product.description.is_some());
        let price = product.fields.iter().find(|field| field.name == "price").unwrap();
        assert_eq!(price.description.as_deref(), Some("Minor units of the currency."));
        let list: Vec<_> = api.routes.iter().filter(|route| route.rpc == "OrderService.ListOrders").collect();
        let paths: Vec<_> = list.iter().map(|route| route.path.as_str()).collect();
        assert_eq!(paths, ["/api/v1/orders", "/api/v1/admin/orders"]);
        let names = &api.enums["shoppee.product.v1.ProductSort"];
        assert_eq!(names, &["newest", "price_asc", "price_desc", "name"]);
    }
}
