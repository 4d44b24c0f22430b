//! Who is connected here: the sockets of each user, and how to reach them. The hub never waits for a socket.
//! What it has for one goes into the socket's own queue; a queue that is full ends the socket.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
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
    time::{MissedTickBehavior, interval},
};
use uuid::Uuid;

use super::{closing::Closing, frame::Frame};

/// Sockets of one user; one more, and the oldest goes (contract §4).
const SOCKETS_OF_A_USER: usize = 10;
/// Events that wait for one socket. Nothing is allocated for those that do not; this many are about a
/// megabyte, shared by the sockets of a user, and seconds of more events than one user has. Only a client
/// that does not read gets here.
const QUEUE: usize = 4096;
/// Parts of the map, each with a lock of its own; and seconds in which [`Hub::patrol`] has gone round all of
/// them.
const SHARDS: usize = 64;
/// How often tokens are looked at: their end must show within 5 s, a session's within 1 s even where its
/// message got lost.
const SWEEP: Duration = Duration::from_millis(500);

type Seats = Arc<Vec<Arc<Seat>>>;

#[derive(Debug)]
pub struct Hub {
    shards: Box<[Mutex<HashMap<i64, Seats>>]>,
    next_id: AtomicU64,
    stopped: AtomicBool,
    verifier: Arc<Verifier>,
}

/// A socket, as the hub sees it.
#[derive(Debug)]
pub struct Seat {
    id: u64,
    /// Whose word the socket goes by; a client may renew it.
    caller: Mutex<Caller>,
    queue: mpsc::Sender<Arc<Frame>>,
    /// The code to close with, 0 while there is none.
    closing: AtomicU16,
    /// Whether to ask the order service for events that did not get here.
    check: AtomicBool,
    woken: Notify,
}

impl Seat {
    pub fn caller(&self) -> Caller {
        lock(&self.caller).clone()
    }

    /// Goes on with another token of the same user.
    pub fn renew(&self, caller: Caller) {
        *lock(&self.caller) = caller;
    }

    /// Ends the socket; the first reason given is the one its client is told.
    pub fn close(&self, closing: Closing) {
        let _ = self.closing.compare_exchange(0, closing.code(), Ordering::AcqRel, Ordering::Acquire);
        self.woken.notify_one();
    }

    pub fn closing(&self) -> Option<Closing> {
        Closing::of_code(self.closing.load(Ordering::Acquire))
    }

    pub fn check(&self) {
        self.check.store(true, Ordering::Release);
        self.woken.notify_one();
    }

    /// Whether a check is due; from then on it is not.
    pub fn take_check(&self) -> bool {
        self.check.load(Ordering::Acquire) && self.check.swap(false, Ordering::AcqRel)
    }

    /// Waits until [`Self::closing`] or [`Self::take_check`] may say something new.
    pub async fn woken(&self) {
        self.woken.notified().await;
    }
}

/// A place in the hub, given back when dropped.
#[derive(Debug)]
pub struct Seated {
    hub: Arc<Hub>,
    pub user_id: i64,
    pub seat: Arc<Seat>,
    pub queue: mpsc::Receiver<Arc<Frame>>,
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.hub.leave(self.user_id, self.seat.id);
    }
}

impl Hub {
    pub fn new(verifier: Arc<Verifier>) -> Arc<Self> {
        Arc::new(Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            next_id: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            verifier,
        })
    }

    /// Starts to watch over the sockets: tokens and sessions that end, tails that got lost, the stop.
    pub fn watch(self: &Arc<Self>, tasks: &Tasks, mut ended: broadcast::Receiver<Uuid>) {
        let (hub, stop) = (self.clone(), tasks.shutdown_token());
        tasks.spawn("sockets", async move {
            let mut sweep = interval(SWEEP);
            let mut patrol = interval(Duration::from_secs(1));
            sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
            patrol.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut shards = (0..SHARDS).cycle();
            loop {
                tokio::select! {
                    // The stop before all else: it also ends those who tell of ended sessions, which is no fault
                    // then, and every socket must hear of it.
                    biased;
                    () = stop.cancelled() => break,
                    _ = sweep.tick() => {}
                    _ = patrol.tick() => {
                        hub.patrol(shards.next().unwrap_or_default());
                        continue;
                    }
                    heard = ended.recv() => {
                        if matches!(heard, Err(broadcast::error::RecvError::Closed)) {
                            anyhow::bail!("nobody tells of ended sessions any more");
                        }
                        // One look at all sockets is for all that have come in, and for those that were lost
                        // too: the verifier knows every session that ended.
                        ended = ended.resubscribe();
                    }
                }
                hub.sweep();
            }
            hub.stop();
            Ok(())
        });
    }

    /// Seats a socket of the caller; events reach its queue from now on.
    pub fn seat(self: &Arc<Self>, caller: Caller) -> Seated {
        let user_id = caller.user_id();
        let (sender, queue) = mpsc::channel(QUEUE);
        let seat = Arc::new(Seat {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            caller: Mutex::new(caller),
            queue: sender,
            closing: AtomicU16::new(0),
            check: AtomicBool::new(false),
            woken: Notify::new(),
        });
        let mut shard = self.shard(user_id);
        let seats = Arc::make_mut(shard.entry(user_id).or_default());
        seats.push(seat.clone());
        while seats.len() > SOCKETS_OF_A_USER {
            seats.remove(0).close(Closing::TooMany);
        }
        drop(shard);
        // Whoever comes after the stop has told everybody is told here.
        if self.stopped.load(Ordering::SeqCst) {
            seat.close(Closing::GoingAway);
        }
        metrics::gauge!("ws_connections").increment(1);
        Seated { hub: self.clone(), user_id, seat, queue }
    }

    fn leave(&self, user_id: i64, id: u64) {
        metrics::gauge!("ws_connections").decrement(1);
        if let Entry::Occupied(mut entry) = self.shard(user_id).entry(user_id) {
            let seats = Arc::make_mut(entry.get_mut());
            seats.retain(|seat| seat.id != id);
            if seats.is_empty() {
                entry.remove();
            }
        }
    }

    /// Hands an event to the sockets of its user.
    pub fn deliver(&self, event: &OrderEvent) {
        let Some(seats) = self.shard(event.user_id).get(&event.user_id).cloned() else {
            return;
        };
        let Some(frame) = Frame::live(event).map(Arc::new) else {
            // The sockets will miss its number, and ask the order service.
            tracing::warn!(user.id = event.user_id, seq = event.seq, "an event that makes no sense");
            return;
        };
        for seat in seats.iter() {
            if let Err(mpsc::error::TrySendError::Full(_)) = seat.queue.try_send(frame.clone()) {
                seat.close(Closing::TooSlow);
            }
        }
    }

    /// Has every socket of the users that `which` names ask the order service for what it has missed.
    pub fn resync(&self, which: impl Fn(i64) -> bool) {
        self.each(|user_id, seat| {
            if which(user_id) {
                seat.check();
            }
        });
    }

    /// Does the same for the users of one part of the map: a tail that got lost without a trace shows only
    /// here.
    fn patrol(&self, shard: usize) {
        for seat in seats(&self.shards[shard]).iter().flat_map(|(_, seats)| seats.iter()) {
            seat.check();
        }
    }

    /// Closes the sockets whose token or session has ended, or whose key was removed.
    fn sweep(&self) {
        self.each(|_, seat| {
            let verdict = self.verifier.check_active(&lock(&seat.caller));
            match verdict {
                Ok(()) => {}
                Err(TokenError::Expired) => seat.close(Closing::TokenExpired),
                Err(TokenError::Revoked | TokenError::Invalid | TokenError::Missing | TokenError::NoKeys) => {
                    seat.close(Closing::Revoked);
                }
            }
        });
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.each(|_, seat| seat.close(Closing::GoingAway));
    }

    fn each(&self, then: impl Fn(i64, &Seat)) {
        for shard in &self.shards {
            for (user_id, seats) in seats(shard) {
                for seat in seats.iter() {
                    then(user_id, seat);
                }
            }
        }
    }

    fn shard(&self, user_id: i64) -> MutexGuard<'_, HashMap<i64, Seats>> {
        // Fibonacci hashing: users are numbered one after the other.
        let mixed = user_id.unsigned_abs().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        lock(&self.shards[usize::try_from(mixed).unwrap_or_default() % SHARDS])
    }
}

/// The seats of a part of the map, so that its lock is not held while they are gone through.
fn seats(shard: &Mutex<HashMap<i64, Seats>>) -> Vec<(i64, Seats)> {
    lock(shard).iter().map(|(user_id, seats)| (*user_id, seats.clone())).collect()
}

/// What a panicking thread left behind is whole: nothing here is changed in two steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
