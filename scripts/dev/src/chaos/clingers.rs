//! Peers that will not let go: connections that say nothing, heads and bodies that never end, sockets nobody reads,
//! gRPC peers that fall silent in the middle of a call. A process that stops must not wait for them.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Of each kind.
const COUNT: usize = 10;
/// Of one user, who may have ten.
const SOCKETS: usize = 5;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// An empty SETTINGS frame: length, type, flags, stream (RFC 9113 §4.1).
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// They hang up when dropped.
#[derive(Debug)]
pub struct Clingers(#[expect(dead_code, reason = "open is what they must be")] Vec<TcpStream>);

/// Clings to a gateway; `token` is a customer's.
pub async fn to_gateway(port: u16, token: &str) -> anyhow::Result<Clingers> {
    let body = "POST /api/v1/auth/login HTTP/1.1\r\nhost: shop\r\ncontent-type: application/json\r\n\
                content-length: 100\r\n\r\n{\"username\":";
    let socket = format!(
        "GET /ws HTTP/1.1\r\nhost: shop\r\nauthorization: Bearer {token}\r\nconnection: upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    // Answered, and then kept: the next request never comes.
    let idle = "GET /healthz HTTP/1.1\r\nhost: shop\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..COUNT {
        held.push(open(port, b"").await?);
        held.push(open(port, b"GET /api/v1/products HTTP/1.1\r\nhost: shop\r\nx-half").await?);
        held.push(open(port, body.as_bytes()).await?);
        held.push(open(port, PREFACE).await?);
        held.push(answered(port, idle).await?);
    }
    for _ in 0..SOCKETS {
        held.push(answered(port, &socket).await?);
    }
    Ok(Clingers(held))
}

/// Clings to a service's gRPC port.
pub async fn to_service(port: u16) -> anyhow::Result<Clingers> {
    let silent = [PREFACE, SETTINGS].concat();
    let half = [&silent, half_a_call().as_slice()].concat();
    let mut held = Vec::new();
    for _ in 0..COUNT {
        held.push(open(port, b"").await?);
        held.push(open(port, PREFACE).await?);
        held.push(open(port, &silent).await?);
        held.push(open(port, &half).await?);
    }
    Ok(Clingers(held))
}

/// HEADERS of a call whose message never follows.
fn half_a_call() -> Vec<u8> {
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
        // A literal that is not indexed, both parts plain (RFC 7541 §6.2.2); all are shorter than 127.
        block.push(0);
        for part in [name, value] {
            block.push(u8::try_from(part.len()).unwrap_or_default());
            block.extend_from_slice(part.as_bytes());
        }
    }
    // END_HEADERS, and no END_STREAM.
    let mut frame = vec![0, 0, u8::try_from(block.len()).unwrap_or_default(), 1, 4, 0, 0, 0, 1];
    frame.extend(block);
    frame
}

/// One that has its answer, of which the first word is enough.
async fn answered(port: u16, says: &str) -> anyhow::Result<TcpStream> {
    let mut stream = open(port, says.as_bytes()).await?;
    let _ = stream.read(&mut [0; 16]).await?;
    Ok(stream)
}

async fn open(port: u16, says: &[u8]) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(says).await?;
    Ok(stream)
}
