//! The rules of a product's fields. A parsed value is valid by its type; to add a field, add a type here.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;

use crate::validation::{ValidationError, single_line};

/// Free attributes, a JSON object.
pub type Attributes = Map<String, Value>;

/// A product as the catalogue shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Product {
    pub id: i64,
    pub sku: String,
    pub name: String,
    pub description: String,
    pub category: Option<CategoryRef>,
    /// Minor units.
    pub price: i64,
    /// The available quantity.
    pub stock: i64,
    pub status: Status,
    pub image_url: Option<String>,
    pub attributes: Attributes,
    pub version: i64,
    /// Grows with every visible change, including stock movements of orders. Of two states of a product, the
    /// one with the higher revision is newer.
    pub revision: i64,
    #[serde(with = "micros")]
    pub created_at: OffsetDateTime,
    #[serde(with = "micros")]
    pub updated_at: OffsetDateTime,
}

/// Times in microseconds since the Unix epoch, the precision of PostgreSQL.
pub(crate) mod micros {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use time::OffsetDateTime;

    pub fn from_time(at: OffsetDateTime) -> i64 {
        i64::try_from(at.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
    }

    pub fn serialize<S: Serializer>(at: &OffsetDateTime, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_i64(from_time(*at))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<OffsetDateTime, D::Error> {
        let micros = i64::deserialize(from)?;
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).map_err(D::Error::custom)
    }
}

impl Product {
    /// Reports whether the product may be shown. Archived products are shown only if `include_archived` is
    /// set.
    pub fn is_visible(&self, include_archived: bool) -> bool {
        include_archived || self.status == Status::Active
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CategoryRef {
    pub id: i64,
    pub slug: String,
    pub name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    Active,
    /// No longer sold, but referenced by orders.
    Archived,
}

impl Status {
    /// Returns the stored form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Archived => "archived",
        }
    }

    /// Parses the stored form.
    pub fn from_stored(status: &str) -> Self {
        if status == "archived" { Self::Archived } else { Self::Active }
    }
}

/// A SKU, unique and case-sensitive: `tee-1` and `TEE-1` are two products.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sku(String);

impl Sku {
    const MAX_LEN: usize = 64;

    pub fn parse(sku: String) -> Result<Self, ValidationError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if (1..=Self::MAX_LEN).contains(&sku.len()) && sku.bytes().all(allowed) {
            Ok(Self(sku))
        } else {
            Err("must be 1 to 64 of the characters A-Z a-z 0-9 _ . -")
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    const MAX_LEN: usize = 200;

    pub fn parse(name: String) -> Result<Self, ValidationError> {
        single_line(name, Self::MAX_LEN).map(Self).ok_or("must be one line of 1 to 200 characters, not blank")
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description(String);

impl Description {
    const MAX_LEN: usize = 10_000;

    pub fn parse(description: String) -> Result<Self, ValidationError> {
        if description.contains('\0') {
            Err("must not contain NUL")
        } else if description.chars().count() > Self::MAX_LEN {
            Err("must be at most 10000 characters")
        } else {
            Ok(Self(description))
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A price in minor units of the shop's currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price(i64);

impl Price {
    pub const MAX: i64 = 1_000_000_000_000;

    pub fn parse(price: i64) -> Result<Self, ValidationError> {
        if (0..=Self::MAX).contains(&price) { Ok(Self(price)) } else { Err("must be 0 to 10^12") }
    }

    pub const fn get(self) -> i64 {
        self.0
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUrl(String);

impl ImageUrl {
    const MAX_LEN: usize = 2048;

    pub fn parse(url: String) -> Result<Self, ValidationError> {
        let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        let is_valid = url.len() <= Self::MAX_LEN
            && host.is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['/', '?', '#']))
            && !url.contains(|c: char| c.is_control() || c.is_whitespace());
        if is_valid { Ok(Self(url)) } else { Err("must be an http or https URL of at most 2048 bytes") }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The maximum size of attributes. Most reads of a product do not use them. Bytes of JSON.
pub const MAX_ATTRIBUTES_BYTES: usize = 16 * 1024;
/// The maximum nesting of objects and lists, including the attributes themselves. It fits into every message
/// that contains a product.
pub const MAX_ATTRIBUTES_DEPTH: usize = 16;

/// Validates free attributes: at most 16 KiB as JSON, at most 16 levels, and storable by PostgreSQL.
pub fn validate_attributes(attributes: Attributes) -> Result<Attributes, ValidationError> {
    // A JSON object always serialises.
    if serde_json::to_vec(&attributes).unwrap_or_default().len() > MAX_ATTRIBUTES_BYTES {
        return Err("must be at most 16 KiB as JSON");
    }
    if !is_depth_valid(&attributes) {
        return Err("must have at most 16 levels");
    }
    if attributes.iter().any(|(key, value)| key.contains('\0') || contains_nul(value)) {
        return Err("must not contain NUL");
    }
    Ok(attributes)
}

/// Reports whether attributes have at most [`MAX_ATTRIBUTES_DEPTH`] levels.
pub fn is_depth_valid(attributes: &Attributes) -> bool {
    attributes.values().all(|value| is_within_depth(value, MAX_ATTRIBUTES_DEPTH - 1))
}

/// Reports whether a value has at most `levels` levels of objects and lists.
fn is_within_depth(value: &Value, levels: usize) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
        Value::Array(values) => levels > 0 && values.iter().all(|value| is_within_depth(value, levels - 1)),
        Value::Object(fields) => {
            levels > 0 && fields.values().all(|value| is_within_depth(value, levels - 1))
        }
    }
}

fn contains_nul(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(contains_nul),
        Value::Object(fields) => fields.iter().any(|(key, value)| key.contains('\0') || contains_nul(value)),
    }
}

/// A product to be created.
#[derive(Clone, Debug)]
pub struct NewProduct {
    pub sku: Sku,
    pub name: Name,
    pub description: Description,
    pub category_id: Option<i64>,
    pub price: Price,
    pub stock: crate::stock::Stock,
    pub image_url: Option<ImageUrl>,
    pub attributes: Attributes,
}

/// The changes of a product by an admin; `None` leaves a field unchanged.
#[derive(Clone, Debug, Default)]
pub struct ProductChanges {
    pub sku: Option<Sku>,
    pub name: Option<Name>,
    pub description: Option<Description>,
    /// The inner `None` removes the product from its category.
    pub category_id: Option<Option<i64>>,
    pub price: Option<Price>,
    pub stock: Option<crate::stock::Stock>,
    pub image_url: Option<Option<ImageUrl>>,
    pub attributes: Option<Attributes>,
    pub status: Option<Status>,
}

impl ProductChanges {
    /// Applies the changes to the product, except for its stock and its category. Returns whether anything
    /// differs.
    pub fn apply(&self, product: &mut Product) -> bool {
        let Self { sku, name, description, category_id: _, price, stock: _, image_url, attributes, status } =
            self;
        let before = product.clone();
        if let Some(sku) = sku {
            sku.as_str().clone_into(&mut product.sku);
        }
        if let Some(name) = name {
            name.as_str().clone_into(&mut product.name);
        }
        if let Some(description) = description {
            description.as_str().clone_into(&mut product.description);
        }
        if let Some(price) = price {
            product.price = price.get();
        }
        if let Some(image_url) = image_url {
            product.image_url = image_url.as_ref().map(|url| url.as_str().to_owned());
        }
        if let Some(attributes) = attributes {
            product.attributes.clone_from(attributes);
        }
        if let Some(status) = status {
            product.status = *status;
        }
        *product != before
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_sku_with_invalid_characters_or_length_is_refused() {
        for valid in ["a", "TEE-1.red_XL", &"x".repeat(64)] {
            assert!(Sku::parse(valid.to_owned()).is_ok(), "{valid}");
        }
        for invalid in ["", "a b", "ä", "a/b", "a\0", &"x".repeat(65)] {
            assert!(Sku::parse(invalid.to_owned()).is_err(), "{invalid}");
        }
    }

    #[test]
    fn the_length_of_a_name_is_counted_in_characters() {
        assert!(Name::parse("ü".repeat(200)).is_ok());
        for invalid in [String::new(), "  ".to_owned(), "a\nb".to_owned(), "a\0".to_owned(), "ü".repeat(201)]
        {
            assert!(Name::parse(invalid.clone()).is_err(), "{invalid}");
        }
    }

    #[test]
    fn a_price_out_of_bounds_is_refused() {
        for (price, is_valid) in
            [(-1, false), (0, true), (1_000_000_000_000, true), (1_000_000_000_001, false), (i64::MIN, false)]
        {
            assert_eq!(Price::parse(price).is_ok(), is_valid, "{price}");
        }
    }

    #[test]
    fn an_image_url_without_http_or_https_is_refused() {
        for valid in ["https://cdn.example/a.png", "http://x"] {
            assert!(ImageUrl::parse(valid.to_owned()).is_ok(), "{valid}");
        }
        for invalid in ["", "ftp://x", "https://", "https:///x", "javascript:alert(1)", "https://a b", "//x"]
        {
            assert!(ImageUrl::parse(invalid.to_owned()).is_err(), "{invalid}");
        }
    }

    #[test]
    fn attributes_that_are_large_deep_or_not_storable_are_refused() {
        let object = |value: Value| value.as_object().cloned().unwrap();
        assert!(validate_attributes(object(json!({"deep": [{"a": 1}]}))).is_ok());
        assert!(validate_attributes(object(json!({"deep": [{"a\0": 1}]}))).is_err());
        assert!(validate_attributes(object(json!({"deep": [["\0"]]}))).is_err());
        assert!(validate_attributes(object(json!({"a": "x".repeat(16 * 1024)}))).is_err());
        let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!({"a": inner}));
        assert!(validate_attributes(object(nested(MAX_ATTRIBUTES_DEPTH))).is_ok());
        assert!(validate_attributes(object(nested(MAX_ATTRIBUTES_DEPTH + 1))).is_err());
    }
}
