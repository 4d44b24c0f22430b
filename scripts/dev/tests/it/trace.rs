//! What an order looks like to whoever watches traces: a collector receives the spans of all processes while the demo
//! runs, as it would in production.

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

use crate::whole::Checkout;

/// Spans are sent every few hundred milliseconds here.
const PATIENCE: Duration = Duration::from_secs(20);

/// Keeps all it is sent.
#[derive(Clone, Debug, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().expect("sound").push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Where it listens, in the background.
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

    /// Every span so far, with the name of its process.
    fn spans(&self) -> Vec<(String, Span)> {
        let mut spans = Vec::new();
        for resource in self.0.lock().expect("sound").iter().flat_map(|sent| &sent.resource_spans) {
            let service = resource.resource.iter().find_map(|of| text(&of.attributes, "service.name"));
            let service = service.expect("a process says its name");
            for span in resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
                spans.push((service.clone(), span.clone()));
            }
        }
        spans
    }

    /// The spans from the first cause down to each that is called `name`, as `process: span`; within the one trace of
    /// the request `cause`.
    fn paths(&self, cause: &str, name: &str) -> Vec<Vec<String>> {
        let spans = self.spans();
        let root = spans.iter().find(|(_, span)| span.name == cause && span.parent_span_id.is_empty());
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

    /// Waits for that path of the order that was placed.
    fn shows(&self, path: &[&str]) {
        let (_, last) = path.last().and_then(|last| last.split_once(": ")).expect("process: span");
        let began = Instant::now();
        loop {
            let seen = self.paths("POST /api/v1/orders", last);
            if seen.iter().any(|seen| seen == path) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "no {path:#?} but {seen:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let value = attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?;
    if let Any::StringValue(text) = value.value.as_ref()? { Some(text.clone()) } else { None }
}

#[test]
fn one_trace_leads_from_the_request_to_the_frame() {
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
    // Over PostgreSQL, the outbox and the stream to the socket, which was open at another gateway.
    let told =
        ["shoppee-order: order.write", "shoppee-order: event.publish", "shoppee-gateway: event.deliver"];
    collector.shows(&[&placed[..], &told].concat());
    collector.shows(&[&placed[..], &["shoppee-order: idempotency.claim"]].concat());
    let held = ["shoppee-product: shoppee.product.v1.StockService/Hold", "shoppee-product: stock.hold"];
    collector.shows(&[&placed[..], &held].concat());

    let spans = collector.spans();
    let names = |service: &str| spans.iter().filter(|(of, _)| of == service).count();
    for service in ["shoppee-gateway", "shoppee-auth", "shoppee-product", "shoppee-order"] {
        assert!(names(service) > 0, "{service}");
    }
    // The demo signed two people in, sent an address and a payment token, and carried access tokens everywhere.
    let all = format!("{spans:?}");
    let run = checkout.run_file();
    let password = run["admin"]["password"].as_str().expect("a password");
    for secret in [password, "eyJ", "Bearer", "tok_ok", "Harbour Street"] {
        assert!(!all.contains(secret), "{secret} in a span");
    }
}
