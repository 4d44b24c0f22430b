//! From messages to schemas: the JSON shape that `proto/build.rs` and the gateway's own bodies give them.

use std::collections::BTreeSet;

use super::{
    contract::{Contract, Field, Kind, Message},
    json::{Json, Object, list, object},
    rules,
};
use crate::error::Code;

/// Fields of requests that come from a header or from the gateway itself, and of answers that are for the gateway.
const NOT_FOR_CLIENTS: &[&str] = &[
    "RegisterRequest.idempotency_key",
    "LoginRequest.user_agent",
    "LoginRequest.device_token",
    "Tokens.device_token",
    "UpdateProductRequest.update_mask",
    "UpdateProductRequest.expected_version",
    "ArchiveProductRequest.expected_version",
    "UpdateCategoryRequest.update_mask",
    "ProductChange.clear",
    "ProductChangeResult.revision",
    "CreateProductRequest.idempotency_key",
    "UpdateProductRequest.idempotency_key",
    "AdjustStockRequest.idempotency_key",
    "BatchUpdateProductsRequest.idempotency_key",
    "CreateCategoryRequest.idempotency_key",
    "UpdateCategoryRequest.idempotency_key",
    "CreateOrderRequest.idempotency_key",
    "CreateOrderRequest.from_cart",
    "PayOrderRequest.idempotency_key",
    "AddCartItemRequest.idempotency_key",
    "CancelOrderRequest.idempotency_key",
    "ShipOrderRequest.idempotency_key",
    "CompleteOrderRequest.idempotency_key",
    "ListOrdersRequest.everyone",
    "OrderHistoryEvent.status_word",
    "OrderHistoryEvent.previous_status_word",
    "OrderHistoryEvent.actor_word",
];

/// Bodies in which a field that is absent stays as it is; those of [`CLEARED_BY_NULL`] may be null.
const PATCHES: [&str; 3] = ["UpdateProductRequest", "UpdateCategoryRequest", "ProductChange"];
const CLEARED_BY_NULL: [&str; 5] = ["description", "category_id", "image_url", "attributes", "parent_id"];

/// Where a body does not follow from the contract's `optional`.
const REQUIRED: [&str; 1] = ["CreateOrderRequest.shipping_address"];
const MAY_BE_ABSENT: [&str; 1] = ["CreateOrderRequest.items"];

/// Messages and times of answers that may be null; `optional` fields are so unless they are left out.
const NULL_WHERE_ABSENT: [&str; 4] =
    ["Product.category", "Order.shipment", "Payment.paid_at", "Payment.refunded_at"];
const OMITTED_WHERE_ABSENT: [&str; 7] = [
    "User.disabled",
    "SearchProductsResponse.facets",
    "ProductChangeResult.version",
    "ProductChangeResult.error",
    "OrderHistoryEvent.reason",
    "RefusedLine.unit_price",
    "RefusedLine.held_by_your_order",
];

/// Where a comment of the contract speaks to callers of gRPC.
const IN_OTHER_WORDS: [(&str, &str); 9] = [
    ("UpdateProductRequest", "What changes; a field that is absent stays as it is."),
    ("UpdateCategoryRequest", "What changes; a field that is absent stays as it is."),
    (
        "ProductChange",
        "One row of a batch: the product, either by `id` or by `sku`, and what changes. The rules of the \
         fields are those of a single change; a row that breaks one fails, and says so in the answer.",
    ),
    (
        "CreateOrderRequest.items",
        "At most 100 different products; lines with the same product are one line. Absent or null: the cart.",
    ),
    (
        "CreateOrderRequest.expected_total",
        "Minor units, at least 0. Refused with `price_changed` where the order would cost something else.",
    ),
    ("ProductChangeResult.id", "Null where the row names no product that exists."),
    ("Category.parent_id", "Null in a root."),
    ("Order.shipment", "Null until it is shipped."),
    ("OrderHistoryEvent.previous_status", "Null in the first event."),
];

/// A role of tokens, not of people.
const NO_WORD_OF_REST: &str = "service";

const TIMESTAMP: &str = "google.protobuf.Timestamp";
const STRUCT: &str = "google.protobuf.Struct";
pub const EMPTY: &str = "google.protobuf.Empty";

/// The name under which a message stands in the document.
pub fn short(message: &str) -> &str {
    message.rsplit('.').next().unwrap_or(message)
}

/// The same for a body: what is sent may lack what an answer always has, so that both are schemas of their
/// own.
fn body_name(message: &str) -> String {
    let name = short(message);
    if name.ends_with("Request") { name.to_owned() } else { format!("{name}Input") }
}

pub fn reference(name: &str) -> Object {
    object! { "$ref": format!("#/components/schemas/{name}") }
}

/// Whether a client sends this field, in the query or in the body, or is told it.
pub fn for_clients(message: &str, field: &str) -> bool {
    !NOT_FOR_CLIENTS.contains(&format!("{}.{field}", short(message)).as_str())
}

/// The schemas of the document, made as they are asked for.
#[derive(Debug)]
pub struct Schemas<'a> {
    contract: &'a Contract,
    made: Vec<(String, Object)>,
    begun: BTreeSet<String>,
}

impl<'a> Schemas<'a> {
    pub fn new(contract: &'a Contract) -> Self {
        Self { contract, made: Vec::new(), begun: BTreeSet::new() }
    }

    /// All that were asked for, and the problem, by name.
    pub fn finish(mut self) -> Object {
        self.answer("shoppee.product.v1.RefusedLine");
        self.made.sort_by(|a, b| a.0.cmp(&b.0));
        self.add("Problem", problem());
        self.add("ProblemCode", problem_code());
        self.add("FieldError", field_error());
        self.made.into_iter().collect()
    }

    pub fn message(&self, name: &str) -> Option<&'a Message> {
        self.contract.messages.get(name)
    }

    /// A reference to the schema of an answer.
    pub fn answer(&mut self, message: &str) -> Object {
        self.make(message, short(message), Self::answer_field, false)
    }

    /// A reference to the schema of a body. `taken` fields stand in the path.
    pub fn body(&mut self, message: &str, taken: &[&str]) -> Object {
        let name = body_name(message);
        let reference = self.make(message, &name, Self::body_field, true);
        // A body and its path are of one route: what the path names is not sent again.
        if let Some((_, schema)) = self.made.iter_mut().find(|(made, _)| *made == name) {
            schema.entry("properties").retain(|field| !taken.contains(&field));
            schema.retain_in_list("required", |field| !taken.contains(&field));
        }
        reference
    }

    fn make(
        &mut self,
        message: &str,
        name: &str,
        field_schema: fn(&mut Self, &str, &Field) -> (Object, bool),
        closed: bool,
    ) -> Object {
        if self.begun.insert(name.to_owned())
            && let Some(found) = self.contract.messages.get(message)
        {
            let (mut properties, mut required) = (Object::default(), Vec::new());
            for field in found.fields.iter().filter(|field| for_clients(message, &field.name)) {
                let (mut schema, must) = field_schema(self, short(message), field);
                if let Some(about) =
                    about(&format!("{}.{}", short(message), field.name), field.about.as_ref())
                {
                    schema.set("description", about);
                }
                properties.set(field.name.clone(), schema);
                if must {
                    required.push(field.name.clone());
                }
            }
            let mut schema = object! { "type": "object" }
                .with_some("description", about(short(message), found.about.as_ref()))
                .with("properties", properties);
            if !required.is_empty() {
                schema.set("required", list(required));
            }
            if closed {
                schema.set("additionalProperties", false);
            }
            self.made.push((name.to_owned(), schema));
        }
        reference(name)
    }

    /// The schema of a field of an answer, and whether it is always there.
    fn answer_field(&mut self, message: &str, field: &Field) -> (Object, bool) {
        let name = format!("{message}.{}", field.name);
        let schema = self.value(message, field, Self::answer);
        let omitted = OMITTED_WHERE_ABSENT.contains(&name.as_str());
        let null = !omitted && (field.optional || NULL_WHERE_ABSENT.contains(&name.as_str()));
        (if null { or_null(schema) } else { schema }, !omitted)
    }

    /// The schema of a field of a body, and whether it must be there.
    fn body_field(&mut self, message: &str, field: &Field) -> (Object, bool) {
        let name = format!("{message}.{}", field.name);
        let patch = PATCHES.contains(&message);
        let is_message = matches!(field.kind, Kind::Message(_)) && !field.repeated;
        let may_be_absent = patch
            || MAY_BE_ABSENT.contains(&name.as_str())
            || (field.optional || is_message) && !REQUIRED.contains(&name.as_str());
        let null = if patch { CLEARED_BY_NULL.contains(&field.name.as_str()) } else { may_be_absent };
        let schema = self.value(message, field, |schemas, inner| schemas.body(inner, &[]));
        (if null { or_null(schema) } else { schema }, !may_be_absent)
    }

    /// The schema of a query parameter or of an id in the path.
    pub fn parameter(&mut self, message: &str, field: &Field) -> Object {
        self.value(short(message), field, Self::answer)
    }

    /// Returns a reference to the schema of an enumeration.
    pub fn enumeration(&mut self, name: &str) -> Object {
        let known = short(name);
        if self.begun.insert(known.to_owned()) {
            let words = self.contract.words.get(name).into_iter().flatten();
            let words = words.filter(|word| *word != NO_WORD_OF_REST).cloned();
            self.add(known, object! { "type": "string", "enum": list(words) });
        }
        reference(known)
    }

    /// Adds a schema that is not made from a message.
    pub fn add(&mut self, name: &str, schema: Object) {
        self.made.push((name.to_owned(), schema));
    }

    /// What a field holds where it holds something.
    fn value(&mut self, message: &str, field: &Field, inner: impl Fn(&mut Self, &str) -> Object) -> Object {
        let bounds = rules::of(message, &field.name);
        let mut schema = match &field.kind {
            Kind::Text => object! { "type": "string" },
            Kind::Integer { bits } => object! { "type": "integer", "format": format!("int{bits}") },
            Kind::Bool => object! { "type": "boolean" },
            Kind::Word(name) => self.enumeration(name),
            Kind::Message(name) if name == TIMESTAMP => object! { "type": "string", "format": "date-time" },
            Kind::Message(name) if name == STRUCT => {
                object! { "type": "object", "additionalProperties": true }
            }
            Kind::Message(name) => inner(self, name),
        };
        if field.repeated {
            schema = object! { "type": "array", "items": schema };
        }
        rules::write(&mut schema, bounds);
        schema
    }
}

/// What is said of a message or a field.
fn about(name: &str, comment: Option<&String>) -> Option<String> {
    let other = IN_OTHER_WORDS.iter().find(|(known, _)| *known == name).map(|(_, words)| (*words).to_owned());
    other.or_else(|| comment.cloned())
}

/// The same or null.
fn or_null(mut schema: Object) -> Object {
    match schema.get("type") {
        Some(Json::Text(kind)) => {
            let kinds = list([Json::Text(kind.clone()), "null".into()]);
            schema.set("type", kinds);
            schema
        }
        _ => object! { "anyOf": list([schema, object! { "type": "null" }]) },
    }
}

/// RFC 9457, with our members.
fn problem() -> Object {
    object! {
        "type": "object",
        "description": "What went wrong (RFC 9457), as `application/problem+json`.",
        "properties": object! {
            "type": object! {
                "type": "string", "format": "uri-reference",
                "description": "The page with cause and remedy, a path on this host."
            },
            "title": object! { "type": "string", "description": "The code in words; always the same." },
            "status": object! {
                "type": "integer", "format": "int32", "description": "The HTTP status, once more."
            },
            "detail": object! { "type": "string", "description": "What it was this time, for people." },
            "code": reference("ProblemCode").with("description", "What a program goes by."),
            "request_id": object! {
                "type": "string", "description": "The same as in `x-request-id`; name it when you ask us."
            },
            "errors": object! {
                "type": "array",
                "description": "Field by field; with `invalid_request` and `validation_failed`, and with \
                                some others.",
                "items": reference("FieldError"),
            },
            "lines": object! {
                "type": "array",
                "description": "The lines of an order that a refusal is about; with `out_of_stock`, \
                                `product_unavailable` and `price_changed`.",
                "items": reference("RefusedLine"),
            },
            "current_total": object! {
                "type": "integer", "format": "int64",
                "description": "With `price_changed`: what the order costs now, in minor units.",
            },
            "current_status": object! {
                "type": "string", "description": "With `invalid_transition`: the present status of the order.",
            },
            "allowed": object! {
                "type": "array",
                "description": "With `invalid_transition`: the steps that the caller can take now.",
                "items": object! { "type": "string" },
            },
            "decline_code": object! {
                "type": "string", "description": "With `payment_declined`: why, in the provider's word.",
            },
            "limit": object! {
                "type": "string",
                "description": "With `rate_limited` and `too_many_attempts`: which limit was reached. A policy \
                                of `RateLimit-Policy`, or `account` or `bodies`.",
            },
        },
        "required": list(["type", "title", "status", "detail", "code", "request_id"]),
    }
}

fn problem_code() -> Object {
    object! { "type": "string", "enum": list(Code::ALL.iter().map(|code| code.as_str())) }
}

fn field_error() -> Object {
    object! {
        "type": "object",
        "description": "What is wrong with one field.",
        "properties": object! {
            "field": object! {
                "type": "string",
                "description": "Its path in the body, as in `items[0].quantity`, or the name of the \
                                parameter or header.",
            },
            "message": object! { "type": "string" },
        },
        "required": list(["field", "message"]),
    }
}
