//! A gateway in a process of its own: the memory that it holds at its bounds, the lines of its log, and its behaviour
//! while the log is not read.

use std::{
    fs,
    io::Read as _,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use serde_json::{Value, json};
use shoppee_kit::testing::{eventually, free_addr};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{
    realtime_fixture::{GatewayProcess, RealtimeFixture, Socket},
    service_accounts::{account, service},
    shop::TestShop,
    slow_clients::{Http2, post_without_the_last_byte},
};

const MIB: usize = 1024 * 1024;

struct Gateway {
    addr: SocketAddr,
    process: Child,
}

impl Gateway {
    /// Starts a gateway of the shop, with a pipe for its log.
    async fn start(shop: &TestShop, settings: &[(&str, &str)]) -> Self {
        let addr = free_addr();
        let process = Command::new(env!("CARGO_BIN_EXE_shoppee-gateway"))
            .env_clear()
            .envs(shop.gateway_environment())
            .envs([
                ("SHOPPEE_ENV", "development"),
                ("LISTEN_ADDR", &addr.to_string()),
                ("RATE_LIMITS", "off"),
            ])
            .envs(settings.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let gateway = Self { addr, process };
        eventually("the gateway is ready", async || {
            let ready = reqwest::get(format!("http://{addr}/readyz")).await;
            ready.is_ok_and(|response| response.status().is_success())
        })
        .await;
        gateway
    }

    /// Returns the resident memory. Bytes.
    fn resident(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib * 1024
    }

    async fn metrics(&self) -> String {
        let response = reqwest::get(format!("http://{}/metrics", self.addr)).await.expect("a response");
        response.text().await.expect("text")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The sum of the table "What a process may hold" of docs/operating.md, at lower bounds.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_at_its_bounds_holds_at_most_the_documented_memory() {
    const CONNECTIONS: usize = 300;
    const CONNECTION_BYTES: usize = 64 * 1024;
    const UNSENT_BYTES: usize = 2 * MIB;
    /// The bytes of 48 bodies of 64 KiB, twice.
    const BODY_BYTES: usize = 6 * MIB;
    /// Earlier requests, caches, buffers of the allocator.
    const SLACK: usize = 24 * MIB;

    let shop = TestShop::start().await;
    let settings = [
        ("MAX_CONNECTIONS", CONNECTIONS.to_string()),
        ("MAX_UNSENT_BYTES", UNSENT_BYTES.to_string()),
        ("HEADER_TIMEOUT", "5m".to_owned()),
        ("LOG", "off".to_owned()),
    ];
    let admin = shop.admin().await;
    for number in 0..20 {
        let product = json!({"sku": format!("LONG-{number}"), "name": "Long", "price": 1, "stock": 1,
                             "description": "é".repeat(10_000)});
        admin.post("/products", &product).await.expect(201);
    }
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let gateway = Gateway::start(&shop, &settings).await;
    let before = gateway.resident();

    // Responses of 400 KiB, rendered for each request.
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = Http2::open(gateway.addr, 0).await;
        let mut responses = Vec::new();
        while responses.len() < 100
            && let Some(response) = client.get("/api/v1/products").await
            && response.status().is_success()
        {
            responses.push(response);
        }
        clients.push((client, responses));
    }
    // Withheld bodies of three callers, more than each may have.
    let mut streams = Vec::new();
    let body = format!("{{{}}}", " ".repeat(60 * 1024));
    for name in ["eve", "mallory", "trudy"] {
        let caller = shop.customer(name).await;
        for _ in 0..20 {
            streams.push(post_without_the_last_byte(gateway.addr, &caller, "/cart/items", &body).await);
        }
    }
    // Heads of the largest size, on all remaining connections.
    let head = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}", "y".repeat(30 * 1024));
    while streams.len() < CONNECTIONS {
        let mut stream = TcpStream::connect(gateway.addr).await.expect("accepts");
        stream.write_all(head.as_bytes()).await.expect("open");
        streams.push(stream);
    }
    let mut most = gateway.resident();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        most = most.max(gateway.resident());
    }
    let more = most.saturating_sub(before);
    let sum = CONNECTIONS * CONNECTION_BYTES + UNSENT_BYTES + BODY_BYTES + SLACK;
    eprintln!("{} MiB more, of {}", more / MIB, sum / MIB);
    assert!(more <= sum, "{} MiB more, of {}", more / MIB, sum / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_socket_takes_at_most_its_documented_memory() {
    /// The sockets before the first measurement, and between the two.
    const WARM_UP: i64 = 300;
    const SOCKETS: i64 = 2_000;
    /// Bounds a socket with the token of its user. An optimised build has smaller futures.
    const SOCKET_BYTES: usize = 7 * 1024;
    /// The time in which tokens, positions and leases are checked.
    const SETTLE_TIME: Duration = Duration::from_secs(11);

    let fixture = RealtimeFixture::start(0).await;
    let gateway = GatewayProcess::start(&fixture).await;
    let open = async |users: std::ops::Range<i64>| {
        let sockets = stream::iter(users).map(async |user_id| gateway.socket(&fixture.token(user_id)).await);
        let sockets: Vec<Socket> = sockets.buffer_unordered(32).collect().await;
        tokio::time::sleep(SETTLE_TIME).await;
        (sockets, gateway.resident())
    };
    let (_warm_up, before) = open(1..1 + WARM_UP).await;
    let (sockets, after) = open(1_000..1_000 + SOCKETS).await;
    let each = after.saturating_sub(before) / sockets.len();
    eprintln!("{each} bytes a socket");
    assert!(each <= SOCKET_BYTES, "{each} bytes a socket, of {SOCKET_BYTES}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_of_the_access_log_names_the_user_or_the_client() {
    let shop = TestShop::start().await;
    let admin = shop.admin().await;
    let warehouse = account(&admin, &["users:read"]).await;
    let clerk = service(&shop, &warehouse).await;
    let mut gateway = Gateway::start(&shop, &[]).await;
    let url = format!("http://{}/api/v1/admin/users", gateway.addr);
    for caller in [&admin, &clerk] {
        let request = reqwest::Client::new().get(&url).bearer_auth(caller.token.as_deref().expect("a token"));
        assert_eq!(request.send().await.expect("a response").status(), StatusCode::OK);
    }
    gateway.process.kill().expect("it lives");
    let mut log = String::new();
    gateway.process.stdout.take().expect("piped").read_to_string(&mut log).expect("text");
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
    let callers: Vec<_> = lines
        .filter(|line| line["route"] == "/api/v1/admin/users")
        .map(|line| (line["user_id"].clone(), line["client_id"].clone()))
        .collect();
    assert_eq!(callers, [(json!(admin.id), Value::Null), (Value::Null, warehouse["id"].clone())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_with_a_blocked_log_continues_and_counts_dropped_lines() {
    let shop = TestShop::start().await;
    let mut gateway = Gateway::start(&shop, &[("LOG", "trace")]).await;
    let get_text = async |path: &str| {
        let url = format!("http://{}{path}", gateway.addr);
        let response = reqwest::Client::new().get(url).timeout(Duration::from_secs(20)).send().await;
        response.expect("a response").text().await.expect("a body")
    };
    let dropped = |metrics: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix("log_lines_dropped_total "));
        line.expect("the counter").parse::<u64>().expect("a number") > 0
    };
    let mut requests = 0;
    while !dropped(&get_text("/metrics").await) {
        assert_eq!(get_text("/healthz").await, "ok\n");
        requests += 1;
        assert!(requests < 5000, "nothing is dropped");
    }
    // The process aggregates its samples without a scrape.
    assert!(gateway.metrics().await.contains("worker_max_age_seconds{worker=\"metrics_upkeep\"}"));
    // The log reports dropped lines once it is read again.
    let mut log = gateway.process.stdout.take().expect("piped");
    let mut read = Vec::new();
    let has_report = |read: &[u8]| String::from_utf8_lossy(read).contains("lines of the log were dropped");
    let mut buffer = vec![0; 64 * 1024];
    while !has_report(&read) && read.len() < 64 * MIB {
        let length = log.read(&mut buffer).expect("a pipe");
        read.extend_from_slice(&buffer[..length]);
    }
    assert!(has_report(&read));
}
