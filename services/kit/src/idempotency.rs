//! Idempotency keys: the parts that are the same in every service. A service keeps the keys of its own writes in a
//! table of its own schema, in the transaction of the effect:
//!
//! 1. The transaction's first statement inserts the row (user, scope, key, [`fingerprint`]) and does nothing on a
//!    conflict. A second request with the key waits there for the first, for at most `lock_timeout`, which is 409.
//! 2. Where the row was there, [`replay`] compares the fingerprints and returns the stored answer.
//! 3. Else the effect and the answer are written and committed together. A refusal rolls the key back with the effect.
//!
//! A write that calls another service between its claim and its effect needs a lease instead: see the order service.

use std::time::Duration;

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tonic::{Code, Response, metadata::MetadataValue};

use crate::status::{Refusal, Violations};

/// The time for which an answer is kept.
pub const KEY_TTL: Duration = Duration::from_hours(24);
pub const MAX_KEY_LEN: usize = 255;
/// Answers kept for one user and table: a retry comes within seconds, so that the oldest of these are never asked for.
pub const MAX_ANSWERS_PER_USER: i64 = 500;
/// Response metadata of an answer that was given before under the same key.
pub const REPLAYED: &str = "idempotent-replayed";

/// Checks a key: 1..255 characters of 0x21–0x7E.
pub fn check_key(key: &str) -> Result<(), Violations> {
    let valid =
        (1..=MAX_KEY_LEN).contains(&key.len()) && key.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
    let mut violations = Violations::default();
    violations.check(valid, "Idempotency-Key", "must be 1 to 255 visible ASCII characters");
    violations.finish()
}

/// Hashes the meaning of a request, whatever the order of its JSON keys or its white space. Never give it a password.
pub fn fingerprint(meaning: &impl Serialize) -> Vec<u8> {
    // Strings and numbers always serialise.
    Sha256::digest(serde_json::to_vec(meaning).unwrap_or_default()).to_vec()
}

/// The record that a service keeps under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub fingerprint: Vec<u8>,
    /// The answer; empty where the effect has none.
    pub answer: Vec<u8>,
}

/// Returns the stored answer, or an error where the key was used for another request.
pub fn replay(stored: Stored, fingerprint: &[u8]) -> Result<Vec<u8>, KeyReused> {
    if stored.fingerprint == fingerprint { Ok(stored.answer) } else { Err(KeyReused) }
}

/// The refusal of a key that was used for another request; 422.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the idempotency key was used for another request")]
pub struct KeyReused;

impl From<KeyReused> for Refusal {
    fn from(_: KeyReused) -> Self {
        Self::new(
            Code::InvalidArgument,
            "IDEMPOTENCY_KEY_REUSED",
            "this idempotency key was used for another request",
        )
    }
}

/// Refuses a request whose key another one is using right now; 409.
pub fn in_progress() -> Refusal {
    Refusal::new(
        Code::Aborted,
        "REQUEST_IN_PROGRESS",
        "the same request is still being worked on; ask again in a moment",
    )
}

/// Wraps an answer, and marks one that was given before.
pub fn respond<T>(answer: T, replayed: bool) -> Response<T> {
    let mut response = Response::new(answer);
    if replayed {
        response.metadata_mut().insert(REPLAYED, MetadataValue::from_static("true"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_visible_ascii_of_a_bounded_length() {
        assert!(check_key("a-1~!").is_ok() && check_key(&"x".repeat(255)).is_ok());
        for odd in ["", "a b", "é", "a\n", &"x".repeat(256)] {
            assert!(check_key(odd).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn an_answer_is_replayed_to_the_same_request_only() {
        let (one, other) = (fingerprint(&("add", 1)), fingerprint(&("add", 2)));
        let stored = Stored { fingerprint: one.clone(), answer: vec![7] };
        assert_eq!(replay(stored.clone(), &one), Ok(vec![7]));
        assert_eq!(replay(stored, &other), Err(KeyReused));
    }
}
