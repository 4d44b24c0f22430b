//! Bodies of PATCH: a field that is absent stays as it is, and null clears one that may be empty.

use serde::{Deserialize, Deserializer};

/// A field that may be null; with `#[serde(default)]`, also absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nullable<T> {
    #[default]
    Absent,
    Null,
    Value(T),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Nullable<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(deserializer)?.map_or(Self::Null, Self::Value))
    }
}

/// A field that may be absent, but not null.
pub fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// The names of the fields that are given: a `google.protobuf.FieldMask`.
#[derive(Debug, Default)]
pub struct Mask(Vec<String>);

impl Mask {
    /// Notes whether the field is given, and hands its value on.
    pub fn note<T>(&mut self, name: &str, value: Option<T>) -> Option<T> {
        if value.is_some() {
            self.0.push(name.to_owned());
        }
        value
    }

    /// The same for one that may be null: named and without a value, it is cleared.
    pub fn note_nullable<T>(&mut self, name: &str, value: Nullable<T>) -> Option<T> {
        match value {
            Nullable::Absent => None,
            Nullable::Null => {
                self.0.push(name.to_owned());
                None
            }
            Nullable::Value(value) => self.note(name, Some(value)),
        }
    }
}

impl Mask {
    /// Notes only that a field is null, and hands a value on.
    pub fn note_null<T>(&mut self, name: &str, value: Nullable<T>) -> Option<T> {
        match value {
            Nullable::Value(value) => Some(value),
            Nullable::Absent | Nullable::Null => self.note_nullable(name, value),
        }
    }
}

impl From<Mask> for Vec<String> {
    fn from(mask: Mask) -> Self {
        mask.0
    }
}

impl From<Mask> for prost_types::FieldMask {
    fn from(mask: Mask) -> Self {
        Self { paths: mask.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Patch {
        #[serde(default, deserialize_with = "given")]
        name: Option<String>,
        #[serde(default)]
        parent_id: Nullable<i64>,
    }

    fn masked(body: &str) -> (Vec<String>, Option<i64>) {
        let patch: Patch = serde_json::from_str(body).unwrap();
        let mut mask = Mask::default();
        mask.note("name", patch.name);
        let parent_id = mask.note_nullable("parent_id", patch.parent_id);
        (mask.0, parent_id)
    }

    #[test]
    fn absent_null_and_given_are_three_things() {
        assert_eq!(masked("{}"), (vec![], None));
        assert_eq!(masked(r#"{"parent_id":null}"#), (vec!["parent_id".to_owned()], None));
        assert_eq!(masked(r#"{"parent_id":7}"#), (vec!["parent_id".to_owned()], Some(7)));
        assert!(serde_json::from_str::<Patch>(r#"{"name":null}"#).is_err());
    }
}
