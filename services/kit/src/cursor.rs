//! Opaque cursors for keyset pagination: the position of the last item of a page, as base64url of JSON.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Serialize, de::DeserializeOwned};

use crate::status::Violations;

/// Bounds the length of a cursor, above that of every position: a name of 200 characters of four bytes, in base64.
const MAX_LEN: usize = 2048;

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
    fn a_cursor_decodes_to_its_position_and_an_invalid_one_is_rejected() {
        let cursor = encode(&("price", 1999_i64, 7_i64));
        assert_eq!(decode::<(String, i64, i64)>(&cursor).unwrap(), ("price".to_owned(), 1999, 7));
        for invalid in ["", "x", "%%%", "AAAA", &"A".repeat(5000)] {
            assert!(decode::<(String, i64, i64)>(invalid).is_err(), "{invalid}");
        }
    }
}
