//! The access token of a service: the client credentials grant of RFC 6749 §4.4.

use std::{sync::Arc, time::Duration};

use secrecy::{ExposeSecret as _, SecretString};
use shoppee_proto::auth::v1::{IssueServiceTokenRequest, auth_service_client::AuthServiceClient};
use tokio::{sync::Mutex, time::Instant};
use tonic::Status;

use crate::{client, load_balancer::LoadBalancer};

/// Bounds the call that issues a token.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(1);

/// The access token with which a service calls others in its own name. It is fetched on first use and renewed after half
/// its lifetime.
#[derive(Clone, Debug)]
pub struct ServiceToken {
    auth: Arc<LoadBalancer>,
    id: String,
    secret: SecretString,
    cached: Arc<Mutex<Option<CachedToken>>>,
}

#[derive(Clone, Debug)]
struct CachedToken {
    token: Arc<SecretString>,
    renew_at: Instant,
}

impl ServiceToken {
    pub fn new(auth: Arc<LoadBalancer>, id: String, secret: SecretString) -> Self {
        Self { auth, id, secret, cached: Arc::default() }
    }

    /// Returns a token that is valid for at least half its lifetime. Returns UNAVAILABLE if auth does not answer.
    pub async fn get(&self) -> Result<Arc<SecretString>, Status> {
        let mut cached = self.cached.lock().await;
        if let Some(cached) = cached.as_ref().filter(|cached| Instant::now() < cached.renew_at) {
            return Ok(cached.token.clone());
        }
        let message = IssueServiceTokenRequest {
            client_id: self.id.clone(),
            client_secret: self.secret.expose_secret().to_owned(),
            scope: None,
        };
        let call = self.auth.call(
            || true,
            |endpoint| {
                let request = client::request(message.clone(), None, TOKEN_TIMEOUT);
                async move { AuthServiceClient::new(endpoint.channel()).issue_service_token(request).await }
            },
        );
        let response = client::with_deadline(TOKEN_TIMEOUT, call).await?.into_inner();
        let lifetime = Duration::from_secs(u64::try_from(response.expires_in).unwrap_or_default());
        let token = Arc::new(SecretString::from(response.access_token));
        *cached = Some(CachedToken { token: token.clone(), renew_at: Instant::now() + lifetime / 2 });
        Ok(token)
    }

    /// Drops the cached token after a service has refused it: the keys may have changed.
    pub async fn invalidate(&self) {
        *self.cached.lock().await = None;
    }
}
