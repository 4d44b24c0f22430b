//! The shop's front: REST and WebSocket to the outside, gRPC to the three services behind.
//!
//! - [`app`] has the table of routes and the layer before them; [`server`] the socket they are served on
//! - [`routes`]: a handler each, which parses, calls and maps; [`extract`] parses, [`upstream`] calls
//! - [`catalogue`]: the products, kept as they are sent
//! - [`auth`]: who may call; [`limit`]: how often; [`origin`]: from which web pages
//! - [`error`]: everything that can go wrong, as a client sees it; [`observe`]: as the log and the metrics do
//! - [`realtime`]: the sockets, and the events that reach them

mod app;
mod auth;
mod catalogue;
mod error;
mod extract;
mod limit;
mod metric_help;
mod observe;
mod openapi;
mod origin;
mod realtime;
mod routes;
mod server;
mod settings;
mod state;
mod upstream;

pub use limit::RateLimits;
pub use origin::Origin;
pub use settings::{Network, Settings};

use std::sync::Arc;

use shoppee_kit::{caller::Verifier, keys, process::Process, redis, settings::Environment, telemetry};
use tokio::sync::{Semaphore, broadcast};

use crate::{
    catalogue::Catalogue,
    extract::Bodies,
    limit::Limits,
    origin::Origins,
    realtime::Realtime,
    routes::docs::Docs,
    state::{Parts, State},
    upstream::Upstream,
};

/// Ended sessions that may wait for the sockets to be closed; a reader that falls behind is told so.
const ENDED_SESSIONS: usize = 4096;

/// Wires the gateway, and spawns its tasks.
pub async fn start(settings: Settings, process: Process) -> anyhow::Result<()> {
    telemetry::describe(metric_help::HELP);
    let upstream = Upstream::start(&settings, &process)?;
    let verifier = Verifier::new(process.clock.clone());
    let (ended, _) = broadcast::channel(ENDED_SESSIONS);
    let auth = upstream.auth().clone();
    keys::follow(&process, auth, verifier.clone(), ended.clone());

    let redis = redis::Clients::open(&settings.redis, &process).await?;
    let realtime = Realtime::start(&redis, upstream.clone(), verifier.clone(), &ended, &process)?;

    // What never happened is 0 for those who watch, not absent.
    metrics::counter!("http_requests_shed_total").increment(0);
    let catalogue = Catalogue::start(upstream.clone(), settings.cache_l1_ttl, &process);
    let state = State::from(Parts {
        catalogue,
        limits: Limits::start(&settings, redis.client("limits")?, &process.tasks),
        origins: Origins::new(&settings.cors_origins, settings.common.shoppee_env),
        room: Arc::new(Semaphore::new(usize::try_from(settings.max_requests)?)),
        bodies: Bodies::new(usize::try_from(settings.max_body_bytes)?),
        process: process.clone(),
        upstream,
        verifier,
        realtime,
        docs: Docs::new()?,
        secure_cookies: settings.common.shoppee_env == Environment::Production,
    });
    server::serve(&settings, app::app(state), &process).await
}
