//! Each service at the limits of its gRPC server: its memory, and its behaviour beyond the limits. The table "What a process
//! may hold" of docs/operating.md has the bounds.

use std::{fs, net::SocketAddr, time::Duration};

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use shoppee_kit::{
    grpc::{MAX_CONNECTIONS, MAX_REQUEST_BYTES, MAX_TOTAL_REQUEST_BYTES},
    testing::eventually,
};
use tokio::{net::TcpStream, time::timeout};

use crate::lifecycle::Checkout;

const MIB: usize = 1024 * 1024;
/// The memory of a connection: its buffers, and the bytes of requests that the server refuses.
const CONNECTION_BYTES: usize = 1088 * 1024;
/// The memory that the allocator keeps.
const ALLOCATOR_SLACK_BYTES: usize = 24 * MIB;
/// Bounds the first response on an accepted connection, also on a busy machine.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
const CALLS_PER_CONNECTION: usize = 16;

/// A connection with unfinished calls.
struct Client {
    requests: SendRequest<Bytes>,
    calls: Vec<(h2::client::ResponseFuture, h2::SendStream<Bytes>)>,
}

impl Client {
    /// Opens a connection, or returns `None` if the server refuses it.
    async fn open(addr: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(addr).await.ok()?;
        let (mut requests, connection) = h2::client::handshake(stream).await.ok()?;
        tokio::spawn(connection);
        let unknown = Request::post("http://shop.test/unknown").body(()).ok()?;
        let (response, _) = requests.send_request(unknown, true).ok()?;
        timeout(RESPONSE_TIMEOUT, response).await.ok()?.ok()?;
        Some(Self { requests, calls: Vec::new() })
    }

    /// Starts calls that announce a request of the maximum size and do not complete it.
    async fn start_calls(&mut self, path: &str, message: &Bytes) {
        for _ in 0..CALLS_PER_CONNECTION {
            let request = Request::post(format!("http://shop.test{path}"))
                .header("content-type", "application/grpc")
                .body(())
                .expect("a request");
            let mut requests = self.requests.clone().ready().await.expect("open");
            let (response, mut sender) = requests.send_request(request, false).expect("sent");
            sender.send_data(message.clone(), false).expect("sent");
            self.calls.push((response, sender));
        }
    }
}

/// Returns the resident memory of a process in bytes.
fn resident_bytes(pid: u64) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_a_service_at_its_limits_stays_below_their_sum() {
    let checkout = Checkout::new("bounds");
    checkout.succeeds("up", &["--detach", "--no-seed"]);
    let run = checkout.run_file();
    // The length prefix of a gRPC message, and most of the message.
    let length = MAX_REQUEST_BYTES - 1024;
    let length_prefix = u32::try_from(length).expect("fits").to_be_bytes();
    let mut message = vec![0];
    message.extend_from_slice(&length_prefix);
    message.resize(length, 0);
    let message = Bytes::from(message);

    for (service, path) in [
        ("auth", "/shoppee.auth.v1.AuthService/Login"),
        ("product", "/shoppee.product.v1.ProductService/GetProduct"),
        ("order", "/shoppee.order.v1.OrderService/CreateOrder"),
    ] {
        let field = |key: &str| &run["services"][service][key];
        let addr = field("grpc").as_str().and_then(|url| url.rsplit('/').next()).expect("an address");
        let addr: SocketAddr = addr.parse().expect("an address");
        let pid = field("pid").as_u64().expect("a process id");
        let before = resident_bytes(pid);

        let mut clients = Vec::new();
        while clients.len() < MAX_CONNECTIONS
            && let Some(client) = Client::open(addr).await
        {
            clients.push(client);
        }
        let opened = clients.len();
        // Other processes of the shop have a few connections too.
        assert!((MAX_CONNECTIONS - 16..MAX_CONNECTIONS).contains(&opened), "{service}: {opened} connections");
        for client in &mut clients {
            client.start_calls(path, &message).await;
        }
        let mut peak = 0;
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            peak = peak.max(resident_bytes(pid));
        }
        let growth = peak.saturating_sub(before);
        let bound = MAX_CONNECTIONS * CONNECTION_BYTES + 2 * MAX_TOTAL_REQUEST_BYTES + ALLOCATOR_SLACK_BYTES;
        eprintln!("{service}: {} MiB at first, {} MiB more, of {}", before / MIB, growth / MIB, bound / MIB);
        assert!(growth <= bound, "{service}: {} MiB more, of {}", growth / MIB, bound / MIB);

        drop(clients);
        eventually("a connection is taken again", async || Client::open(addr).await.is_some()).await;
    }
}
