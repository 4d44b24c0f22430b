//! A TCP proxy between a process and one of its dependencies, which makes the dependency absent, frozen, slow or
//! disconnected, or loses its responses.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// The condition of the dependency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Refuses new connections and closes the existing ones.
    Absent,
    /// Accepts connections, but passes no byte on any connection.
    Frozen,
    Pass,
}

const BUFFER_BYTES: usize = 16 << 10;
const BIND_RETRY_DELAY: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub struct Proxy {
    pub port: u16,
    mode: watch::Sender<Mode>,
    /// A counter whose change closes all connections.
    disconnects: watch::Sender<u64>,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    accepted: AtomicUsize,
    /// The number of the slow connection, counted from 1; 0 for none.
    slow: AtomicUsize,
    delay: Duration,
    /// The latency of every message from now on. Milliseconds.
    latency_ms: AtomicU64,
    /// One in this number of responses is lost with its connection; 0 for none.
    loss: AtomicU64,
    responses: AtomicU64,
    lost: AtomicU64,
}

impl Proxy {
    /// Listens on `port` in front of the server on `target`, both on loopback. The connection of [`Self::slow_down`] is
    /// delayed by `delay`.
    pub fn start(port: u16, target: u16, mode: Mode, delay: Duration) -> Self {
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, target));
        let shared = Arc::new(Shared {
            target,
            accepted: AtomicUsize::new(0),
            slow: AtomicUsize::new(0),
            delay,
            latency_ms: AtomicU64::new(0),
            loss: AtomicU64::new(0),
            responses: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        });
        let (mode, disconnects) = (watch::channel(mode).0, watch::channel(0).0);
        let task = tokio::spawn(serve(port, shared.clone(), mode.subscribe(), disconnects.subscribe()));
        Self { port, mode, disconnects, shared, task }
    }

    /// Changes the condition of the dependency.
    pub fn set_mode(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Closes all connections, and accepts new ones.
    pub fn disconnect_all(&self) {
        self.disconnects.send_modify(|count| *count += 1);
    }

    /// Delays every message; zero ends the delay.
    pub fn set_latency(&self, latency: Duration) {
        let latency = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        self.shared.latency_ms.store(latency, Ordering::SeqCst);
    }

    /// Loses one in `one_in` responses, after the server has processed the request, and closes its connection. Zero
    /// loses none.
    pub fn lose_responses(&self, one_in: u64) {
        self.shared.loss.store(one_in, Ordering::SeqCst);
    }

    /// Returns the number of lost responses.
    pub fn lost_responses(&self) -> u64 {
        self.shared.lost.load(Ordering::SeqCst)
    }

    /// Delays the `nth` connection from now on.
    pub fn slow_down(&self, nth: usize) {
        self.shared.accepted.store(0, Ordering::SeqCst);
        self.shared.slow.store(nth, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.set_mode(Mode::Absent);
    }
}

async fn serve(
    port: u16,
    shared: Arc<Shared>,
    mut mode: watch::Receiver<Mode>,
    disconnects: watch::Receiver<u64>,
) {
    let mode_of_connections = mode.clone();
    loop {
        if mode.wait_for(|mode| *mode != Mode::Absent).await.is_err() {
            return;
        }
        let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await else {
            tokio::time::sleep(BIND_RETRY_DELAY).await;
            continue;
        };
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let Ok((client, _)) = accepted else { continue };
                    let number = shared.accepted.fetch_add(1, Ordering::SeqCst) + 1;
                    let (shared, mode) = (shared.clone(), mode_of_connections.clone());
                    let mut disconnects = disconnects.clone();
                    disconnects.mark_unchanged();
                    tokio::spawn(async move {
                        let mut absent = mode.clone();
                        tokio::select! {
                            () = forward(client, number, &shared, mode) => {}
                            _ = absent.wait_for(|mode| *mode == Mode::Absent) => {}
                            _ = disconnects.changed() => {}
                        }
                    });
                }
                _ = mode.wait_for(|mode| *mode == Mode::Absent) => break,
            }
        }
    }
}

/// Forwards a connection until it closes.
async fn forward(client: TcpStream, number: usize, shared: &Shared, mut mode: watch::Receiver<Mode>) {
    let _ = mode.wait_for(|mode| *mode == Mode::Pass).await;
    if shared.slow.load(Ordering::SeqCst) == number {
        tokio::time::sleep(shared.delay).await;
    }
    let Ok(server) = TcpStream::connect(shared.target).await else { return };
    // Nagle's algorithm would delay small writes until the peer's acknowledgement.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let requests = copy(from_client, to_server, shared, Direction::Request, mode.clone());
    let responses = copy(from_server, to_client, shared, Direction::Response, mode);
    tokio::pin!(requests, responses);
    tokio::select! {
        // A client that sends no more still reads the responses.
        _ = &mut requests => {
            responses.await;
        }
        end = &mut responses => {
            if end == End::Finished {
                requests.await;
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Request,
    Response,
}

/// The end of a direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Finished,
    /// A response was lost.
    Lost,
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    direction: Direction,
    mut mode: watch::Receiver<Mode>,
) -> End {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if direction == Direction::Response && shared.loses_response() {
            return End::Lost;
        }
        let latency = shared.latency_ms.load(Ordering::SeqCst);
        if latency > 0 {
            tokio::time::sleep(Duration::from_millis(latency)).await;
        }
        if mode.wait_for(|mode| *mode == Mode::Pass).await.is_err()
            || to.write_all(&buffer[..read]).await.is_err()
        {
            return End::Finished;
        }
    }
    End::Finished
}

impl Shared {
    /// Counts a response, and reports whether it is lost.
    fn loses_response(&self) -> bool {
        let loss = self.loss.load(Ordering::SeqCst);
        let is_lost = loss > 0 && self.responses.fetch_add(1, Ordering::SeqCst) % loss == loss - 1;
        if is_lost {
            self.lost.fetch_add(1, Ordering::SeqCst);
        }
        is_lost
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    /// Starts a server that greets every connection, and returns its port.
    async fn start_greeter() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                client.write_all(b"hello").await.unwrap();
                tokio::spawn(async move { client.read(&mut [0]).await });
            }
        });
        port
    }

    async fn read_greeting(port: u16) -> std::io::Result<TcpStream> {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        client.read_exact(&mut [0; 5]).await?;
        Ok(client)
    }

    #[tokio::test]
    async fn the_proxy_makes_a_dependency_absent_frozen_slow_disconnected_and_lossy() {
        let (short, delay) = (Duration::from_millis(300), Duration::from_secs(2));
        let port = crate::ports::Ports::default().free().unwrap();
        let proxy = Proxy::start(port, start_greeter().await, Mode::Absent, delay);
        assert!(read_greeting(port).await.is_err(), "absent");
        proxy.set_mode(Mode::Frozen);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
            tokio::time::sleep(BIND_RETRY_DELAY).await;
        }
        let frozen = tokio::spawn(read_greeting(port));
        assert!(timeout(short, read_greeting(port)).await.is_err(), "frozen");
        proxy.set_mode(Mode::Pass);
        let mut first = frozen.await.unwrap().unwrap();
        proxy.slow_down(2);
        let began = Instant::now();
        let mut second = read_greeting(port).await.unwrap();
        assert!(began.elapsed() < delay, "the first is not slow");
        read_greeting(port).await.unwrap();
        assert!(began.elapsed() >= delay, "the second is");
        proxy.disconnect_all();
        for connection in [&mut first, &mut second] {
            assert!(
                matches!(timeout(short, connection.read(&mut [0])).await, Ok(Ok(0) | Err(_))),
                "disconnected"
            );
        }
        proxy.lose_responses(1);
        assert!(read_greeting(port).await.is_err(), "lost");
        assert_eq!(proxy.lost_responses(), 1);
        proxy.lose_responses(0);
        proxy.set_latency(delay);
        let began = Instant::now();
        read_greeting(port).await.unwrap();
        assert!(began.elapsed() >= delay, "every response is slow");
        proxy.set_latency(Duration::ZERO);
    }
}
