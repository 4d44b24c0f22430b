//! Builds schemas from messages, in the JSON form that `proto/build.rs` and the gateway's own bodies give them.

use std::collections::BTreeSet;

use super::{
    constraints,
    descriptors::{ApiDescriptors, Field, Kind, Message},
    json::{Json, Object, list, object},
};
use crate::error::Code;

/// Request fields that come from a header or from the gateway itself, and response fields for the gateway.
const HIDDEN_FIELDS: &[&str] = &[
    "RegisterRequest.idempotency_key",
    "LoginRequest.user_agent",
    "LoginRequest.device_token",
    "Tokens.device_token",
    "CreateServiceAccountRequest.idempotency_key",
    "RotateServiceAccountRequest.idempotency_key",
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

/// Bodies in which an absent field stays unchanged; the fields of [`NULLABLE_IN_PATCH`] may be null.
const PATCHES: [&str; 3] = ["UpdateProductRequest", "UpdateCategoryRequest", "ProductChange"];
const NULLABLE_IN_PATCH: [&str; 5] = ["description", "category_id", "image_url", "attributes", "parent_id"];

/// Exceptions from the `optional` of the protobuf fields.
const REQUIRED: [&str; 1] = ["CreateOrderRequest.shipping_address"];
const OPTIONAL: [&str; 1] = ["CreateOrderRequest.items"];

/// Messages and times of responses that may be null; `optional` fields may be too, unless they are omitted.
const NULLABLE: [&str; 10] = [
    "AuditRecord.before",
    "AuditRecord.after",
    "ServiceAccount.expires_at",
    "ServiceAccount.last_used_at",
    "ServiceAccount.previous_secret_expires_at",
    "ServiceAccount.revoked_at",
    "Product.category",
    "Order.shipment",
    "Payment.paid_at",
    "Payment.refunded_at",
];
const OMITTED: [&str; 11] = [
    "User.disabled",
    "ServiceAccount.client_secret",
    "SearchProductsResponse.facets",
    "ProductChangeResult.version",
    "ProductChangeResult.error",
    "RowError.field",
    "RowError.available",
    "RowError.current_version",
    "OrderHistoryEvent.reason",
    "RefusedLine.unit_price",
    "RefusedLine.held_by_your_order",
];

/// Descriptions in place of protobuf comments that address gRPC callers.
const DESCRIPTION_OVERRIDES: [(&str, &str); 12] = [
    (
        "AuditRecord.before",
        "The fields that changed, before the act; null if the target did not exist. A large value is cut.",
    ),
    (
        "AuditRecord.after",
        "The same fields after the act, with its reason if it has one; null if the target was deleted.",
    ),
    ("AuditRecord.request_id", "The `x-request-id` of the request; null for an act of the shop itself."),
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

/// An enumeration and its value that is no part of the REST API: a role of tokens, not of users.
const HIDDEN_ENUM_VALUE: (&str, &str) = ("Role", "service");

const TIMESTAMP: &str = "google.protobuf.Timestamp";
const STRUCT: &str = "google.protobuf.Struct";
pub const EMPTY: &str = "google.protobuf.Empty";

/// Returns the name of a message in the document.
pub fn short_name(message: &str) -> &str {
    message.rsplit('.').next().unwrap_or(message)
}

/// Returns the name of a request body. Requests may omit fields that responses always have, so both are schemas.
fn body_name(message: &str) -> String {
    let name = short_name(message);
    if name.ends_with("Request") { name.to_owned() } else { format!("{name}Input") }
}

pub fn reference(name: &str) -> Object {
    object! { "$ref": format!("#/components/schemas/{name}") }
}

/// Reports whether a field is part of the REST API.
pub fn is_public(message: &str, field: &str) -> bool {
    !HIDDEN_FIELDS.contains(&format!("{}.{field}", short_name(message)).as_str())
}

/// The schemas of the document, built on demand.
#[derive(Debug)]
pub struct Schemas<'a> {
    api: &'a ApiDescriptors,
    built: Vec<(String, Object)>,
    visited: BTreeSet<String>,
}

impl<'a> Schemas<'a> {
    pub fn new(api: &'a ApiDescriptors) -> Self {
        Self { api, built: Vec::new(), visited: BTreeSet::new() }
    }

    /// Returns the built schemas and those of problems, by name.
    pub fn finish(mut self) -> Object {
        self.response("shoppee.product.v1.RefusedLine");
        self.built.sort_by(|a, b| a.0.cmp(&b.0));
        self.add("Problem", problem());
        self.add("ProblemCode", problem_code());
        self.add("FieldError", field_error());
        self.built.into_iter().collect()
    }

    pub fn message(&self, name: &str) -> Option<&'a Message> {
        self.api.messages.get(name)
    }

    /// Returns a reference to the schema of a response.
    pub fn response(&mut self, message: &str) -> Object {
        self.build(message, short_name(message), Self::response_field, false)
    }

    /// Returns a reference to the schema of a request body, without the fields in the path.
    pub fn request_body(&mut self, message: &str, path_params: &[&str]) -> Object {
        let name = body_name(message);
        let reference = self.build(message, &name, Self::body_field, true);
        // The body of a route does not repeat the fields of its path.
        if let Some((_, schema)) = self.built.iter_mut().find(|(other, _)| *other == name) {
            schema.entry("properties").retain(|field| !path_params.contains(&field));
            schema.retain_in_list("required", |field| !path_params.contains(&field));
        }
        reference
    }

    fn build(
        &mut self,
        message: &str,
        name: &str,
        field_schema: fn(&mut Self, &str, &Field) -> (Object, bool),
        closed: bool,
    ) -> Object {
        if self.visited.insert(name.to_owned())
            && let Some(descriptor) = self.api.messages.get(message)
        {
            let (mut properties, mut required) = (Object::default(), Vec::new());
            for field in descriptor.fields.iter().filter(|field| is_public(message, &field.name)) {
                let (mut schema, is_required) = field_schema(self, short_name(message), field);
                if let Some(description) = description(
                    &format!("{}.{}", short_name(message), field.name),
                    field.description.as_ref(),
                ) {
                    schema.set("description", description);
                }
                properties.set(field.name.clone(), schema);
                if is_required {
                    required.push(field.name.clone());
                }
            }
            let mut schema = object! { "type": "object" }
                .with_some("description", description(short_name(message), descriptor.description.as_ref()))
                .with("properties", properties);
            if !required.is_empty() {
                schema.set("required", list(required));
            }
            if closed {
                schema.set("additionalProperties", false);
            }
            self.built.push((name.to_owned(), schema));
        }
        reference(name)
    }

    /// Returns the schema of a response field, and whether it is always present.
    fn response_field(&mut self, message: &str, field: &Field) -> (Object, bool) {
        let name = format!("{message}.{}", field.name);
        let schema = self.value(message, field, Self::response);
        let is_omitted = OMITTED.contains(&name.as_str());
        let is_nullable = !is_omitted && (field.optional || NULLABLE.contains(&name.as_str()));
        (if is_nullable { or_null(schema) } else { schema }, !is_omitted)
    }

    /// Returns the schema of a request field, and whether it is required.
    fn body_field(&mut self, message: &str, field: &Field) -> (Object, bool) {
        let name = format!("{message}.{}", field.name);
        let is_patch = PATCHES.contains(&message);
        let is_optional = is_patch
            || OPTIONAL.contains(&name.as_str())
            || field.may_be_absent() && !REQUIRED.contains(&name.as_str());
        let is_nullable =
            if is_patch { NULLABLE_IN_PATCH.contains(&field.name.as_str()) } else { is_optional };
        let schema = self.value(message, field, |schemas, inner| schemas.request_body(inner, &[]));
        (if is_nullable { or_null(schema) } else { schema }, !is_optional)
    }

    /// Returns the schema of a query parameter or of an id in the path.
    pub fn parameter(&mut self, message: &str, field: &Field) -> Object {
        self.value(short_name(message), field, Self::response)
    }

    /// Returns a reference to the schema of an enumeration.
    pub fn enumeration(&mut self, name: &str) -> Object {
        let schema_name = short_name(name);
        if self.visited.insert(schema_name.to_owned()) {
            let values = self.api.enums.get(name).into_iter().flatten();
            let values = values.filter(|value| (schema_name, value.as_str()) != HIDDEN_ENUM_VALUE).cloned();
            self.add(schema_name, object! { "type": "string", "enum": list(values) });
        }
        reference(schema_name)
    }

    /// Adds a schema that has no message.
    pub fn add(&mut self, name: &str, schema: Object) {
        self.built.push((name.to_owned(), schema));
    }

    /// Returns the schema of a field's value other than null.
    fn value(&mut self, message: &str, field: &Field, inner: impl Fn(&mut Self, &str) -> Object) -> Object {
        let constraints = constraints::for_field(message, &field.name);
        let mut schema = match &field.kind {
            Kind::String => object! { "type": "string" },
            Kind::Integer { bits } => object! { "type": "integer", "format": format!("int{bits}") },
            Kind::Double => object! { "type": "number", "format": "double" },
            Kind::Bool => object! { "type": "boolean" },
            Kind::Enum(name) => self.enumeration(name),
            Kind::Message(name) if name == TIMESTAMP => object! { "type": "string", "format": "date-time" },
            Kind::Message(name) if name == STRUCT => {
                object! { "type": "object", "additionalProperties": true }
            }
            Kind::Message(name) => inner(self, name),
        };
        if field.repeated {
            schema = object! { "type": "array", "items": schema };
        }
        constraints::apply(&mut schema, constraints);
        schema
    }
}

/// Returns the description of a message or a field.
fn description(name: &str, comment: Option<&String>) -> Option<String> {
    let overridden = DESCRIPTION_OVERRIDES.iter().find(|(key, _)| *key == name);
    overridden.map(|(_, text)| (*text).to_owned()).or_else(|| comment.cloned())
}

/// Makes a schema nullable.
pub fn or_null(mut schema: Object) -> Object {
    match schema.get("type") {
        Some(Json::Text(kind)) => {
            let kinds = list([Json::Text(kind.clone()), "null".into()]);
            schema.set("type", kinds);
            schema
        }
        _ => object! { "anyOf": list([schema, object! { "type": "null" }]) },
    }
}

/// A problem (RFC 9457) with the gateway's members.
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
                                of `RateLimit-Policy`, or `account`, `client`, `bodies` or `connections`.",
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
