//! A client-side load balancer: round robin over the healthy replicas of a service, with health checks, failover and a
//! retry budget.
//!
//! It keeps one connection to each address that the names of the service resolve to. An endpoint that fails its health
//! check or loses a call is left out until it is healthy again. If no endpoint is healthy, the names are resolved again
//! at once, and every endpoint is tried.

mod endpoint;
mod resolver;
mod retry_budget;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use futures_util::future::join_all;
use http::Uri;
use tokio::{sync::Mutex, time::Instant};
use tonic::Status;

pub use self::endpoint::Endpoint;
use self::{endpoint::Health, resolver::Resolver, retry_budget::RetryBudget};
use crate::{client, process::Process, readiness::Criticality, tls::GrpcTls};

/// Bounds the attempts of a call that no service has processed: two dead addresses, a name resolution, and a new one.
const MAX_ATTEMPTS: usize = 4;
/// The delay before another attempt at the same addresses, and the minimum interval between two resolutions. A restarted
/// peer usually listens again within this time.
const RETRY_DELAY: Duration = Duration::from_millis(50);
/// The time for which a departed address keeps its connection: longer than name servers disagree.
const DEPARTED_TTL: Duration = Duration::from_mins(1);

const _: () = assert!(
    2 * client::CONNECT_TIMEOUT.as_millis() + resolver::RESOLVE_TIMEOUT.as_millis() <= 1000,
    "a service whose two addresses became unresponsive at once is reached within a second"
);

/// A load balancer over the replicas of one service.
#[derive(Debug)]
pub struct LoadBalancer {
    urls: Vec<Uri>,
    tls: GrpcTls,
    resolver: Resolver,
    /// An endpoint that connects by name; used until the first resolution.
    fallback: Arc<Endpoint>,
    endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    departed: std::sync::Mutex<BTreeMap<SocketAddr, Departed>>,
    /// The time of the last resolution.
    resolved_at: Mutex<Option<Instant>>,
    next_index: AtomicUsize,
    retry_budget: RetryBudget,
}

/// An endpoint whose address the names no longer have.
#[derive(Debug)]
struct Departed {
    endpoint: Arc<Endpoint>,
    at: Instant,
}

impl LoadBalancer {
    /// Starts to balance over the service at `urls`, a list with commas. Connections are made when they are first used,
    /// and health is checked every second; `/readyz` reports the result under `name`.
    pub fn start(name: &'static str, urls: &str, process: &Process) -> anyhow::Result<Arc<Self>> {
        let balancer = Arc::new(Self::new(urls, process.tls.clone(), Resolver::default())?);
        let refreshed = balancer.clone();
        let refresh = move || refreshed.clone().refresh();
        process.readiness.watch(&process.tasks, name, Criticality::Optional, refresh);
        Ok(balancer)
    }

    fn new(urls: &str, tls: GrpcTls, resolver: Resolver) -> anyhow::Result<Self> {
        let parse = |url: &str| url.trim().parse::<Uri>().with_context(|| format!("not a URL: {url}"));
        let urls = urls.split(',').map(parse).collect::<Result<Vec<_>, _>>()?;
        let fallback = Arc::new(Endpoint::connect(None, &urls[0], &tls)?);
        Ok(Self {
            urls,
            tls,
            resolver,
            fallback,
            endpoints: ArcSwap::default(),
            departed: std::sync::Mutex::default(),
            resolved_at: Mutex::default(),
            next_index: AtomicUsize::new(0),
            retry_budget: RetryBudget::default(),
        })
    }

    /// Makes a call on the next endpoint. A call that was not processed fails over to another endpoint. A call that may
    /// have been processed is retried once, if `is_retryable` says so (the call is idempotent) and the retry budget has
    /// room.
    pub async fn call<R, F>(
        &self,
        is_retryable: impl FnOnce() -> bool,
        mut attempt: impl FnMut(Arc<Endpoint>) -> F,
    ) -> Result<R, Status>
    where
        F: Future<Output = Result<R, Status>>,
    {
        self.retry_budget.deposit();
        let mut is_retryable = Some(is_retryable);
        let mut attempts = 1;
        loop {
            let endpoint = self.pick();
            let status = match attempt(endpoint.clone()).await {
                Err(status) => status,
                response => return response,
            };
            if client::is_transport_error(&status) {
                endpoint.set_health(Health::Unhealthy);
            }
            if client::is_unprocessed(&status) && attempts < MAX_ATTEMPTS {
                self.prepare_failover().await;
            } else if client::is_unavailable(&status)
                && is_retryable.take().is_some_and(|is_retryable| is_retryable())
                && self.retry_budget.withdraw()
            {
                tokio::time::sleep(RETRY_DELAY).await;
            } else {
                return Err(status);
            }
            attempts += 1;
        }
    }

    /// Returns the next endpoint; before the first resolution, the one that connects by name.
    pub fn pick(&self) -> Arc<Endpoint> {
        self.pick_resolved().unwrap_or_else(|| self.fallback.clone())
    }

    /// Returns the next healthy endpoint. If there is none, returns the next of unknown health, then the next of all.
    fn pick_resolved(&self) -> Option<Arc<Endpoint>> {
        let endpoints = self.endpoints.load();
        let first = self.next_index.fetch_add(1, Ordering::Relaxed);
        let round_robin =
            (0..endpoints.len()).map(|offset| &endpoints[first.wrapping_add(offset) % endpoints.len()]);
        Health::BEST_FIRST
            .into_iter()
            .find_map(|health| round_robin.clone().find(|endpoint| endpoint.has_health(health)))
            .cloned()
    }

    fn any_has_health(&self, health: Health) -> bool {
        self.endpoints.load().iter().any(|endpoint| endpoint.has_health(health))
    }

    /// Returns when an endpoint is worth an attempt: at once if one is healthy, else after the names were resolved.
    async fn prepare_failover(&self) {
        if self.any_has_health(Health::Healthy) {
            return;
        }
        self.resolve().await;
        if !self.any_has_health(Health::Healthy) && !self.any_has_health(Health::Unknown) {
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Resolves the names and checks every endpoint. Returns whether any is healthy.
    async fn refresh(self: Arc<Self>) -> bool {
        self.resolve().await;
        self.check_health().await
    }

    /// Resolves the names, once for all concurrent callers.
    async fn resolve(&self) {
        let mut resolved_at = self.resolved_at.lock().await;
        if resolved_at.is_some_and(|at| at.elapsed() < RETRY_DELAY) {
            return;
        }
        let addresses = join_all(self.urls.iter().map(|url| self.resolve_url(url))).await;
        self.update_endpoints(addresses.into_iter().flatten().collect());
        *resolved_at = Some(Instant::now());
    }

    /// Returns the addresses of one URL. If the name cannot be resolved, returns its current addresses, as they may
    /// still be healthy.
    async fn resolve_url(&self, url: &Uri) -> Vec<(SocketAddr, Uri)> {
        match self.resolver.resolve(url).await {
            Ok(addresses) if !addresses.is_empty() => {
                addresses.into_iter().map(|addr| (addr, url.clone())).collect()
            }
            outcome => {
                tracing::debug!(%url, ?outcome, "name not resolved");
                let endpoints = self.endpoints.load();
                let current = endpoints.iter().filter_map(|endpoint| endpoint.at.clone());
                current.filter(|(_, of)| of == url).collect()
            }
        }
    }

    /// Checks the health of every endpoint. Returns whether any is healthy.
    async fn check_health(&self) -> bool {
        let endpoints = self.endpoints.load_full();
        join_all(endpoints.iter().map(|endpoint| endpoint.check_health())).await.contains(&true)
    }

    /// Replaces the endpoints by those at `addresses`; connections to addresses that stay are kept. An address that
    /// departed within the last minute returns with its connection, and is unhealthy until its next check. Name servers
    /// that disagree list and drop a dead address alternately.
    fn update_endpoints(&self, addresses: BTreeMap<SocketAddr, Uri>) {
        let before = self.endpoints.load();
        if addresses.is_empty()
            || before.iter().map(|endpoint| endpoint.addr()).eq(addresses.keys().copied().map(Some))
        {
            return;
        }
        let now = Instant::now();
        let mut departed = self.departed.lock().unwrap_or_else(PoisonError::into_inner);
        departed.retain(|_, departed| now.duration_since(departed.at) < DEPARTED_TTL);
        let leaving = before.iter().filter_map(|endpoint| Some((endpoint.addr()?, endpoint.clone())));
        let leaving = leaving.filter(|(addr, _)| !addresses.contains_key(addr));
        departed.extend(leaving.map(|(addr, endpoint)| (addr, Departed { endpoint, at: now })));
        let endpoints = addresses.into_iter().filter_map(|(addr, url)| {
            if let Some(current) = before.iter().find(|endpoint| endpoint.addr() == Some(addr)) {
                return Some(current.clone());
            }
            if let Some(returning) = departed.remove(&addr) {
                returning.endpoint.set_health(Health::Unhealthy);
                return Some(returning.endpoint);
            }
            let connected = Endpoint::connect(Some(addr), &url, &self.tls);
            connected.inspect_err(|error| tracing::error!(%addr, %error, "no connection")).ok().map(Arc::new)
        });
        self.endpoints.store(Arc::new(endpoints.collect()));
    }
}

#[cfg(test)]
mod tests;
