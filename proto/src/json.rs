//! The JSON mapping of well-known types and enums: times as RFC 3339, `Struct` as an object, enums as lower-case names.

use std::{collections::BTreeMap, fmt};

use prost_types::value::Kind;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
    ser::{Error as _, SerializeMap as _, SerializeSeq as _},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::order::v1::{Actor, OrderHistoryEvent, OrderStatus};

/// `google.protobuf.Timestamp`; in JSON a string as in RFC 3339, in UTC.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Message)]
pub struct Timestamp {
    /// Seconds since the Unix epoch.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl From<OffsetDateTime> for Timestamp {
    fn from(at: OffsetDateTime) -> Self {
        // A nanosecond of the second is below 10^9.
        Self { seconds: at.unix_timestamp(), nanos: i32::try_from(at.nanosecond()).unwrap_or_default() }
    }
}

impl TryFrom<Timestamp> for OffsetDateTime {
    type Error = time::error::ComponentRange;

    fn try_from(at: Timestamp) -> Result<Self, Self::Error> {
        Self::from_unix_timestamp_nanos(i128::from(at.seconds) * 1_000_000_000 + i128::from(at.nanos))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let at = OffsetDateTime::try_from(*self).map_err(S::Error::custom)?;
        serializer.serialize_str(&at.format(&Rfc3339).map_err(S::Error::custom)?)
    }
}

/// Bounds the depth of an [`Object`], which is itself the first level. A level takes up to three of the 100 nested
/// messages that prost decodes, and a list of products a few more.
pub const MAX_OBJECT_DEPTH: usize = 16;

/// The prefix of serde's error message about a depth beyond [`MAX_OBJECT_DEPTH`].
pub const TOO_DEEP: &str = "nested too deeply";

/// `google.protobuf.Struct`; in JSON an object. Duplicate keys and a depth beyond [`MAX_OBJECT_DEPTH`] are rejected.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Object {
    #[prost(btree_map = "string, message", tag = "1")]
    pub fields: BTreeMap<String, prost_types::Value>,
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.fields.len()))?;
        for (key, value) in &self.fields {
            map.serialize_entry(key, &ValueRef(value))?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object, A::Error> {
                Ok(Object { fields: deserialize_fields(map, MAX_OBJECT_DEPTH - 1)? })
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

/// Deserializes the entries of an object with unique keys, with at most `levels` of objects and lists inside.
fn deserialize_fields<'de, A: MapAccess<'de>>(
    mut map: A,
    levels: usize,
) -> Result<BTreeMap<String, prost_types::Value>, A::Error> {
    let mut fields = BTreeMap::new();
    while let Some(key) = map.next_key::<String>()? {
        let value = map.next_value_seed(ValueSeed(levels))?;
        if fields.contains_key(&key) {
            return Err(A::Error::custom(format_args!("duplicate field `{key}`")));
        }
        fields.insert(key, value);
    }
    Ok(fields)
}

/// A serializable value inside an [`Object`].
struct ValueRef<'a>(&'a prost_types::Value);

impl Serialize for ValueRef<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0.kind {
            None | Some(Kind::NullValue(_)) => serializer.serialize_unit(),
            Some(Kind::BoolValue(value)) => serializer.serialize_bool(*value),
            Some(Kind::NumberValue(value)) => match as_integer(*value) {
                Some(integer) => serializer.serialize_i64(integer),
                None => serializer.serialize_f64(*value),
            },
            Some(Kind::StringValue(value)) => serializer.serialize_str(value),
            Some(Kind::StructValue(value)) => {
                let mut map = serializer.serialize_map(Some(value.fields.len()))?;
                for (key, value) in &value.fields {
                    map.serialize_entry(key, &ValueRef(value))?;
                }
                map.end()
            }
            Some(Kind::ListValue(list)) => {
                let mut seq = serializer.serialize_seq(Some(list.values.len()))?;
                for value in &list.values {
                    seq.serialize_element(&ValueRef(value))?;
                }
                seq.end()
            }
        }
    }
}

/// Returns the integer that a double represents exactly. `Struct` has doubles only; an integer is written without a
/// fraction.
fn as_integer(value: f64) -> Option<i64> {
    /// 2^53, up to which a double represents every integer.
    const MAX_EXACT_INTEGER: f64 = 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "whole and within 2^53")]
    let integer = value as i64;
    (value.fract() == 0.0 && value.abs() <= MAX_EXACT_INTEGER).then_some(integer)
}

/// A `DeserializeSeed` of a value inside an [`Object`], with the remaining levels of objects and lists.
#[derive(Clone, Copy)]
struct ValueSeed(usize);

impl ValueSeed {
    /// Returns the seed of the next level.
    fn inner<E: serde::de::Error>(self) -> Result<Self, E> {
        self.0.checked_sub(1).map(Self).ok_or_else(|| E::custom(TOO_DEEP))
    }
}

impl<'de> DeserializeSeed<'de> for ValueSeed {
    type Value = prost_types::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<prost_types::Value, D::Error> {
        struct Any(ValueSeed);

        impl<'de> Visitor<'de> for Any {
            type Value = Kind;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }

            fn visit_unit<E>(self) -> Result<Kind, E> {
                Ok(Kind::NullValue(0))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Kind, E> {
                Ok(Kind::BoolValue(value))
            }

            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Kind, E> {
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "checked: the double must name the same integer"
                )]
                let number = value as f64;
                if as_integer(number) == Some(value) {
                    Ok(Kind::NumberValue(number))
                } else {
                    Err(E::custom("an integer beyond 2^53 would lose digits; send it as a string"))
                }
            }

            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Kind, E> {
                self.visit_i64(i64::try_from(value).unwrap_or(i64::MAX))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Kind, E> {
                Ok(Kind::NumberValue(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<Kind, E> {
                Ok(Kind::StringValue(value.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Kind, A::Error> {
                let inner = self.0.inner()?;
                let mut values = Vec::new();
                while let Some(value) = seq.next_element_seed(inner)? {
                    values.push(value);
                }
                Ok(Kind::ListValue(prost_types::ListValue { values }))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Kind, A::Error> {
                let fields = deserialize_fields(map, self.0.inner()?.0)?;
                Ok(Kind::StructValue(prost_types::Struct { fields: fields.into_iter().collect() }))
            }
        }

        Ok(prost_types::Value { kind: Some(deserializer.deserialize_any(Any(self))?) })
    }
}

/// The JSON name of an enum value: `ORDER_STATUS_PAID` is `paid`.
pub trait EnumName: Copy + TryFrom<i32> + Into<i32> {
    /// The prefix of every value's name in the `.proto`.
    const PREFIX: &'static str;

    /// Returns the name in the `.proto`.
    fn proto_name(&self) -> &'static str;

    /// Returns the value with a name in the `.proto`.
    fn from_proto_name(name: &str) -> Option<Self>;

    /// Returns the name in JSON.
    fn json_name(self) -> String {
        self.proto_name().trim_start_matches(Self::PREFIX).to_ascii_lowercase()
    }

    /// Returns the value with a name in JSON; `None` for an unknown name or `unspecified`.
    fn from_json_name(name: &str) -> Option<Self> {
        if name.bytes().any(|byte| !(byte.is_ascii_lowercase() || byte == b'_')) {
            return None;
        }
        let value = Self::from_proto_name(&format!("{}{}", Self::PREFIX, name.to_ascii_uppercase()))?;
        (value.into() != 0).then_some(value)
    }
}

macro_rules! enum_names {
    ($($type:path = $prefix:literal),* $(,)?) => {$(
        impl EnumName for $type {
            const PREFIX: &'static str = $prefix;

            fn proto_name(&self) -> &'static str {
                self.as_str_name()
            }

            fn from_proto_name(name: &str) -> Option<Self> {
                Self::from_str_name(name)
            }
        }
    )*};
}

enum_names! {
    crate::auth::v1::Role = "ROLE_",
    crate::product::v1::ProductStatus = "PRODUCT_STATUS_",
    crate::product::v1::ProductSort = "PRODUCT_SORT_",
    crate::product::v1::SearchSort = "SEARCH_SORT_",
    crate::product::v1::OnError = "ON_ERROR_",
    crate::product::v1::RowStatus = "ROW_STATUS_",
    crate::product::v1::StockChangeKind = "STOCK_CHANGE_KIND_",
    crate::order::v1::OrderStatus = "ORDER_STATUS_",
    crate::order::v1::PaymentStatus = "PAYMENT_STATUS_",
    crate::order::v1::Actor = "ACTOR_",
}

/// Returns the JSON name of an enum number. If this version does not know the number, returns `fallback`, the name that
/// was stored with it, or `None` if that is empty.
pub fn json_name_or<E: EnumName>(number: i32, fallback: &str) -> Option<String> {
    match E::try_from(number) {
        Ok(value) if number != 0 => Some(value.json_name()),
        Ok(_) | Err(_) => (!fallback.is_empty()).then(|| fallback.to_owned()),
    }
}

/// The JSON of `shoppee.order.v1.OrderHistoryEvent`, with the stored names of enum values that this version does not know.
#[derive(Debug, Serialize)]
pub struct HistoryEvent {
    seq: i64,
    status: String,
    previous_status: Option<String>,
    at: Option<Timestamp>,
    actor: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl From<OrderHistoryEvent> for HistoryEvent {
    fn from(event: OrderHistoryEvent) -> Self {
        let status = |number, fallback: &str| {
            json_name_or::<OrderStatus>(number, fallback)
                .unwrap_or_else(|| OrderStatus::Unspecified.json_name())
        };
        Self {
            seq: event.seq,
            status: status(event.status, &event.status_word),
            previous_status: event
                .previous_status
                .map(|previous| status(previous, &event.previous_status_word)),
            at: event.at,
            actor: json_name_or::<Actor>(event.actor, &event.actor_word)
                .unwrap_or_else(|| Actor::Unspecified.json_name()),
            reason: event.reason,
        }
    }
}

/// The serde `with` module of an enum number.
pub mod enum_name {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _, ser::Error as _};

    use super::EnumName;

    pub fn serialize<E: EnumName, S: Serializer>(number: &i32, serializer: S) -> Result<S::Ok, S::Error> {
        let value = E::try_from(*number).map_err(|_| S::Error::custom("not a value of its enumeration"))?;
        serializer.serialize_str(&value.json_name())
    }

    pub fn deserialize<'de, E: EnumName, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
        let name = String::deserialize(deserializer)?;
        E::from_json_name(&name).map(Into::into).ok_or_else(|| D::Error::custom("unknown word"))
    }

    /// The serde `with` module of an optional enum number, which may be absent or null.
    pub mod optional {
        use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

        use super::EnumName;

        pub fn serialize<E: EnumName, S: Serializer>(
            number: &Option<i32>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            match number {
                Some(number) => super::serialize::<E, S>(number, serializer),
                None => serializer.serialize_none(),
            }
        }

        pub fn deserialize<'de, E: EnumName, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Option<i32>, D::Error> {
            Option::<String>::deserialize(deserializer)?
                .map(|name| {
                    E::from_json_name(&name).map(Into::into).ok_or_else(|| D::Error::custom("unknown word"))
                })
                .transpose()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{auth::v1::UpdateUserRequest, product::v1::CreateProductRequest};

    #[test]
    fn times_are_rfc_3339() {
        let at = Timestamp { seconds: 1_702_886_400, nanos: 250_000_000 };
        assert_eq!(serde_json::to_string(&at).unwrap(), r#""2023-12-18T08:00:00.25Z""#);
    }

    #[test]
    fn an_object_round_trips() {
        let sent = r#"{"colour":"red","deep":{"list":[1,2.5,null,true]},"grams":120}"#;
        let object: Object = serde_json::from_str(sent).unwrap();
        assert_eq!(serde_json::to_string(&object).unwrap(), sent);
    }

    #[test]
    fn a_duplicate_key_is_rejected_at_any_depth() {
        for sent in [r#"{"a":1,"a":2}"#, r#"{"deep":[{"a":1,"a":2}]}"#] {
            assert!(serde_json::from_str::<Object>(sent).is_err(), "{sent}");
        }
    }

    #[test]
    fn an_object_beyond_the_maximum_depth_is_rejected() {
        let objects = |levels| format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
        let lists = |levels| format!(r#"{{"a":{}{}}}"#, "[".repeat(levels - 1), "]".repeat(levels - 1));
        for nested in [objects, lists] as [fn(usize) -> String; 2] {
            assert!(serde_json::from_str::<Object>(&nested(MAX_OBJECT_DEPTH)).is_ok());
            let error = serde_json::from_str::<Object>(&nested(MAX_OBJECT_DEPTH + 1)).unwrap_err();
            assert!(error.to_string().starts_with(TOO_DEEP), "{error}");
        }
    }

    #[test]
    fn a_history_event_shows_unknown_enum_values_by_their_stored_names() {
        let known = OrderHistoryEvent {
            seq: 1,
            status: OrderStatus::Paid.into(),
            actor: Actor::System.into(),
            status_word: "paid".to_owned(),
            actor_word: "system".to_owned(),
            ..OrderHistoryEvent::default()
        };
        assert_eq!(
            serde_json::to_string(&known).unwrap(),
            r#"{"seq":1,"status":"paid","previous_status":null,"at":null,"actor":"system"}"#
        );
        let newer = OrderHistoryEvent {
            status: 99,
            previous_status: Some(0),
            actor: 0,
            status_word: "on_hold".to_owned(),
            previous_status_word: "picked".to_owned(),
            actor_word: "robot".to_owned(),
            ..known
        };
        assert_eq!(
            serde_json::to_string(&newer).unwrap(),
            r#"{"seq":1,"status":"on_hold","previous_status":"picked","at":null,"actor":"robot"}"#
        );
    }

    #[test]
    fn only_an_exact_json_name_is_accepted() {
        assert_eq!(OrderStatus::from_json_name("paid"), Some(OrderStatus::Paid));
        assert_eq!(OrderStatus::Cancelled.json_name(), "cancelled");
        for odd in ["Paid", "PAID", "", "unspecified", "paid "] {
            assert_eq!(OrderStatus::from_json_name(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_body_with_an_unknown_field_or_one_of_the_path_is_rejected() {
        assert!(serde_json::from_str::<UpdateUserRequest>(r#"{"role":"admin"}"#).is_ok());
        assert!(serde_json::from_str::<UpdateUserRequest>("{}").is_ok());
        for odd in
            [r#"{"role":"king"}"#, r#"{"id":7}"#, r#"{"admin":true}"#, r#"{"role":"user","role":"admin"}"#]
        {
            assert!(serde_json::from_str::<UpdateUserRequest>(odd).is_err(), "{odd}");
        }
        assert!(serde_json::from_str::<CreateProductRequest>(r#"{"sku":"a","name":"b","price":1}"#).is_err());
    }
}
