//! The readiness probe `--probe`: asks the running process with the same settings whether it can serve. It is the health
//! check of a container image, which has neither a shell nor curl.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, bail};

/// Bounds connect, write and read. The process answers from memory.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bounds the bytes that are read: more than a status line.
const MAX_RESPONSE_BYTES: u64 = 256;

/// Checks that the process at `addr` is ready. Returns an error if it is not, or does not answer.
pub fn check_ready(addr: SocketAddr) -> anyhow::Result<()> {
    let addr = to_loopback(addr);
    let mut stream = TcpStream::connect_timeout(&addr, PROBE_TIMEOUT)
        .with_context(|| format!("nothing answers on {addr}"))?;
    stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
    stream.set_write_timeout(Some(PROBE_TIMEOUT))?;
    let request = format!("GET /readyz?need=vital HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut response = Vec::new();
    stream
        .take(MAX_RESPONSE_BYTES)
        .read_to_end(&mut response)
        .with_context(|| format!("no answer from {addr}"))?;
    let response = String::from_utf8_lossy(&response);
    let status = response.lines().next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200 ") {
        bail!("not ready: {status}");
    }
    Ok(())
}

/// Replaces the unspecified address by the loopback address, which reaches the same socket from this machine.
fn to_loopback(addr: SocketAddr) -> SocketAddr {
    if !addr.ip().is_unspecified() {
        return addr;
    }
    let loopback = match addr.ip() {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(loopback, addr.port())
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    /// Starts a server that answers one request. Returns its address, and the request.
    fn server(response: &'static str) -> (SocketAddr, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let request = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).unwrap();
            stream.write_all(response.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        (addr, request)
    }

    #[test]
    fn a_process_that_answers_200_is_ready() {
        let (addr, request) = server("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n");
        check_ready(addr).unwrap();
        assert!(request.join().unwrap().starts_with("GET /readyz?need=vital HTTP/1.1\r\n"));
    }

    #[test]
    fn a_process_that_answers_503_or_nothing_is_not_ready() {
        let (addr, _request) = server("HTTP/1.1 503 Service Unavailable\r\n\r\n");
        assert_eq!(check_ready(addr).unwrap_err().to_string(), "not ready: HTTP/1.1 503 Service Unavailable");
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(check_ready(gone).is_err());
    }
}
