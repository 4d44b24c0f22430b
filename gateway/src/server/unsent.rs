//! Accounting of unsent response bytes, per connection and in total. An HTTP/2 client may hold responses back with flow
//! control, and send further requests meanwhile.
//!
//! A byte is accounted from the moment in which hyper takes it out of a response body until it is written to the
//! socket.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, Bytes};
use metrics::{Gauge, gauge};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A connection with more unsent bytes gets no further responses: forty of the longest lists.
const MAX_UNSENT_BYTES_PER_CONNECTION: usize = 2 * 1024 * 1024;
/// The minimum pace of a client, in addition to the timeout for the whole response.
const MIN_BYTES_PER_SECOND: usize = 4 * 1024;

/// The accounts of all connections.
#[derive(Debug)]
pub struct Accounts {
    max_bytes: usize,
    bytes: AtomicUsize,
    gauge: Gauge,
    connections: Mutex<BTreeMap<u64, Arc<ConnectionAccount>>>,
    next_id: AtomicU64,
}

impl Accounts {
    pub fn new(max_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            max_bytes,
            bytes: AtomicUsize::new(0),
            gauge: gauge!("http_unsent_bytes"),
            connections: Mutex::default(),
            next_id: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<ConnectionAccount>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the account of a connection, and returns it with its id.
    pub fn open(self: &Arc<Self>) -> (u64, Arc<ConnectionAccount>) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let account = Arc::new(ConnectionAccount {
            accounts: self.clone(),
            evicted: CancellationToken::new(),
            bytes: AtomicUsize::new(0),
            chunks: Mutex::default(),
        });
        self.lock().insert(id, account.clone());
        (id, account)
    }

    pub fn close(&self, id: u64) {
        self.lock().remove(&id);
    }

    /// Closes the connection with the most unsent bytes if the total is above the bound.
    fn evict_largest(&self) {
        if self.bytes.load(Ordering::Relaxed) <= self.max_bytes {
            return;
        }
        let connections = self.lock();
        let live = connections.values().filter(|account| !account.is_evicted());
        if let Some(largest) = live.max_by_key(|account| account.bytes()) {
            largest.evict("unsent");
        }
    }
}

/// The account of one connection.
#[derive(Debug)]
pub struct ConnectionAccount {
    accounts: Arc<Accounts>,
    evicted: CancellationToken,
    bytes: AtomicUsize,
    chunks: Mutex<Chunks>,
}

#[derive(Debug, Default)]
struct Chunks {
    next_id: u64,
    pending: BTreeMap<u64, PendingChunk>,
}

#[derive(Debug)]
struct PendingChunk {
    since: Instant,
    sent: usize,
}

impl ConnectionAccount {
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Chunks> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports whether the connection may send a further response.
    pub fn has_capacity(&self) -> bool {
        self.bytes() <= MAX_UNSENT_BYTES_PER_CONNECTION
    }

    /// Closes the connection, which is counted under `reason`.
    pub fn evict(&self, reason: &'static str) {
        self.evicted.cancel();
        metrics::counter!("http_connections_closed_total", "reason" => reason).increment(1);
    }

    pub fn is_evicted(&self) -> bool {
        self.evicted.is_cancelled()
    }

    /// Waits until the connection is evicted.
    pub async fn evicted(&self) {
        self.evicted.cancelled().await;
    }

    /// Returns the earliest deadline of a pending chunk; `None` if there is no chunk.
    pub fn deadline(&self, timeout: Duration) -> Option<Instant> {
        if self.bytes() == 0 {
            return None;
        }
        let deadline = |pending: &PendingChunk| {
            let seconds = u64::try_from(pending.sent / MIN_BYTES_PER_SECOND).unwrap_or(u64::MAX);
            pending.since + timeout + Duration::from_secs(seconds)
        };
        self.lock().pending.values().map(deadline).min()
    }

    /// Accounts for bytes that hyper takes out of a response body.
    pub fn take(self: &Arc<Self>, bytes: Bytes) -> Chunk {
        let mut chunks = self.lock();
        let id = chunks.next_id;
        chunks.next_id += 1;
        chunks.pending.insert(id, PendingChunk { since: Instant::now(), sent: 0 });
        drop(chunks);
        self.bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        self.accounts.bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        self.accounts.gauge.increment(bytes.len() as f64);
        self.accounts.evict_largest();
        Chunk { id, bytes, account: self.clone() }
    }

    fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.accounts.bytes.fetch_sub(bytes, Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        self.accounts.gauge.decrement(bytes as f64);
    }
}

/// Bytes of a response on their way to the socket.
#[derive(Debug)]
pub struct Chunk {
    id: u64,
    bytes: Bytes,
    account: Arc<ConnectionAccount>,
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.account.release(count);
        if let Some(pending) = self.account.lock().pending.get_mut(&self.id) {
            pending.sent += count;
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.account.release(self.bytes.len());
        self.account.lock().pending.remove(&self.id);
    }
}
