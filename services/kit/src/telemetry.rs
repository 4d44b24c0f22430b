//! Logs, traces and metrics of a process: one JSON line an event with the trace id in it, spans to an OTLP endpoint
//! where one is set, Prometheus metrics for whoever asks.

mod format;
mod help;
mod lines;

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
use tokio::sync::watch;
use tracing::{Instrument as _, Span, Subscriber, instrument::Instrumented};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{
    EnvFilter, Layer, fmt::MakeWriter, layer::SubscriberExt as _, registry::LookupSpan,
    util::SubscriberInitExt as _,
};

use crate::{
    process::Process,
    settings::{Common, LogFormat},
    worker::{self, Round},
};
use format::Json;
pub use help::{Help, describe};
use lines::{Lines, Writer};

/// Upper bounds in seconds: from a memory hit to the longest deadline.
const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The same of what is kept: from an instant to the longest lifetime.
const AGES: [f64; 7] = [0.1, 1.0, 10.0, 60.0, 300.0, 1200.0, 3600.0];

/// How long the last spans may take to reach a collector: a part of what a process has for its end.
const LAST_SPANS: Duration = Duration::from_secs(1);

/// The interval of [`start_upkeep`]. A sample takes 23 bytes until then: at 10 000 a second, 1 MiB.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();
static SAMPLER: OnceLock<Sampler> = OnceLock::new();
static EXPORTED: AtomicBool = AtomicBool::new(false);

/// Whether spans are sent anywhere. Where they are not, a trace is its ids alone, which cost a fraction.
pub fn is_exported() -> bool {
    EXPORTED.load(Ordering::Relaxed)
}

/// Keeps what must be flushed at the end.
#[derive(Debug)]
pub struct Telemetry {
    tracer: SdkTracerProvider,
    log: Writer,
}

/// Starts logging, tracing and counting for the process called `name`. Once a process.
pub fn install(name: &'static str, settings: &Common) -> anyhow::Result<Telemetry> {
    let filter = EnvFilter::try_new(&settings.log).context("LOG is not a log filter")?;

    install_propagator();
    let sampler = Sampler::TraceIdRatioBased(settings.trace_sample_ratio);
    let mut tracer = SdkTracerProvider::builder()
        .with_resource(Resource::builder().with_service_name(name).build())
        .with_sampler(Sampler::ParentBased(Box::new(sampler.clone())));
    let _ = SAMPLER.set(sampler);
    EXPORTED.store(settings.otel_exporter_otlp_endpoint.is_some(), Ordering::Relaxed);
    if let Some(endpoint) = &settings.otel_exporter_otlp_endpoint {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .build()
            .context("OTEL_EXPORTER_OTLP_ENDPOINT")?;
        tracer = tracer.with_batch_exporter(exporter);
    }
    let tracer = tracer.build();

    let (lines, log) = Lines::start(std::io::stdout()).context("the log")?;
    let format = match settings.log_format {
        LogFormat::Json => json(lines).boxed(),
        LogFormat::Pretty => tracing_subscriber::fmt::layer()
            .with_writer(lines)
            .with_ansi(std::io::stdout().is_terminal())
            .compact()
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        // Without what nobody asks a span for: where it is in the code, on which thread, how long it waited.
        .with(is_exported().then(|| {
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
        .set_buckets(&BUCKETS)?
        .set_buckets_for_metric(Matcher::Full("cache_age_seconds".to_owned()), &AGES)?
        .install_recorder()?;
    METRICS.set(metrics).map_err(|_| anyhow::anyhow!("metrics were started twice"))?;
    describe(help::HELP);
    metrics::counter!("log_lines_dropped_total").increment(0);
    std::panic::set_hook(Box::new(log_panic));
    metrics::gauge!("build_info", "service" => name, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(Telemetry { tracer, log })
}

/// Makes traces go from process to process as W3C Trace Context says.
pub fn install_propagator() {
    global::set_text_map_propagator(TraceContextPropagator::new());
}

/// Logs a panic as any error. The hook of the standard library writes to standard error, and waits for its reader.
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

/// One JSON object a line.
fn json<S, W>(to: W) -> impl Layer<S> + Send + Sync
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt::layer().event_format(Json).with_writer(to)
}

impl Telemetry {
    /// Sends what has not been sent yet.
    pub fn shut_down(self) {
        // An exporter that cannot be reached at the end has been complaining all along.
        let _ = self.tracer.shutdown_with_timeout(LAST_SPANS);
        self.log.close();
    }
}

/// Starts the worker that folds the samples of histograms into their buckets. A scrape does so too, but a process that
/// is never scraped would keep each sample for ever.
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

/// What a piece of work belongs to: its span, and the trace it is part of.
#[derive(Clone, Debug)]
pub struct Trace {
    span: Span,
    /// Where spans are exported, the span knows it.
    context: Context,
}

impl Trace {
    /// Goes on with the trace that `headers` carry (W3C Trace Context), or begins one. The span must not have been
    /// entered yet.
    pub fn go_on(span: Span, headers: &HeaderMap) -> Self {
        Self::go_on_from(span, extract(headers))
    }

    /// Does the same for the headers of a client that is not trusted. The client names the trace, but does not decide
    /// whether the trace is recorded, and its `tracestate` goes no further.
    pub fn go_on_untrusted(span: Span, headers: &HeaderMap) -> Self {
        Self::go_on_from(span, resample(extract(headers), sampler()))
    }

    fn go_on_from(span: Span, parent: Context) -> Self {
        if is_exported() {
            set_parent(&span, parent);
            return Self { span, context: Context::new() };
        }
        let context = if parent.span().span_context().is_valid() { parent } else { begin() };
        Self { span, context }
    }

    /// What is being done right now.
    pub fn current() -> Self {
        Self { span: Span::current(), context: Context::current() }
    }

    /// Makes `work` part of it.
    pub fn of<F>(&self, work: F) -> WithContext<Instrumented<F>> {
        work.instrument(self.span.clone()).with_context(self.context.clone())
    }

    pub fn span(&self) -> &Span {
        &self.span
    }

    /// 32 hexadecimal digits.
    pub fn id(&self) -> String {
        let context = if is_exported() { self.span.context() } else { self.context.clone() };
        context.span().span_context().trace_id().to_string()
    }
}

/// Returns the context that `headers` carry.
fn extract(headers: &HeaderMap) -> Context {
    global::get_text_map_propagator(|propagator| propagator.extract(&HeadersRef(headers)))
}

/// Returns the same trace, with a decision of our own on whether it is recorded.
fn resample(parent: Context, sampler: &Sampler) -> Context {
    let span = parent.span();
    let told = span.span_context();
    if !told.is_valid() {
        return parent;
    }
    let flags = decide(told.trace_id(), sampler);
    let own = SpanContext::new(told.trace_id(), told.span_id(), flags, true, TraceState::default());
    Context::new().with_remote_span_context(own)
}

/// Decides whether a trace is recorded, by its id: every process that decides so comes to the same.
fn decide(trace: TraceId, sampler: &Sampler) -> TraceFlags {
    let result = sampler.should_sample(None, trace, "", &SpanKind::Server, &[], &[]);
    TraceFlags::default().with_sampled(result.decision == SamplingDecision::RecordAndSample)
}

/// Returns the sampler of traces that begin here; of all of them before [`install`].
fn sampler() -> &'static Sampler {
    SAMPLER.get().unwrap_or(&Sampler::AlwaysOn)
}

/// A trace of new ids, so that whoever exports spans further on does.
fn begin() -> Context {
    let ids = RandomIdGenerator::default();
    let (trace, span) = (ids.new_trace_id(), ids.new_span_id());
    let new = SpanContext::new(trace, span, decide(trace, sampler()), true, TraceState::default());
    Context::new().with_remote_span_context(new)
}

/// The `traceparent` of what is being done, empty where that is part of no trace.
pub fn traceparent() -> String {
    traceparent_of(&current())
}

fn traceparent_of(context: &Context) -> String {
    let mut headers = HeaderMap::new();
    inject_context(context, &mut headers);
    headers.get("traceparent").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// Puts the trace of what is being done into the headers of a call.
pub fn inject(headers: &mut HeaderMap) {
    inject_context(&current(), headers);
}

fn current() -> Context {
    if is_exported() { Span::current().context() } else { Context::current() }
}

fn inject_context(context: &Context, headers: &mut HeaderMap) {
    global::get_text_map_propagator(|propagator| propagator.inject_context(context, &mut Headers(headers)));
}

/// Makes the trace that `headers` carry the parent of `span`, which must not have been entered yet.
fn continue_trace(span: &Span, headers: &HeaderMap) {
    set_parent(span, extract(headers));
}

/// Makes the trace of a `traceparent` that travelled with an event the parent of `span`.
pub fn continue_traceparent(span: &Span, traceparent: &str) {
    if let Ok(value) = HeaderValue::from_str(traceparent) {
        continue_trace(span, &HeaderMap::from_iter([(HeaderName::from_static("traceparent"), value)]));
    }
}

/// Makes `span` a step of the trace of a `traceparent`, which goes on from there; as it is where no span is exported.
pub fn go_through(span: &Span, traceparent: &mut String) {
    if is_exported() {
        continue_traceparent(span, traceparent);
        *traceparent = traceparent_of(&span.context());
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
    fn a_client_names_the_trace_and_has_no_say_in_its_recording() {
        let told = |flags| {
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
                let own = resample(told(flags), &sampler);
                let span = own.span();
                assert_eq!(span.span_context().trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
                assert_eq!(span.span_context().is_sampled(), recorded, "{sampler:?}, {flags}");
                assert_eq!(span.span_context().trace_state().header(), "");
            }
        }
    }

    /// Pages of memory that this process has, of 4 KiB.
    fn resident_pages() -> usize {
        let sizes = fs::read_to_string("/proc/self/statm").unwrap();
        sizes.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// 2 000 000 samples of 23 bytes are 11 000 pages. One thread runs both: a worker whose time has come runs while
    /// the test sleeps for longer.
    #[tokio::test]
    async fn a_process_that_is_never_scraped_keeps_no_samples() {
        const INTERVAL: Duration = Duration::from_millis(5);
        let settings = Settings::parse_from(["test"]);
        let _telemetry = install("test", &settings.common).unwrap();
        let (tasks, _ended) = Tasks::new();
        let process = Process {
            clock: Clock::default(),
            tasks,
            readiness: Readiness::default(),
            tls: GrpcTls::default(),
        };
        start_upkeep_every(INTERVAL, &process);
        let samples = metrics::histogram!("test_seconds");
        let mut first = None;
        for _ in 0..100 {
            for _ in 0..20_000 {
                samples.record(0.001);
            }
            tokio::time::sleep(INTERVAL * 2).await;
            first.get_or_insert_with(resident_pages);
        }
        let more = resident_pages().saturating_sub(first.unwrap());
        assert!(more < 2000, "{more} pages more");
        assert!(metrics().contains("test_seconds_count 2000000"));
    }
}
