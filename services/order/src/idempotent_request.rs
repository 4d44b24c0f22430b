//! An idempotent request whose effect is one transaction: key, effect and response are committed together. The first
//! statement of the transaction claims the key, so that a second request with the same key waits for the first.

use prost::Message;
use shoppee_kit::idempotency::{self, KEY_TTL, StoredResponse};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    error::Error,
    idempotency::in_progress_or_database,
    store::{idempotency::IdempotencyKey, idempotent_request as store},
};

/// A request of a user, with its optional key.
#[derive(Debug)]
pub struct IdempotentRequest(Option<Keyed>);

#[derive(Debug)]
struct Keyed {
    key: IdempotencyKey,
    fingerprint: Vec<u8>,
}

impl IdempotentRequest {
    /// Creates a request. `scope` names the operation and its object; `payload` is fingerprinted.
    pub fn new(
        user_id: i64,
        scope: impl Into<String>,
        key: Option<String>,
        payload: &impl serde::Serialize,
    ) -> Self {
        let keyed = |key| Keyed {
            key: IdempotencyKey { user_id, scope: scope.into(), key },
            fingerprint: idempotency::fingerprint(payload),
        };
        Self(key.map(keyed))
    }

    /// Returns the stored response, without claiming the key.
    pub async fn find<R: Message + Default>(
        &self,
        conn: &mut PgConnection,
        now: OffsetDateTime,
    ) -> Result<Option<R>, Error> {
        let Some(keyed) = &self.0 else { return Ok(None) };
        let stored = store::find(conn, &keyed.key, now - KEY_TTL).await?;
        stored.map(|stored| keyed.replay(stored)).transpose()
    }

    /// Claims the key in the transaction of the effect, or returns the stored response.
    pub async fn claim<R: Message + Default>(
        &self,
        tx: &mut PgConnection,
        now: OffsetDateTime,
    ) -> Result<Option<R>, Error> {
        let Some(keyed) = &self.0 else { return Ok(None) };
        let stored = store::claim(tx, &keyed.key, &keyed.fingerprint, now, now - KEY_TTL)
            .await
            .map_err(in_progress_or_database)?;
        stored.map(|stored| keyed.replay(stored)).transpose()
    }

    /// Saves the response in the transaction of the effect.
    pub async fn save_response(&self, tx: &mut PgConnection, response: &impl Message) -> Result<(), Error> {
        if let Some(keyed) = &self.0 {
            store::save_response(tx, &keyed.key, &response.encode_to_vec()).await?;
        }
        Ok(())
    }
}

impl Keyed {
    fn replay<R: Message + Default>(&self, stored: StoredResponse) -> Result<R, Error> {
        let response = idempotency::replay(stored, &self.fingerprint).map_err(|_| Error::KeyReused)?;
        R::decode(response.as_slice()).map_err(|_| Error::Internal("an undecodable stored response"))
    }
}
