//! What operators ask a process over HTTP: `/metrics`, `/healthz`, `/readyz`; of a service on METRICS_ADDR.
//!
//! `/readyz` is for people and alerts: 503 as soon as any dependency is away, with the reason for each. A load balancer
//! asks `/readyz?need=vital`: taking a process out because Redis is away would turn a slower shop into none.

use std::net::SocketAddr;

use anyhow::Context as _;
use axum::{Router, extract::RawQuery, http::StatusCode, response::IntoResponse, routing::get};

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
