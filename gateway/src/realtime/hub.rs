//! The registry of connections: the sockets of each user. The hub never waits for a socket: it enqueues events at each
//! connection, and closes a connection whose queue is full.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};

use shoppee_kit::{
    caller::{Caller, TokenError, Verifier},
    tasks::Tasks,
};
use shoppee_proto::order::v1::OrderEvent;
use tokio::{
    sync::{Notify, broadcast, mpsc},
    time::{Instant, MissedTickBehavior, interval},
};
use uuid::Uuid;

use super::{close_code::CloseReason, frame::Frame};

/// Bounds the connections of one user, over all gateways; one more closes the oldest. Without Redis, a gateway counts its
/// own alone.
pub const MAX_CONNECTIONS_PER_USER: usize = 10;
/// Bounds the events in a socket's queue, which allocates as it fills. A full queue is about a megabyte, shared by the
/// sockets of a user. Only a client that does not read fills it.
const SEND_QUEUE_CAPACITY: usize = 4096;
/// The number of map shards, each with its own lock.
pub const SHARDS: usize = 64;
/// The interval between checks of tokens. A socket must close within 5 s of its token's expiry, and within 1 s of its
/// session's revocation even if the notification was lost.
const EXPIRY_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// The position of a connection whose initial state is not known yet.
const NO_POSITION: i64 = i64::MAX;

/// Bounds the users per shard that are known to have no events: a mebibyte over all shards.
const MAX_USERS_WITHOUT_EVENTS: usize = 1_024;

type Connections = Arc<Vec<Arc<Connection>>>;

/// A part of the users.
#[derive(Debug, Default)]
struct Shard {
    connections: HashMap<i64, Connections>,
    /// The users whose first event has not arrived (a negative cache). Their next socket needs no query.
    without_events: HashSet<i64>,
    /// The number of events that have arrived.
    generation: u64,
}

/// The connections of this process.
#[derive(Debug)]
pub struct Hub {
    shards: Box<[Mutex<Shard>]>,
    next_id: AtomicU64,
    is_shut_down: AtomicBool,
    verifier: Arc<Verifier>,
}

/// The hub's side of a socket.
#[derive(Debug)]
pub struct Connection {
    id: u64,
    opened_at: Instant,
    /// The caller of the current token; a client may refresh it.
    caller: Mutex<Caller>,
    queue: mpsc::Sender<Arc<Frame>>,
    /// The code to close with; 0 while the socket stays open.
    close_code: AtomicU16,
    /// The sequence number delivered last; [`NO_POSITION`] before the initial state is known.
    position: AtomicI64,
    /// Asks the socket to recover missed events from the order service.
    sync_requested: AtomicBool,
    notify: Notify,
}

impl Connection {
    pub fn caller(&self) -> Caller {
        lock(&self.caller).clone()
    }

    /// Replaces the token with another of the same user.
    pub fn refresh_token(&self, caller: Caller) {
        *lock(&self.caller) = caller;
    }

    /// Closes the socket. The first reason wins.
    pub fn close(&self, reason: CloseReason) {
        let _ = self.close_code.compare_exchange(0, reason.code(), Ordering::AcqRel, Ordering::Acquire);
        self.notify.notify_one();
    }

    pub fn close_reason(&self) -> Option<CloseReason> {
        CloseReason::from_code(self.close_code.load(Ordering::Acquire))
    }

    /// Records the sequence number delivered last.
    pub fn set_position(&self, seq: i64) {
        self.position.store(seq, Ordering::Relaxed);
    }

    /// Asks the socket to recover missed events from the order service.
    pub fn request_sync(&self) {
        self.sync_requested.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    /// Clears the request for a sync and reports whether there was one.
    pub fn take_sync_request(&self) -> bool {
        self.sync_requested.load(Ordering::Acquire) && self.sync_requested.swap(false, Ordering::AcqRel)
    }

    /// Waits until [`Self::close_reason`] or [`Self::take_sync_request`] may have changed.
    pub async fn notified(&self) {
        self.notify.notified().await;
    }
}

/// A registered connection with its queue; dropping it unregisters the connection.
#[derive(Debug)]
pub struct ConnectionGuard {
    hub: Arc<Hub>,
    pub user_id: i64,
    pub connection: Arc<Connection>,
    pub queue: mpsc::Receiver<Arc<Frame>>,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.hub.unregister(self.user_id, self.connection.id);
    }
}

impl Hub {
    pub fn new(verifier: Arc<Verifier>) -> Arc<Self> {
        Arc::new(Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            next_id: AtomicU64::new(0),
            is_shut_down: AtomicBool::new(false),
            verifier,
        })
    }

    /// Spawns the task that closes expired and revoked connections, and closes all connections at shutdown.
    pub fn spawn_maintenance(self: &Arc<Self>, tasks: &Tasks, mut revocations: broadcast::Receiver<Uuid>) {
        let (hub, stop) = (self.clone(), tasks.shutdown_token());
        tasks.spawn("sockets", async move {
            let mut expiry_check = interval(EXPIRY_CHECK_INTERVAL);
            expiry_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    // Shutdown comes first: it also closes the channel of revocations, which is an error otherwise, and
                    // every socket must be closed.
                    biased;
                    () = stop.cancelled() => break,
                    _ = expiry_check.tick() => {}
                    received = revocations.recv() => {
                        if matches!(received, Err(broadcast::error::RecvError::Closed)) {
                            anyhow::bail!("the channel of revoked sessions is closed");
                        }
                        // One check of all sockets covers all queued and lost notifications: the verifier has every
                        // revoked session.
                        revocations = revocations.resubscribe();
                    }
                }
                hub.close_expired();
            }
            hub.shut_down();
            Ok(())
        });
    }

    /// Registers a connection of the caller; events are enqueued from now on.
    pub fn register(self: &Arc<Self>, caller: Caller) -> ConnectionGuard {
        let user_id = caller.user_id();
        let (sender, queue) = mpsc::channel(SEND_QUEUE_CAPACITY);
        let connection = Arc::new(Connection {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            opened_at: Instant::now(),
            caller: Mutex::new(caller),
            queue: sender,
            close_code: AtomicU16::new(0),
            position: AtomicI64::new(NO_POSITION),
            sync_requested: AtomicBool::new(false),
            notify: Notify::new(),
        });
        let mut shard = self.shard(user_id);
        let connections = Arc::make_mut(shard.connections.entry(user_id).or_default());
        connections.push(connection.clone());
        while connections.len() > MAX_CONNECTIONS_PER_USER {
            connections.remove(0).close(CloseReason::TooManyConnections);
        }
        drop(shard);
        // A connection that registers after the shutdown has closed all others is closed here.
        if self.is_shut_down.load(Ordering::SeqCst) {
            connection.close(CloseReason::GoingAway);
        }
        metrics::gauge!("ws_connections").increment(1);
        ConnectionGuard { hub: self.clone(), user_id, connection, queue }
    }

    fn unregister(&self, user_id: i64, id: u64) {
        metrics::gauge!("ws_connections").decrement(1);
        if let Entry::Occupied(mut entry) = self.shard(user_id).connections.entry(user_id) {
            let connections = Arc::make_mut(entry.get_mut());
            connections.retain(|connection| connection.id != id);
            if connections.is_empty() {
                entry.remove();
            }
        }
    }

    /// Enqueues an event at all connections of its user.
    pub fn broadcast(&self, event: &OrderEvent) {
        let mut shard = self.shard(event.user_id);
        shard.generation += 1;
        shard.without_events.remove(&event.user_id);
        let connections = shard.connections.get(&event.user_id).cloned();
        drop(shard);
        let Some(connections) = connections else { return };
        let Some(frame) = Frame::from_live_event(event).map(Arc::new) else {
            // The sockets find the gap in the sequence numbers, and recover from the order service.
            tracing::warn!(user.id = event.user_id, seq = event.seq, "invalid event");
            return;
        };
        for connection in connections.iter() {
            if let Err(mpsc::error::TrySendError::Full(_)) = connection.queue.try_send(frame.clone()) {
                connection.close(CloseReason::TooSlow);
            }
        }
    }

    /// Returns the generation of the user's shard, for [`Self::record_no_events`].
    pub fn generation(&self, user_id: i64) -> u64 {
        self.shard(user_id).generation
    }

    /// Records a user without events, according to a query that began at this generation. An event that has arrived
    /// since then may be the first one of the user.
    pub fn record_no_events(&self, user_id: i64, generation: u64) {
        let mut shard = self.shard(user_id);
        if shard.generation == generation {
            if shard.without_events.len() >= MAX_USERS_WITHOUT_EVENTS {
                shard.without_events.clear();
            }
            shard.without_events.insert(user_id);
        }
    }

    /// Reports whether the user is known to have no events.
    pub fn has_no_events(&self, user_id: i64) -> bool {
        self.shard(user_id).without_events.contains(&user_id)
    }

    /// Requests a sync of every connection whose user id matches `predicate`. Events of these users may be lost.
    pub fn request_sync_where(&self, predicate: impl Fn(i64) -> bool) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.generation += 1;
            shard.without_events.retain(|user_id| !predicate(*user_id));
        }
        self.for_each(|user_id, connection| {
            if predicate(user_id) {
                connection.request_sync();
            }
        });
    }

    /// Reports whether there are no connections.
    pub fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| lock(shard).connections.is_empty())
    }

    /// Returns the users with connections in a shard of the map.
    pub fn users(&self, shard: usize) -> Vec<i64> {
        lock(&self.shards[shard]).connections.keys().copied().collect()
    }

    /// Returns the open connections of a user: the id and the age of each.
    pub fn connection_ages(&self, user_id: i64) -> Vec<(u64, Duration)> {
        let shard = self.shard(user_id);
        let connections =
            shard.connections.get(&user_id).into_iter().flat_map(|connections| connections.iter());
        let open = connections.filter(|connection| connection.close_reason().is_none());
        open.map(|connection| (connection.id, connection.opened_at.elapsed())).collect()
    }

    /// Closes a connection of a user, if it is still open.
    pub fn close(&self, user_id: i64, id: u64, reason: CloseReason) {
        let connections = self.connections(user_id);
        if let Some(connection) = connections.iter().find(|connection| connection.id == id) {
            connection.close(reason);
        }
    }

    /// Requests a sync of the user's connections that are behind this event.
    pub fn request_sync_behind(&self, user_id: i64, seq: i64) {
        let connections = self.connections(user_id);
        for connection in
            connections.iter().filter(|connection| connection.position.load(Ordering::Relaxed) < seq)
        {
            connection.request_sync();
        }
    }

    /// Closes connections whose token has expired, whose session was revoked or whose key was removed.
    fn close_expired(&self) {
        self.for_each(|_, connection| {
            let validity = self.verifier.check_active(&lock(&connection.caller));
            match validity {
                Ok(()) => {}
                Err(TokenError::Expired) => connection.close(CloseReason::TokenExpired),
                Err(TokenError::Revoked | TokenError::Invalid | TokenError::Missing | TokenError::NoKeys) => {
                    connection.close(CloseReason::SessionRevoked);
                }
            }
        });
    }

    fn shut_down(&self) {
        self.is_shut_down.store(true, Ordering::SeqCst);
        self.for_each(|_, connection| connection.close(CloseReason::GoingAway));
    }

    fn connections(&self, user_id: i64) -> Connections {
        self.shard(user_id).connections.get(&user_id).cloned().unwrap_or_default()
    }

    fn for_each(&self, visit: impl Fn(i64, &Connection)) {
        for shard in &self.shards {
            for (user_id, connections) in snapshot(shard) {
                for connection in connections.iter() {
                    visit(user_id, connection);
                }
            }
        }
    }

    fn shard(&self, user_id: i64) -> MutexGuard<'_, Shard> {
        // Fibonacci hashing: user ids are consecutive.
        let mixed = user_id.unsigned_abs().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        lock(&self.shards[usize::try_from(mixed).unwrap_or_default() % SHARDS])
    }
}

/// Copies the connections of a shard, so that its lock is not held while they are visited.
fn snapshot(shard: &Mutex<Shard>) -> Vec<(i64, Connections)> {
    lock(shard).connections.iter().map(|(user_id, connections)| (*user_id, connections.clone())).collect()
}

/// Locks a mutex. A poisoned one is consistent: no change here takes two steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
