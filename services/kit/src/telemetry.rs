//! The telemetry of a process: JSON log lines with trace ids, OpenTelemetry spans over OTLP, Prometheus metrics.

mod format;
mod help;
mod non_blocking;

use std::{
    convert::Infallible,
    io::IsTerminal as _,
    panic::PanicHookInfo,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use http::{HeaderMap, HeaderName, HeaderValue};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::{
    Context, TraceFlags, global,
    propagation::{Extractor, Injector},
    trace::{
        FutureExt as _, SpanContext, SpanKind, TraceContextExt as _, TraceId, TraceState,
        TracerProvider as _, WithContext,
    },
};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{
        IdGenerator as _, RandomIdGenerator, Sampler, SamplingDecision, SdkTracerProvider, ShouldSample as _,
    },
};
use tokio::{sync::watch, task::futures::TaskLocalFuture};
use tracing::{Instrument as _, Span, Subscriber, instrument::Instrumented};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{
    EnvFilter, Layer, fmt::MakeWriter, layer::SubscriberExt as _, registry::LookupSpan,
    util::SubscriberInitExt as _,
};

use crate::{
    process::Process,
    request_id::{self, RequestId},
    settings::{Common, LogFormat},
    worker::{self, Round},
};
use format::JsonFormat;
pub use help::{Help, describe};
use non_blocking::{NonBlocking, WorkerGuard};

/// Upper bounds of the buckets of durations in seconds: from a memory hit to the longest deadline.
const DURATION_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Upper bounds of the buckets of cache ages in seconds, up to the longest lifetime.
const AGE_BUCKETS: [f64; 7] = [0.1, 1.0, 10.0, 60.0, 300.0, 1200.0, 3600.0];

/// Bounds the export of the last spans at the shutdown of the process.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The interval of [`start_upkeep`]. A sample takes 23 bytes until then: 1 MiB at 10 000 samples a second.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();
static SAMPLER: OnceLock<Sampler> = OnceLock::new();
static EXPORTER_ENABLED: AtomicBool = AtomicBool::new(false);

/// Returns whether spans are exported. Without an exporter, a trace consists of its ids alone, which cost a fraction.
pub fn exporter_enabled() -> bool {
    EXPORTER_ENABLED.load(Ordering::Relaxed)
}

/// A guard that flushes spans and log lines at shutdown.
#[derive(Debug)]
pub struct Telemetry {
    tracer: SdkTracerProvider,
    log: WorkerGuard,
}

/// Installs logging, tracing and metrics for the process called `name`; once per process.
pub fn install(name: &'static str, settings: &Common) -> anyhow::Result<Telemetry> {
    let filter = EnvFilter::try_new(&settings.log).context("LOG is not a log filter")?;

    install_propagator();
    let sampler = Sampler::TraceIdRatioBased(settings.trace_sample_ratio);
    let mut tracer = SdkTracerProvider::builder()
        .with_resource(Resource::builder().with_service_name(name).build())
        .with_sampler(Sampler::ParentBased(Box::new(sampler.clone())));
    let _ = SAMPLER.set(sampler);
    EXPORTER_ENABLED.store(settings.otel_exporter_otlp_endpoint.is_some(), Ordering::Relaxed);
    if let Some(endpoint) = &settings.otel_exporter_otlp_endpoint {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .build()
            .context("OTEL_EXPORTER_OTLP_ENDPOINT")?;
        tracer = tracer.with_batch_exporter(exporter);
    }
    let tracer = tracer.build();

    let (writer, log) = NonBlocking::start(std::io::stdout()).context("the log")?;
    let format = match settings.log_format {
        LogFormat::Json => json(writer).boxed(),
        LogFormat::Pretty => tracing_subscriber::fmt::layer()
            .with_writer(writer)
            .with_ansi(std::io::stdout().is_terminal())
            .compact()
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        // Without attributes that are not used: code location, thread, idle time.
        .with(exporter_enabled().then(|| {
            tracing_opentelemetry::layer()
                .with_tracer(tracer.tracer(name))
                .with_location(false)
                .with_threads(false)
                .with_tracked_inactivity(false)
        }))
        .with(format)
        .try_init()
        .context("logging was started twice")?;

    let metrics = PrometheusBuilder::new()
        .set_buckets(&DURATION_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full("cache_age_seconds".to_owned()), &AGE_BUCKETS)?
        .install_recorder()?;
    METRICS.set(metrics).map_err(|_| anyhow::anyhow!("metrics were started twice"))?;
    describe(help::HELP);
    metrics::counter!("log_lines_dropped_total").increment(0);
    std::panic::set_hook(Box::new(log_panic));
    metrics::gauge!("build_info", "service" => name, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(Telemetry { tracer, log })
}

/// Installs the propagator of traces between processes (W3C Trace Context).
pub fn install_propagator() {
    global::set_text_map_propagator(TraceContextPropagator::new());
}

/// A panic hook that logs panics as errors. The default hook writes to standard error, and blocks on its reader.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    tracing::error!(
        location,
        thread = thread.name().unwrap_or_default(),
        reason = panic.payload_as_str().unwrap_or_default(),
        "panicked"
    );
}

/// Returns a layer that writes one JSON object per line.
fn json<S, W>(writer: W) -> impl Layer<S> + Send + Sync
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt::layer().event_format(JsonFormat).with_writer(writer)
}

impl Telemetry {
    /// Flushes spans and log lines.
    pub fn shut_down(self) {
        // The exporter itself logs that it cannot reach its endpoint.
        let _ = self.tracer.shutdown_with_timeout(FLUSH_TIMEOUT);
        self.log.close();
    }
}

/// Starts the worker that merges the samples of histograms into their buckets. A scrape does so too, but a process that
/// is never scraped would accumulate samples without a bound.
pub fn start_upkeep(process: &Process) {
    start_upkeep_every(UPKEEP_INTERVAL, process);
}

fn start_upkeep_every(interval: Duration, process: &Process) {
    let always = watch::channel(true).1;
    worker::spawn(process, "metrics_upkeep", interval, always, || async {
        if let Some(handle) = METRICS.get() {
            handle.run_upkeep();
        }
        Ok::<_, Infallible>(Round::Done)
    });
}

/// Renders all metrics in Prometheus' text format; empty before [`install`].
pub fn metrics() -> String {
    METRICS
        .get()
        .map(|handle| {
            handle.run_upkeep();
            handle.render()
        })
        .unwrap_or_default()
}

/// The trace context of a unit of work: its span, its trace, and the request that it belongs to.
#[derive(Clone, Debug)]
pub struct Trace {
    span: Span,
    /// The context without an exporter; with one, it is that of the span.
    context: Context,
    request_id: Option<RequestId>,
}

impl Trace {
    /// Continues the trace in `headers` (W3C Trace Context), or starts a new one. The span must not have been entered
    /// yet.
    pub fn from_headers(span: Span, headers: &HeaderMap) -> Self {
        Self::from_parent(span, extract(headers))
    }

    /// Does the same for an untrusted client: its trace id is taken, but not its sampling decision nor its
    /// `tracestate`.
    pub fn from_untrusted_headers(span: Span, headers: &HeaderMap) -> Self {
        Self::from_parent(span, resample(extract(headers), sampler()))
    }

    fn from_parent(span: Span, parent: Context) -> Self {
        if exporter_enabled() {
            set_parent(&span, parent);
            return Self { span, context: Context::new(), request_id: None };
        }
        let context = if parent.span().span_context().is_valid() { parent } else { new_root() };
        Self { span, context, request_id: None }
    }

    #[must_use]
    pub fn with_request_id(self, request_id: RequestId) -> Self {
        Self { request_id: Some(request_id), ..self }
    }

    /// Returns the trace context of the current task.
    pub fn current() -> Self {
        Self { span: Span::current(), context: Context::current(), request_id: RequestId::current() }
    }

    /// Runs `work` within this trace context.
    pub fn instrument<F: Future>(
        &self,
        work: F,
    ) -> TaskLocalFuture<Option<RequestId>, WithContext<Instrumented<F>>> {
        let work = work.instrument(self.span.clone()).with_context(self.context.clone());
        request_id::CURRENT.scope(self.request_id.clone(), work)
    }

    pub fn span(&self) -> &Span {
        &self.span
    }

    /// Returns the trace id: 32 hexadecimal digits.
    pub fn id(&self) -> String {
        let context = if exporter_enabled() { self.span.context() } else { self.context.clone() };
        context.span().span_context().trace_id().to_string()
    }
}

/// Extracts the context from `headers`.
fn extract(headers: &HeaderMap) -> Context {
    global::get_text_map_propagator(|propagator| propagator.extract(&HeadersRef(headers)))
}

/// Returns the same trace with a sampling decision of this process.
fn resample(parent: Context, sampler: &Sampler) -> Context {
    let span = parent.span();
    let remote = span.span_context();
    if !remote.is_valid() {
        return parent;
    }
    let flags = sampling_flags(remote.trace_id(), sampler);
    let resampled = SpanContext::new(remote.trace_id(), remote.span_id(), flags, true, TraceState::default());
    Context::new().with_remote_span_context(resampled)
}

/// Decides by its id whether a trace is sampled, so that every process decides alike.
fn sampling_flags(trace: TraceId, sampler: &Sampler) -> TraceFlags {
    let result = sampler.should_sample(None, trace, "", &SpanKind::Server, &[], &[]);
    TraceFlags::default().with_sampled(result.decision == SamplingDecision::RecordAndSample)
}

/// Returns the sampler of new traces; before [`install`], one that samples all.
fn sampler() -> &'static Sampler {
    SAMPLER.get().unwrap_or(&Sampler::AlwaysOn)
}

/// Creates the context of a new trace, so that other processes can export its spans.
fn new_root() -> Context {
    let ids = RandomIdGenerator::default();
    let (trace, span) = (ids.new_trace_id(), ids.new_span_id());
    let new = SpanContext::new(trace, span, sampling_flags(trace, sampler()), true, TraceState::default());
    Context::new().with_remote_span_context(new)
}

/// Returns the `traceparent` of the current task; empty without a trace.
pub fn traceparent() -> String {
    traceparent_of(&current())
}

fn traceparent_of(context: &Context) -> String {
    let mut headers = HeaderMap::new();
    inject_context(context, &mut headers);
    headers.get("traceparent").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// Injects the trace context of the current task into the headers of a call.
pub fn inject(headers: &mut HeaderMap) {
    inject_context(&current(), headers);
}

fn current() -> Context {
    if exporter_enabled() { Span::current().context() } else { Context::current() }
}

fn inject_context(context: &Context, headers: &mut HeaderMap) {
    global::get_text_map_propagator(|propagator| propagator.inject_context(context, &mut Headers(headers)));
}

/// Makes the trace in `headers` the parent of `span`, which must not have been entered yet.
fn set_parent_from_headers(span: &Span, headers: &HeaderMap) {
    set_parent(span, extract(headers));
}

/// Makes the trace of an event's `traceparent` the parent of `span`.
pub fn continue_traceparent(span: &Span, traceparent: &str) {
    if let Ok(value) = HeaderValue::from_str(traceparent) {
        set_parent_from_headers(
            span,
            &HeaderMap::from_iter([(HeaderName::from_static("traceparent"), value)]),
        );
    }
}

/// Makes `span` a child of `traceparent`, and replaces `traceparent` by that of `span`. Changes nothing without an
/// exporter.
pub fn propagate_through(span: &Span, traceparent: &mut String) {
    if exporter_enabled() {
        continue_traceparent(span, traceparent);
        *traceparent = traceparent_of(&span.context());
    }
}

fn set_parent(span: &Span, parent: Context) {
    if parent.span().span_context().is_valid() {
        // It fails only for a filtered span, which has no trace.
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

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;
    use opentelemetry::propagation::TextMapPropagator as _;

    use super::*;
    use crate::{clock::Clock, readiness::Readiness, tasks::Tasks, tls::GrpcTls};

    #[derive(Parser)]
    struct Settings {
        #[command(flatten)]
        common: Common,
    }

    #[test]
    fn an_untrusted_client_sets_the_trace_id_but_not_the_sampling_decision() {
        let remote = |flags| {
            let value = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", value.parse().unwrap());
            headers.insert("tracestate", "a=b".parse().unwrap());
            TraceContextPropagator::new().extract(&HeadersRef(&headers))
        };
        for (sampler, recorded) in
            [(Sampler::AlwaysOn, true), (Sampler::AlwaysOff, false), (Sampler::TraceIdRatioBased(0.0), false)]
        {
            for flags in ["00", "01"] {
                let resampled = resample(remote(flags), &sampler);
                let span = resampled.span();
                assert_eq!(span.span_context().trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
                assert_eq!(span.span_context().is_sampled(), recorded, "{sampler:?}, {flags}");
                assert_eq!(span.span_context().trace_state().header(), "");
            }
        }
    }

    /// Returns the resident memory of this process, in pages of 4 KiB.
    fn resident_pages() -> usize {
        let sizes = fs::read_to_string("/proc/self/statm").unwrap();
        sizes.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// 2 000 000 samples of 23 bytes are 11 000 pages. The test sleeps longer than the interval, so that the worker runs
    /// on the same thread.
    #[tokio::test]
    async fn a_process_that_is_never_scraped_accumulates_no_samples() {
        const INTERVAL: Duration = Duration::from_millis(5);
        let settings = Settings::parse_from(["test"]);
        let _telemetry = install("test", &settings.common).unwrap();
        let (tasks, _failures) = Tasks::new();
        let process = Process {
            clock: Clock::default(),
            tasks,
            readiness: Readiness::default(),
            tls: GrpcTls::default(),
        };
        start_upkeep_every(INTERVAL, &process);
        let samples = metrics::histogram!("test_seconds");
        let mut initial = None;
        for _ in 0..100 {
            for _ in 0..20_000 {
                samples.record(0.001);
            }
            tokio::time::sleep(INTERVAL * 2).await;
            initial.get_or_insert_with(resident_pages);
        }
        let more = resident_pages().saturating_sub(initial.unwrap());
        assert!(more < 2000, "{more} pages more");
        assert!(metrics().contains("test_seconds_count 2000000"));
    }
}
