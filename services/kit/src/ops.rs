//! The operational HTTP endpoints `/metrics`, `/healthz` (liveness) and `/readyz` (readiness); a service serves them on
//! METRICS_ADDR.
//!
//! `/readyz` is for people and alerts: 503 as soon as any dependency is down, with the reason for each. An orchestrator
//! probes `/readyz?need=vital`, which ignores optional dependencies: without Redis, the process is slower but serves.

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
/// Bounds the wait for the headers of a request, on a new or reused connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Starts to serve the endpoints on `addr`.
pub async fn serve(addr: SocketAddr, tasks: &Tasks, readiness: &Readiness) -> anyhow::Result<()> {
    let served = serve_router("ops", addr, router(readiness.clone()), tasks).await;
    served.with_context(|| format!("METRICS_ADDR {addr}"))
}

/// Starts to serve a router on `addr`, in the task `name`.
pub async fn serve_router(
    name: &'static str,
    addr: SocketAddr,
    router: Router,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let listener = Listener::bind(addr, MAX_CONNECTIONS).await?;
    let (app, shutdown) = (TowerToHyperService::new(router), tasks.shutdown_token());
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    tasks.spawn(name, async move {
        loop {
            let connection = tokio::select! {
                connection = listener.accept() => connection,
                () = shutdown.cancelled() => return Ok(()),
            };
            // The connection ends with the process; its errors concern the client only.
            tokio::spawn(server.serve_connection(TokioIo::new(connection), app.clone()));
        }
    });
    Ok(())
}

/// Returns the router of the endpoints, for a process with an HTTP server of its own.
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
async fn ready(RawQuery(query): RawQuery, readiness: Readiness) -> impl IntoResponse {
    let only_required = query.is_some_and(|query| query == "need=vital");
    let failing = readiness.failing_with_reasons(only_required);
    if failing.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", failing.join(", ")))
    }
}
