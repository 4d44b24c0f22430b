//! Periodic background work. Any number of replicas may run these workers, and each may be killed at any
//! time: a round is one transaction, or can be repeated.

use std::time::Duration;

use shoppee_kit::{
    pg::PgPool,
    process::Process,
    worker::{self, Round},
};
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::{cache::CacheTtls, holds::Holds, store};

/// The interval at which expired holds are released: the stock is available again about this long after the
/// expiry.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);
/// The interval at which old entries of the change log are deleted.
const CHANGE_LOG_CLEANUP_INTERVAL: Duration = Duration::from_mins(1);
/// The retention of the change log: longer than the lifetime of any Redis entry that it could invalidate.
const CHANGE_LOG_RETENTION: Duration = Duration::from_hours(2);
/// Entries deleted in one transaction.
const CHANGE_LOG_PURGE_BATCH: i64 = 10_000;

/// The interval at which idempotency keys older than a day are deleted, and their number in one transaction.
/// A batch has up to 10 000 rows of progress.
const KEY_CLEANUP_INTERVAL: Duration = Duration::from_mins(1);
const KEY_PURGE_BATCH: i64 = 100;

/// Starts all workers.
pub fn start(
    process: &Process,
    ready: &watch::Receiver<bool>,
    pool: &PgPool,
    holds: &Holds,
    ttls: CacheTtls,
) {
    let holds = holds.clone();
    worker::spawn(process, "hold-expiry", EXPIRY_INTERVAL, ready.clone(), move || {
        let holds = holds.clone();
        async move { holds.expire().await.map(|expired| Round::more_if(expired > 0)) }
    });
    let (log_pool, clock) = (pool.clone(), process.clock.clone());
    let retention = CHANGE_LOG_RETENTION.max(2 * ttls.redis);
    worker::spawn(process, "change-log-cleanup", CHANGE_LOG_CLEANUP_INTERVAL, ready.clone(), move || {
        let (pool, before) = (log_pool.clone(), clock.now() - retention);
        async move { purge_change_log(&pool, before).await }
    });
    let key_pool = pool.clone();
    worker::spawn(process, "idempotency-cleanup", KEY_CLEANUP_INTERVAL, ready.clone(), move || {
        let pool = key_pool.clone();
        async move { purge_idempotency_keys(&pool).await }
    });
}

/// Deletes entries of the change log that are older than `before`.
async fn purge_change_log(pool: &PgPool, before: OffsetDateTime) -> sqlx::Result<Round> {
    let mut conn = pool.acquire().await?;
    let deleted = store::change::purge(&mut conn, before, CHANGE_LOG_PURGE_BATCH).await?;
    Ok(Round::more_if(deleted > 0))
}

/// Deletes idempotency keys that are older than a day.
async fn purge_idempotency_keys(pool: &PgPool) -> sqlx::Result<Round> {
    let mut conn = pool.acquire().await?;
    let deleted = store::idempotency::delete_expired(&mut conn, KEY_PURGE_BATCH).await?;
    Ok(Round::more_if(deleted >= u64::try_from(KEY_PURGE_BATCH).unwrap_or(u64::MAX)))
}
