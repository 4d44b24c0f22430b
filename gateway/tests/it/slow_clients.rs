//! Clients that do not read responses, do not complete bodies, or are idle.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, Response, StatusCode};
use serde_json::json;
use shoppee_kit::testing::eventually;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};

use crate::shop::{Person, TestShop};

/// Bounds every step of these tests.
const STEP_TIMEOUT: Duration = Duration::from_secs(20);

/// An HTTP/2 connection that answers pings.
pub struct Http2 {
    requests: SendRequest<Bytes>,
    /// The task of the connection.
    connection: JoinHandle<()>,
    /// The halves of the streams: a stream lasts as long as they do.
    streams: Vec<(h2::client::ResponseFuture, h2::SendStream<Bytes>)>,
}

impl Http2 {
    /// Opens a connection with a receive window of `window` bytes per stream.
    pub async fn open(addr: SocketAddr, window: u32) -> Self {
        let stream = TcpStream::connect(addr).await.expect("accepts");
        let mut builder = h2::client::Builder::new();
        let (requests, connection) =
            builder.initial_window_size(window).handshake(stream).await.expect("speaks HTTP/2");
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        Self { requests, connection, streams: Vec::new() }
    }

    /// Requests a path, and reads only the head of the response; `None` if the connection has ended.
    pub async fn get(&mut self, path: &str) -> Option<Response<h2::RecvStream>> {
        let request = Request::get(format!("http://shop.test{path}")).body(()).expect("a request");
        let mut requests = self.requests.clone().ready().await.ok()?;
        let (response, _) = requests.send_request(request, true).ok()?;
        response.await.ok()
    }

    /// Sends a request whose body lacks its last byte.
    async fn post_without_the_last_byte(&mut self, person: &Person, path: &str, body: &str) {
        let request = Request::post(format!("http://shop.test/api/v1{path}"))
            .header("authorization", format!("Bearer {}", person.token.as_ref().expect("signed in")))
            .header("content-type", "application/json")
            .header("content-length", body.len())
            .body(())
            .expect("a request");
        let mut requests = self.requests.clone().ready().await.expect("open");
        let (response, mut sender) = requests.send_request(request, false).expect("sent");
        let part = Bytes::copy_from_slice(&body.as_bytes()[..body.len() - 1]);
        sender.send_data(part, false).expect("sent");
        self.streams.push((response, sender));
    }
}

async fn expect_end(connection: JoinHandle<()>, what: &str) {
    tokio::time::timeout(STEP_TIMEOUT, connection)
        .await
        .unwrap_or_else(|_| panic!("still open: {what}"))
        .expect("no panic");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_client_that_reads_nothing_is_disconnected_after_the_send_timeout() {
    let shop = TestShop::builder().with("--send-timeout", "1s").start().await;
    let addr = shop.gateways[0].addr;
    // With a window of one byte hyper passes the whole response to h2, which buffers it.
    for window in [0, 1] {
        let mut client = Http2::open(addr, window).await;
        let mut responses = Vec::new();
        while responses.len() < 20
            && let Some(response) = client.get("/openapi.json").await
        {
            responses.push(response);
        }
        assert!(!responses.is_empty());
        expect_end(client.connection, &format!("a window of {window}")).await;
        drop(responses);
    }
    // A client that reads its responses stays connected past that time.
    let mut client = Http2::open(addr, 16 * 1024 * 1024).await;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(2) {
        let response = client.get("/openapi.json").await.expect("a head");
        let mut body = response.into_body();
        while let Some(data) = body.data().await {
            let length = data.expect("data").len();
            body.flow_control().release_capacity(length).expect("released");
        }
    }
    assert!(!client.connection.is_finished());
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_bound_of_unsent_bytes_the_largest_connection_is_closed() {
    let shop = TestShop::builder().with("--max-unsent-bytes", "500000").start().await;
    let addr = shop.gateways[0].addr;
    let mut small = Http2::open(addr, 0).await;
    small.get("/api/v1/products").await.expect("a head");
    let mut large = Http2::open(addr, 0).await;
    let mut responses = Vec::new();
    while let Some(response) = large.get("/openapi.json").await {
        responses.push(response);
        assert!(responses.len() < 100, "the connection stays open");
    }
    expect_end(large.connection, "the one with the most").await;
    assert!(!small.connection.is_finished());
    shop.guest().get("//openapi.json").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_too_many_unsent_bytes_is_refused_further_requests() {
    let shop = TestShop::start().await;
    let mut client = Http2::open(shop.gateways[0].addr, 0).await;
    let mut responses = Vec::new();
    loop {
        let response = client.get("/openapi.json").await.expect("a head");
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            break;
        }
        responses.push(response);
        assert!(responses.len() < 100, "the connection stays open");
    }
    shop.guest().get("//openapi.json").await.expect(200);
}

/// Sends a request whose body lacks its last byte, on an HTTP/1.1 connection of its own.
pub async fn post_without_the_last_byte(
    addr: SocketAddr,
    person: &Person,
    path: &str,
    body: &str,
) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.expect("accepts");
    let request = format!(
        "POST /api/v1{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
        person.token.as_ref().expect("signed in"),
        body.len(),
        &body[..body.len() - 1]
    );
    stream.write_all(request.as_bytes()).await.expect("open");
    stream
}

/// Reads one response, without a body or with a known length.
async fn read_response(stream: &mut TcpStream) -> Option<String> {
    let mut response = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let read =
            tokio::time::timeout(STEP_TIMEOUT, stream.read(&mut buffer)).await.expect("a response").ok()?;
        response.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&response);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().expect("a number")) {
                return Some(text.into_owned());
            }
        }
        if read == 0 {
            return None;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_outlives_the_header_timeout_between_requests_and_ends_after_the_idle_timeout() {
    let shop =
        TestShop::builder().with("--header-timeout", "500ms").with("--idle-timeout", "3s").start().await;
    let addr = shop.gateways[0].addr;
    let ask = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut idle = TcpStream::connect(addr).await.expect("accepts");
    let mut half = TcpStream::connect(addr).await.expect("accepts");
    let mut http2 = Http2::open(addr, 65_535).await;
    for _ in 0..2 {
        for stream in [&mut idle, &mut half] {
            stream.write_all(ask).await.expect("open");
            assert!(read_response(stream).await.expect("a response").starts_with("HTTP/1.1 200"));
        }
        http2.get("/healthz").await.expect("a response");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let begun = Instant::now();
    half.write_all(&ask[..20]).await.expect("open");
    assert_eq!(read_response(&mut half).await, None, "half a head");
    assert!(begun.elapsed() < Duration::from_millis(1900), "{:?}", begun.elapsed());
    assert_eq!(read_response(&mut idle).await, None, "idle");
    expect_end(http2.connection, "an idle HTTP/2 connection").await;
    assert!(begun.elapsed() > Duration::from_millis(1900), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn withheld_bodies_occupy_no_request_permits() {
    let shop = TestShop::builder().with("--max-requests", "60").start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = shop.product(&admin, 100, 1000).await;
    let item = json!({"product_id": product["id"], "quantity": 1});
    let body = item.to_string();
    let addr = shop.gateways[0].addr;
    let (mut http1, mut http2) = (Vec::new(), Vec::new());
    for slow in [shop.customer("eve").await, shop.customer("mallory").await, shop.customer("trudy").await] {
        for _ in 0..50 {
            http1.push(post_without_the_last_byte(addr, &slow, "/cart/items", &body).await);
        }
        let mut connection = Http2::open(addr, 65_535).await;
        for _ in 0..50 {
            connection.post_without_the_last_byte(&slow, "/cart/items", &body).await;
        }
        http2.push(connection);
    }
    // All requests were read: bodies beyond the limit of a caller were refused.
    let refused = read_response(&mut http1[49]).await.expect("a response");
    assert!(refused.starts_with("HTTP/1.1 429") && refused.contains("rate_limited"), "{refused}");
    let (response, _) = http2[2].streams.pop().expect("a stream");
    assert_eq!(response.await.expect("a response").status(), StatusCode::TOO_MANY_REQUESTS);
    for _ in 0..10 {
        ann.post("/cart/items", &item).await.expect(200);
        ann.get("/cart").await.expect(200);
    }
    // A body that stops arriving times out before the deadline of a whole one.
    let begun = Instant::now();
    let late = read_response(&mut http1[0]).await.expect("a response");
    assert!(late.starts_with("HTTP/1.1 408"), "{late}");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    eventually("the caller may send bodies again", async || {
        let mut stream = TcpStream::connect(addr).await.expect("accepts");
        let token = ann.token.as_ref().expect("signed in");
        let head = format!(
            "POST /api/v1/cart/items HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.expect("open");
        stream.write_all(body.as_bytes()).await.expect("open");
        read_response(&mut stream).await.is_some_and(|response| response.starts_with("HTTP/1.1 200"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_closed_for_new_ones() {
    let shop =
        TestShop::builder().with("--max-connections", "40").with("--header-timeout", "60s").start().await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(TcpStream::connect(shop.gateways[0].addr).await.expect("accepts"));
    }
    // On a connection of its own.
    let request = reqwest::get(format!("{}/healthz", shop.url(0)));
    let response = tokio::time::timeout(STEP_TIMEOUT, request).await.expect("in time").expect("a response");
    assert!(response.status().is_success());
    drop(idle);
}
