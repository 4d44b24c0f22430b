//! What is seen of every request: its id, its span and trace, one line in the log, its metrics, what stands
//! on every answer, and the body of every problem. Nothing a client sends gets into the log but an id that
//! was checked.

use std::{panic::AssertUnwindSafe, time::Duration};

use axum::{
    extract::{MatchedPath, Request},
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
use shoppee_kit::telemetry::{self, Trace};
use tokio::time::Instant;
use tracing::Span;
use uuid::Uuid;

use crate::error::Problem;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const LONGEST_REQUEST_ID: usize = 128;
/// The label of requests that no route takes, so that nobody can make up labels.
const UNMATCHED: &str = "unmatched";
/// The routes that probes and scrapers ask every few seconds; their lines are at debug.
const PROBES: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// Whom a request was found to speak for; goes out with the answer, for the log.
#[derive(Clone, Copy, Debug)]
pub struct UserId(pub i64);

/// A request on its way through the gateway.
#[derive(Debug)]
pub struct Observed {
    started: Instant,
    id: HeaderValue,
    method: &'static str,
    route: Option<MatchedPath>,
    trace: Trace,
}

impl Observed {
    /// Gives the request an id and a trace. The gateway believes the trace headers of `trusted` callers alone.
    pub fn begin(request: &mut Request, trusted: bool) -> Self {
        let started = Instant::now();
        let id = request_id(request.headers_mut());
        let method = known(request.method());
        let route = request.extensions().get::<MatchedPath>().cloned();
        let name = route.as_ref().map_or(UNMATCHED, MatchedPath::as_str);
        let span = if telemetry::is_exported() {
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
            Trace::go_on(span, request.headers())
        } else {
            Trace::go_on_untrusted(span, request.headers())
        };
        Self { started, id, method, route, trace }
    }

    fn route(&self) -> &str {
        self.route.as_ref().map_or(UNMATCHED, MatchedPath::as_str)
    }

    /// Lets `handling` answer; one that panics has answered too.
    pub async fn answered_by(&self, handling: impl Future<Output = Response>) -> Response {
        let answered = self.trace.of(AssertUnwindSafe(handling).catch_unwind()).await;
        answered.unwrap_or_else(|_panic| {
            tracing::error!(parent: self.trace.span(), route = self.route(), "handler panicked");
            Problem::internal().into_response()
        })
    }

    /// Writes problems out, seals the answer, and tells of it.
    pub fn end(self, mut response: Response) -> Response {
        if let Some(problem) = response.extensions_mut().remove::<Problem>() {
            let told = problem.render(self.id.to_str().unwrap_or_default());
            let (parts, body) = told.into_parts();
            response.headers_mut().remove(CONTENT_LENGTH);
            response.headers_mut().extend(parts.headers);
            *response.body_mut() = body;
        }
        seal(response.headers_mut(), self.id.clone());

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
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    target: "access",
                    method = self.method,
                    route = self.route(),
                    status,
                    duration_ms,
                    user_id = response.extensions().get::<UserId>().map(|user| user.0),
                    trace_id = self.trace.id(),
                    request_id = self.id.to_str().unwrap_or_default(),
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

/// The client's own id where it is one, else a new one; handlers find it where it came.
fn request_id(headers: &mut HeaderMap) -> HeaderValue {
    let own = headers.get(REQUEST_ID).filter(|id| is_sane(id.as_bytes())).cloned();
    let id = own.unwrap_or_else(|| {
        let mut text = Uuid::encode_buffer();
        let text = Uuid::now_v7().hyphenated().encode_lower(&mut text);
        // Hexadecimal digits and hyphens are a header value.
        HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("none"))
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
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
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
    fn a_duration_is_logged_with_three_decimals() {
        assert_eq!(milliseconds(Duration::from_nanos(1_234_567)).to_string(), "1.235");
        assert_eq!(milliseconds(Duration::from_millis(70)).to_string(), "70");
    }

    #[tokio::test]
    async fn what_a_stranger_says_of_the_recording_of_a_trace_is_not_handed_on() {
        telemetry::install_propagator();
        let id = "0af7651916cd43dd8448eb211c80319c";
        for (trusted, flags) in [(true, "00"), (false, "01")] {
            let told = format!("00-{id}-b7ad6b7169203331-00");
            let mut request =
                Request::get("/").header("traceparent", told).body(axum::body::Body::empty()).unwrap();
            let observed = Observed::begin(&mut request, trusted);
            let handed_on = observed.trace.of(async { telemetry::traceparent() }).await;
            assert!(handed_on.starts_with(&format!("00-{id}-")), "{handed_on}");
            assert!(handed_on.ends_with(&format!("-{flags}")), "{trusted}: {handed_on}");
        }
    }

    #[test]
    fn labels_cannot_be_made_up() {
        assert_eq!(known(&Method::from_bytes(b"BREW").unwrap()), "other");
    }
}
