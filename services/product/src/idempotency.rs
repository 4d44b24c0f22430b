//! One key, one effect, one answer, for the writes of admins. A change by one transaction keeps its answer in it
//! ([`claim`], [`keep`]). A batch is several: each notes its rows as done, and a repeat does the others
//! ([`crate::batch`]).

use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};
use shoppee_kit::{idempotency, pg::PgPool};
use sqlx::PgConnection;
use uuid::Uuid;

pub use crate::store::idempotency::{DoneRow, Key};
use crate::{error::Error, store::idempotency as store};

/// The turn at a batch ends so long after it was taken: several times as long as the largest batch takes.
const LEASE: Duration = Duration::from_secs(10);

/// An answer, and whether it was given before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered<T> {
    pub answer: T,
    pub replayed: bool,
}

impl<T> Answered<T> {
    pub const fn new(answer: T) -> Self {
        Self { answer, replayed: false }
    }
}

/// Begins a transaction's work under a key, as its first statement; the answer where it was done before.
pub async fn claim<T: DeserializeOwned>(
    conn: &mut PgConnection,
    key: Option<&Key>,
) -> Result<Option<Answered<T>>, Error> {
    let Some(key) = key else {
        return Ok(None);
    };
    if store::claim(conn, key).await.map_err(in_progress)? {
        store::bound(conn, key.user_id).await?;
        return Ok(None);
    }
    let stored = store::find(conn, key).await?.ok_or(Error::InProgress)?;
    let answer = idempotency::replay(stored, &key.fingerprint).map_err(|_| Error::KeyReused)?;
    match serde_json::from_slice(&answer) {
        Ok(answer) => Ok(Some(Answered { answer, replayed: true })),
        Err(error) => {
            tracing::error!(%error, scope = key.scope, "a kept answer cannot be read");
            Err(Error::Internal)
        }
    }
}

/// Keeps the answer in the transaction that began with [`claim`].
pub async fn keep<T: Serialize>(conn: &mut PgConnection, key: Option<&Key>, answer: &T) -> Result<(), Error> {
    let Some(key) = key else {
        return Ok(());
    };
    let answer = serde_json::to_vec(answer).map_err(|error| {
        tracing::error!(%error, scope = key.scope, "an answer cannot be kept");
        Error::Internal
    })?;
    Ok(store::answer(conn, key, &answer).await?)
}

/// The key is locked by a request that still runs.
fn in_progress(error: sqlx::Error) -> Error {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    // Lock not available, of a wait as long as `lock_timeout`.
    if code.is_some_and(|code| code == "55P03") { Error::InProgress } else { error.into() }
}

/// The turn at a batch under a key.
#[derive(Clone, Debug)]
pub struct Turn {
    pool: PgPool,
    key: Key,
    claim: Uuid,
}

/// The ways a batch under a key may go on.
#[derive(Debug)]
pub enum Begun {
    /// These rows are done; the others are ours to do.
    Ours(Turn, Vec<DoneRow>),
    /// It was done; what was answered.
    Done(Vec<u8>),
}

impl Turn {
    /// Takes the turn, or finds the answer.
    pub async fn begin(pool: &PgPool, key: Key) -> Result<Begun, Error> {
        let mut conn = pool.acquire().await?;
        let is_new = store::claim(&mut conn, &key).await.map_err(in_progress)?;
        if is_new {
            store::bound(&mut conn, key.user_id).await?;
        } else {
            let stored = store::find(&mut conn, &key).await?.ok_or(Error::InProgress)?;
            let answer = idempotency::replay(stored, &key.fingerprint).map_err(|_| Error::KeyReused)?;
            if !answer.is_empty() {
                return Ok(Begun::Done(answer));
            }
        }
        let claim = Uuid::new_v4();
        if !store::take_turn(&mut conn, &key, claim, LEASE).await.map_err(in_progress)? {
            return Err(Error::InProgress);
        }
        let done = if is_new { Vec::new() } else { store::progress(&mut conn, &key).await? };
        Ok(Begun::Ours(Self { pool: pool.clone(), key, claim }, done))
    }

    /// Notes rows as done, in the transaction that does them. An error where another request has taken the turn: the
    /// transaction must not be committed.
    pub async fn note(&self, conn: &mut PgConnection, rows: &[DoneRow]) -> Result<(), Error> {
        if !store::hold_turn(conn, &self.key, self.claim).await? {
            return Err(Error::InProgress);
        }
        if rows.is_empty() {
            return Ok(());
        }
        Ok(store::note_progress(conn, &self.key, rows).await?)
    }

    /// Keeps the answer of a batch of which every row has had its turn; where some have not, lets a repeat do them.
    pub async fn end(&self, answer: Option<&[u8]>) {
        let ended = async {
            let mut conn = self.pool.acquire().await?;
            match answer {
                Some(answer) => store::finish(&mut conn, &self.key, self.claim, answer).await.map(drop),
                None => store::give_turn_up(&mut conn, &self.key, self.claim).await,
            }
        };
        if let Err(error) = ended.await {
            // The rows that are done are noted; a repeat finds them, at the latest when the lease has ended.
            tracing::warn!(%error, "the answer of a batch was not kept");
        }
    }
}
