//! PathTracker deserialising of requests: a struct must be an object (serde's derive accepts an array too), and an error names
//! the path of its field, with the gateway's own message.

use std::{
    cell::RefCell,
    fmt::{self, Write as _},
};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, EnumAccess, MapAccess, SeqAccess, Visitor},
};

use shoppee_proto::json::{MAX_OBJECT_DEPTH, TOO_DEEP};

use crate::error::Problem;

/// Bounds a field name of the client in a message. Characters.
const MAX_NAME_LEN: usize = 64;
const MAX_PATH_LEN: usize = 256;

/// Deserialises a `T`.
pub fn from_deserializer<'de, T, D>(deserializer: D) -> Result<T, DeserializeError<D::Error>>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    let path = SharedPath::default();
    T::deserialize(PathTracker { inner: deserializer, path: &path })
        .map_err(|source| DeserializeError { source, path: path.into_inner() })
}

/// An error with the path of its field.
#[derive(Debug)]
pub struct DeserializeError<E> {
    pub source: E,
    path: FieldPath,
}

impl<E: fmt::Display> DeserializeError<E> {
    /// Converts the error; a fault of the whole input is one of `root`.
    pub fn into_fault(self, root: &str) -> Fault {
        self.path.into_fault(&self.source.to_string(), root)
    }
}

/// The error of one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The path of the field, or the name of the whole input.
    pub field: String,
    pub message: String,
    /// Marks a fault that is not one of shape, but of a validation rule.
    is_rule: bool,
    pub repair: Repair,
}

/// The repair of a faulty field, after which faults of other fields can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    Remove,
    Insert,
    /// Replaces the value by one of the expected kind.
    Replace(&'static str),
}

impl Fault {
    pub const fn is_malformed(&self) -> bool {
        !self.is_rule
    }

    pub fn into_problem(self) -> Problem {
        if self.is_rule {
            Problem::invalid(self.field, self.message)
        } else {
            Problem::malformed(self.field, self.message)
        }
    }
}

/// The deserialiser's position in the input.
type SharedPath = RefCell<FieldPath>;

#[derive(Debug, Default)]
struct FieldPath {
    text: String,
    /// The last key that was read; its value may still be unread.
    key: String,
    /// The expected kind of the value.
    expected: &'static str,
}

impl FieldPath {
    fn enter_key(&mut self) -> usize {
        let before = self.text.len();
        if before > 0 {
            self.text.push('.');
        }
        self.text.push_str(&self.key);
        before
    }

    /// Restores the key of the value that was read: it may turn out to be a duplicate.
    fn leave_key(&mut self, before: usize) {
        self.key.clear();
        self.key.push_str(self.text[before..].trim_start_matches('.'));
        self.text.truncate(before);
    }

    fn enter_index(&mut self, index: usize) -> usize {
        let before = self.text.len();
        // Writing to a string does not fail.
        let _ = write!(self.text, "[{index}]");
        before
    }

    fn into_fault(mut self, error: &str, root: &str) -> Fault {
        let mut repair = Repair::Replace(self.expected);
        let mut is_rule = false;
        let (message, child_key) = if error.starts_with("unknown field") {
            repair = Repair::Remove;
            ("is not known here".to_owned(), Some(std::mem::take(&mut self.key)))
        } else if error.starts_with("duplicate field") {
            ("is given twice".to_owned(), Some(std::mem::take(&mut self.key)))
        } else if let Some(rest) = error.strip_prefix("missing field `") {
            repair = Repair::Insert;
            ("is missing".to_owned(), rest.split('`').next().map(str::to_owned))
        } else if error.starts_with("unknown word") {
            repair = Repair::Remove;
            ("is not one of the words it may be".to_owned(), None)
        } else if error.starts_with("number out of range") {
            repair = Repair::Replace("a number");
            ("is a number out of all range".to_owned(), None)
        } else if error.starts_with("an integer beyond 2^53") {
            repair = Repair::Replace("a number");
            ("holds an integer beyond 2^53, which would lose digits; send it as a string".to_owned(), None)
        } else if error.starts_with(TOO_DEEP) {
            // A rule of the product service, whose decoder fails on deeper input.
            is_rule = true;
            self.text.truncate(self.text.find(['.', '[']).unwrap_or(self.text.len()));
            (format!("must have at most {MAX_OBJECT_DEPTH} levels"), None)
        } else if self.expected.is_empty() {
            ("is not valid here".to_owned(), None)
        } else {
            (format!("must be {}", self.expected), None)
        };
        if let Some(key) = child_key {
            self.key = key;
            self.enter_key();
        }
        let field = if self.text.is_empty() { root } else { &self.text };
        Fault { field: field.chars().take(MAX_PATH_LEN).collect(), message, is_rule, repair }
    }
}

/// Truncates a name and replaces its control characters.
fn truncate(name: &str) -> String {
    name.chars().take(MAX_NAME_LEN).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

struct PathTracker<'t, T> {
    inner: T,
    path: &'t SharedPath,
}

impl<T> PathTracker<'_, T> {
    fn expect(&self, expected: &'static str) {
        self.path.borrow_mut().expected = expected;
    }
}

macro_rules! forward {
    ($($method:ident: $expected:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.expect($expected);
            self.inner.$method(PathTracker { inner: visitor, path: self.path })
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for PathTracker<'_, D> {
    type Error = D::Error;

    forward! {
        deserialize_any: "";
        deserialize_bool: "true or false";
        deserialize_i8: "an integer";
        deserialize_i16: "an integer";
        deserialize_i32: "an integer of 32 bits";
        deserialize_i64: "an integer of 64 bits";
        deserialize_i128: "an integer";
        deserialize_u8: "an integer";
        deserialize_u16: "an integer";
        deserialize_u32: "an integer of 32 bits, not negative";
        deserialize_u64: "an integer of 64 bits, not negative";
        deserialize_u128: "an integer";
        deserialize_f32: "a number";
        deserialize_f64: "a number";
        deserialize_char: "a character";
        deserialize_str: "a string";
        deserialize_string: "a string";
        deserialize_bytes: "bytes";
        deserialize_byte_buf: "bytes";
        deserialize_option: "";
        deserialize_unit: "null";
        deserialize_seq: "a list";
        deserialize_map: "an object";
        deserialize_identifier: "a name";
        deserialize_ignored_any: "";
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_unit_struct(name, PathTracker { inner: visitor, path: self.path })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_newtype_struct(name, PathTracker { inner: visitor, path: self.path })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, D::Error> {
        self.expect("a list");
        self.inner.deserialize_tuple(len, PathTracker { inner: visitor, path: self.path })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.expect("a list");
        self.inner.deserialize_tuple_struct(name, len, PathTracker { inner: visitor, path: self.path })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.expect("one of its words");
        self.inner.deserialize_enum(name, variants, PathTracker { inner: visitor, path: self.path })
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

macro_rules! visit {
    ($($method:ident($type:ty);)*) => {$(
        fn $method<E: de::Error>(self, value: $type) -> Result<V::Value, E> {
            self.inner.$method(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for PathTracker<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    visit! {
        visit_bool(bool);
        visit_i64(i64);
        visit_i128(i128);
        visit_u64(u64);
        visit_u128(u128);
        visit_f64(f64);
        visit_char(char);
        visit_str(&str);
        visit_borrowed_str(&'de str);
        visit_string(String);
        visit_bytes(&[u8]);
        visit_borrowed_bytes(&'de [u8]);
        visit_byte_buf(Vec<u8>);
    }

    fn visit_none<E: de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(PathTracker { inner, path: self.path })
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner.visit_newtype_struct(PathTracker { inner, path: self.path })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.inner.visit_seq(IndexTracker { inner, path: self.path, index: 0 })
    }

    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.inner.visit_map(PathTracker { inner, path: self.path })
    }

    fn visit_enum<A: EnumAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.inner.visit_enum(inner)
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for PathTracker<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(PathTracker { inner, path: self.path })
    }
}

/// Tracks the index within a list.
struct IndexTracker<'t, A> {
    inner: A,
    path: &'t SharedPath,
    index: usize,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for IndexTracker<'_, A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        let before = self.path.borrow_mut().enter_index(self.index);
        let element = self.inner.next_element_seed(PathTracker { inner: seed, path: self.path })?;
        // An error returns before this, and leaves its path.
        self.path.borrow_mut().text.truncate(before);
        self.index += 1;
        Ok(element)
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for PathTracker<'_, A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.inner.next_key_seed(KeyTracker { inner: seed, path: self.path })
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let before = self.path.borrow_mut().enter_key();
        let value = self.inner.next_value_seed(PathTracker { inner: seed, path: self.path })?;
        self.path.borrow_mut().leave_key(before);
        Ok(value)
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

/// Deserialises a key and records it in the path.
struct KeyTracker<'t, T> {
    inner: T,
    path: &'t SharedPath,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for KeyTracker<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(KeyTracker { inner, path: self.path })
    }
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for KeyTracker<'_, D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(KeyTracker { inner: visitor, path: self.path })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for KeyTracker<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<V::Value, E> {
        self.path.borrow_mut().key = truncate(key);
        self.inner.visit_str(key)
    }

    fn visit_borrowed_str<E: de::Error>(self, key: &'de str) -> Result<V::Value, E> {
        self.path.borrow_mut().key = truncate(key);
        self.inner.visit_borrowed_str(key)
    }

    fn visit_string<E: de::Error>(self, key: String) -> Result<V::Value, E> {
        self.path.borrow_mut().key = truncate(&key);
        self.inner.visit_string(key)
    }
}
