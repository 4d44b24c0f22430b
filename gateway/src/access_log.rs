//! The record of each request: request id, span and trace, access log line, metrics, and the headers of each response.
//! It also renders problems, whose bodies name the request. Of a client's text, only a validated request id is logged.

use std::{panic::AssertUnwindSafe, time::Duration};

use axum::{
    extract::{MatchedPath, Request},
    response::{IntoResponse as _, Response},
};
use futures_util::FutureExt as _;
use http::{
    HeaderMap, HeaderValue, Method,
    header::{
        CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
        X_FRAME_OPTIONS,
    },
};
use shoppee_kit::{
    caller::Caller,
    request_id::{self, RequestId},
    telemetry::{self, Trace},
};
use tokio::time::Instant;
use tracing::Span;

use crate::error::Problem;

/// The label of requests without a route: clients cannot add labels.
const UNMATCHED: &str = "unmatched";
/// Routes that probes and scrapers call every few seconds; their lines are at debug.
const PROBES: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// The record of a request in progress.
#[derive(Debug)]
pub struct RequestRecorder {
    started: Instant,
    id: RequestId,
    method: &'static str,
    route: Option<MatchedPath>,
    trace: Trace,
}

impl RequestRecorder {
    /// Gives the request an id and a trace. The sampling flag of a trace header counts only from `trusted` callers.
    pub fn start(request: &Request, trusted: bool) -> Self {
        let started = Instant::now();
        let id = RequestId::from_headers(request.headers());
        let method = method_label(request.method());
        let route = request.extensions().get::<MatchedPath>().cloned();
        let name = route.as_ref().map_or(UNMATCHED, MatchedPath::as_str);
        let span = if telemetry::exporter_enabled() {
            tracing::info_span!(
                "request",
                otel.name = format!("{method} {name}"),
                otel.kind = "server",
                http.request.method = method,
                http.route = name,
                http.response.status_code = tracing::field::Empty,
            )
        } else {
            Span::none()
        };
        let trace = if trusted {
            Trace::from_headers(span, request.headers())
        } else {
            Trace::from_untrusted_headers(span, request.headers())
        };
        let trace = trace.with_request_id(id.clone());
        Self { started, id, method, route, trace }
    }

    fn route(&self) -> &str {
        self.route.as_ref().map_or(UNMATCHED, MatchedPath::as_str)
    }

    /// Runs `handler` in the request's trace. Returns a 500 if the handler panics.
    pub async fn run(&self, handler: impl Future<Output = Response>) -> Response {
        let response = self.trace.instrument(AssertUnwindSafe(handler).catch_unwind()).await;
        response.unwrap_or_else(|_panic| {
            tracing::error!(parent: self.trace.span(), route = self.route(), "handler panicked");
            Problem::internal().into_response()
        })
    }

    /// Renders a problem, sets the headers of all responses, and writes the metrics and the log line. The response's
    /// extensions have the caller.
    pub fn finish(self, mut response: Response) -> Response {
        if let Some(problem) = response.extensions_mut().remove::<Problem>() {
            let rendered = problem.render(self.id.as_str());
            let (parts, body) = rendered.into_parts();
            response.headers_mut().remove(CONTENT_LENGTH);
            response.headers_mut().extend(parts.headers);
            *response.body_mut() = body;
        }
        set_response_headers(response.headers_mut(), self.id.to_header());

        let (status, elapsed) = (response.status().as_u16(), self.started.elapsed());
        self.trace.span().record("http.response.status_code", status);
        metrics::histogram!(
            "http_server_request_duration_seconds",
            "http_request_method" => self.method,
            "http_route" => self.route().to_owned(),
            "http_response_status_code" => status.to_string(),
        )
        .record(elapsed.as_secs_f64());
        let duration_ms = milliseconds(elapsed);
        let caller = response.extensions().get::<Caller>();
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    target: "access",
                    method = self.method,
                    route = self.route(),
                    status,
                    duration_ms,
                    user_id = caller.filter(|caller| !caller.is_service()).map(Caller::user_id),
                    client_id = caller.and_then(Caller::client_id),
                    trace_id = self.trace.id(),
                    request_id = self.id.as_str(),
                    "request"
                )
            };
        }
        if PROBES.contains(&self.route()) {
            log!(debug);
        } else {
            log!(info);
        }
        response
    }
}

/// Returns milliseconds with three decimals.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// Returns the method as a label: a method of HTTP, or `other`.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "_OTHER",
    }
}

/// Sets the headers of all responses. Caches store nothing unless a handler allows it.
fn set_response_headers(headers: &mut HeaderMap, id: HeaderValue) {
    headers.insert(request_id::HEADER, id);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (X_FRAME_OPTIONS, "DENY"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_logged_with_three_decimals() {
        assert_eq!(milliseconds(Duration::from_nanos(1_234_567)).to_string(), "1.235");
        assert_eq!(milliseconds(Duration::from_millis(70)).to_string(), "70");
    }

    #[tokio::test]
    async fn the_sampling_flag_of_an_untrusted_trace_header_is_not_propagated() {
        telemetry::install_propagator();
        let id = "0af7651916cd43dd8448eb211c80319c";
        for (trusted, flags) in [(true, "00"), (false, "01")] {
            let traceparent = format!("00-{id}-b7ad6b7169203331-00");
            let request =
                Request::get("/").header("traceparent", traceparent).body(axum::body::Body::empty()).unwrap();
            let recorder = RequestRecorder::start(&request, trusted);
            let propagated = recorder.trace.instrument(async { telemetry::traceparent() }).await;
            assert!(propagated.starts_with(&format!("00-{id}-")), "{propagated}");
            assert!(propagated.ends_with(&format!("-{flags}")), "{trusted}: {propagated}");
        }
    }

    #[test]
    fn an_unknown_method_has_the_label_other() {
        assert_eq!(method_label(&Method::from_bytes(b"BREW").unwrap()), "_OTHER");
    }
}
