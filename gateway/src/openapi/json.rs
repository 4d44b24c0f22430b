//! JSON objects that preserve the order of their fields, so that `id` comes first. The objects of `serde_json` sort them,
//! unless a feature changes that for the whole workspace.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, SeqAccess, Visitor},
};

#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    Text(Cow<'static, str>),
    List(Vec<Json>),
    Object(Object),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object(Vec<(Cow<'static, str>, Json)>);

/// Builds an object; values are anything that converts to [`Json`].
macro_rules! object {
    ($($key:literal: $value:expr),* $(,)?) => {
        $crate::openapi::json::Object::default()$(.with($key, $value))*
    };
}
pub(super) use object;

impl Object {
    #[must_use]
    pub fn with(mut self, key: impl Into<Cow<'static, str>>, value: impl Into<Json>) -> Self {
        self.set(key, value);
        self
    }

    /// Adds a field if there is a value.
    #[must_use]
    pub fn with_some(self, key: &'static str, value: Option<impl Into<Json>>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }

    /// Replaces or adds a field.
    pub fn set(&mut self, key: impl Into<Cow<'static, str>>, value: impl Into<Json>) {
        let (key, value) = (key.into(), value.into());
        match self.0.iter_mut().find(|(name, _)| *name == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key, value)),
        }
    }

    pub fn get(&self, key: &str) -> Option<&Json> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// Returns the object under `key`; inserts an empty one if there is none.
    pub fn entry(&mut self, key: &str) -> &mut Self {
        let at = self.0.iter().position(|(name, _)| name == key).unwrap_or_else(|| {
            self.0.push((Cow::Owned(key.to_owned()), Self::default().into()));
            self.0.len() - 1
        });
        let value = &mut self.0[at].1;
        if !matches!(value, Json::Object(_)) {
            *value = Self::default().into();
        }
        match value {
            Json::Object(object) => object,
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::Text(_) | Json::List(_) => {
                unreachable!("an object was inserted")
            }
        }
    }

    /// Keeps only the fields whose names match `keep`.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|(key, _)| keep(key));
    }

    /// Keeps only the texts that match `keep` in the list under `key`; removes an empty list.
    pub fn retain_in_list(&mut self, key: &str, keep: impl Fn(&str) -> bool) {
        let Some((_, Json::List(items))) = self.0.iter_mut().find(|(name, _)| name == key) else { return };
        items.retain(|item| !matches!(item, Json::Text(text) if !keep(text)));
        if items.is_empty() {
            self.retain(|name| name != key);
        }
    }
}

impl<K: Into<Cow<'static, str>>, V: Into<Json>> FromIterator<(K, V)> for Object {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(fields: I) -> Self {
        Self(fields.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }
}

/// Builds a list of anything that converts to [`Json`].
pub fn list<T: Into<Json>>(items: impl IntoIterator<Item = T>) -> Json {
    Json::List(items.into_iter().map(Into::into).collect())
}

macro_rules! impl_from {
    ($($type:ty, $value:ident => $json:expr;)*) => {$(
        impl From<$type> for Json {
            fn from($value: $type) -> Self {
                $json
            }
        }
    )*};
}

impl_from! {
    bool, value => Self::Bool(value);
    i64, value => Self::Number(value.into());
    &'static str, value => Self::Text(value.into());
    String, value => Self::Text(value.into());
    Object, value => Self::Object(value);
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(value) => value.serialize(serializer),
            Self::Text(value) => serializer.serialize_str(value),
            Self::List(items) => serializer.collect_seq(items),
            Self::Object(Object(fields)) => {
                serializer.collect_map(fields.iter().map(|(key, value)| (key, value)))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
                Ok(Json::Bool(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
                Ok(Json::Number(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
                Ok(Json::Number(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
                Ok(serde_json::Number::from_f64(value).map_or(Json::Null, Json::Number))
            }

            fn visit_str<E>(self, value: &str) -> Result<Json, E> {
                Ok(value.to_owned().into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Json::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
                let mut fields = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, Json>()? {
                    fields.push((key.into(), value));
                }
                Ok(Json::Object(Object(fields)))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_fields_is_preserved() {
        let text = r#"{"z":1,"a":[true,null,{"y":-2.5,"b":"x"}]}"#;
        let read: Json = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        let inner = object! { "y": Json::Number(serde_json::Number::from_f64(-2.5).unwrap()), "b": "x" };
        let written = object! { "z": 1, "a": Json::List(vec![true.into(), Json::Null, inner.into()]) };
        assert_eq!(read, Json::Object(written));
    }

    #[test]
    fn setting_a_field_again_replaces_it() {
        let mut object = object! { "a": 1, "b": 2 };
        object.set("a", 3);
        object.entry("c").set("d", 4);
        assert_eq!(serde_json::to_string(&Json::from(object)).unwrap(), r#"{"a":3,"b":2,"c":{"d":4}}"#);
    }
}
