//! Idempotency keys for the writes of admins: one effect and one answer per key. A write in a single
//! transaction saves its answer in it ([`claim`], [`save`]). A batch takes several transactions: each records
//! its rows as done, and a repeat applies the others ([`crate::batch`]).

use std::{collections::BTreeSet, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use shoppee_kit::{
    idempotency::{self, StoredResponse},
    pg::PgPool,
};
use sqlx::PgConnection;
use uuid::Uuid;

pub use crate::store::idempotency::{DoneRow, Key, KeyId};
use crate::{error::Error, store::idempotency as store};

/// The lifetime of a batch lease: several times as long as the largest batch takes.
const LEASE_TTL: Duration = Duration::from_secs(10);

/// A result, and whether it is a replay of an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotentResult<T> {
    pub value: T,
    pub replayed: bool,
}

impl<T> IdempotentResult<T> {
    pub const fn new(value: T) -> Self {
        Self { value, replayed: false }
    }
}

/// Claims a key as the first statement of a transaction. Returns the saved result if the key was used before.
pub async fn claim<T: DeserializeOwned>(
    conn: &mut PgConnection,
    key: Option<&Key>,
) -> Result<Option<IdempotentResult<T>>, Error> {
    let Some(key) = key else {
        return Ok(None);
    };
    if store::claim(conn, key).await.map_err(in_progress)? {
        store::delete_excess(conn, key.user_id).await?;
        return Ok(None);
    }
    let stored = store::fetch(conn, key).await?.ok_or(Error::InProgress)?;
    replay(&stored, key).map(Some)
}

/// Returns the saved result of a key, if it was used for the same request.
pub fn replay<T: DeserializeOwned>(stored: &StoredResponse, key: &Key) -> Result<IdempotentResult<T>, Error> {
    let answer = idempotency::replay(stored.clone(), &key.fingerprint).map_err(|_| Error::KeyReused)?;
    match serde_json::from_slice(&answer) {
        Ok(value) => Ok(IdempotentResult { value, replayed: true }),
        Err(error) => {
            tracing::error!(%error, scope = key.scope, "a saved answer cannot be read");
            Err(Error::Internal)
        }
    }
}

/// Saves the answer in the transaction that began with [`claim`].
pub async fn save<T: Serialize>(conn: &mut PgConnection, key: Option<&Key>, answer: &T) -> Result<(), Error> {
    let Some(key) = key else {
        return Ok(());
    };
    Ok(store::save_answer(conn, key, &serialize(key, answer)?).await?)
}

/// Saves the answers of a batch under their keys, which are not claimed before. Returns `false` if another transaction
/// has used one of them meanwhile: the transaction must not be committed.
pub async fn save_many<'a, T: Serialize + 'a>(
    conn: &mut PgConnection,
    answers: impl IntoIterator<Item = &'a (&'a Key, T)>,
) -> Result<bool, Error> {
    let (mut keys, mut values, mut users) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (key, answer) in answers {
        keys.push(*key);
        values.push(serialize(key, answer)?);
        users.insert(key.user_id);
    }
    if keys.is_empty() {
        return Ok(true);
    }
    if store::insert_answers(conn, &keys, &values).await? < keys.len() as u64 {
        return Ok(false);
    }
    for user_id in users {
        store::delete_excess(conn, user_id).await?;
    }
    Ok(true)
}

fn serialize<T: Serialize>(key: &Key, answer: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(answer).map_err(|error| {
        tracing::error!(%error, scope = key.scope, "an answer cannot be saved");
        Error::Internal
    })
}

/// Maps a lock timeout: another request holds the key.
fn in_progress(error: sqlx::Error) -> Error {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    // lock_not_available, after `lock_timeout`.
    if code.is_some_and(|code| code == "55P03") { Error::InProgress } else { error.into() }
}

/// The lease of a batch under a key.
#[derive(Clone, Debug)]
pub struct BatchLease {
    pool: PgPool,
    key: Key,
    claim: Uuid,
}

/// The outcome of acquiring a lease.
#[derive(Debug)]
pub enum LeaseOutcome {
    /// The lease, with the rows that are done already.
    Acquired(BatchLease, Vec<DoneRow>),
    /// The saved answer of a completed batch.
    Completed(Vec<u8>),
}

impl BatchLease {
    /// Acquires the lease, or returns the saved answer.
    pub async fn acquire(pool: &PgPool, key: Key) -> Result<LeaseOutcome, Error> {
        let mut conn = pool.acquire().await?;
        let is_new = store::claim(&mut conn, &key).await.map_err(in_progress)?;
        if is_new {
            store::delete_excess(&mut conn, key.user_id).await?;
        } else {
            let stored = store::fetch(&mut conn, &key).await?.ok_or(Error::InProgress)?;
            let answer = idempotency::replay(stored, &key.fingerprint).map_err(|_| Error::KeyReused)?;
            if !answer.is_empty() {
                return Ok(LeaseOutcome::Completed(answer));
            }
        }
        let claim = Uuid::new_v4();
        if !store::acquire_lease(&mut conn, &key, claim, LEASE_TTL).await.map_err(in_progress)? {
            return Err(Error::InProgress);
        }
        let done_rows = if is_new { Vec::new() } else { store::fetch_progress(&mut conn, &key).await? };
        Ok(LeaseOutcome::Acquired(Self { pool: pool.clone(), key, claim }, done_rows))
    }

    /// Records rows as done in the transaction that applies them. Returns an error if another request has
    /// taken the lease: the transaction must not be committed.
    pub async fn record_progress(&self, conn: &mut PgConnection, rows: &[DoneRow]) -> Result<(), Error> {
        if !store::lock_lease(conn, &self.key, self.claim).await? {
            return Err(Error::InProgress);
        }
        if rows.is_empty() {
            return Ok(());
        }
        Ok(store::insert_progress(conn, &self.key, rows).await?)
    }

    /// Saves the answer of a completed batch. Without an answer, releases the lease so that a repeat can
    /// continue.
    pub async fn finish(&self, answer: Option<&[u8]>) {
        let finishing = async {
            let mut conn = self.pool.acquire().await?;
            match answer {
                Some(answer) => store::finish(&mut conn, &self.key, self.claim, answer).await.map(drop),
                None => store::release_lease(&mut conn, &self.key, self.claim).await,
            }
        };
        if let Err(error) = finishing.await {
            // A repeat finds the recorded rows, at the latest when the lease has expired.
            tracing::warn!(%error, "the answer of a batch was not saved");
        }
    }
}
