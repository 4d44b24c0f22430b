//! A write under an idempotency key whose effect is one transaction: key, effect and answer are committed together. The
//! first statement of the transaction claims the key, so that a second request with it waits for the first.

use prost::Message;
use shoppee_kit::{
    idempotency::{self as rules, KEY_TTL, Stored},
    pg,
};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    error::Error,
    store::{idempotency::KeyOf, idempotent_request as store},
};

/// A request of a user, with its key where it has one.
#[derive(Debug)]
pub struct IdempotentRequest(Option<Keyed>);

#[derive(Debug)]
struct Keyed {
    of: KeyOf,
    fingerprint: Vec<u8>,
}

impl IdempotentRequest {
    /// `scope` is the operation and what it is done to, `meaning` what the key stands for.
    pub fn new(
        user_id: i64,
        scope: impl Into<String>,
        key: Option<String>,
        meaning: &impl serde::Serialize,
    ) -> Self {
        let keyed = |key| Keyed {
            of: KeyOf { user_id, scope: scope.into(), key },
            fingerprint: rules::fingerprint(meaning),
        };
        Self(key.map(keyed))
    }

    /// Returns the answer that was given before, without a claim.
    pub async fn find<A: Message + Default>(
        &self,
        conn: &mut PgConnection,
        now: OffsetDateTime,
    ) -> Result<Option<A>, Error> {
        let Some(keyed) = &self.0 else { return Ok(None) };
        let stored = store::find(conn, &keyed.of, now - KEY_TTL).await?;
        stored.map(|stored| keyed.replay(stored)).transpose()
    }

    /// Claims the key in the transaction of the effect, or returns the answer that was given before.
    pub async fn claim<A: Message + Default>(
        &self,
        tx: &mut PgConnection,
        now: OffsetDateTime,
    ) -> Result<Option<A>, Error> {
        let Some(keyed) = &self.0 else { return Ok(None) };
        match store::claim(tx, &keyed.of, &keyed.fingerprint, now, now - KEY_TTL).await {
            Ok(stored) => stored.map(|stored| keyed.replay(stored)).transpose(),
            // The first request with the key is still running.
            Err(error) if pg::is_lock_timeout(&error) => Err(Error::InProgress),
            Err(error) => Err(error.into()),
        }
    }

    /// Stores the answer in the transaction of the effect.
    pub async fn answer(&self, tx: &mut PgConnection, answer: &impl Message) -> Result<(), Error> {
        if let Some(keyed) = &self.0 {
            store::answer(tx, &keyed.of, &answer.encode_to_vec()).await?;
        }
        Ok(())
    }
}

impl Keyed {
    fn replay<A: Message + Default>(&self, stored: Stored) -> Result<A, Error> {
        let answer = rules::replay(stored, &self.fingerprint).map_err(|_| Error::KeyReused)?;
        A::decode(answer.as_slice()).map_err(|_| Error::Broken("a kept answer"))
    }
}
