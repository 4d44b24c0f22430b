//! The `Idempotency-Key` header.

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::error::Problem;

const NAME: &str = "idempotency-key";
const MAX_LEN: usize = 255;

/// The key of a request; `None` if it has none.
#[derive(Clone, Debug)]
pub struct IdempotencyKey(pub Option<String>);

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let mut keys = parts.headers.get_all(NAME).iter();
        let Some(key) = keys.next() else { return Ok(Self(None)) };
        let key = key.to_str().ok().filter(|key| is_valid(key) && keys.next().is_none());
        key.map(|key| Self(Some(key.to_owned()))).ok_or_else(|| {
            Problem::malformed("Idempotency-Key", "must be 1 to 255 visible ASCII characters, once")
        })
    }
}

fn is_valid(key: &str) -> bool {
    (1..=MAX_LEN).contains(&key.len()) && key.bytes().all(|byte| (0x21..=0x7e).contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::is_valid;

    #[test]
    fn a_key_is_1_to_255_visible_ascii_characters() {
        assert!(is_valid("!~") && is_valid(&"k".repeat(255)));
        for odd in ["", "a b", "a\tb", "ü", &"k".repeat(256)] {
            assert!(!is_valid(odd), "{odd}");
        }
    }
}
