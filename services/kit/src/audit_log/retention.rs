//! The worker that deletes old audit records.

use std::time::Duration;

use tokio::sync::watch;

use super::store::Store;
use crate::{
    pg::PgPool,
    process::Process,
    settings::AuditLog,
    worker::{self, Round},
};

const INTERVAL: Duration = Duration::from_mins(1);
/// Bounds the records of a statement, so that no statement holds locks for long.
const BATCH_SIZE: i64 = 1000;

/// Starts the worker.
pub fn spawn<S: Store>(process: &Process, pool: &PgPool, settings: &AuditLog, ready: watch::Receiver<bool>) {
    let (pool, retention) = (pool.clone(), settings.audit_retention.as_secs_f64());
    worker::spawn(process, "audit-retention", INTERVAL, ready, move || {
        let pool = pool.clone();
        async move {
            let mut conn = pool.acquire().await?;
            let deleted = S::delete_expired(&mut conn, retention, BATCH_SIZE).await?;
            Ok::<_, sqlx::Error>(Round::more_if(deleted == BATCH_SIZE.unsigned_abs()))
        }
    });
}
