//! Idempotency keys (IETF draft-ietf-httpapi-idempotency-key-header): the parts that every service shares. A service
//! stores the keys of its writes in a table of its own schema, in the transaction of the effect:
//!
//! 1. The first statement of the transaction inserts the row (user, scope, key, [`fingerprint`]), with `on conflict do
//!    nothing`. A concurrent request with the same key waits there for the first, for at most `lock_timeout`; then 409.
//! 2. If the row exists, [`replay`] compares the fingerprints and returns the stored answer.
//! 3. Else the effect and the answer are written and committed together. An error rolls the key back with the effect.
//!
//! A write that calls another service between its claim and its effect needs a lease instead: see the order service.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tonic::{Code, Response, metadata::MetadataValue};

use crate::{
    caller::Caller,
    status::{ServiceError, Violations},
};

/// The time for which an answer is stored.
pub const KEY_TTL: Duration = Duration::from_hours(24);
pub const MAX_KEY_LEN: usize = 255;
/// Bounds the stored answers per user and table. A retry follows within seconds, so that the oldest are not needed.
pub const MAX_RESPONSES_PER_USER: i64 = 500;
/// The response metadata of a replayed answer.
pub const REPLAYED: &str = "idempotent-replayed";

/// Validates a key: 1..255 characters of 0x21–0x7E.
pub fn check_key(key: &str) -> Result<(), Violations> {
    let valid =
        (1..=MAX_KEY_LEN).contains(&key.len()) && key.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
    let mut violations = Violations::default();
    violations.require(valid, "Idempotency-Key", "must be 1 to 255 visible ASCII characters");
    violations.finish()
}

/// Returns the form in which the key of a caller is stored. Services share the user id 0, so that the key of a service is
/// hashed with the id of its client.
pub fn stored_key(caller: &Caller, key: String) -> String {
    match caller.client_id() {
        Some(client_id) => URL_SAFE_NO_PAD.encode(Sha256::digest(format!("{client_id} {key}"))),
        None => key,
    }
}

/// Hashes the parsed request, independent of the order of JSON keys and of white space. The request must not contain a
/// password.
pub fn fingerprint(request: &impl Serialize) -> Vec<u8> {
    // Strings and numbers always serialise.
    Sha256::digest(serde_json::to_vec(request).unwrap_or_default()).to_vec()
}

/// The stored row of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredResponse {
    pub fingerprint: Vec<u8>,
    /// The answer; empty if the effect has none.
    pub answer: Vec<u8>,
}

/// Returns the stored answer, or an error if the key was used for another request.
pub fn replay(stored: StoredResponse, fingerprint: &[u8]) -> Result<Vec<u8>, KeyReused> {
    if stored.fingerprint == fingerprint { Ok(stored.answer) } else { Err(KeyReused) }
}

/// The error of a key that was used for another request; 422 in REST.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the idempotency key was used for another request")]
pub struct KeyReused;

impl From<KeyReused> for ServiceError {
    fn from(_: KeyReused) -> Self {
        Self::new(
            Code::InvalidArgument,
            "IDEMPOTENCY_KEY_REUSED",
            "this idempotency key was used for another request",
        )
    }
}

/// Creates the error of a request whose key a concurrent request is using; 409 in REST.
pub fn in_progress() -> ServiceError {
    ServiceError::new(
        Code::Aborted,
        "REQUEST_IN_PROGRESS",
        "a request for the same operation is still in progress; repeat yours in a moment",
    )
}

/// Wraps an answer, with the metadata [`REPLAYED`] if it is a stored one.
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
    fn a_key_is_visible_ascii_of_1_to_255_characters() {
        assert!(check_key("a-1~!").is_ok() && check_key(&"x".repeat(255)).is_ok());
        for invalid in ["", "a b", "é", "a\n", &"x".repeat(256)] {
            assert!(check_key(invalid).is_err(), "{invalid:?}");
        }
    }

    #[test]
    fn an_answer_is_replayed_only_to_the_same_request() {
        let (one, other) = (fingerprint(&("add", 1)), fingerprint(&("add", 2)));
        let stored = StoredResponse { fingerprint: one.clone(), answer: vec![7] };
        assert_eq!(replay(stored.clone(), &one), Ok(vec![7]));
        assert_eq!(replay(stored, &other), Err(KeyReused));
    }
}
