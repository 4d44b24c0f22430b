//! Opaque cursors of lists: where the next page begins, in a form that says nothing and breaks loudly.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Serialize, de::DeserializeOwned};

use crate::status::Violations;

/// Longer than any position a list has: a name of 200 characters of four bytes, in base64.
const LONGEST: usize = 2048;

/// The cursor of a position.
pub fn encode<T: Serialize>(position: &T) -> String {
    // A position is numbers and strings; it always serialises.
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(position).unwrap_or_default())
}

/// The position of a cursor; a violation of the field `cursor` where it is none.
pub fn decode<T: DeserializeOwned>(cursor: &str) -> Result<T, Violations> {
    let position = (cursor.len() <= LONGEST)
        .then(|| URL_SAFE_NO_PAD.decode(cursor).ok())
        .flatten()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    position.ok_or_else(|| Violations::from(("cursor", "is not a cursor of this list")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_comes_back_and_nonsense_does_not() {
        let cursor = encode(&("price", 1999_i64, 7_i64));
        assert_eq!(decode::<(String, i64, i64)>(&cursor).unwrap(), ("price".to_owned(), 1999, 7));
        for odd in ["", "x", "%%%", "AAAA", &"A".repeat(5000)] {
            assert!(decode::<(String, i64, i64)>(odd).is_err(), "{odd}");
        }
    }
}
