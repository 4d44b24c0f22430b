//! Work that goes on without a request. Any number of replicas may run these, and each may be killed anywhere: a round
//! is one transaction, or can be done again.

use std::time::Duration;

use shoppee_kit::{
    pg::PgPool,
    process::Process,
    worker::{self, Round},
};
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::{cache::Lifetimes, holds::Holds, store};

/// A hold is back on the shelf within about this after its time.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);
/// How often old entries of the change log are deleted.
const CHANGE_LOG_INTERVAL: Duration = Duration::from_mins(1);
/// Longer than anything stays in Redis that an entry could make old.
const CHANGE_LOG_TTL: Duration = Duration::from_hours(2);
/// Entries deleted in one transaction.
const CHANGE_LOG_LIMIT: i64 = 10_000;

/// The interval at which idempotency keys older than a day are deleted, and their number in one transaction. A batch
/// has up to 10 000 rows of progress.
const KEY_INTERVAL: Duration = Duration::from_mins(1);
const KEY_LIMIT: i64 = 100;

/// Starts all of them.
pub fn start(
    process: &Process,
    ready: &watch::Receiver<bool>,
    pool: &PgPool,
    holds: &Holds,
    lifetimes: Lifetimes,
) {
    let holds = holds.clone();
    worker::spawn(process, "hold-expiry", EXPIRY_INTERVAL, ready.clone(), move || {
        let holds = holds.clone();
        async move { holds.expire().await.map(|ended| Round::more_if(ended > 0)) }
    });
    let (logged, clock) = (pool.clone(), process.clock.clone());
    let kept = CHANGE_LOG_TTL.max(2 * lifetimes.shared);
    worker::spawn(process, "change-log-cleanup", CHANGE_LOG_INTERVAL, ready.clone(), move || {
        let (pool, before) = (logged.clone(), clock.now() - kept);
        async move { forget(&pool, before).await }
    });
    let keys = pool.clone();
    worker::spawn(process, "idempotency-cleanup", KEY_INTERVAL, ready.clone(), move || {
        let pool = keys.clone();
        async move { forget_keys(&pool).await }
    });
}

/// Deletes some entries of the change log that are older than `before`.
async fn forget(pool: &PgPool, before: OffsetDateTime) -> sqlx::Result<Round> {
    let mut conn = pool.acquire().await?;
    let deleted = store::change::forget(&mut conn, before, CHANGE_LOG_LIMIT).await?;
    Ok(Round::more_if(deleted > 0))
}

/// Deletes some idempotency keys that are older than a day.
async fn forget_keys(pool: &PgPool) -> sqlx::Result<Round> {
    let mut conn = pool.acquire().await?;
    let deleted = store::idempotency::sweep(&mut conn, KEY_LIMIT).await?;
    Ok(Round::more_if(deleted >= u64::try_from(KEY_LIMIT).unwrap_or(u64::MAX)))
}
