//! The validation rules of the services, for the document: one line per field. The services enforce them;
//! `scripts/check-api` compares both.

use super::json::{Object, list, object};

/// A constraint of JSON Schema on a value.
#[derive(Clone, Copy, Debug)]
pub enum Constraint {
    /// Minimum and maximum number of characters.
    Length(i64, i64),
    Pattern(&'static str),
    /// Minimum and maximum, inclusive.
    Range(i64, i64),
    AtLeast(i64),
    /// Minimum and maximum number of list items.
    ItemCount(i64, i64),
    /// A format of JSON Schema.
    Format(&'static str),
    Not(i64),
    /// The value of an absent field.
    Default(Value),
    /// The only value.
    Const(&'static str),
    /// Example values.
    Examples(&'static [&'static str]),
}

#[derive(Clone, Copy, Debug)]
pub enum Value {
    Integer(i64),
    Text(&'static str),
}

use Constraint::{AtLeast, Const, Default, Examples, Format, ItemCount, Length, Not, Pattern, Range};

/// One line that is not blank. Control characters are rejected too, but no pattern expresses that in all regex engines.
const fn line(max_len: i64) -> [Constraint; 2] {
    [Length(1, max_len), Pattern(r"\S")]
}

const NEW: &str = "CreateProductRequest";
const PATCH: &str = "UpdateProductRequest";
/// Its fields have the same rules, but a violation fails the row, not the request.
const ROW: &str = "ProductChange";
const PRICE: &[Constraint] = &[Range(0, 1_000_000_000_000)];
const STOCK: &[Constraint] = &[Range(0, 1_000_000_000)];
const MONEY: &[Constraint] = &[AtLeast(0)];
const ID: &[Constraint] = &[AtLeast(1)];
const UUID: &[Constraint] = &[Format("uuid")];
const IMAGE: &[Constraint] = &[Length(1, 2048), Format("uri"), Pattern("^https?://")];
/// Messages whose `id` is an order's.
const ORDER_MESSAGES: &[&str] = &[
    "Order",
    "GetOrderRequest",
    "ListOrderEventsRequest",
    "PayOrderRequest",
    "CancelOrderRequest",
    "ShipOrderRequest",
    "CompleteOrderRequest",
];
/// Messages whose `id` is a service account's.
const SERVICE_ACCOUNT_MESSAGES: &[&str] = &[
    "ServiceAccount",
    "GetServiceAccountRequest",
    "RotateServiceAccountRequest",
    "RevokeServiceAccountRequest",
];
/// A kind and an id.
const AUDIT_KEY: &[Constraint] = &[Length(3, 140), Pattern("^[a-z_]+:[!-~]+$")];
const CURRENCY: &[Constraint] = &[Pattern("^[A-Z]{3}$")];
const SLUG: &[Constraint] = &[Length(1, 64), Pattern("^[a-z0-9-]+$")];

/// Messages (none means all), a field, its constraints. The first matching line applies.
#[rustfmt::skip]
const CONSTRAINTS: &[(&[&str], &str, &[Constraint])] = &[
    (&["RegisterRequest"],             "username",         &[Length(3, 32), Pattern("^[A-Za-z0-9_.-]+$")]),
    (&["RegisterRequest"],             "email",            &[Length(3, 254), Format("email")]),
    (&["RegisterRequest"],             "password",         &[Length(8, 256), Format("password")]),
    (&["LoginRequest"],                "username",         &line(254)),
    (&["LoginRequest"],                "password",         &[Length(1, 256), Format("password")]),
    (&["RefreshRequest"],              "refresh_token",    &[Format("password")]),
    (&["ChangePasswordRequest"],       "current_password", &[Length(1, 256), Format("password")]),
    (&["ChangePasswordRequest"],       "new_password",     &[Length(8, 256), Format("password")]),
    (SERVICE_ACCOUNT_MESSAGES,         "id",               UUID),
    (&["CreateServiceAccountRequest"], "name",             &[Length(1, 64), Pattern("^[A-Za-z0-9_.-]+$")]),
    (&["CreateServiceAccountRequest"], "scopes",           &[ItemCount(1, 8)]),
    (&["CreateServiceAccountRequest"], "expires_in",       &[Range(60, 316_224_000)]),
    (&["ListUsersRequest"],            "q",                &[Length(1, 254)]),
    (&["ListAuditRecordsRequest"],     "actor",            AUDIT_KEY),
    (&["ListAuditRecordsRequest"],     "target",           AUDIT_KEY),
    (&["ListAuditRecordsRequest"],     "action",           &[Length(1, 140), Pattern("^[a-z_.]+$")]),
    (&["AuditRecord"],                 "id",               UUID),
    (&["AuditActor", "AuditTarget"],   "id",               &[]),
    (&["Session", "RevokeSessionRequest"],   "id",               UUID),
    (&["User"],                        "email",            &[Format("email")]),
    (&["Tokens"],                      "token_type",       &[Const("Bearer")]),

    (&[NEW, PATCH],                    "sku",              &[Length(1, 64), Pattern("^[A-Za-z0-9_.-]+$")]),
    (&[NEW, PATCH],                    "name",             &line(200)),
    (&[NEW, PATCH],                    "description",      &[Length(0, 10_000)]),
    (&[NEW, PATCH],                    "image_url",        IMAGE),
    (&[NEW, PATCH, "Product"],         "price",            PRICE),
    (&[NEW, PATCH, "Product"],         "stock",            STOCK),
    (&["AdjustStockRequest"],          "delta",            &[Range(-1_000_000_000, 1_000_000_000), Not(0)]),
    (&["AdjustStockRequest"],          "reason",           &line(500)),
    (&["BatchUpdateProductsRequest"],  "items",            &[ItemCount(0, 10_000)]),
    (&["CreateCategoryRequest", "UpdateCategoryRequest"], "slug", SLUG),
    (&["CreateCategoryRequest", "UpdateCategoryRequest"], "name", &line(100)),
    (&["SearchProductsRequest"],       "q",                &[Length(1, 200)]),
    (&[],                              "min_price",        MONEY),
    (&[],                              "max_price",        MONEY),
    (&["ListProductsRequest"],         "sort",             &[Default(Value::Text("newest"))]),
    (&["SearchProductsRequest"],       "sort",             &[Default(Value::Text("relevance"))]),

    (&["AddCartItemRequest", "OrderLine"],   "quantity",         &[Range(1, 1000)]),
    (&["SetCartItemRequest"],          "quantity",         &[Range(0, 1000)]),
    (&["CreateOrderRequest"],          "items",            &[ItemCount(1, i64::MAX)]),
    (&["CreateOrderRequest"],          "expected_total",   MONEY),
    (&["PayOrderRequest"],             "payment_token",    &[Examples(&["tok_ok", "tok_declined", "tok_insufficient_funds"])]),
    (&["CancelOrderRequest"],          "reason",           &line(500)),
    (&["ShipOrderRequest"],            "carrier",          &line(100)),
    (&["ShipOrderRequest"],            "tracking_number",  &line(100)),
    (&["Address"],                     "recipient",        &line(200)),
    (&["Address"],                     "line1",            &line(200)),
    (&["Address"],                     "line2",            &line(200)),
    (&["Address"],                     "city",             &line(200)),
    (&["Address"],                     "region",           &line(200)),
    (&["Address"],                     "postal_code",      &line(20)),
    (&["Address"],                     "phone",            &line(40)),
    (&["Address"],                     "country",          &[Pattern("^[A-Z]{2}$")]),
    (ORDER_MESSAGES,                   "id",               UUID),

    (&[],                              "limit",            &[Range(1, 100), Default(Value::Integer(20))]),
    (&[],                              "cursor",           &[Length(1, 2048), Pattern("^[A-Za-z0-9_-]+$")]),
    (&[],                              "id",               ID),
    (&[],                              "product_id",       ID),
    (&[],                              "category_id",      ID),
    (&[],                              "parent_id",        ID),
    (&[],                              "user_id",          ID),
    (&[],                              "version",          ID),
    (&[],                              "seq",              ID),
    (&[],                              "index",            MONEY),
    (&[],                              "updated",          MONEY),
    (&[],                              "failed",           MONEY),
    (&[],                              "unit_price",       MONEY),
    (&[],                              "line_total",       MONEY),
    (&[],                              "total",            MONEY),
    (&[],                              "currency",         CURRENCY),
    (&[],                              "expires_in",       MONEY),
    (&[],                              "refresh_expires_in", MONEY),
];

/// Returns the constraints of a field.
pub fn for_field(message: &str, field: &str) -> &'static [Constraint] {
    if message == ROW {
        return &[];
    }
    let matches = |(messages, name, _): &&(&[&str], &str, &[Constraint])| {
        *name == field && (messages.is_empty() || messages.contains(&message))
    };
    CONSTRAINTS.iter().find(matches).map_or(&[], |(_, _, constraints)| constraints)
}

/// Adds constraints to a schema.
pub fn apply(schema: &mut Object, constraints: &[Constraint]) {
    for constraint in constraints {
        match *constraint {
            Length(min, max) => {
                if min > 0 {
                    schema.set("minLength", min);
                }
                schema.set("maxLength", max);
            }
            Pattern(pattern) => schema.set("pattern", pattern),
            Range(min, max) => {
                schema.set("minimum", min);
                schema.set("maximum", max);
            }
            AtLeast(min) => schema.set("minimum", min),
            ItemCount(min, max) => {
                if min > 0 {
                    schema.set("minItems", min);
                }
                if max < i64::MAX {
                    schema.set("maxItems", max);
                }
            }
            Format(format) => schema.set("format", format),
            Not(value) => schema.set("not", object! { "const": value }),
            Default(Value::Integer(value)) => schema.set("default", value),
            Default(Value::Text(value)) => schema.set("default", value),
            Const(value) => schema.set("const", value),
            Examples(values) => schema.set("examples", list(values.iter().copied())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openapi::{descriptors::ApiDescriptors, json::Json};

    #[test]
    fn every_line_names_an_existing_field() {
        let api = ApiDescriptors::read().unwrap();
        let exists = |message: &str, field: &str| {
            api.messages.iter().any(|(name, descriptor)| {
                (message.is_empty() || name.rsplit('.').next() == Some(message))
                    && descriptor.fields.iter().any(|candidate| candidate.name == field)
            })
        };
        for (messages, field, _) in CONSTRAINTS {
            let all: &[&str] = if messages.is_empty() { &[""] } else { messages };
            for message in all {
                assert!(exists(message, field), "{message}.{field}");
            }
        }
    }

    #[test]
    fn the_line_of_a_message_precedes_the_line_of_all_messages() {
        let mut schema = Object::default();
        apply(&mut schema, for_field("Order", "id"));
        assert_eq!(schema.get("format"), Some(&Json::from("uuid")));
        assert!(for_field("Product", "id").iter().any(|constraint| matches!(constraint, AtLeast(1))));
    }
}
