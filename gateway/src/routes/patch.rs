//! Bodies of PATCH: an absent field stays unchanged, and null clears an optional one.

use serde::{Deserialize, Deserializer};

/// A field that may be null; with `#[serde(default)]` it may be absent too.
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

/// Deserialises a field that may be absent, but not null.
pub fn deserialize_present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Builds a `google.protobuf.FieldMask` (AIP-161): the names of the fields that are present.
#[derive(Debug, Default)]
pub struct FieldMaskBuilder(Vec<String>);

impl FieldMaskBuilder {
    /// Adds a field if it is present, and returns its value.
    pub fn set<T>(&mut self, name: &str, value: Option<T>) -> Option<T> {
        if value.is_some() {
            self.0.push(name.to_owned());
        }
        value
    }

    /// Adds a nullable field if it is present. A field in the mask without a value is cleared.
    pub fn set_nullable<T>(&mut self, name: &str, value: Nullable<T>) -> Option<T> {
        match value {
            Nullable::Absent => None,
            Nullable::Null => {
                self.0.push(name.to_owned());
                None
            }
            Nullable::Value(value) => self.set(name, Some(value)),
        }
    }

    /// Adds a field only if it is null, and returns its value.
    pub fn set_if_null<T>(&mut self, name: &str, value: Nullable<T>) -> Option<T> {
        match value {
            Nullable::Value(value) => Some(value),
            Nullable::Absent | Nullable::Null => self.set_nullable(name, value),
        }
    }
}

impl From<FieldMaskBuilder> for Vec<String> {
    fn from(mask: FieldMaskBuilder) -> Self {
        mask.0
    }
}

impl From<FieldMaskBuilder> for prost_types::FieldMask {
    fn from(mask: FieldMaskBuilder) -> Self {
        Self { paths: mask.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Patch {
        #[serde(default, deserialize_with = "deserialize_present")]
        name: Option<String>,
        #[serde(default)]
        parent_id: Nullable<i64>,
    }

    fn masked(body: &str) -> (Vec<String>, Option<i64>) {
        let patch: Patch = serde_json::from_str(body).unwrap();
        let mut mask = FieldMaskBuilder::default();
        mask.set("name", patch.name);
        let parent_id = mask.set_nullable("parent_id", patch.parent_id);
        (mask.0, parent_id)
    }

    #[test]
    fn absent_null_and_present_fields_are_distinguished() {
        assert_eq!(masked("{}"), (vec![], None));
        assert_eq!(masked(r#"{"parent_id":null}"#), (vec!["parent_id".to_owned()], None));
        assert_eq!(masked(r#"{"parent_id":7}"#), (vec!["parent_id".to_owned()], Some(7)));
        assert!(serde_json::from_str::<Patch>(r#"{"name":null}"#).is_err());
    }
}
