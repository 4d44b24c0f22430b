//! The outermost layer: the request's id, its span and trace, one line in the log, its metrics, what stands
//! on every answer, and the body of every problem. Nothing a client sends gets into the log but an id that
//! was checked.

use std::{panic::AssertUnwindSafe, sync::Arc};

use axum::{
    extract::{MatchedPath, Request},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use futures_util::FutureExt as _;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{
        CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
        X_FRAME_OPTIONS,
    },
};
use shoppee_kit::telemetry;
use tokio::time::Instant;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::error::Problem;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const LONGEST_REQUEST_ID: usize = 128;
/// The label of requests that no route takes, so that nobody can make up labels.
const UNMATCHED: &str = "unmatched";

/// Whom a request was found to speak for; goes out with the answer, for the log.
#[derive(Clone, Copy, Debug)]
pub struct UserId(pub i64);

pub async fn observe(mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers_mut());
    let method = known(request.method());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route: Arc<str> = route.as_ref().map_or(UNMATCHED, MatchedPath::as_str).into();
    let span = tracing::info_span!(
        "request",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        http.request.method = method,
        http.route = %route,
        http.response.status_code = tracing::field::Empty,
    );
    telemetry::continue_trace(&span, request.headers());

    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().instrument(span.clone()).await;
    let mut response = answered.unwrap_or_else(|_panic| {
        tracing::error!(parent: &span, %route, "handler panicked");
        Problem::internal().into_response()
    });
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let told = problem.render(id.to_str().unwrap_or_default());
        let (parts, body) = told.into_parts();
        response.headers_mut().remove(CONTENT_LENGTH);
        response.headers_mut().extend(parts.headers);
        *response.body_mut() = body;
    }
    seal(response.headers_mut(), id.clone());

    let (status, elapsed) = (response.status().as_u16(), started.elapsed());
    span.record("http.response.status_code", status);
    metrics::histogram!(
        "http_server_request_duration_seconds",
        "method" => method, "route" => route.to_string(), "status" => status.to_string()
    )
    .record(elapsed.as_secs_f64());
    tracing::info!(
        target: "access",
        method,
        route = &*route,
        status,
        duration_ms = elapsed.as_secs_f64() * 1000.0,
        user_id = response.extensions().get::<UserId>().map(|user| user.0),
        trace_id = telemetry::trace_id(&span),
        request_id = id.to_str().unwrap_or_default(),
        "request"
    );
    response
}

/// The client's own id where it is one, else a new one; handlers find it where it came.
fn request_id(headers: &mut HeaderMap) -> HeaderValue {
    let own = headers.get(REQUEST_ID).filter(|id| is_sane(id.as_bytes())).cloned();
    let id = own.unwrap_or_else(|| {
        // Hexadecimal digits and hyphens are a header value.
        HeaderValue::from_str(&Uuid::now_v7().to_string()).unwrap_or(HeaderValue::from_static("none"))
    });
    headers.insert(REQUEST_ID, id.clone());
    id
}

fn is_sane(id: &[u8]) -> bool {
    (1..=LONGEST_REQUEST_ID).contains(&id.len())
        && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

/// The method as a label: those that HTTP knows, and one word for all that a client makes up.
fn known(method: &Method) -> &'static str {
    [
        (Method::GET, "GET"),
        (Method::HEAD, "HEAD"),
        (Method::POST, "POST"),
        (Method::PUT, "PUT"),
        (Method::PATCH, "PATCH"),
        (Method::DELETE, "DELETE"),
        (Method::OPTIONS, "OPTIONS"),
    ]
    .into_iter()
    .find_map(|(known, name)| (known == method).then_some(name))
    .unwrap_or("other")
}

/// What stands on every answer. Nothing is kept by a cache unless its handler says so.
fn seal(headers: &mut HeaderMap, id: HeaderValue) {
    headers.insert(REQUEST_ID, id);
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

    fn with_id(id: &'static [u8]) -> HeaderMap {
        HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_bytes(id).unwrap())])
    }

    #[test]
    fn a_sane_id_is_kept_and_any_other_replaced() {
        assert_eq!(request_id(&mut with_id(b"order-7_a.B")), "order-7_a.B");
        for odd in [&b""[..], b"a b", b"<script>", b"\xff\xfe", &[b'a'; 129]] {
            let id = request_id(&mut with_id(odd.to_vec().leak()));
            assert!(id.to_str().unwrap().parse::<Uuid>().is_ok(), "{odd:?}");
        }
    }

    #[test]
    fn labels_cannot_be_made_up() {
        assert_eq!(known(&Method::from_bytes(b"BREW").unwrap()), "other");
    }
}
