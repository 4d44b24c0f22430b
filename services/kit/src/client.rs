//! Calls to other services: lazily connected channels, requests that carry the caller's token, the trace and the
//! deadline, and the token a service calls with in its own name.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use secrecy::{ExposeSecret as _, SecretString};
use shoppee_proto::auth::v1::{IssueServiceTokenRequest, auth_service_client::AuthServiceClient};
use tokio::{sync::Mutex, time::Instant};
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};

use crate::{caller::authorize, status, telemetry};

/// A peer on the same network that does not accept within this is not there.
const CONNECT: Duration = Duration::from_secs(1);
/// How soon a peer that vanished without a word is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A channel that connects when first used, and again when broken.
pub fn channel(url: &str) -> anyhow::Result<Channel> {
    Ok(endpoint(url)?.connect_lazy())
}

/// How every connection between our services is made.
pub fn endpoint(url: &str) -> anyhow::Result<Endpoint> {
    Ok(Endpoint::from_shared(url.to_owned())
        .with_context(|| format!("not a URL: {url}"))?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .keep_alive_while_idle(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE))
}

/// A request with the current trace, its deadline and the caller's token.
pub fn request<T>(message: T, token: Option<&SecretString>, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    if let Some(token) = token {
        authorize(&mut request, token);
    }
    let mut headers = http::HeaderMap::new();
    telemetry::inject(&mut headers);
    for (name, value) in &headers {
        if let (Ok(name), Ok(value)) = (
            tonic::metadata::MetadataKey::from_bytes(name.as_str().as_bytes()),
            value.to_str().unwrap_or_default().parse(),
        ) {
            let name: tonic::metadata::MetadataKey<tonic::metadata::Ascii> = name;
            request.metadata_mut().insert(name, value);
        }
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

fn late() -> Status {
    status::Refusal::new(tonic::Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "it took too long; try again")
        .into()
}

/// The token a service calls others with, fetched when first needed and renewed before it ends.
#[derive(Clone, Debug)]
pub struct ServiceToken {
    auth: Channel,
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
    pub fn new(auth: Channel, id: String, secret: SecretString) -> Self {
        Self { auth, id, secret, held: Arc::default() }
    }

    /// A token that is good for at least half its life; UNAVAILABLE where auth does not answer.
    pub async fn get(&self) -> Result<Arc<SecretString>, Status> {
        let mut held = self.held.lock().await;
        if let Some(held) = held.as_ref().filter(|held| Instant::now() < held.renew_at) {
            return Ok(held.token.clone());
        }
        let request = request(
            IssueServiceTokenRequest {
                client_id: self.id.clone(),
                client_secret: self.secret.expose_secret().to_owned(),
            },
            None,
            CONNECT,
        );
        let mut auth = AuthServiceClient::new(self.auth.clone());
        let issued = within(CONNECT, auth.issue_service_token(request)).await?.into_inner();
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
