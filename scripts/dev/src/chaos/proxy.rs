//! A TCP proxy between a process and one of its dependencies, which can be absent, frozen, slow or cut off.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
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

/// The condition that the process meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Connections are refused, and those there were are closed.
    Absent,
    /// Connections are accepted, and no byte passes, on older ones neither.
    Frozen,
    Pass,
}

/// Bytes that are carried at once.
const BUFFER: usize = 16 << 10;
/// The interval between two attempts to have the port back.
const BIND_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub struct Proxy {
    pub port: u16,
    mode: watch::Sender<Mode>,
    /// Grows when all connections are to be closed.
    cuts: watch::Sender<u64>,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    accepted: AtomicUsize,
    /// The connection whose first bytes are late, counted from 1; 0 for none.
    slow: AtomicUsize,
    delay: Duration,
}

impl Proxy {
    /// Listens on `port` in front of the server on `target`, both on this machine. The first bytes of a connection that
    /// is named by [`Self::slow_down`] pass after `delay`.
    pub fn start(port: u16, target: u16, mode: Mode, delay: Duration) -> Self {
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, target));
        let shared =
            Arc::new(Shared { target, accepted: AtomicUsize::new(0), slow: AtomicUsize::new(0), delay });
        let (mode, cuts) = (watch::channel(mode).0, watch::channel(0).0);
        let task = tokio::spawn(serve(port, shared.clone(), mode.subscribe(), cuts.subscribe()));
        Self { port, mode, cuts, shared, task }
    }

    /// Changes what the process meets.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Closes all connections; new ones are accepted.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Makes the first bytes of the `nth` connection from now on late.
    pub fn slow_down(&self, nth: usize) {
        self.shared.accepted.store(0, Ordering::SeqCst);
        self.shared.slow.store(nth, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.set(Mode::Absent);
    }
}

async fn serve(port: u16, shared: Arc<Shared>, mut mode: watch::Receiver<Mode>, cuts: watch::Receiver<u64>) {
    let for_each = mode.clone();
    loop {
        if mode.wait_for(|mode| *mode != Mode::Absent).await.is_err() {
            return;
        }
        let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await else {
            tokio::time::sleep(BIND_INTERVAL).await;
            continue;
        };
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let Ok((client, _)) = accepted else { continue };
                    let number = shared.accepted.fetch_add(1, Ordering::SeqCst) + 1;
                    let (shared, mode, mut cuts) = (shared.clone(), for_each.clone(), cuts.clone());
                    cuts.mark_unchanged();
                    tokio::spawn(async move {
                        let mut gone = mode.clone();
                        tokio::select! {
                            () = carry(client, number, &shared, mode) => {}
                            _ = gone.wait_for(|mode| *mode == Mode::Absent) => {}
                            _ = cuts.changed() => {}
                        }
                    });
                }
                _ = mode.wait_for(|mode| *mode == Mode::Absent) => break,
            }
        }
    }
}

/// Carries a connection to its end.
async fn carry(client: TcpStream, number: usize, shared: &Shared, mut mode: watch::Receiver<Mode>) {
    let _ = mode.wait_for(|mode| *mode == Mode::Pass).await;
    if shared.slow.load(Ordering::SeqCst) == number {
        tokio::time::sleep(shared.delay).await;
    }
    let Ok(server) = TcpStream::connect(shared.target).await else { return };
    // Without, small answers wait for acknowledgements.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::join!(pipe(from_client, to_server, mode.clone()), pipe(from_server, to_client, mode));
}

async fn pipe(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut mode: watch::Receiver<Mode>) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if mode.wait_for(|mode| *mode == Mode::Pass).await.is_err()
            || to.write_all(&buffer[..read]).await.is_err()
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    /// Greets every connection.
    async fn greeter() -> u16 {
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

    async fn greeting(port: u16) -> std::io::Result<TcpStream> {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        client.read_exact(&mut [0; 5]).await?;
        Ok(client)
    }

    #[tokio::test]
    async fn a_dependency_is_absent_frozen_slow_cut_off_and_there() {
        let (short, delay) = (Duration::from_millis(300), Duration::from_millis(500));
        let port = crate::ports::Ports::default().free().unwrap();
        let proxy = Proxy::start(port, greeter().await, Mode::Absent, delay);
        assert!(greeting(port).await.is_err(), "absent");
        proxy.set(Mode::Frozen);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
            tokio::time::sleep(BIND_INTERVAL).await;
        }
        let frozen = tokio::spawn(greeting(port));
        assert!(timeout(short, greeting(port)).await.is_err(), "frozen");
        proxy.set(Mode::Pass);
        let mut first = frozen.await.unwrap().unwrap();
        proxy.slow_down(2);
        let began = Instant::now();
        let mut second = greeting(port).await.unwrap();
        assert!(began.elapsed() < delay, "the first is not slow");
        greeting(port).await.unwrap();
        assert!(began.elapsed() >= delay, "the second is");
        proxy.cut();
        for cut in [&mut first, &mut second] {
            assert!(matches!(timeout(short, cut.read(&mut [0])).await, Ok(Ok(0) | Err(_))), "cut off");
        }
        greeting(port).await.unwrap();
    }
}
