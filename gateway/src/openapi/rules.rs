//! The rules that the services hold fields to, for the document: one line a field. The services stay the
//! judges; that both say the same is what `scripts/check-api` tries out.

use super::json::{Object, list, object};

/// What a value must be, beside its type.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// Characters, from and to.
    Length(i64, i64),
    Pattern(&'static str),
    /// From and to, inclusive.
    Range(i64, i64),
    AtLeast(i64),
    /// Entries of a list, from and to.
    Items(i64, i64),
    /// A format of JSON Schema.
    Format(&'static str),
    Not(i64),
    /// What it is where it is absent.
    Default(Value),
    /// The only value.
    Const(&'static str),
    /// Some of the values.
    Examples(&'static [&'static str]),
}

#[derive(Clone, Copy, Debug)]
pub enum Value {
    Integer(i64),
    Word(&'static str),
}

use Bound::{AtLeast, Const, Default, Examples, Format, Items, Length, Not, Pattern, Range};

/// One line that says something. Control characters are refused too, which no pattern says that all engines
/// know.
const fn line(longest: i64) -> [Bound; 2] {
    [Length(1, longest), Pattern(r"\S")]
}

const NEW: &str = "CreateProductRequest";
const PATCH: &str = "UpdateProductRequest";
/// Its fields have the same rules, but one that is broken fails the row, not the request.
const ROW: &str = "ProductChange";
const PRICE: &[Bound] = &[Range(0, 1_000_000_000_000)];
const STOCK: &[Bound] = &[Range(0, 1_000_000_000)];
const MONEY: &[Bound] = &[AtLeast(0)];
const ID: &[Bound] = &[AtLeast(1)];
const UUID: &[Bound] = &[Format("uuid")];
const IMAGE: &[Bound] = &[Length(1, 2048), Format("uri"), Pattern("^https?://")];
/// Messages whose `id` is an order's.
const OF_AN_ORDER: &[&str] = &[
    "Order",
    "GetOrderRequest",
    "ListOrderEventsRequest",
    "PayOrderRequest",
    "CancelOrderRequest",
    "ShipOrderRequest",
    "CompleteOrderRequest",
];
const CURRENCY: &[Bound] = &[Pattern("^[A-Z]{3}$")];
const SLUG: &[Bound] = &[Length(1, 64), Pattern("^[a-z0-9-]+$")];

/// Messages, a field of theirs (all that have it, where no message is named), its bounds. The first line that
/// fits holds.
#[rustfmt::skip]
const RULES: &[(&[&str], &str, &[Bound])] = &[
    (&["RegisterRequest"],             "username",         &[Length(3, 32), Pattern("^[A-Za-z0-9_.-]+$")]),
    (&["RegisterRequest"],             "email",            &[Length(3, 254), Format("email")]),
    (&["RegisterRequest"],             "password",         &[Length(8, 256), Format("password")]),
    (&["LoginRequest"],                "username",         &line(254)),
    (&["LoginRequest"],                "password",         &[Length(1, 256), Format("password")]),
    (&["RefreshRequest"],              "refresh_token",    &[Format("password")]),
    (&["ChangePasswordRequest"],       "current_password", &[Length(1, 256), Format("password")]),
    (&["ChangePasswordRequest"],       "new_password",     &[Length(8, 256), Format("password")]),
    (&["ListUsersRequest"],            "q",                &[Length(1, 254)]),
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
    (&["BatchUpdateProductsRequest"],  "items",            &[Items(0, 10_000)]),
    (&["CreateCategoryRequest", "UpdateCategoryRequest"], "slug", SLUG),
    (&["CreateCategoryRequest", "UpdateCategoryRequest"], "name", &line(100)),
    (&["SearchProductsRequest"],       "q",                &[Length(1, 200)]),
    (&[],                              "min_price",        MONEY),
    (&[],                              "max_price",        MONEY),
    (&["ListProductsRequest"],         "sort",             &[Default(Value::Word("newest"))]),
    (&["SearchProductsRequest"],       "sort",             &[Default(Value::Word("relevance"))]),

    (&["AddCartItemRequest", "OrderLine"],   "quantity",         &[Range(1, 1000)]),
    (&["SetCartItemRequest"],          "quantity",         &[Range(0, 1000)]),
    (&["CreateOrderRequest"],          "items",            &[Items(1, i64::MAX)]),
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
    (OF_AN_ORDER,                      "id",               UUID),

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

/// The bounds of a field.
pub fn of(message: &str, field: &str) -> &'static [Bound] {
    if message == ROW {
        return &[];
    }
    let fits = |(messages, name, _): &&(&[&str], &str, &[Bound])| {
        *name == field && (messages.is_empty() || messages.contains(&message))
    };
    RULES.iter().find(fits).map_or(&[], |(_, _, bounds)| bounds)
}

/// Writes bounds into a schema.
pub fn write(schema: &mut Object, bounds: &[Bound]) {
    for bound in bounds {
        match *bound {
            Length(least, most) => {
                if least > 0 {
                    schema.set("minLength", least);
                }
                schema.set("maxLength", most);
            }
            Pattern(pattern) => schema.set("pattern", pattern),
            Range(least, most) => {
                schema.set("minimum", least);
                schema.set("maximum", most);
            }
            AtLeast(least) => schema.set("minimum", least),
            Items(least, most) => {
                if least > 0 {
                    schema.set("minItems", least);
                }
                if most < i64::MAX {
                    schema.set("maxItems", most);
                }
            }
            Format(format) => schema.set("format", format),
            Not(value) => schema.set("not", object! { "const": value }),
            Default(Value::Integer(value)) => schema.set("default", value),
            Default(Value::Word(value)) => schema.set("default", value),
            Const(value) => schema.set("const", value),
            Examples(values) => schema.set("examples", list(values.iter().copied())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openapi::{contract::Contract, json::Json};

    #[test]
    fn every_line_is_about_a_field_that_exists() {
        let contract = Contract::read().unwrap();
        let named = |message: &str, field: &str| {
            contract.messages.iter().any(|(name, found)| {
                (message.is_empty() || name.rsplit('.').next() == Some(message))
                    && found.fields.iter().any(|known| known.name == field)
            })
        };
        for (messages, field, _) in RULES {
            let all: &[&str] = if messages.is_empty() { &[""] } else { messages };
            for message in all {
                assert!(named(message, field), "{message}.{field}");
            }
        }
    }

    #[test]
    fn the_line_of_the_message_comes_before_that_of_all() {
        let mut schema = Object::default();
        write(&mut schema, of("Order", "id"));
        assert_eq!(schema.get("format"), Some(&Json::from("uuid")));
        assert!(of("Product", "id").iter().any(|bound| matches!(bound, AtLeast(1))));
    }
}
