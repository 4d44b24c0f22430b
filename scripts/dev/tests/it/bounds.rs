//! Each service at the bounds of its gRPC server: the memory that it holds, as the table "What a process may hold" of
//! docs/operating.md has it, and its behaviour beyond them.

use std::{fs, net::SocketAddr, time::Duration};

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use shoppee_kit::{
    grpc::{MAX_CONNECTIONS, MAX_REQUEST_BYTES, MAX_TOTAL_REQUEST_BYTES},
    testing::eventually,
};
use tokio::{net::TcpStream, time::timeout};

use crate::whole::Checkout;

const MIB: usize = 1024 * 1024;
/// A connection with its buffers and what it has read of requests that are refused.
const CONNECTION_BYTES: usize = 1088 * 1024;
/// Buffers that the allocator keeps.
const SLACK: usize = 24 * MIB;
/// The time in which a server that takes a connection has answered on it, also on a busy machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls that are begun on each connection.
const CALLS: usize = 16;

/// A connection with calls whose requests never end.
struct Client {
    requests: SendRequest<Bytes>,
    calls: Vec<(h2::client::ResponseFuture, h2::SendStream<Bytes>)>,
}

impl Client {
    /// Opens a connection, or returns `None` where the server does not take it.
    async fn open(addr: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(addr).await.ok()?;
        let (mut requests, connection) = h2::client::handshake(stream).await.ok()?;
        tokio::spawn(connection);
        let unknown = Request::post("http://shop.test/unknown").body(()).ok()?;
        let (answer, _) = requests.send_request(unknown, true).ok()?;
        timeout(ANSWER_TIMEOUT, answer).await.ok()?.ok()?;
        Some(Self { requests, calls: Vec::new() })
    }

    /// Begins calls whose request is announced as the largest, and lacks its end.
    async fn begincalls(&mut self, path: &str, message: &Bytes) {
        for _ in 0..CALLS {
            let request = Request::post(format!("http://shop.test{path}"))
                .header("content-type", "application/grpc")
                .body(())
                .expect("a request");
            let mut requests = self.requests.clone().ready().await.expect("open");
            let (answer, mut sender) = requests.send_request(request, false).expect("sent");
            sender.send_data(message.clone(), false).expect("sent");
            self.calls.push((answer, sender));
        }
    }
}

/// The memory of a process. Bytes.
fn resident(pid: u64) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_at_the_bounds_of_its_server_holds_what_they_add_up_to() {
    let checkout = Checkout::new("bounds");
    checkout.succeeds("up", &["--detach", "--no-seed"]);
    let run = checkout.run_file();
    // The prefix of a gRPC message, and most of the message.
    let length = MAX_REQUEST_BYTES - 1024;
    let announced = u32::try_from(length).expect("fits").to_be_bytes();
    let mut message = vec![0];
    message.extend_from_slice(&announced);
    message.resize(length, 0);
    let message = Bytes::from(message);

    for (service, path) in [
        ("auth", "/shoppee.auth.v1.AuthService/Login"),
        ("product", "/shoppee.product.v1.ProductService/GetProduct"),
        ("order", "/shoppee.order.v1.OrderService/CreateOrder"),
    ] {
        let of = |key: &str| &run["services"][service][key];
        let addr = of("grpc").as_str().and_then(|url| url.rsplit('/').next()).expect("an address");
        let addr: SocketAddr = addr.parse().expect("an address");
        let pid = of("pid").as_u64().expect("a process id");
        let before = resident(pid);

        let mut clients = Vec::new();
        while clients.len() < MAX_CONNECTIONS
            && let Some(client) = Client::open(addr).await
        {
            clients.push(client);
        }
        let opened = clients.len();
        // The processes of the shop have a few of their own.
        assert!((MAX_CONNECTIONS - 16..MAX_CONNECTIONS).contains(&opened), "{service}: {opened} connections");
        for client in &mut clients {
            client.begincalls(path, &message).await;
        }
        let mut most = 0;
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            most = most.max(resident(pid));
        }
        let more = most.saturating_sub(before);
        let sum = MAX_CONNECTIONS * CONNECTION_BYTES + 2 * MAX_TOTAL_REQUEST_BYTES + SLACK;
        eprintln!("{service}: {} MiB at first, {} MiB more, of {}", before / MIB, more / MIB, sum / MIB);
        assert!(more <= sum, "{service}: {} MiB more, of {}", more / MIB, sum / MIB);

        drop(clients);
        eventually("a connection is taken again", async || Client::open(addr).await.is_some()).await;
    }
}
