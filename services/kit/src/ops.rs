//! What operators ask a process over HTTP: `/metrics`, `/healthz`, `/readyz`; of a service on METRICS_ADDR.
//!
//! `/readyz` is for people and alerts: 503 as soon as any dependency is away, with the reason for each. A load balancer
//! asks `/readyz?need=vital`: taking a process out because Redis is away would turn a slower shop into none.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use axum::{Router, extract::RawQuery, http::StatusCode, response::IntoResponse, routing::get};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};

use crate::{listener::Listener, readiness::Readiness, tasks::Tasks, telemetry};

/// Bounds the connections.
pub const MAX_CONNECTIONS: usize = 64;
/// Bounds the time until a request has come, on a connection that is new or was used before.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Starts to answer on `addr`.
pub async fn serve(addr: SocketAddr, tasks: &Tasks, readiness: &Readiness) -> anyhow::Result<()> {
    let listener =
        Listener::bind(addr, MAX_CONNECTIONS).await.with_context(|| format!("METRICS_ADDR {addr}"))?;
    let (app, stop) = (TowerToHyperService::new(router(readiness.clone())), tasks.stopping());
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    tasks.spawn("ops", async move {
        loop {
            let connection = tokio::select! {
                connection = listener.accept() => connection,
                () = stop.cancelled() => return Ok(()),
            };
            // It ends with the process, and its errors are the client's.
            tokio::spawn(server.serve_connection(TokioIo::new(connection), app.clone()));
        }
    });
    Ok(())
}

/// The three routes, for a process that has an HTTP server of its own.
pub fn router(readiness: Readiness) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(move |query| ready(query, readiness.clone())))
}

async fn metrics() -> impl IntoResponse {
    ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], telemetry::metrics())
}

#[expect(clippy::unused_async, reason = "a handler")]
async fn ready(RawQuery(asked): RawQuery, readiness: Readiness) -> impl IntoResponse {
    let vital = asked.is_some_and(|asked| asked == "need=vital");
    let missing = readiness.missing_with_reasons(vital);
    if missing.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join(", ")))
    }
}
