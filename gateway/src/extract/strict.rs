//! Deserialising for the outside world: an object is an object (serde's derive would take an array for a
//! struct), and whatever is wrong is told by the path of its field, in our own words.

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

/// Names of fields are the client's; longer ones are cut.
const LONGEST_NAME: usize = 64;
const LONGEST_PATH: usize = 256;

/// Reads a `T`.
pub fn read<'de, T, D>(deserializer: D) -> Result<T, Wrong<D::Error>>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    let trail = Trail::default();
    T::deserialize(Strict { inner: deserializer, trail: &trail })
        .map_err(|error| Wrong { error, position: trail.into_inner() })
}

/// What is wrong, and where.
#[derive(Debug)]
pub struct Wrong<E> {
    pub error: E,
    position: Position,
}

impl<E: fmt::Display> Wrong<E> {
    /// The fault of the field; of `whole`, where it is all of it.
    pub fn fault(self, whole: &str) -> Fault {
        self.position.fault(&self.error.to_string(), whole)
    }
}

/// The error of one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its path; of what is all of the input, a word for that.
    pub field: String,
    pub message: String,
    /// Whether the shape is right, and a rule broken that has to be checked together with it.
    is_rule: bool,
    pub mend: Mend,
}

/// What would have to be done to the field, so that what is wrong with the others shows too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mend {
    Remove,
    Insert,
    /// By a value of the kind that was expected.
    Replace(&'static str),
}

impl Fault {
    pub const fn is_of_shape(&self) -> bool {
        !self.is_rule
    }

    pub fn problem(self) -> Problem {
        if self.is_rule {
            Problem::invalid(self.field, self.message)
        } else {
            Problem::malformed(self.field, self.message)
        }
    }
}

/// Where in the input the deserialiser stands.
type Trail = RefCell<Position>;

#[derive(Debug, Default)]
struct Position {
    path: String,
    /// The last key that was read, whether or not its value was.
    key: String,
    /// What the value should have been.
    expected: &'static str,
}

impl Position {
    fn enter_key(&mut self) -> usize {
        let before = self.path.len();
        if before > 0 {
            self.path.push('.');
        }
        self.path.push_str(&self.key);
        before
    }

    /// The key stands again for the value that was read: it may yet turn out to have been there before.
    fn leave_key(&mut self, before: usize) {
        self.key.clear();
        self.key.push_str(self.path[before..].trim_start_matches('.'));
        self.path.truncate(before);
    }

    fn enter_index(&mut self, index: usize) -> usize {
        let before = self.path.len();
        // Writing to a string does not fail.
        let _ = write!(self.path, "[{index}]");
        before
    }

    fn fault(mut self, error: &str, whole: &str) -> Fault {
        let mut mend = Mend::Replace(self.expected);
        let mut is_rule = false;
        let (message, deeper) = if error.starts_with("unknown field") {
            mend = Mend::Remove;
            ("is not known here".to_owned(), Some(std::mem::take(&mut self.key)))
        } else if error.starts_with("duplicate field") {
            ("is given twice".to_owned(), Some(std::mem::take(&mut self.key)))
        } else if let Some(rest) = error.strip_prefix("missing field `") {
            mend = Mend::Insert;
            ("is missing".to_owned(), rest.split('`').next().map(str::to_owned))
        } else if error.starts_with("unknown word") {
            mend = Mend::Remove;
            ("is not one of the words it may be".to_owned(), None)
        } else if error.starts_with("number out of range") {
            mend = Mend::Replace("a number");
            ("is a number out of all range".to_owned(), None)
        } else if error.starts_with("an integer beyond 2^53") {
            mend = Mend::Replace("a number");
            ("holds an integer beyond 2^53, which would lose digits; send it as a string".to_owned(), None)
        } else if error.starts_with(TOO_DEEP) {
            // A rule of the product service, which cannot even decode what breaks it by far.
            is_rule = true;
            self.path.truncate(self.path.find(['.', '[']).unwrap_or(self.path.len()));
            (format!("must have at most {MAX_OBJECT_DEPTH} levels"), None)
        } else if self.expected.is_empty() {
            ("is not valid here".to_owned(), None)
        } else {
            (format!("must be {}", self.expected), None)
        };
        if let Some(key) = deeper {
            self.key = key;
            self.enter_key();
        }
        let field = if self.path.is_empty() { whole } else { &self.path };
        Fault { field: field.chars().take(LONGEST_PATH).collect(), message, is_rule, mend }
    }
}

/// The beginning of a name, without what does not belong into a line of text.
fn cut(name: &str) -> String {
    name.chars().take(LONGEST_NAME).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

struct Strict<'t, T> {
    inner: T,
    trail: &'t Trail,
}

impl<T> Strict<'_, T> {
    fn expect(&self, expected: &'static str) {
        self.trail.borrow_mut().expected = expected;
    }
}

macro_rules! forward {
    ($($method:ident: $expected:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.expect($expected);
            self.inner.$method(Strict { inner: visitor, trail: self.trail })
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Strict<'_, D> {
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
        self.inner.deserialize_unit_struct(name, Strict { inner: visitor, trail: self.trail })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_newtype_struct(name, Strict { inner: visitor, trail: self.trail })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, D::Error> {
        self.expect("a list");
        self.inner.deserialize_tuple(len, Strict { inner: visitor, trail: self.trail })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.expect("a list");
        self.inner.deserialize_tuple_struct(name, len, Strict { inner: visitor, trail: self.trail })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.expect("one of its words");
        self.inner.deserialize_enum(name, variants, Strict { inner: visitor, trail: self.trail })
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

impl<'de, V: Visitor<'de>> Visitor<'de> for Strict<'_, V> {
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
        self.inner.visit_some(Strict { inner, trail: self.trail })
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner.visit_newtype_struct(Strict { inner, trail: self.trail })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.inner.visit_seq(Items { inner, trail: self.trail, index: 0 })
    }

    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.inner.visit_map(Strict { inner, trail: self.trail })
    }

    fn visit_enum<A: EnumAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.inner.visit_enum(inner)
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Strict<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Strict { inner, trail: self.trail })
    }
}

struct Items<'t, A> {
    inner: A,
    trail: &'t Trail,
    index: usize,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Items<'_, A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        let before = self.trail.borrow_mut().enter_index(self.index);
        let element = self.inner.next_element_seed(Strict { inner: seed, trail: self.trail })?;
        // Left as it is where there was an error: that is where it was.
        self.trail.borrow_mut().path.truncate(before);
        self.index += 1;
        Ok(element)
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Strict<'_, A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.inner.next_key_seed(Key { inner: seed, trail: self.trail })
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let before = self.trail.borrow_mut().enter_key();
        let value = self.inner.next_value_seed(Strict { inner: seed, trail: self.trail })?;
        self.trail.borrow_mut().leave_key(before);
        Ok(value)
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

/// Reads a key, and remembers it.
struct Key<'t, T> {
    inner: T,
    trail: &'t Trail,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Key<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Key { inner, trail: self.trail })
    }
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Key<'_, D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(Key { inner: visitor, trail: self.trail })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Key<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<V::Value, E> {
        self.trail.borrow_mut().key = cut(key);
        self.inner.visit_str(key)
    }

    fn visit_borrowed_str<E: de::Error>(self, key: &'de str) -> Result<V::Value, E> {
        self.trail.borrow_mut().key = cut(key);
        self.inner.visit_borrowed_str(key)
    }

    fn visit_string<E: de::Error>(self, key: String) -> Result<V::Value, E> {
        self.trail.borrow_mut().key = cut(&key);
        self.inner.visit_string(key)
    }
}
