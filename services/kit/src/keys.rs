//! Keeps a [`Verifier`] up to date by asking the auth service: for its keys, and for the sessions that ended before
//! their tokens did. Asked a few times a second, so that the end of a session takes effect everywhere within one
//! second; there is nothing between that could lose a message. While auth is away no session can end, and what was
//! known stays in force.

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
    pool::Pool,
    process::Process,
    readiness::{Need, Readiness},
    worker::{self, Round},
};

/// The end of a session must show within a second: this, a round trip, and room for a slow machine.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
const POLL_TIMEOUT: Duration = Duration::from_secs(1);
/// The same bound until the list is complete: a page of it is large.
const LOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// The state of the answers from the auth service so far.
#[derive(Debug, Default)]
struct Progress {
    cursor: Option<String>,
    /// Records that the list was complete once.
    complete: bool,
}

/// Starts to follow; what ends is sent to `ended`. The process is not ready before it knows every session that ended.
pub fn follow(process: &Process, auth: Arc<Pool>, verifier: Arc<Verifier>, ended: broadcast::Sender<Uuid>) {
    // Once keys and sessions are here, auth may go and come.
    process.readiness.set("keys", Need::Vital, false);
    let (readiness, progress) = (process.readiness.clone(), Arc::<Mutex<Progress>>::default());
    worker::spawn(process, "keys", POLL_INTERVAL, watch::channel(true).1, move || {
        let (auth, verifier, ended) = (auth.clone(), verifier.clone(), ended.clone());
        let (readiness, progress) = (readiness.clone(), progress.clone());
        async move { poll(&auth, &verifier, &ended, &readiness, &progress).await }
    });
}

async fn poll(
    auth: &Pool,
    verifier: &Verifier,
    ended: &broadcast::Sender<Uuid>,
    readiness: &Readiness,
    progress: &Mutex<Progress>,
) -> Result<Round, tonic::Code> {
    let (cursor, timeout) = {
        let progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        (progress.cursor.clone(), if progress.complete { POLL_TIMEOUT } else { LOAD_TIMEOUT })
    };
    let asking = auth.call(
        || true,
        |member| {
            let request = client::request(GetJwksRequest { cursor: cursor.clone() }, None, timeout);
            async move { AuthServiceClient::new(member.channel()).get_jwks(request).await }
        },
    );
    let answer = client::within(timeout, asking).await.map_err(|status| status.code())?.into_inner();
    let (cursor, more) = (answer.cursor.clone(), answer.more);
    for sid in verifier.update(answer) {
        // No receiver: a process without sockets.
        let _ = ended.send(sid);
    }
    let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
    progress.cursor = Some(cursor);
    if !more && !progress.complete {
        progress.complete = true;
        readiness.set("keys", Need::Vital, true);
    }
    Ok(Round::more_if(more))
}
