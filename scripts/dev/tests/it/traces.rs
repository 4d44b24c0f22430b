//! The trace of an order: a collector receives the spans of all processes while the demo runs, as in production.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value as Any},
    trace::v1::Span,
};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

use crate::lifecycle::Checkout;

/// Bounds the export of a span, which happens every few hundred milliseconds here.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(20);

/// An OTLP collector that stores all requests.
#[derive(Clone, Debug, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().expect("not poisoned").push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Starts the collector in a thread, and returns its URL.
    fn start(&self) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("an option");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let service = TraceServiceServer::new(self.clone());
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let incoming =
                    TcpIncoming::from(tokio::net::TcpListener::from_std(listener).expect("a port"));
                Server::builder().add_service(service).serve_with_incoming(incoming).await
            })
        });
        url
    }

    /// Returns all spans so far, each with the name of its process.
    fn spans(&self) -> Vec<(String, Span)> {
        let mut spans = Vec::new();
        for resource in
            self.0.lock().expect("not poisoned").iter().flat_map(|request| &request.resource_spans)
        {
            let service =
                resource.resource.iter().find_map(|resource| text(&resource.attributes, "service.name"));
            let service = service.expect("a process says its name");
            for span in resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
                spans.push((service.clone(), span.clone()));
            }
        }
        spans
    }

    /// Returns the paths from the root span `root_name` to each span `name` of its trace, as `process: span`.
    fn paths(&self, root_name: &str, name: &str) -> Vec<Vec<String>> {
        let spans = self.spans();
        let root = spans.iter().find(|(_, span)| span.name == root_name && span.parent_span_id.is_empty());
        let Some((_, root)) = root else { return Vec::new() };
        let trace: Vec<_> = spans.iter().filter(|(_, span)| span.trace_id == root.trace_id).collect();
        let path = |last: &Span| {
            let mut path = Vec::new();
            let mut next = last.span_id.clone();
            while let Some((service, span)) = trace.iter().find(|(_, span)| span.span_id == next) {
                path.insert(0, format!("{service}: {}", span.name));
                next.clone_from(&span.parent_span_id);
            }
            path
        };
        trace.iter().filter(|(_, span)| span.name == name).map(|(_, span)| path(span)).collect()
    }

    /// Waits until the trace of the placed order has the path.
    fn expect_path(&self, path: &[&str]) {
        let (_, last) = path.last().and_then(|last| last.split_once(": ")).expect("process: span");
        let began = Instant::now();
        loop {
            let paths = self.paths("POST /api/v1/orders", last);
            if paths.iter().any(|one| one == path) {
                return;
            }
            assert!(began.elapsed() < EXPORT_TIMEOUT, "no {path:#?} but {paths:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let value = attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?;
    if let Any::StringValue(text) = value.value.as_ref()? { Some(text.clone()) } else { None }
}

#[test]
fn one_trace_connects_the_request_and_the_frame() {
    let collector = Collector::default();
    let checkout = Checkout::new("trace")
        .with("OTEL_EXPORTER_OTLP_ENDPOINT", collector.start())
        .with("OTEL_BSP_SCHEDULE_DELAY", "200".to_owned());
    checkout.succeeds("up", &["--detach", "--gateways", "2", "--products", "10"]);
    checkout.succeeds("demo", &[]);

    let placed = [
        "shoppee-gateway: POST /api/v1/orders",
        "shoppee-order: shoppee.order.v1.OrderService/CreateOrder",
        "shoppee-order: order.place",
    ];
    // The path through PostgreSQL, the outbox and the stream to the WebSocket, which is open at another gateway.
    let delivery =
        ["shoppee-order: order.write", "shoppee-order: event.publish", "shoppee-gateway: event.deliver"];
    collector.expect_path(&[&placed[..], &delivery].concat());
    collector.expect_path(&[&placed[..], &["shoppee-order: idempotency.claim"]].concat());
    let hold = ["shoppee-product: shoppee.product.v1.StockService/Hold", "shoppee-product: stock.hold"];
    collector.expect_path(&[&placed[..], &hold].concat());

    let spans = collector.spans();
    let count = |service: &str| spans.iter().filter(|(process, _)| process == service).count();
    for service in ["shoppee-gateway", "shoppee-auth", "shoppee-product", "shoppee-order"] {
        assert!(count(service) > 0, "{service}");
    }
    // The demo sent passwords, access tokens, an address and a payment token.
    let all = format!("{spans:?}");
    let run = checkout.run_file();
    let password = run["admin"]["password"].as_str().expect("a password");
    for secret in [password, "eyJ", "Bearer", "tok_ok", "Harbour Street"] {
        assert!(!all.contains(secret), "{secret} in a span");
    }
}
