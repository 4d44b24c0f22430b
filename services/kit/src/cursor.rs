//! Opaque cursors for keyset pagination: the position of the last item of a page, as base64url of JSON. A cursor belongs to
//! one list, with its filters and sort.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::status::Violations;

/// Bounds the length of a cursor, above that of every position: a name of 200 characters of four bytes, in base64.
const MAX_LEN: usize = 2048;

/// The identity of a list: a hash of its name, filters and sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct List(u64);

impl List {
    /// Returns the FNV-1a hash, which is the same in every version: a cursor survives a rolling restart.
    pub fn new(query: &impl Serialize) -> Self {
        // A query consists of strings, numbers and enums; it always serialises.
        let text = serde_json::to_vec(query).unwrap_or_default();
        Self(text.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        }))
    }

    /// Encodes a position in this list as a cursor.
    pub fn encode<T: Serialize>(self, position: &T) -> String {
        encode(&(self, position))
    }

    /// Decodes a cursor of this list. Returns a violation of the field `cursor` if it is invalid or belongs to another list.
    pub fn decode<T: DeserializeOwned>(self, cursor: &str) -> Result<T, Violations> {
        let (list, position) = decode::<(Self, T)>(cursor)?;
        self.check(list)?;
        Ok(position)
    }

    /// Checks that a cursor of the list `other` belongs to this one.
    pub fn check(self, other: Self) -> Result<(), Violations> {
        if self == other {
            Ok(())
        } else {
            Err(Violations::from(("cursor", "is of another list: filters and sort must stay the same")))
        }
    }
}

/// Encodes a position as a cursor.
pub fn encode<T: Serialize>(position: &T) -> String {
    // A position consists of numbers and strings, which always serialise.
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(position).unwrap_or_default())
}

/// Decodes a cursor. Returns a violation of the field `cursor` if it is invalid.
pub fn decode<T: DeserializeOwned>(cursor: &str) -> Result<T, Violations> {
    let position = (cursor.len() <= MAX_LEN)
        .then(|| URL_SAFE_NO_PAD.decode(cursor).ok())
        .flatten()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    position.ok_or_else(|| Violations::from(("cursor", "is not a cursor of this list")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_belongs_to_one_list_with_its_filters() {
        let list = List::new(&("users", "admin"));
        let cursor = list.encode(&7);
        assert_eq!(list.decode::<i64>(&cursor).unwrap(), 7);
        for other in [List::new(&("users", "user")), List::new(&("orders", "admin"))] {
            assert!(other.decode::<i64>(&cursor).is_err());
        }
        assert!(list.decode::<i64>(&encode(&7)).is_err(), "without a list");
    }

    #[test]
    fn a_cursor_decodes_to_its_position_and_an_invalid_one_is_rejected() {
        let cursor = encode(&("price", 1999_i64, 7_i64));
        assert_eq!(decode::<(String, i64, i64)>(&cursor).unwrap(), ("price".to_owned(), 1999, 7));
        for invalid in ["", "x", "%%%", "AAAA", &"A".repeat(5000)] {
            assert!(decode::<(String, i64, i64)>(invalid).is_err(), "{invalid}");
        }
    }
}
