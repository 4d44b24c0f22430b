//! The listener of a service: bounds its connections, and closes those that say nothing at first.

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

/// Bounds the time until a connection can be used: until its first byte, or to the end of a TLS handshake, which is two
/// round trips and a few milliseconds of computing.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after a connection could not be accepted, as for want of file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// A TCP listener that accepts a connection only while it has a place for it. Further ones wait in the kernel's queue.
#[derive(Debug)]
pub(crate) struct Listener {
    inner: TcpListener,
    places: Arc<Semaphore>,
    throttle: LogThrottle,
}

impl Listener {
    pub(crate) async fn bind(addr: SocketAddr, max_connections: usize) -> io::Result<Self> {
        Ok(Self {
            inner: TcpListener::bind(addr).await?,
            places: Arc::new(Semaphore::new(max_connections)),
            throttle: LogThrottle::default(),
        })
    }

    /// Accepts connections until the tasks stop, and yields each once `handshake` is through with it. A connection whose
    /// handshake fails or takes longer than [`HANDSHAKE_TIMEOUT`] is closed.
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
        let stop = tasks.stopping();
        tasks.spawn("listener", async move {
            loop {
                let connection = tokio::select! {
                    connection = self.accept() => connection,
                    () = stop.cancelled() => return Ok(()),
                };
                let (peer, ready, handshake) = (connection.peer, ready.clone(), handshake(connection));
                tokio::spawn(async move {
                    match timeout(HANDSHAKE_TIMEOUT, handshake).await {
                        // Refused where the server has stopped.
                        Ok(Ok(stream)) => drop(ready.send(Ok(stream)).await),
                        Ok(Err(error)) => tracing::debug!(%peer, %error, "connection closed: no handshake"),
                        Err(_elapsed) => tracing::debug!(%peer, "connection closed: no handshake in time"),
                    }
                });
            }
        });
        stream::poll_fn(move |context| accepted.poll_recv(context))
    }

    /// Accepts the next connection. An error of the socket is tried again after a pause.
    pub(crate) async fn accept(&self) -> Connection {
        if self.places.available_permits() == 0
            && let Some(suppressed) = self.throttle.admit()
        {
            let addr = self.inner.local_addr().ok();
            tracing::warn!(?addr, suppressed, "all connections are in use: further ones wait");
        }
        loop {
            // The semaphore is never closed.
            let place = self.places.clone().acquire_owned().await.ok();
            match self.inner.accept().await {
                Ok((stream, peer)) => {
                    // Without it, small messages wait for each other.
                    let _ = stream.set_nodelay(true);
                    return Connection { stream, peer, _place: place };
                }
                Err(error) => {
                    tracing::debug!(%error, "no connection accepted");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }
}

/// A connection with its place in the bound of the listener.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    _place: Option<OwnedSemaphorePermit>,
}

impl Connection {
    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Waits until the peer has sent its first byte, or has closed: the handshake of a connection in plain text.
    pub(crate) async fn wait_for_first_byte(self) -> io::Result<Self> {
        self.stream.peek(&mut [0]).await?;
        Ok(self)
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

    async fn listener(max_connections: usize) -> (Listener, SocketAddr) {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into(), max_connections).await.unwrap();
        let addr = listener.inner.local_addr().unwrap();
        (listener, addr)
    }

    #[tokio::test]
    async fn a_connection_beyond_the_bound_waits_until_another_ends() {
        let (listener, addr) = listener(1).await;
        let _clients = (TcpStream::connect(addr).await.unwrap(), TcpStream::connect(addr).await.unwrap());
        let first = listener.accept().await;
        let mut second = Box::pin(listener.accept());
        assert!(timeout(Duration::from_millis(100), &mut second).await.is_err(), "the only place is taken");
        drop(first);
        timeout(Duration::from_secs(10), second).await.expect("a place is free");
    }

    #[tokio::test]
    async fn a_connection_that_sends_nothing_is_closed_and_hinders_no_other() {
        let (listener, addr) = listener(8).await;
        let (tasks, _ended) = Tasks::new();
        let mut silent = TcpStream::connect(addr).await.unwrap();
        let mut talking = TcpStream::connect(addr).await.unwrap();
        talking.write_all(b"PRI").await.unwrap();
        let mut incoming = std::pin::pin!(listener.incoming(&tasks, Connection::wait_for_first_byte));
        let mut connection = incoming.next().await.unwrap().unwrap();
        let mut read = [0; 3];
        connection.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"PRI");
        let began = Instant::now();
        let end = timeout(4 * HANDSHAKE_TIMEOUT, silent.read(&mut read)).await.expect("is closed");
        assert!(end.is_ok_and(|length| length == 0) && began.elapsed() > HANDSHAKE_TIMEOUT / 2);
    }
}
