//! The idempotency key of a request.

use serde::Serialize;
use shoppee_kit::{caller::Caller, idempotency};

use crate::{error::Error, idempotency::Key};

/// Parses the idempotency key of a request by `caller`; `None` if it has none. `meaning` is fingerprinted, so
/// that a reuse of the key for another request is detected.
pub fn parse(
    caller: &Caller,
    scope: &'static str,
    key: Option<String>,
    meaning: &impl Serialize,
) -> Result<Option<Key>, Error> {
    let Some(key) = key else {
        return Ok(None);
    };
    idempotency::check_key(&key).map_err(Error::Malformed)?;
    let fingerprint = idempotency::fingerprint(meaning);
    let value = idempotency::stored_key(caller, key);
    Ok(Some(Key { user_id: caller.user_id(), scope, value, fingerprint }))
}
