//! A TCP listener with a connection limit and a handshake timeout.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::{log_throttle::LogThrottle, tasks::Tasks};

/// Bounds the time until a connection is usable: the TLS handshake, and the preface of the peer. A handshake takes two round
/// trips and a few milliseconds of CPU time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// The delay after a failed accept, such as for lack of file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// A TCP listener that accepts connections up to a limit. Further ones wait in the kernel's queue.
#[derive(Debug)]
pub(crate) struct Listener {
    inner: TcpListener,
    permits: Arc<Semaphore>,
    throttle: LogThrottle,
}

impl Listener {
    pub(crate) async fn bind(addr: SocketAddr, max_connections: usize) -> io::Result<Self> {
        Ok(Self {
            inner: TcpListener::bind(addr).await?,
            permits: Arc::new(Semaphore::new(max_connections)),
            throttle: LogThrottle::default(),
        })
    }

    /// Accepts connections until the shutdown, and yields each after its `handshake`. A connection whose handshake fails
    /// or takes longer than [`HANDSHAKE_TIMEOUT`] is closed.
    pub(crate) fn incoming<S, F, H>(
        self,
        tasks: &Tasks,
        handshake: H,
    ) -> impl Stream<Item = io::Result<S>> + use<S, F, H>
    where
        S: Send + 'static,
        H: Fn(Connection) -> F + Send + 'static,
        F: Future<Output = io::Result<S>> + Send + 'static,
    {
        let (ready, mut accepted) = mpsc::channel(1);
        let shutdown = tasks.shutdown_token();
        tasks.spawn("listener", async move {
            loop {
                let connection = tokio::select! {
                    connection = self.accept() => connection,
                    () = shutdown.cancelled() => return Ok(()),
                };
                let (peer, ready, handshake) = (connection.peer, ready.clone(), handshake(connection));
                tokio::spawn(async move {
                    match timeout(HANDSHAKE_TIMEOUT, handshake).await {
                        // The send fails after the server has stopped.
                        Ok(Ok(stream)) => drop(ready.send(Ok(stream)).await),
                        Ok(Err(error)) => tracing::debug!(%peer, %error, "connection closed: no handshake"),
                        Err(_elapsed) => tracing::debug!(%peer, "connection closed: no handshake in time"),
                    }
                });
            }
        });
        stream::poll_fn(move |context| accepted.poll_recv(context))
    }

    /// Accepts the next connection. Retries after an error of the socket.
    pub(crate) async fn accept(&self) -> Connection {
        if self.permits.available_permits() == 0
            && let Some(suppressed) = self.throttle.admit()
        {
            let addr = self.inner.local_addr().ok();
            tracing::warn!(?addr, suppressed, "connection limit reached: further connections wait");
        }
        loop {
            // The semaphore is never closed.
            let permit = self.permits.clone().acquire_owned().await.ok();
            match self.inner.accept().await {
                Ok((stream, peer)) => {
                    // Disables Nagle's algorithm, which delays small messages.
                    let _ = stream.set_nodelay(true);
                    return Connection { stream, peer, _permit: permit };
                }
                Err(error) => {
                    tracing::debug!(%error, "no connection accepted");
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
    }
}

/// A connection that holds a permit of the listener.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Connection {
    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::Instant,
    };

    use super::*;
    use crate::http2_preface::read_preface;

    async fn listener(max_connections: usize) -> (Listener, SocketAddr) {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into(), max_connections).await.unwrap();
        let addr = listener.inner.local_addr().unwrap();
        (listener, addr)
    }

    #[tokio::test]
    async fn a_connection_beyond_the_limit_waits_until_another_ends() {
        let (listener, addr) = listener(1).await;
        let _clients = (TcpStream::connect(addr).await.unwrap(), TcpStream::connect(addr).await.unwrap());
        let first = listener.accept().await;
        let mut second = Box::pin(listener.accept());
        assert!(timeout(Duration::from_millis(100), &mut second).await.is_err(), "the only permit is taken");
        drop(first);
        timeout(Duration::from_secs(10), second).await.expect("a permit is free");
    }

    #[tokio::test]
    async fn a_connection_without_a_preface_is_closed_and_blocks_no_other() {
        let (listener, addr) = listener(8).await;
        let (tasks, _failures) = Tasks::new();
        // Before the listener accepts, so that the elapsed time includes all of the timeout.
        let started = Instant::now();
        let silent = TcpStream::connect(addr).await.unwrap();
        let mut incomplete = TcpStream::connect(addr).await.unwrap();
        incomplete.write_all(b"PRI * HTTP").await.unwrap();
        let mut talking = TcpStream::connect(addr).await.unwrap();
        talking.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut incoming = std::pin::pin!(listener.incoming(&tasks, read_preface));
        let mut connection = incoming.next().await.unwrap().unwrap();
        let mut read = [0; 3];
        connection.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"PRI");
        for mut client in [silent, incomplete] {
            let end = timeout(4 * HANDSHAKE_TIMEOUT, client.read(&mut read)).await.expect("is closed");
            assert!(!end.is_ok_and(|length| length > 0) && started.elapsed() >= HANDSHAKE_TIMEOUT);
        }
    }
}
