//! The `Idempotency-Key` of a request.

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::{error::Problem, state::AppState};

const NAME: &str = "idempotency-key";
const LONGEST: usize = 255;

/// `None` where there is none.
#[derive(Clone, Debug)]
pub struct IdempotencyKey(pub Option<String>);

impl FromRequestParts<AppState> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Problem> {
        let mut keys = parts.headers.get_all(NAME).iter();
        let Some(key) = keys.next() else { return Ok(Self(None)) };
        let key = key.to_str().ok().filter(|key| is_sound(key) && keys.next().is_none());
        key.map(|key| Self(Some(key.to_owned()))).ok_or_else(|| {
            Problem::malformed("Idempotency-Key", "must be 1 to 255 visible ASCII characters, once")
        })
    }
}

fn is_sound(key: &str) -> bool {
    (1..=LONGEST).contains(&key.len()) && key.bytes().all(|byte| (0x21..=0x7e).contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::is_sound;

    #[test]
    fn keys_are_visible_ascii_of_a_sane_length() {
        assert!(is_sound("!~") && is_sound(&"k".repeat(255)));
        for odd in ["", "a b", "a\tb", "ü", &"k".repeat(256)] {
            assert!(!is_sound(odd), "{odd}");
        }
    }
}
