//! Forgets what is old: sessions and refresh tokens that nobody can use any more, tries that no longer count, memory
//! that nobody has needed for a while.

use std::sync::Arc;

use shoppee_kit::{
    idempotency::KEY_TTL,
    process::Process,
    worker::{self, Round},
};
use time::Duration;

use crate::{
    Auth,
    error::Error,
    sign_in,
    store::{password_try, registration_key, session},
};

const INTERVAL: std::time::Duration = std::time::Duration::from_mins(1);
/// The memory for a hash, 19 MiB, is given back when nobody signed in for so long: before the threads that hashed end,
/// idle for 10 s, with which the allocator looks what it can return to the system.
const IDLE: std::time::Duration = std::time::Duration::from_secs(4);
/// For so long somebody whose session has ended is told so, instead of being a stranger.
const KEPT: Duration = Duration::days(7);
/// Rows a statement deletes, so that none holds locks for long.
const BATCH: i64 = 1000;

/// Starts to forget.
pub fn clean(auth: Arc<Auth>, process: &Process) {
    let (hasher, stop) = (auth.hasher.clone(), process.tasks.stopping());
    process.tasks.spawn("idle memory", async move {
        while stop.run_until_cancelled(tokio::time::sleep(IDLE)).await.is_some() {
            hasher.give_back_unused(IDLE);
        }
        Ok(())
    });
    worker::spawn(process, "cleaning", INTERVAL, crate::database_up(process), move || {
        let auth = auth.clone();
        async move { clean_once(&auth).await.map(|()| Round::Done) }
    });
}

async fn clean_once(auth: &Auth) -> Result<(), Error> {
    let now = auth.clock.now();
    let mut conn = auth.pool.acquire().await?;
    password_try::forget_old(&mut conn, sign_in::WINDOW).await?;
    while session::forget_ended(&mut conn, now - KEPT, now, BATCH).await? == BATCH.unsigned_abs() {}
    while session::forget_expired(&mut conn, now - KEPT, now, BATCH).await? == BATCH.unsigned_abs() {}
    let forgotten = now - crate::session::USED_TICKET_TTL;
    while session::delete_used_tickets(&mut conn, forgotten, BATCH).await? == BATCH.unsigned_abs() {}
    let forgotten = now - KEY_TTL;
    while registration_key::delete_old(&mut conn, forgotten, BATCH).await? == BATCH.unsigned_abs() {}
    // A token used so long ago has run out, whoever brings it back.
    let used_before = now - auth.lifetimes.refresh - KEPT;
    while session::forget_used_tokens(&mut conn, used_before, BATCH).await? == BATCH.unsigned_abs() {}
    Ok(())
}
