//! A poller that keeps a [`Verifier`] in sync with the auth service: its public keys, and the sessions that were revoked
//! before their tokens expired.
//!
//! It polls a few times a second, so that a revocation takes effect in every process within one second. A poll cannot
//! lose a message, as a broker between the processes could. While auth is unavailable, no session can be revoked, and the
//! last known state stays in force.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use shoppee_proto::auth::v1::{GetJwksRequest, auth_service_client::AuthServiceClient};
use tokio::sync::{broadcast, watch};
use uuid::Uuid;

use crate::{
    caller::Verifier,
    client,
    load_balancer::LoadBalancer,
    process::Process,
    readiness::{Criticality, Readiness},
    worker::{self, Round},
};

/// The interval between two polls. With a round trip and a margin for a slow machine it stays below the second within
/// which a revocation takes effect.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
const POLL_TIMEOUT: Duration = Duration::from_secs(1);
/// The timeout of a poll until the list is complete: a page of it is large.
const INITIAL_POLL_TIMEOUT: Duration = Duration::from_secs(5);

/// The progress of the synchronisation.
#[derive(Debug, Default)]
struct Progress {
    cursor: Option<String>,
    /// True once the list of revoked sessions was complete.
    complete: bool,
}

/// Spawns the poller; it sends the id of each revoked session to `revoked`. The process is not ready until the list of
/// revoked sessions is complete.
pub fn spawn(
    process: &Process,
    auth: Arc<LoadBalancer>,
    verifier: Arc<Verifier>,
    revoked: broadcast::Sender<Uuid>,
) {
    // It stays ready afterwards, although auth may become unavailable.
    process.readiness.set("keys", Criticality::Required, false);
    let (readiness, progress) = (process.readiness.clone(), Arc::<Mutex<Progress>>::default());
    worker::spawn(process, "keys", POLL_INTERVAL, watch::channel(true).1, move || {
        let (auth, verifier, revoked) = (auth.clone(), verifier.clone(), revoked.clone());
        let (readiness, progress) = (readiness.clone(), progress.clone());
        async move { poll(&auth, &verifier, &revoked, &readiness, &progress).await }
    });
}

async fn poll(
    auth: &LoadBalancer,
    verifier: &Verifier,
    revoked: &broadcast::Sender<Uuid>,
    readiness: &Readiness,
    progress: &Mutex<Progress>,
) -> Result<Round, tonic::Code> {
    let (cursor, timeout) = {
        let progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        (progress.cursor.clone(), if progress.complete { POLL_TIMEOUT } else { INITIAL_POLL_TIMEOUT })
    };
    let call = auth.call(
        || true,
        |endpoint| {
            let request = client::request(GetJwksRequest { cursor: cursor.clone() }, None, timeout);
            async move { AuthServiceClient::new(endpoint.channel()).get_jwks(request).await }
        },
    );
    let response = client::with_deadline(timeout, call).await.map_err(|status| status.code())?.into_inner();
    let (cursor, more) = (response.cursor.clone(), response.more);
    for sid in verifier.update(response) {
        // A process without sockets has no receiver.
        let _ = revoked.send(sid);
    }
    let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
    progress.cursor = Some(cursor);
    if !more && !progress.complete {
        progress.complete = true;
        readiness.set("keys", Criticality::Required, true);
    }
    Ok(Round::more_if(more))
}
