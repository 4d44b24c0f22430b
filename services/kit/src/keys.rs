//! Keeps a [`Verifier`] up to date by asking the auth service: for its keys, and for the sessions that ended before
//! their tokens did. Asked a few times a second, so that the end of a session takes effect everywhere within one
//! second; there is nothing between that could lose a message. While auth is away no session can end, and what was
//! known stays in force.

use std::{sync::Arc, time::Duration};

use shoppee_proto::auth::v1::{GetJwksRequest, auth_service_client::AuthServiceClient};
use tokio::{sync::broadcast, time::MissedTickBehavior};
use uuid::Uuid;

use crate::{
    caller::Verifier,
    client,
    pool::Pool,
    readiness::{Need, Readiness},
    tasks::Tasks,
};

/// The end of a session must show within a second: this, a round trip, and room for a slow machine.
const INTERVAL: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(1);

/// Starts to follow; what ends is sent to `ended`.
pub fn follow(
    tasks: &Tasks,
    readiness: &Readiness,
    auth: Arc<Pool>,
    verifier: Arc<Verifier>,
    ended: broadcast::Sender<Uuid>,
) {
    let (stop, readiness) = (tasks.stopping(), readiness.clone());
    // Without keys nothing can be verified; once they are here, auth may go and come.
    readiness.set("keys", Need::Vital, false);
    tasks.spawn("keys", async move {
        let mut watermark = None;
        // Slow answers do not make it ask less often.
        let mut turns = tokio::time::interval(INTERVAL);
        turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = turns.tick() => {}
                () = stop.cancelled() => return Ok(()),
            }
            let asking = auth.call(
                || true,
                |member| {
                    let request = client::request(GetJwksRequest { watermark }, None, PATIENCE);
                    async move { AuthServiceClient::new(member.channel()).get_jwks(request).await }
                },
            );
            match client::within(PATIENCE, asking).await {
                Ok(told) => {
                    let told = told.into_inner();
                    watermark = Some(told.watermark);
                    for sid in verifier.update(told) {
                        // No receiver: a process without sockets.
                        let _ = ended.send(sid);
                    }
                    readiness.set("keys", Need::Vital, true);
                }
                Err(error) => tracing::debug!(code = ?error.code(), "keys not refreshed"),
            }
        }
    });
}
