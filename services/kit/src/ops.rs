//! What operators ask a service over HTTP: `/metrics`, `/healthz`, `/readyz` on METRICS_ADDR.

use std::net::SocketAddr;

use anyhow::Context as _;
use axum::{Router, http::StatusCode, response::IntoResponse, routing::get};

use crate::{readiness::Readiness, tasks::Tasks, telemetry};

/// Starts to answer on `addr`.
pub async fn serve(addr: SocketAddr, tasks: &Tasks, readiness: &Readiness) -> anyhow::Result<()> {
    let listener =
        tokio::net::TcpListener::bind(addr).await.with_context(|| format!("METRICS_ADDR {addr}"))?;
    let (app, stop) = (router(readiness.clone()), tasks.stopping());
    tasks.spawn("ops", async move {
        tokio::select! {
            served = axum::serve(listener, app) => Ok(served?),
            () = stop.cancelled() => Ok(()),
        }
    });
    Ok(())
}

/// The three routes, for a process that has an HTTP server of its own.
pub fn router(readiness: Readiness) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(move || ready(readiness.clone())))
}

async fn metrics() -> impl IntoResponse {
    ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], telemetry::metrics())
}

#[expect(clippy::unused_async, reason = "a handler")]
async fn ready(readiness: Readiness) -> impl IntoResponse {
    let missing = readiness.missing();
    if missing.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join(", ")))
    }
}
