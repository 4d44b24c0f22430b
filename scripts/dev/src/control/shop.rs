//! The shop as its buyers use it: over several gateways, with retries under the same idempotency key.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use http::StatusCode;
use rand::Rng as _;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tonic::transport::Endpoint;

use crate::{
    readiness,
    rest::{Request, Rest, is_transient},
    secrets::{Secrets, SignIn},
};

/// Bounds the retries of a request. A killed gateway is back within seconds, and a busy machine takes longer.
const RETRY_TIMEOUT: Duration = Duration::from_mins(1);
/// The mean delay before the first retry. It doubles with each retry, up to the maximum.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(100);
const MAX_RETRY_DELAY: Duration = Duration::from_millis(1600);

/// The addresses and the secrets of a running shop.
#[derive(Clone, Debug)]
pub struct Shop {
    /// The URLs of the gateways.
    pub gateways: Vec<String>,
    pub auth: Endpoint,
    /// The URL of the superuser.
    pub postgres_url: String,
    pub admin: SignIn,
    pub buyer_password: String,
    rests: Arc<[Rest]>,
}

impl Shop {
    /// Creates a client of the shop. `auth_url` is the gRPC URL of the auth service.
    pub fn new(
        gateways: Vec<String>,
        auth_url: String,
        postgres_url: String,
        secrets: &Secrets,
    ) -> anyhow::Result<Self> {
        let rests = gateways.iter().map(|url| Rest::new(url)).collect::<anyhow::Result<_>>()?;
        Ok(Self {
            gateways,
            auth: Endpoint::from_shared(auth_url)?,
            postgres_url,
            admin: secrets.admin.clone(),
            buyer_password: secrets.buyer_password.clone(),
            rests,
        })
    }

    /// Waits until a gateway is ready.
    pub async fn wait_until_ready(&self, gateway: usize) {
        let Ok(client) = reqwest::Client::builder().no_proxy().build() else { return };
        readiness::wait_until(|| async { readiness::check(&client, &self.gateways[gateway]).await.is_ok() })
            .await;
    }

    /// Returns clients of all gateways.
    pub fn connect(&self) -> Gateways {
        Gateways { rests: self.rests.clone(), retries: AtomicUsize::default() }
    }
}

/// Clients of all gateways.
#[derive(Debug)]
pub struct Gateways {
    rests: Arc<[Rest]>,
    retries: AtomicUsize,
}

impl Gateways {
    /// Returns the number of requests that were sent again.
    pub fn retries(&self) -> usize {
        self.retries.load(Ordering::Relaxed)
    }

    /// Sends a request by the gateway number `first`, modulo their number, and by the others while the outcome is unknown.
    pub async fn send<'a>(
        &'a self,
        first: usize,
        request: impl Fn(&'a Rest) -> Request<'a>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let started = Instant::now();
        let (mut gateway, mut delay) = (first, MIN_RETRY_DELAY);
        loop {
            let request = request(&self.rests[gateway % self.rests.len()]);
            let reason = match request.send_once().await {
                Ok((status, body)) if !is_transient(status, &body) => return Ok((status, body)),
                Ok((status, body)) => format!("{status} {}", body["code"].as_str().unwrap_or_default()),
                Err(error) => error.to_string(),
            };
            if started.elapsed() > RETRY_TIMEOUT {
                bail!("{}: {reason}, for {} s", request.label(), RETRY_TIMEOUT.as_secs());
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            gateway += 1;
            // Buyers that failed at once return one by one.
            let jitter = rand::rng().random_range(0.5..1.5);
            sleep(delay.mul_f64(jitter)).await;
            delay = (delay * 2).min(MAX_RETRY_DELAY);
        }
    }

    /// Does the same for a request that must succeed, and returns its body.
    pub async fn expect<'a>(
        &'a self,
        first: usize,
        request: impl Fn(&'a Rest) -> Request<'a>,
    ) -> anyhow::Result<Value> {
        let (status, body) = self.send(first, request).await?;
        if status.is_success() {
            return Ok(body);
        }
        let detail = body["detail"].as_str().context(status)?;
        bail!("{status} {}: {detail}", body["code"].as_str().unwrap_or_default())
    }
}
