//! Logs, traces and metrics of a process: one JSON line an event with the trace id in it, spans to an OTLP endpoint
//! where one is set, Prometheus metrics for whoever asks.

use std::sync::OnceLock;

use anyhow::Context as _;
use http::{HeaderMap, HeaderName, HeaderValue};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use opentelemetry::{
    Context, global,
    propagation::{Extractor, Injector},
    trace::{TraceContextExt as _, TracerProvider as _},
};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::settings::{Common, LogFormat};

/// Upper bounds in seconds: from a memory hit to the longest deadline.
const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();

/// Keeps what must be flushed at the end.
#[derive(Debug)]
pub struct Telemetry {
    tracer: SdkTracerProvider,
}

/// Starts logging, tracing and counting for the process called `name`. Once a process.
pub fn install(name: &'static str, settings: &Common) -> anyhow::Result<Telemetry> {
    let filter = EnvFilter::try_new(&settings.log).context("LOG is not a log filter")?;

    global::set_text_map_propagator(TraceContextPropagator::new());
    let mut tracer =
        SdkTracerProvider::builder().with_resource(Resource::builder().with_service_name(name).build());
    if let Some(endpoint) = &settings.otel_exporter_otlp_endpoint {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .build()
            .context("OTEL_EXPORTER_OTLP_ENDPOINT")?;
        tracer = tracer.with_batch_exporter(exporter);
    }
    let tracer = tracer.build();

    let format = tracing_subscriber::fmt::layer().with_target(true);
    let format = match settings.log_format {
        LogFormat::Json => format.json().flatten_event(true).with_span_list(false).boxed(),
        LogFormat::Pretty => format.compact().boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(tracing_opentelemetry::layer().with_tracer(tracer.tracer(name)))
        .with(format)
        .try_init()
        .context("logging was started twice")?;

    let metrics = PrometheusBuilder::new().set_buckets(&BUCKETS)?.install_recorder()?;
    METRICS.set(metrics).map_err(|_| anyhow::anyhow!("metrics were started twice"))?;
    metrics::gauge!("build_info", "service" => name, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(Telemetry { tracer })
}

impl Telemetry {
    /// Sends what has not been sent yet.
    pub fn shut_down(self) {
        // An exporter that cannot be reached at the end has been complaining all along.
        let _ = self.tracer.shutdown();
    }
}

/// All metrics in Prometheus' text format; empty before [`install`].
pub fn metrics() -> String {
    METRICS
        .get()
        .map(|handle| {
            handle.run_upkeep();
            handle.render()
        })
        .unwrap_or_default()
}

/// The W3C trace id of a span, 32 hexadecimal digits.
pub fn trace_id(span: &Span) -> Option<String> {
    let context = span.context();
    let id = context.span().span_context().trace_id();
    (id != opentelemetry::TraceId::INVALID).then(|| id.to_string())
}

/// The `traceparent` of the current span, empty without one.
pub fn traceparent() -> String {
    let mut headers = HeaderMap::new();
    inject(&mut headers);
    headers.get("traceparent").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// Puts the current span's context into the headers of a call.
pub fn inject(headers: &mut HeaderMap) {
    let context = Span::current().context();
    global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut Headers(headers)));
}

/// Makes the trace that `headers` carry the parent of `span`, which must not have been entered yet.
pub fn continue_trace(span: &Span, headers: &HeaderMap) {
    let parent = global::get_text_map_propagator(|propagator| propagator.extract(&HeadersRef(headers)));
    set_parent(span, parent);
}

/// The same from a `traceparent` that travelled with an event.
pub fn continue_traceparent(span: &Span, traceparent: &str) {
    if let Ok(value) = HeaderValue::from_str(traceparent) {
        continue_trace(span, &HeaderMap::from_iter([(HeaderName::from_static("traceparent"), value)]));
    }
}

fn set_parent(span: &Span, parent: Context) {
    if parent.span().span_context().is_valid() {
        // It fails only for a span that is filtered out, which has no trace to continue.
        let _ = span.set_parent(parent);
    }
}

struct Headers<'a>(&'a mut HeaderMap);

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}

struct HeadersRef<'a>(&'a HeaderMap);

impl Extractor for HeadersRef<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}
