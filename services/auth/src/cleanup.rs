//! The cleanup job: deletes expired sessions, refresh tokens, login attempts and keys, and releases idle hashing
//! memory.

use std::sync::Arc;

use shoppee_kit::{
    idempotency::KEY_TTL,
    process::Process,
    worker::{self, Round},
};
use time::Duration;

use crate::{
    AuthContext,
    error::Error,
    sign_in,
    store::{login_attempt, registration_key, service_account, session},
};

const INTERVAL: std::time::Duration = std::time::Duration::from_mins(1);
/// The time after which unused hashing memory (19 MiB per hash) is released. It is shorter than the 10 s after which
/// idle blocking threads end, as the allocator returns memory to the system when they end.
const MEMORY_IDLE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(4);
/// The time for which a revoked session is still reported as revoked, and not as unknown.
const RETENTION: Duration = Duration::days(7);
/// Bounds the rows of a statement, so that no statement holds locks for long.
const BATCH_SIZE: i64 = 1000;

/// Starts the jobs.
pub fn spawn(context: Arc<AuthContext>, process: &Process) {
    let (hasher, stop) = (context.hasher.clone(), process.tasks.shutdown_token());
    process.tasks.spawn("idle memory", async move {
        while stop.run_until_cancelled(tokio::time::sleep(MEMORY_IDLE_TIMEOUT)).await.is_some() {
            hasher.release_idle(MEMORY_IDLE_TIMEOUT);
        }
        Ok(())
    });
    worker::spawn(process, "cleaning", INTERVAL, crate::database_ready(process), move || {
        let context = context.clone();
        async move { run_once(&context).await.map(|()| Round::Done) }
    });
}

async fn run_once(context: &AuthContext) -> Result<(), Error> {
    let now = context.clock.now();
    let mut conn = context.pool.acquire().await?;
    login_attempt::delete_expired(&mut conn, sign_in::ATTEMPT_WINDOW).await?;
    while session::delete_revoked(&mut conn, now - RETENTION, now, BATCH_SIZE).await?
        == BATCH_SIZE.unsigned_abs()
    {}
    while session::delete_expired(&mut conn, now - RETENTION, now, BATCH_SIZE).await?
        == BATCH_SIZE.unsigned_abs()
    {}
    let expired_before = now - crate::session::USED_TICKET_TTL;
    while session::delete_used_tickets(&mut conn, expired_before, BATCH_SIZE).await?
        == BATCH_SIZE.unsigned_abs()
    {}
    let expired_before = now - KEY_TTL;
    while registration_key::delete_expired(&mut conn, expired_before, BATCH_SIZE).await?
        == BATCH_SIZE.unsigned_abs()
    {}
    while service_account::delete_expired_keys(&mut conn, expired_before, BATCH_SIZE).await?
        == BATCH_SIZE.unsigned_abs()
    {}
    // A token that was used before this time has expired.
    let used_before = now - context.lifetimes.refresh - RETENTION;
    while session::delete_used_tokens(&mut conn, used_before, BATCH_SIZE).await? == BATCH_SIZE.unsigned_abs()
    {
    }
    Ok(())
}
