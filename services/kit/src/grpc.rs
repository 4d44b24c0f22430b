//! The gRPC server every service runs: the bounds, the caller, the trace, the metrics and the deadline of each call,
//! health and reflection.
//!
//! A handler that has to wait runs to its end in a task of its own, whatever becomes of its caller: what a client that
//! hangs up, or a deadline, leaves behind is a whole transaction or none.

mod admission;

use std::{
    collections::HashSet,
    convert::Infallible,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll},
    time::Duration,
};

use anyhow::Context as _;
use futures_util::{FutureExt as _, TryFutureExt as _};
use http::{Request, Response};
use tokio::time::Instant;
use tonic::{Code, body::Body, server::NamedService, service::Routes, transport::server::Server};
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health, HealthServer},
};
use tower::{Layer, Service};
use tracing::Span;

use crate::{
    caller::{Identity, TokenError, Verifier, bearer},
    listener::{Connection, Listener},
    process::Process,
    status,
    telemetry::{self, Trace},
    tls::incoming::Acceptor,
};
use admission::{Admission, Place};
pub use admission::{LargeCalls, MAX_REQUEST_BYTES, MAX_TOTAL_REQUEST_BYTES};

/// How long a caller waits at most, where it names no shorter time: 503 within 2.5 s is promised at the edge.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest a caller may ask for: a slow payment provider, a large batch.
const LONGEST: Duration = Duration::from_mins(1);
/// The part of a caller's own deadline after which it is answered, so that it hears why before it gives up.
const OF_THE_CALLERS: f64 = 0.9;
/// Bounds the connections: a process that calls has one for each replica. A peer may send 1 MiB on each before it is
/// read, which is hyper's own bound: with 256 KiB, a thousand calls at once broke their connection.
pub const MAX_CONNECTIONS: usize = 128;
/// The beginning of the text of prost's `DecodeError`.
const NOT_DECODED: &str = "failed to decode Protobuf message";
/// Streams on one connection; a gateway has one connection a service.
const STREAMS: u32 = 1024;
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// The services of every gRPC server take no place among the calls: a server that is busy is still healthy, and the
/// requests of reflection are streams that have no end while they are answered.
const INFRASTRUCTURE: &str = "/grpc.";
/// Metadata: a token, a trace, an idempotency key.
const HEADERS: u32 = 16 * 1024;

/// The services that a server answers.
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

/// Starts to serve `services` on `addr`, over TLS where the process has a certificate. Health is answered for the
/// server, as `""`, and for each service by its name; with `reflection`, grpcurl needs no `.proto` files.
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
                .register_encoded_file_descriptor_set(shoppee_proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
            let names = names.iter().copied().chain(["grpc.health.v1.Health"]);
            names.fold(builder, tonic_reflection::server::Builder::with_service_name)
        };
        // Tools that are a few years old know the second only.
        routes = routes.add_service(configure().build_v1()?).add_service(configure().build_v1alpha()?);
    }
    let server = Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .http2_max_header_list_size(HEADERS)
        .layer(CallLayer { verifier, process: process.clone(), admission: Arc::new(Admission::new(large)) })
        .add_routes(routes);
    let stop = process.tasks.stopping().cancelled_owned();
    if let Some(config) = process.tls.server() {
        let acceptor = Acceptor::new(config);
        let incoming =
            listener.incoming(&process.tasks, move |connection| acceptor.clone().accept(connection));
        process.tasks.spawn("grpc", async move {
            server.serve_with_incoming_shutdown(incoming, stop).await?;
            Ok(())
        });
    } else {
        let incoming = listener.incoming(&process.tasks, Connection::wait_for_first_byte);
        process.tasks.spawn("grpc", async move {
            server.serve_with_incoming_shutdown(incoming, stop).await?;
            Ok(())
        });
    }
    Ok(())
}

/// The health service, which follows the readiness of the process.
fn health(names: &[&'static str], process: &Process) -> HealthServer<impl Health> {
    let (reporter, service) = tonic_health::server::health_reporter();
    let names: Vec<&'static str> = std::iter::once("").chain(names.iter().copied()).collect();
    let mut serving = process.readiness.serving();
    let stop = process.tasks.stopping();
    process.tasks.spawn("health", async move {
        loop {
            let status =
                if *serving.borrow_and_update() { ServingStatus::Serving } else { ServingStatus::NotServing };
            for name in &names {
                reporter.set_service_status(*name, status).await;
            }
            tokio::select! {
                changed = serving.changed() => changed?,
                () = stop.cancelled() => return Ok(()),
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

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let started = Instant::now();
        if request.uri().path().starts_with(INFRASTRUCTURE) {
            return Box::pin(self.inner.call(request));
        }
        let method = method(request.uri().path());
        let span = if telemetry::is_exported() {
            tracing::info_span!(
                "rpc",
                otel.name = request.uri().path().trim_start_matches('/'),
                otel.kind = "server",
                rpc.method = method,
            )
        } else {
            Span::none()
        };
        let trace = Trace::go_on(span, request.headers());
        let identity = identify(&self.layer.verifier, request.headers());
        let patience = patience(request.headers());
        // The clone that was polled ready answers; what stays behind is polled again.
        let ready = self.inner.clone();
        let mut service = std::mem::replace(&mut self.inner, ready);
        let admission = self.layer.admission.clone();
        let call = move |(place, mut request): (Place, Request<Body>)| {
            request.extensions_mut().insert(Identity(identity));
            let answer = trace.of(service.call(request));
            let placed = answer.map_ok(|response| response.map(|body| place.keep_until_sent(body)));
            Box::pin(AssertUnwindSafe(placed).catch_unwind())
        };
        let tasks = self.layer.process.tasks.clone();

        Box::pin(async move {
            let admitted = tokio::time::timeout(patience, admission.admit(request)).await;
            let unavailable = || tonic::Status::from(status::unavailable());
            let answered = match admitted.unwrap_or_else(|_elapsed| Err(unavailable())).map(call) {
                // What is in memory is answered at once, and needs no task.
                Ok(mut handler) => match (&mut handler).now_or_never() {
                    Some(answered) => Ok(answered),
                    None => match tokio::time::timeout(patience, tasks.track(handler)).await {
                        Ok(finished) => Ok(finished.unwrap_or_else(|lost| Err(Box::new(lost)))),
                        Err(_elapsed) => Err(unavailable()),
                    },
                },
                Err(refused) => Err(refused),
            };
            let response = match answered {
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

/// The response, with a reason where the request could not be decoded: that is the caller's fault and tonic's INTERNAL.
fn with_reason(response: Response<Body>) -> Response<Body> {
    let status = tonic::Status::from_header_map(response.headers());
    if status
        .is_some_and(|status| status.code() == Code::Internal && status.message().starts_with(NOT_DECODED))
    {
        tonic::Status::from(status::malformed_message()).into_http()
    } else {
        response
    }
}

fn identify(verifier: &Verifier, headers: &http::HeaderMap) -> Result<crate::caller::Caller, TokenError> {
    let mut values = headers.get_all("authorization").iter();
    let Some(value) = values.next() else {
        return Err(TokenError::Missing);
    };
    let token = value.to_str().ok().and_then(bearer).filter(|_| values.next().is_none());
    verifier.verify_any(token.ok_or(TokenError::Invalid)?)
}

/// How long the caller waits, as its `grpc-timeout` says: digits and a unit.
fn patience(headers: &http::HeaderMap) -> Duration {
    let asked = headers.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(|value| {
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
    asked.map_or(PATIENCE, |asked| asked.min(LONGEST).mul_f64(OF_THE_CALLERS))
}

/// Returns the name of the method at `path`, as in `shoppee.order.v1.OrderService/CreateOrder`. A path that is none of
/// the contract's is `_OTHER`, as the conventions of OpenTelemetry have it: a caller makes up no label.
fn method(path: &str) -> &'static str {
    static METHODS: LazyLock<HashSet<String>> = LazyLock::new(methods);
    path.strip_prefix('/').and_then(|name| METHODS.get(name)).map_or("_OTHER", String::as_str)
}

fn methods() -> HashSet<String> {
    use prost::Message as _;
    let contract = prost_types::FileDescriptorSet::decode(shoppee_proto::DESCRIPTORS).unwrap_or_default();
    let mut methods = HashSet::new();
    for file in contract.file {
        for service in &file.service {
            let names = service.method.iter().map(prost_types::MethodDescriptorProto::name);
            methods.extend(names.map(|name| format!("{}.{}/{name}", file.package(), service.name())));
        }
    }
    methods
}

/// Returns the name of a code in the specification of gRPC.
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
    use super::*;

    fn asked(timeout: &str) -> Duration {
        let value = http::HeaderValue::from_str(timeout).unwrap();
        patience(&http::HeaderMap::from_iter([(http::HeaderName::from_static("grpc-timeout"), value)]))
    }

    #[test]
    fn a_caller_hears_before_its_deadline() {
        assert_eq!(asked("1S"), Duration::from_millis(900));
        assert_eq!(asked("500m"), Duration::from_millis(450));
        assert_eq!(asked("99999999H"), Duration::from_secs(54), "and never waits for ever");
        for odd in ["", "S", "1", "1x", "-1S", "99999999999999999999S"] {
            assert_eq!(asked(odd), PATIENCE, "{odd}");
        }
    }

    #[test]
    fn labels_are_names_of_the_contract() {
        let known = "/shoppee.order.v1.OrderService/CreateOrder";
        assert_eq!(method(known), "shoppee.order.v1.OrderService/CreateOrder");
        assert_eq!(method("/made.up/Name"), "_OTHER");
    }
}
