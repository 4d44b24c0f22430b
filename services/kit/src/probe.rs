//! `--probe`: a process asks one with the same settings that runs already whether it can serve. It is the
//! health check of a container image, in which there is neither a shell nor curl.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, bail};

/// What is asked, is known in memory: who has not answered by now is not well.
const PATIENCE: Duration = Duration::from_secs(2);
/// More than a status line has.
const LONGEST_ANSWER: u64 = 256;

/// An error where the process at `addr` cannot serve, or does not answer.
pub fn ask(addr: SocketAddr) -> anyhow::Result<()> {
    let addr = reachable(addr);
    let mut stream =
        TcpStream::connect_timeout(&addr, PATIENCE).with_context(|| format!("nothing answers on {addr}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = format!("GET /readyz?need=vital HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(LONGEST_ANSWER).read_to_end(&mut answer).with_context(|| format!("no answer from {addr}"))?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.lines().next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200 ") {
        bail!("not ready: {status}");
    }
    Ok(())
}

/// From this machine, a socket that listens on all addresses is reached by the loopback one.
fn reachable(addr: SocketAddr) -> SocketAddr {
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

    /// Answers one request, and returns what it was asked.
    fn server(answer: &'static str) -> (SocketAddr, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let asked = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 1024];
            let length = stream.read(&mut asked).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&asked[..length]).into_owned()
        });
        (addr, asked)
    }

    #[test]
    fn who_is_ready_is_well() {
        let (addr, asked) = server("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n");
        ask(addr).unwrap();
        assert!(asked.join().unwrap().starts_with("GET /readyz?need=vital HTTP/1.1\r\n"));
    }

    #[test]
    fn who_is_not_or_is_not_there_is_not() {
        let (addr, _asked) = server("HTTP/1.1 503 Service Unavailable\r\n\r\n");
        assert_eq!(ask(addr).unwrap_err().to_string(), "not ready: HTTP/1.1 503 Service Unavailable");
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(ask(gone).is_err());
    }
}
