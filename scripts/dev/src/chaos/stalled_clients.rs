//! Stalled clients, as in a slowloris attack: idle connections, unfinished heads and bodies, unread WebSockets, and gRPC
//! clients that stop in the middle of a call. A process that shuts down must not wait for them.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Connections of each kind.
const CONNECTIONS_PER_KIND: usize = 10;
/// WebSockets of one user, whose limit is ten.
const WEBSOCKETS: usize = 5;
/// The connection preface of HTTP/2 (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// An empty SETTINGS frame: length, type, flags, stream (RFC 9113 §4.1).
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// Open connections, which close when dropped.
#[derive(Debug)]
pub struct StalledConnections(
    #[expect(dead_code, reason = "the connections stay open until the drop")] Vec<TcpStream>,
);

/// Opens stalled connections to a gateway, with a customer's token for the WebSockets.
pub async fn connect_to_gateway(port: u16, token: &str) -> anyhow::Result<StalledConnections> {
    let body = "POST /api/v1/auth/login HTTP/1.1\r\nhost: shop\r\ncontent-type: application/json\r\n\
                content-length: 100\r\n\r\n{\"username\":";
    let socket = format!(
        "GET /ws HTTP/1.1\r\nhost: shop\r\nauthorization: Bearer {token}\r\nconnection: upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    // A keep-alive connection without a second request.
    let idle = "GET /healthz HTTP/1.1\r\nhost: shop\r\n\r\n";
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS_PER_KIND {
        connections.push(open(port, b"").await?);
        connections.push(open(port, b"GET /api/v1/products HTTP/1.1\r\nhost: shop\r\nx-half").await?);
        connections.push(open(port, body.as_bytes()).await?);
        connections.push(open(port, PREFACE).await?);
        connections.push(open_and_read(port, idle).await?);
    }
    for _ in 0..WEBSOCKETS {
        connections.push(open_and_read(port, &socket).await?);
    }
    Ok(StalledConnections(connections))
}

/// Opens stalled connections to the gRPC port of a service.
pub async fn connect_to_service(port: u16) -> anyhow::Result<StalledConnections> {
    let silent = [PREFACE, SETTINGS].concat();
    let half = [&silent, unfinished_call().as_slice()].concat();
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS_PER_KIND {
        connections.push(open(port, b"").await?);
        connections.push(open(port, PREFACE).await?);
        connections.push(open(port, &silent).await?);
        connections.push(open(port, &half).await?);
    }
    Ok(StalledConnections(connections))
}

/// Builds the HEADERS frame of a call without a message.
fn unfinished_call() -> Vec<u8> {
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/shoppee.product.v1.ProductService/GetProduct"),
        (":authority", "shop"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut block = Vec::new();
    for (name, value) in headers {
        // A literal without indexing, both parts without Huffman coding (RFC 7541 §6.2.2); all are shorter than 127.
        block.push(0);
        for part in [name, value] {
            block.push(u8::try_from(part.len()).unwrap_or_default());
            block.extend_from_slice(part.as_bytes());
        }
    }
    // The flags have END_HEADERS and not END_STREAM.
    let mut frame = vec![0, 0, u8::try_from(block.len()).unwrap_or_default(), 1, 4, 0, 0, 0, 1];
    frame.extend(block);
    frame
}

/// Opens a connection, sends a request and reads the beginning of the response.
async fn open_and_read(port: u16, request: &str) -> anyhow::Result<TcpStream> {
    let mut stream = open(port, request.as_bytes()).await?;
    let _ = stream.read(&mut [0; 16]).await?;
    Ok(stream)
}

/// Opens a connection and sends bytes.
async fn open(port: u16, bytes: &[u8]) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(bytes).await?;
    Ok(stream)
}
