//! The shop's gateway: REST and WebSocket to clients, gRPC to the three services.
//!
//! - [`app`]: the table of routes and the request middleware; [`server`]: the HTTP connections
//! - [`routes`]: the handlers; [`extract`]: their extractors; [`upstream`]: the gRPC calls
//! - [`product_cache`]: a response cache for products and pages
//! - [`auth`]: authentication; [`rate_limit`]: rate limits; [`cors`]: allowed web origins
//! - [`error`]: errors as clients see them; [`replay`]: the mark of a replayed response; [`access_log`]: requests as
//!   logs, metrics and traces see them
//! - [`realtime`]: WebSocket connections and the events sent to them
//! - [`openapi`]: the API documents; [`docs`]: the page that shows them; [`storefront`]: a sample shop;
//!   [`static_file`]: the files of both; [`shop_status`]: the status of the services

mod access_log;
mod app;
mod auth;
mod cors;
mod docs;
mod error;
mod extract;
mod metric_help;
mod openapi;
mod product_cache;
mod rate_limit;
mod realtime;
mod replay;
mod routes;
mod server;
mod settings;
mod shop_status;
mod state;
mod static_file;
mod storefront;
mod upstream;

pub use cors::Origin;
pub use rate_limit::RateLimits;
pub use settings::{Network, Settings};

use std::sync::Arc;

use shoppee_kit::{
    caller::Verifier, process::Process, redis, settings::Environment, telemetry, verifier_sync,
};
use tokio::sync::{Semaphore, broadcast};

use crate::{
    cors::AllowedOrigins,
    docs::Docs,
    extract::BodyLimiter,
    product_cache::ProductCache,
    rate_limit::RateLimiter,
    realtime::Realtime,
    shop_status::StatusCache,
    state::{AppState, Inner},
    upstream::Upstream,
};

/// Ended sessions in the channel whose receivers close sockets. A receiver that falls behind gets a `Lagged` error.
const ENDED_SESSIONS_CAPACITY: usize = 4096;

/// Builds the gateway and spawns its tasks.
pub async fn start(settings: Settings, process: Process) -> anyhow::Result<()> {
    telemetry::describe(metric_help::HELP);
    let demo_control_url = settings.demo_control_url()?.map(ToOwned::to_owned);
    let upstream = Upstream::start(&settings, &process)?;
    let verifier = Verifier::new(process.clock.clone());
    let (ended, _) = broadcast::channel(ENDED_SESSIONS_CAPACITY);
    let auth_pool = upstream.auth_pool().clone();
    verifier_sync::spawn(&process, auth_pool, verifier.clone(), ended.clone());

    let redis = redis::Clients::open(&settings.redis, &process).await?;
    let realtime = Realtime::start(&redis, upstream.clone(), verifier.clone(), &ended, &process)?;

    // A counter that is exported as 0 before the first event lets alerts compute its rate.
    metrics::counter!("http_requests_shed_total").increment(0);
    let trusted_proxies = settings.trusted_proxies.iter().filter_map(|network| network.0).collect();
    let limits = redis.client("limits")?;
    let product_cache = ProductCache::start(upstream.clone(), settings.cache_l1_ttl, &process);
    let state = AppState::from(Inner {
        product_cache,
        rate_limiter: RateLimiter::start(&settings.rate_limits, trusted_proxies, limits, &process.tasks),
        allowed_origins: AllowedOrigins::new(&settings.cors_origins, settings.common.shoppee_env),
        request_permits: Arc::new(Semaphore::new(usize::try_from(settings.max_requests)?)),
        bodies: BodyLimiter::new(usize::try_from(settings.max_body_bytes)?),
        process: process.clone(),
        upstream,
        verifier,
        realtime,
        docs: Docs::new()?,
        status: StatusCache::default(),
        storefront: settings.has_storefront(),
        demo_control_url,
        secure_cookies: settings.common.shoppee_env == Environment::Production,
    });
    server::serve(&settings, app::app(state), &process).await
}
