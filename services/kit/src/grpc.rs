//! The gRPC server of a service: admission control, authentication, tracing, metrics and deadlines of calls, health
//! checks and reflection.
//!
//! A handler that has to wait runs to its end in a task of its own. A client that disconnects, or a deadline, therefore
//! leaves a complete transaction or none.

#[cfg(test)]
mod access_tests;
mod admission;

use std::{
    convert::Infallible,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::Context as _;
use futures_util::{FutureExt as _, TryFutureExt as _};
use http::{Request, Response};
use tokio::time::Instant;
use tonic::{Code, Status, body::Body, server::NamedService, service::Routes, transport::server::Server};
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health, HealthServer},
};
use tower::{Layer, Service};
use tracing::Span;

use crate::{
    access::{self, Method},
    caller::{Caller, TokenError, Verifier, bearer},
    http2_preface::read_preface,
    listener::Listener,
    process::Process,
    request_id::RequestId,
    status,
    telemetry::{self, Trace},
    tls::acceptor::Acceptor,
};
use admission::{Admission, CallPermit};
pub use admission::{LargeCalls, MAX_REQUEST_BYTES, MAX_TOTAL_REQUEST_BYTES};

/// The deadline of a call without `grpc-timeout`. The gateway answers 503 within 2.5 s.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(2);
/// Bounds the deadline that a caller may set: for a slow payment provider, or a large batch.
const MAX_DEADLINE: Duration = Duration::from_mins(1);
/// The fraction of the caller's deadline after which the server answers, so that the caller receives the reason.
const DEADLINE_FRACTION: f64 = 0.9;
/// Bounds the connections; a calling process has one for each replica. A peer may send 1 MiB on each before it is read,
/// which is hyper's default. With 256 KiB, a thousand concurrent calls broke their connection.
pub const MAX_CONNECTIONS: usize = 128;
/// The message of tonic's INTERNAL for a unary call that ends without a message.
const MISSING_MESSAGE: &str = "Missing request message.";
/// The prefix of the message of prost's `DecodeError`.
const DECODE_ERROR_PREFIX: &str = "failed to decode Protobuf message";
/// Bounds the streams of one connection; a gateway has one connection per replica.
const MAX_CONCURRENT_STREAMS: u32 = 1024;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// The path prefix of health and reflection, which are exempt from admission control. A busy server is healthy, and a
/// reflection stream stays open while it is answered.
const INFRASTRUCTURE_PREFIX: &str = "/grpc.";
/// Bounds the metadata: a token, a trace, an idempotency key.
const MAX_HEADER_LIST_SIZE: u32 = 16 * 1024;

/// The services that a server hosts.
#[derive(Debug, Default)]
pub struct Services {
    routes: Routes,
    names: Vec<&'static str>,
    large: LargeCalls,
}

impl Services {
    #[must_use]
    pub fn with<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.routes = self.routes.add_service(service);
        self.names.push(S::NAME);
        self
    }

    #[must_use]
    pub fn with_large_calls(mut self, large: LargeCalls) -> Self {
        self.large = large;
        self
    }
}

/// Starts to serve `services` on `addr`, over TLS if the process has a certificate. Health is reported for the server,
/// as `""`, and for each service by its name; with `reflection`, grpcurl needs no `.proto` files.
pub async fn serve(
    addr: SocketAddr,
    services: Services,
    verifier: Arc<Verifier>,
    reflection: bool,
    process: &Process,
) -> anyhow::Result<()> {
    let listener =
        Listener::bind(addr, MAX_CONNECTIONS).await.with_context(|| format!("LISTEN_ADDR {addr}"))?;
    let Services { routes, names, large } = services;
    let mut routes = routes.add_service(health(&names, process));
    if reflection {
        let configure = || {
            let builder = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(shoppee_proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
            let names = names.iter().copied().chain(["grpc.health.v1.Health"]);
            names.fold(builder, tonic_reflection::server::Builder::with_service_name)
        };
        // Older tools support v1alpha only.
        routes = routes.add_service(configure().build_v1()?).add_service(configure().build_v1alpha()?);
    }
    let server = Server::builder()
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_INTERVAL))
        .http2_max_header_list_size(MAX_HEADER_LIST_SIZE)
        .layer(CallLayer { verifier, process: process.clone(), admission: Arc::new(Admission::new(large)) })
        .add_routes(routes);
    let shutdown = process.tasks.shutdown_token().cancelled_owned();
    if let Some(config) = process.tls.server() {
        let acceptor = Acceptor::new(config);
        let incoming = listener.incoming(&process.tasks, move |connection| {
            let accepting = acceptor.clone().accept(connection);
            async { read_preface(accepting.await?).await }
        });
        process.tasks.spawn("grpc", async move {
            server.serve_with_incoming_shutdown(incoming, shutdown).await?;
            Ok(())
        });
    } else {
        let incoming = listener.incoming(&process.tasks, read_preface);
        process.tasks.spawn("grpc", async move {
            server.serve_with_incoming_shutdown(incoming, shutdown).await?;
            Ok(())
        });
    }
    Ok(())
}

/// Returns the health service, which follows the readiness of the process.
fn health(names: &[&'static str], process: &Process) -> HealthServer<impl Health> {
    let (reporter, service) = tonic_health::server::health_reporter();
    let names: Vec<&'static str> = std::iter::once("").chain(names.iter().copied()).collect();
    let mut serving = process.readiness.serving();
    let shutdown = process.tasks.shutdown_token();
    process.tasks.spawn("health", async move {
        loop {
            let status =
                if *serving.borrow_and_update() { ServingStatus::Serving } else { ServingStatus::NotServing };
            for name in &names {
                reporter.set_service_status(*name, status).await;
            }
            tokio::select! {
                changed = serving.changed() => changed?,
                () = shutdown.cancelled() => return Ok(()),
            }
        }
    });
    service
}

#[derive(Clone)]
struct CallLayer {
    verifier: Arc<Verifier>,
    process: Process,
    admission: Arc<Admission>,
}

impl<S> Layer<S> for CallLayer {
    type Service = Call<S>;

    fn layer(&self, inner: S) -> Call<S> {
        Call { inner, layer: self.clone() }
    }
}

#[derive(Clone)]
struct Call<S> {
    inner: S,
    layer: CallLayer,
}

impl<S> Service<Request<Body>> for Call<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let started = Instant::now();
        if request.uri().path().starts_with(INFRASTRUCTURE_PREFIX) {
            return Box::pin(self.inner.call(request));
        }
        let method = find_method(request.uri().path());
        // A method that is not declared has no rule.
        let caller = method.ok_or_else(|| Status::unimplemented("")).and_then(|method| {
            let authenticate = || authenticate(&self.layer.verifier, request.headers());
            access::authorize(&method.rule, authenticate)
        });
        let method = method_label(method);
        let span = if telemetry::exporter_enabled() {
            tracing::info_span!(
                "rpc",
                otel.name = request.uri().path().trim_start_matches('/'),
                otel.kind = "server",
                rpc.method = method,
            )
        } else {
            Span::none()
        };
        let trace = Trace::from_headers(span, request.headers())
            .with_request_id(RequestId::from_headers(request.headers()));
        // One for the arrival of the request and for the handler.
        let deadline = started + deadline(request.headers());
        // The service that was polled ready handles the call; its clone is polled for the next.
        let ready = self.inner.clone();
        let mut service = std::mem::replace(&mut self.inner, ready);
        let admission = self.layer.admission.clone();
        let call = move |(permit, request): (CallPermit, Request<Body>)| {
            let response = trace.instrument(service.call(request));
            let response = response.map_ok(|response| response.map(|body| permit.hold_until_sent(body)));
            Box::pin(AssertUnwindSafe(response).catch_unwind())
        };
        let tasks = self.layer.process.tasks.clone();

        Box::pin(async move {
            let unavailable = || tonic::Status::from(status::unavailable());
            let admitted = match caller {
                Ok(caller) => {
                    if let Some(caller) = caller {
                        request.extensions_mut().insert(caller);
                    }
                    let admitted = tokio::time::timeout_at(deadline, admission.admit(request)).await;
                    admitted.unwrap_or_else(|_elapsed| Err(unavailable()))
                }
                // A refused call is answered before its message is read.
                Err(status) => Err(status),
            };
            let outcome = match admitted.map(call) {
                // A handler that answers from memory completes at once and needs no task.
                Ok(mut handler) => match (&mut handler).now_or_never() {
                    Some(outcome) => Ok(outcome),
                    None => match tokio::time::timeout_at(deadline, tasks.track(handler)).await {
                        Ok(joined) => Ok(joined.unwrap_or_else(|error| Err(Box::new(error)))),
                        Err(_elapsed) => Err(unavailable()),
                    },
                },
                Err(status) => Err(status),
            };
            let response = match outcome {
                Ok(Ok(response)) => with_reason(response?),
                Ok(Err(_panic)) => {
                    tracing::error!(%method, "handler panicked");
                    tonic::Status::from(status::internal()).into_http()
                }
                Err(status) => status.into_http(),
            };
            let code =
                tonic::Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
            metrics::histogram!(
                "rpc_server_call_duration_seconds",
                "rpc_method" => method, "rpc_response_status_code" => code_name(code)
            )
            .record(started.elapsed().as_secs_f64());
            Ok(response)
        })
    }
}

/// Adds a reason to the response to a request without a message, or with one that could not be decoded. It is the caller's
/// fault, but tonic answers INTERNAL.
fn with_reason(response: Response<Body>) -> Response<Body> {
    let status = tonic::Status::from_header_map(response.headers());
    if status.is_some_and(|status| {
        status.code() == Code::Internal
            && (status.message().starts_with(DECODE_ERROR_PREFIX) || status.message() == MISSING_MESSAGE)
    }) {
        tonic::Status::from(status::malformed_message()).into_http()
    } else {
        response
    }
}

fn authenticate(verifier: &Verifier, headers: &http::HeaderMap) -> Result<Caller, TokenError> {
    let mut values = headers.get_all("authorization").iter();
    let Some(value) = values.next() else {
        return Err(TokenError::Missing);
    };
    let token = value.to_str().ok().and_then(bearer).filter(|_| values.next().is_none());
    verifier.verify_any(token.ok_or(TokenError::Invalid)?)
}

/// Returns the time for a call, from its `grpc-timeout` (digits and a unit).
fn deadline(headers: &http::HeaderMap) -> Duration {
    let timeout = headers.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(|value| {
        let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
        let number: u64 = digits.parse().ok()?;
        Some(match unit {
            "H" => Duration::from_secs(number.checked_mul(3600)?),
            "M" => Duration::from_secs(number.checked_mul(60)?),
            "S" => Duration::from_secs(number),
            "m" => Duration::from_millis(number),
            "u" => Duration::from_micros(number),
            "n" => Duration::from_nanos(number),
            _ => return None,
        })
    });
    timeout.map_or(DEFAULT_DEADLINE, |timeout| timeout.min(MAX_DEADLINE).mul_f64(DEADLINE_FRACTION))
}

/// Returns the declared method at `path`, as in `/shoppee.order.v1.OrderService/CreateOrder`.
fn find_method(path: &str) -> Option<&'static Method> {
    access::methods().get(path.strip_prefix('/')?)
}

/// Returns the metric label of a method. A path outside the protocol is `_OTHER`, as in the OpenTelemetry conventions, so
/// that callers cannot create labels.
fn method_label(method: Option<&'static Method>) -> &'static str {
    method.map_or("_OTHER", |method| &method.name)
}

/// Returns the name of a code in the gRPC specification.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::stream;
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;
    use crate::{clock::Clock, readiness::Readiness, tasks::Tasks, tls::GrpcTls};

    #[tokio::test]
    async fn a_slow_request_and_a_slow_handler_share_one_deadline() {
        let (tasks, _failures) = Tasks::new();
        let (clock, readiness, tls) = (Clock::default(), Readiness::default(), GrpcTls::default());
        let verifier = Verifier::new(clock.clone());
        let process = Process { clock, tasks, readiness, tls };
        let admission = Arc::new(Admission::new(LargeCalls::default()));
        let handler = tower::service_fn(|_: Request<Body>| {
            std::future::pending::<Result<Response<Body>, Infallible>>()
        });
        let mut server = CallLayer { verifier, process, admission }.layer(handler);
        let late = stream::once(Box::pin(async {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            Ok::<_, tonic::Status>(Frame::data(Bytes::from_static(b"request")))
        }));
        let request = Request::post("/shoppee.auth.v1.AuthService/GetJwks")
            .header("grpc-timeout", "2S")
            .body(Body::new(StreamBody::new(late)))
            .unwrap();
        let started = Instant::now();
        let response = server.call(request).await.unwrap();
        let status = tonic::Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), Code::Unavailable);
        // With a deadline for each, the request would take 1.5 s and the handler 1.8 s.
        let elapsed = started.elapsed();
        assert!((1800..3200).contains(&elapsed.as_millis()), "{elapsed:?}");
    }

    #[test]
    fn a_request_without_a_valid_message_is_the_fault_of_its_caller() {
        let code_of = |message: &str| {
            let response = with_reason(tonic::Status::internal(message).into_http());
            tonic::Status::from_header_map(response.headers()).unwrap().code()
        };
        assert_eq!(code_of("Missing request message."), Code::InvalidArgument);
        let undecodable = "failed to decode Protobuf message: invalid varint";
        assert_eq!(code_of(undecodable), Code::InvalidArgument);
        assert_eq!(code_of("a defect"), Code::Internal);
    }

    fn deadline_of(timeout: &str) -> Duration {
        let value = http::HeaderValue::from_str(timeout).unwrap();
        deadline(&http::HeaderMap::from_iter([(http::HeaderName::from_static("grpc-timeout"), value)]))
    }

    #[test]
    fn the_server_answers_before_the_deadline_of_the_caller() {
        assert_eq!(deadline_of("1S"), Duration::from_millis(900));
        assert_eq!(deadline_of("500m"), Duration::from_millis(450));
        assert_eq!(deadline_of("99999999H"), Duration::from_secs(54), "is bounded");
        for invalid in ["", "S", "1", "1x", "-1S", "99999999999999999999S"] {
            assert_eq!(deadline_of(invalid), DEFAULT_DEADLINE, "{invalid}");
        }
    }

    #[test]
    fn a_method_label_is_a_declared_method_or_other() {
        let path = "/shoppee.order.v1.OrderService/CreateOrder";
        assert_eq!(method_label(find_method(path)), "shoppee.order.v1.OrderService/CreateOrder");
        assert_eq!(method_label(find_method("/made.up/Name")), "_OTHER");
    }
}
