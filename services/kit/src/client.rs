//! Calls to other services: lazily connected channels, requests that carry the caller's token, the trace and the
//! deadline, what it means when a call fails, and the token a service calls with in its own name.

use std::{error::Error, iter::successors, sync::Arc, time::Duration};

use anyhow::Context as _;
use secrecy::{ExposeSecret as _, SecretString};
use shoppee_proto::auth::v1::{IssueServiceTokenRequest, auth_service_client::AuthServiceClient};
use tokio::{sync::Mutex, time::Instant};
use tonic::{
    Code, ConnectError, Extensions, Request, Status,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};

use crate::{caller::authorize, pool::Pool, status, telemetry};

/// Bounds the connect. A peer whose kernel does not accept in this time is not there: the round trip takes a
/// millisecond. A call has time for a second address.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);
/// Bounds the handshake, which needs the processor of the peer; the peer may be busy.
pub(crate) const TLS_TIMEOUT: Duration = Duration::from_secs(1);
/// Bounds the wait for a token.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(1);
/// The largest answer a client takes. It must hold 100 products with 10 000 characters of description and 16 KiB of
/// attributes each. These are above the 4 MiB of tonic.
pub const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// How soon a peer that vanished without a word is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A channel in plain text that connects when first used, and again when broken.
pub fn channel(url: &str) -> anyhow::Result<Channel> {
    Ok(endpoint(url)?.connect_lazy())
}

/// How every connection between our services is made.
pub fn endpoint(url: &str) -> anyhow::Result<Endpoint> {
    Ok(Endpoint::from_shared(url.to_owned())
        .with_context(|| format!("not a URL: {url}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .keep_alive_while_idle(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE))
}

/// A request with the current trace, its deadline and the caller's token.
pub fn request<T>(message: T, token: Option<&SecretString>, deadline: Duration) -> Request<T> {
    let mut headers = http::HeaderMap::new();
    telemetry::inject(&mut headers);
    let mut request = Request::from_parts(MetadataMap::from_headers(headers), Extensions::new(), message);
    request.set_timeout(deadline);
    if let Some(token) = token {
        authorize(&mut request, token);
    }
    request
}

/// Waits for a call no longer than `deadline`, connecting included; then DEADLINE_EXCEEDED, which tonic itself
/// never says.
pub async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    tokio::time::timeout(deadline, call).await.unwrap_or_else(|_| Err(late()))
}

/// Whether the service never saw the call: nobody accepted the connection, or it closed before the call's turn came.
pub fn never_sent(status: &Status) -> bool {
    successors(Error::source(status), |&error| error.source()).any(|error| {
        error.is::<ConnectError>()
            || error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
    })
}

/// Whether the connection failed, and not the service.
pub fn got_lost(status: &Status) -> bool {
    let lost = Error::source(status).is_some();
    never_sent(status)
        || (lost && matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal))
}

/// Whether the service could not be reached, got lost, or said that it cannot answer now.
pub fn is_away(status: &Status) -> bool {
    status.code() == Code::Unavailable || got_lost(status)
}

fn late() -> Status {
    status::Refusal::new(tonic::Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "it took too long; try again")
        .into()
}

/// The token a service calls others with, fetched when first needed and renewed before it ends.
#[derive(Clone, Debug)]
pub struct ServiceToken {
    auth: Arc<Pool>,
    id: String,
    secret: SecretString,
    held: Arc<Mutex<Option<Held>>>,
}

#[derive(Clone, Debug)]
struct Held {
    token: Arc<SecretString>,
    renew_at: Instant,
}

impl ServiceToken {
    pub fn new(auth: Arc<Pool>, id: String, secret: SecretString) -> Self {
        Self { auth, id, secret, held: Arc::default() }
    }

    /// A token that is good for at least half its life; UNAVAILABLE where auth does not answer.
    pub async fn get(&self) -> Result<Arc<SecretString>, Status> {
        let mut held = self.held.lock().await;
        if let Some(held) = held.as_ref().filter(|held| Instant::now() < held.renew_at) {
            return Ok(held.token.clone());
        }
        let message = IssueServiceTokenRequest {
            client_id: self.id.clone(),
            client_secret: self.secret.expose_secret().to_owned(),
        };
        let issuing = self.auth.call(
            || true,
            |member| {
                let request = request(message.clone(), None, TOKEN_TIMEOUT);
                async move { AuthServiceClient::new(member.channel()).issue_service_token(request).await }
            },
        );
        let issued = within(TOKEN_TIMEOUT, issuing).await?.into_inner();
        let life = Duration::from_secs(u64::try_from(issued.expires_in).unwrap_or_default());
        let token = Arc::new(SecretString::from(issued.access_token));
        *held = Some(Held { token: token.clone(), renew_at: Instant::now() + life / 2 });
        Ok(token)
    }

    /// Forgets the token, for one that was refused: the keys may have changed.
    pub async fn forget(&self) {
        *self.held.lock().await = None;
    }
}
