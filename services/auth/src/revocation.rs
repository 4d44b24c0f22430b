//! What verifiers must know: the keys, and which sessions ended before their tokens did. Other processes ask
//! for it a few times a second ([`shoppee_kit::keys`]); our own verifier is told by a task here, and at once
//! of what this process ended itself.

use std::sync::{Arc, Mutex, PoisonError};

use shoppee_kit::{caller::Verifier, process::Process, readiness::Need};
use shoppee_proto::auth::v1::{EndedSession, GetJwksResponse};
use time::{Duration, OffsetDateTime};
use tokio::time::MissedTickBehavior;

use crate::{
    Auth,
    error::Error,
    store::session::{self, Ended},
};

/// As often as the others ask: the end of a session shows everywhere within a second.
const INTERVAL: std::time::Duration = std::time::Duration::from_millis(200);
/// An end carries the time at which it was written, and shows only when its transaction commits: everything
/// that ended so long before the last answer is told once more. A transaction lives for half of it at most,
/// as the connection's idle_in_transaction_session_timeout (5 s) sees to.
const OVERLAP: Duration = Duration::seconds(10);
/// Ends told at once, about 50 bytes each: well below gRPC's 4 MiB. What is left comes with the next answer.
const MOST: i64 = 50_000;
/// What verifiers let other clocks run ahead.
const LEEWAY: Duration = Duration::seconds(5);

/// Our own verifier, which one at a time may change.
#[derive(Debug)]
pub struct Revocations {
    verifier: Mutex<Arc<Verifier>>,
}

impl Revocations {
    pub fn new(verifier: Arc<Verifier>) -> Self {
        Self { verifier: Mutex::new(verifier) }
    }

    /// Refuses these sessions here from now on; the others learn of it when they ask next.
    pub fn note(&self, auth: &Auth, ended: &[Ended]) {
        if ended.is_empty() {
            return;
        }
        let ended_sessions = ended.iter().map(|ended| told_end(ended.id, ended.access_expires_at)).collect();
        self.take_in(GetJwksResponse { keys: auth.signer.jwks().to_vec(), ended_sessions, watermark: 0 });
    }

    fn take_in(&self, told: GetJwksResponse) {
        self.verifier.lock().unwrap_or_else(PoisonError::into_inner).update(told);
    }
}

fn told_end(id: uuid::Uuid, access_expires_at: OffsetDateTime) -> EndedSession {
    // A claim is a whole second, the end of its session need not be.
    EndedSession { sid: id.to_string(), forget_at: access_expires_at.unix_timestamp() + 1 }
}

/// The keys, and the sessions that ended since an answer with this watermark; all, without one.
pub async fn told(auth: &Auth, watermark: Option<i64>) -> Result<GetJwksResponse, Error> {
    let mut conn = auth.pool.acquire().await?;
    let now = session::database_now(&mut conn).await?;
    let since = match watermark {
        Some(watermark) => from_watermark(watermark).min(now) - OVERLAP,
        None => OffsetDateTime::UNIX_EPOCH,
    };
    let ended = session::ended_since(&mut conn, since, auth.clock.now() - LEEWAY, MOST).await?;
    // Where some are left, the next answer begins at the last of these, but never later than it would anyway.
    let told_until = match ended.last() {
        Some(last) if i64::try_from(ended.len()) == Ok(MOST) => (last.ended_at + OVERLAP).min(now),
        Some(_) | None => now,
    };
    Ok(GetJwksResponse {
        keys: auth.signer.jwks().to_vec(),
        ended_sessions: ended.iter().map(|ended| told_end(ended.id, ended.access_expires_at)).collect(),
        watermark: to_watermark(told_until),
    })
}

/// Microseconds since the Unix epoch, by the database's clock.
fn to_watermark(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}

/// Whatever number a caller sends is a time: one out of range is the nearest that is in it.
fn from_watermark(watermark: i64) -> OffsetDateTime {
    let nanos = i128::from(watermark.max(0)) * 1000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(LAST_YEAR)
}

/// 9999-01-01.
const LAST_YEAR: OffsetDateTime = match OffsetDateTime::from_unix_timestamp(253_370_764_800) {
    Ok(at) => at,
    Err(_) => OffsetDateTime::UNIX_EPOCH,
};

/// Starts to keep our own verifier up to date; not ready before it once was.
pub fn follow(auth: Arc<Auth>, process: &Process) {
    let (stop, readiness) = (process.tasks.stopping(), process.readiness.clone());
    readiness.set("keys", Need::Vital, false);
    let ready = crate::database_ready(process);
    process.tasks.spawn("revocation", async move {
        ready.await;
        let mut watermark = None;
        // Slow answers do not make it ask less often.
        let mut turns = tokio::time::interval(INTERVAL);
        turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = turns.tick() => {}
                () = stop.cancelled() => return Ok(()),
            }
            match told(&auth, watermark).await {
                Ok(told) => {
                    watermark = Some(told.watermark);
                    auth.revocations.take_in(told);
                    readiness.set("keys", Need::Vital, true);
                }
                Err(error) => tracing::debug!(%error, "ended sessions not read"),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_a_watermark() {
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_702_886_400_123_456_000).unwrap();
        assert_eq!(from_watermark(to_watermark(at)), at);
        assert_eq!(from_watermark(-1), OffsetDateTime::UNIX_EPOCH);
        assert_eq!(from_watermark(i64::MIN), OffsetDateTime::UNIX_EPOCH);
        assert_eq!(from_watermark(i64::MAX).year(), 9999);
    }
}
