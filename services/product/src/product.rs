//! The rules of a product: what each of its fields may be. A field that has been parsed keeps its rule for
//! ever; to add one, give it a type here.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;

/// Why a value is refused, for whoever sent it.
pub type Fault = &'static str;

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
    /// What can be bought now.
    pub stock: i64,
    pub status: Status,
    pub image_url: Option<String>,
    pub attributes: Attributes,
    pub version: i64,
    /// Grows with everything that is shown differently, orders' moves of stock included: of two states of a product,
    /// the one with the larger number is the newer.
    pub revision: i64,
    #[serde(with = "micros")]
    pub created_at: OffsetDateTime,
    #[serde(with = "micros")]
    pub updated_at: OffsetDateTime,
}

/// Times in microseconds since the Unix epoch, which is what PostgreSQL keeps.
pub(crate) mod micros {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use time::OffsetDateTime;

    pub fn of(at: OffsetDateTime) -> i64 {
        i64::try_from(at.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
    }

    pub fn serialize<S: Serializer>(at: &OffsetDateTime, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_i64(of(*at))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<OffsetDateTime, D::Error> {
        let micros = i64::deserialize(from)?;
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).map_err(D::Error::custom)
    }
}

impl Product {
    /// An archived one only where those may be seen.
    pub fn may_be_seen(&self, archived: bool) -> bool {
        archived || self.status == Status::Active
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
    /// Gone from the shop, kept in orders.
    Archived,
}

impl Status {
    /// As it is stored.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Archived => "archived",
        }
    }

    /// The status of a stored word.
    pub fn of(word: &str) -> Self {
        if word == "archived" { Self::Archived } else { Self::Active }
    }
}

/// Unique as it is written: `tee-1` and `TEE-1` are two products.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sku(String);

impl Sku {
    const LONGEST: usize = 64;

    pub fn parse(sku: String) -> Result<Self, Fault> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if (1..=Self::LONGEST).contains(&sku.len()) && sku.bytes().all(allowed) {
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
    const LONGEST: usize = 200;

    pub fn parse(name: String) -> Result<Self, Fault> {
        line(name, Self::LONGEST).map(Self).ok_or("must be one line of 1 to 200 characters, not blank")
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One line of text that says something: not blank, no control characters, `longest` characters at most.
pub(crate) fn line(text: String, longest: usize) -> Option<String> {
    let sound =
        !text.trim().is_empty() && text.chars().count() <= longest && !text.chars().any(char::is_control);
    sound.then_some(text)
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description(String);

impl Description {
    const LONGEST: usize = 10_000;

    pub fn parse(description: String) -> Result<Self, Fault> {
        if description.contains('\0') {
            Err("must not contain NUL")
        } else if description.chars().count() > Self::LONGEST {
            Err("must be at most 10000 characters")
        } else {
            Ok(Self(description))
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Minor units of the shop's currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price(i64);

impl Price {
    pub const HIGHEST: i64 = 1_000_000_000_000;

    pub fn parse(price: i64) -> Result<Self, Fault> {
        if (0..=Self::HIGHEST).contains(&price) { Ok(Self(price)) } else { Err("must be 0 to 10^12") }
    }

    pub const fn get(self) -> i64 {
        self.0
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUrl(String);

impl ImageUrl {
    const LONGEST: usize = 2048;

    pub fn parse(url: String) -> Result<Self, Fault> {
        let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        let sound = url.len() <= Self::LONGEST
            && host.is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['/', '?', '#']))
            && !url.contains(|c: char| c.is_control() || c.is_whitespace());
        if sound { Ok(Self(url)) } else { Err("must be an http or https URL of at most 2048 bytes") }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A product is read far more often than its attributes are looked at. Bytes of JSON.
pub const MAX_ATTRIBUTES_BYTES: usize = 16 * 1024;
/// Levels of objects and lists, of which the attributes themselves are the first: what every message that a product
/// travels in can hold.
pub const MAX_ATTRIBUTES_DEPTH: usize = 16;

/// Checks free attributes: at most 16 KiB as JSON, at most 16 levels, and nothing that PostgreSQL cannot store.
pub fn attributes(attributes: Attributes) -> Result<Attributes, Fault> {
    // An object of JSON always serialises.
    if serde_json::to_vec(&attributes).unwrap_or_default().len() > MAX_ATTRIBUTES_BYTES {
        return Err("must be at most 16 KiB as JSON");
    }
    if !are_shallow(&attributes) {
        return Err("must have at most 16 levels");
    }
    if attributes.iter().any(|(key, value)| key.contains('\0') || holds_nul(value)) {
        return Err("must not contain NUL");
    }
    Ok(attributes)
}

/// Reports whether attributes are within the bound of levels.
pub fn are_shallow(attributes: &Attributes) -> bool {
    attributes.values().all(|value| is_within(value, MAX_ATTRIBUTES_DEPTH - 1))
}

/// Reports whether a value has at most so many levels of objects and lists.
fn is_within(value: &Value, levels: usize) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
        Value::Array(values) => levels > 0 && values.iter().all(|value| is_within(value, levels - 1)),
        Value::Object(fields) => levels > 0 && fields.values().all(|value| is_within(value, levels - 1)),
    }
}

fn holds_nul(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(holds_nul),
        Value::Object(fields) => fields.iter().any(|(key, value)| key.contains('\0') || holds_nul(value)),
    }
}

/// A product that does not exist yet.
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

/// What an admin changes; `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    pub sku: Option<Sku>,
    pub name: Option<Name>,
    pub description: Option<Description>,
    /// The inner `None` takes the product out of its category.
    pub category_id: Option<Option<i64>>,
    pub price: Option<Price>,
    pub stock: Option<crate::stock::Stock>,
    pub image_url: Option<Option<ImageUrl>>,
    pub attributes: Option<Attributes>,
    pub status: Option<Status>,
}

impl Changes {
    /// Applies them to everything of the product but its stock and its category's name; whether anything is
    /// different now.
    pub fn apply(&self, product: &mut Product) -> bool {
        let before = product.clone();
        if let Some(sku) = &self.sku {
            sku.as_str().clone_into(&mut product.sku);
        }
        if let Some(name) = &self.name {
            name.as_str().clone_into(&mut product.name);
        }
        if let Some(description) = &self.description {
            description.as_str().clone_into(&mut product.description);
        }
        if let Some(price) = self.price {
            product.price = price.get();
        }
        if let Some(image_url) = &self.image_url {
            product.image_url = image_url.as_ref().map(|url| url.as_str().to_owned());
        }
        if let Some(attributes) = &self.attributes {
            product.attributes.clone_from(attributes);
        }
        if let Some(status) = self.status {
            product.status = status;
        }
        *product != before
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_sku_is_short_and_plain() {
        for sound in ["a", "TEE-1.red_XL", &"x".repeat(64)] {
            assert!(Sku::parse(sound.to_owned()).is_ok(), "{sound}");
        }
        for odd in ["", "a b", "ä", "a/b", "a\0", &"x".repeat(65)] {
            assert!(Sku::parse(odd.to_owned()).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_name_is_counted_in_characters() {
        assert!(Name::parse("ü".repeat(200)).is_ok());
        for odd in [String::new(), "  ".to_owned(), "a\nb".to_owned(), "a\0".to_owned(), "ü".repeat(201)] {
            assert!(Name::parse(odd.clone()).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_price_has_bounds() {
        for (price, sound) in
            [(-1, false), (0, true), (1_000_000_000_000, true), (1_000_000_000_001, false), (i64::MIN, false)]
        {
            assert_eq!(Price::parse(price).is_ok(), sound, "{price}");
        }
    }

    #[test]
    fn an_image_is_on_the_web() {
        for sound in ["https://cdn.example/a.png", "http://x"] {
            assert!(ImageUrl::parse(sound.to_owned()).is_ok(), "{sound}");
        }
        for odd in ["", "ftp://x", "https://", "https:///x", "javascript:alert(1)", "https://a b", "//x"] {
            assert!(ImageUrl::parse(odd.to_owned()).is_err(), "{odd}");
        }
    }

    #[test]
    fn attributes_are_small_and_storable() {
        let object = |value: Value| value.as_object().cloned().unwrap();
        assert!(attributes(object(json!({"deep": [{"a": 1}]}))).is_ok());
        assert!(attributes(object(json!({"deep": [{"a\0": 1}]}))).is_err());
        assert!(attributes(object(json!({"deep": [["\0"]]}))).is_err());
        assert!(attributes(object(json!({"a": "x".repeat(16 * 1024)}))).is_err());
        let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!({"a": inner}));
        assert!(attributes(object(nested(MAX_ATTRIBUTES_DEPTH))).is_ok());
        assert!(attributes(object(nested(MAX_ATTRIBUTES_DEPTH + 1))).is_err());
    }
}
