//! Bodies on their way in. A body that arrives slowly holds no place of `MAX_REQUESTS`. Other bounds apply to it: the
//! bytes of all arriving bodies, their number for each caller, a deadline and a minimum pace.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::body::{Body, Bytes};
use futures_util::FutureExt as _;
use http::{header::EXPECT, request::Parts};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::{
    error::{Code, Problem},
    rate_limit::RateLimitKey,
    state::AppState,
};

/// The largest body other than a batch. Bytes.
pub const SMALL: usize = 64 * 1024;
/// The largest batch, of 10 000 rows. Bytes.
pub const LARGE: usize = 8 * 1024 * 1024;
/// Bounds the arrival of the whole body, with slack below the 30 s in which a slow sender must be gone.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest pause of a body that arrives …
const MAX_REST: Duration = Duration::from_secs(5);
/// … and its minimum pace otherwise, a tenth of a bad mobile network's.
const MIN_BYTES_PER_SECOND: usize = 1024;
/// Bodies of one caller that arrive at once. One that came together with its head does not count.
const MAX_BODIES_PER_CALLER: usize = 16;
/// The factor by which a body is accounted: its largest size, and as much for the bytes that are read from it.
const ACCOUNTED: usize = 2;
/// Bounds the bytes that are read and discarded of a body that is too large: twice the largest allowed. Bytes.
const DRAINED: usize = 2 * LARGE;
/// Bounds the time for which such bytes are read.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// The bodies that are arriving.
#[derive(Debug)]
pub struct Bodies {
    /// A permit for each KiB.
    room: Arc<Semaphore>,
    callers: Mutex<HashMap<RateLimitKey, usize>>,
}

impl Bodies {
    pub fn new(max_bytes: usize) -> Arc<Self> {
        Arc::new(Self { room: Arc::new(Semaphore::new(max_bytes / 1024)), callers: Mutex::default() })
    }

    fn callers(&self) -> MutexGuard<'_, HashMap<RateLimitKey, usize>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for a body of at most `limit` bytes.
    fn admit(self: &Arc<Self>, caller: RateLimitKey, limit: usize) -> Result<Arriving, Problem> {
        let permits = u32::try_from(ACCOUNTED * limit / 1024).unwrap_or(u32::MAX);
        let mut callers = self.callers();
        let count = callers.entry(caller).or_default();
        if *count >= MAX_BODIES_PER_CALLER {
            let detail = "too many bodies of the same caller have not arrived yet";
            let problem = Problem::new(Code::RateLimited, detail).with_fact("limit", "bodies");
            return Err(problem.retry_after(Duration::from_secs(1)));
        }
        *count += 1;
        drop(callers);
        let mut arriving = Arriving { bodies: self.clone(), caller, room: None };
        let Ok(room) = self.room.clone().try_acquire_many_owned(permits) else {
            metrics::counter!("http_requests_shed_total").increment(1);
            return Err(Problem::unavailable());
        };
        arriving.room = Some(room);
        Ok(arriving)
    }
}

/// A body that is arriving.
#[derive(Debug)]
struct Arriving {
    bodies: Arc<Bodies>,
    caller: RateLimitKey,
    room: Option<OwnedSemaphorePermit>,
}

impl Drop for Arriving {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.bodies.callers().entry(self.caller) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// The place of a request among `MAX_REQUESTS`. It is given back while the request's body arrives.
#[derive(Debug)]
pub struct Place {
    room: Arc<Semaphore>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    place: Option<OwnedSemaphorePermit>,
    /// The permit of a large body, held until the request is answered.
    body: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// Takes a place, where there is one.
    pub fn take(room: &Arc<Semaphore>) -> Result<Self, Problem> {
        let place = Self { room: room.clone(), held: Mutex::default() };
        place.retake()?;
        Ok(place)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self) {
        self.held().place = None;
    }

    fn retake(&self) -> Result<(), Problem> {
        let Ok(place) = self.room.clone().try_acquire_owned() else {
            metrics::counter!("http_requests_shed_total").increment(1);
            return Err(Problem::unavailable());
        };
        self.held().place = Some(place);
        Ok(())
    }
}

/// The account of a body's arrival, in the extensions of a request with a body.
#[derive(Clone, Debug)]
pub struct Sender {
    pub place: Arc<Place>,
    pub caller: RateLimitKey,
}

/// Reads the whole body, of `limit` bytes at most.
pub async fn read(state: &AppState, parts: &Parts, body: Body, limit: usize) -> Result<Bytes, Problem> {
    let mut incoming = Incoming { body, limit, read: Vec::new() };
    // A client that waits for `100 Continue` would get it as soon as the body is asked for.
    let waits = parts.headers.contains_key(EXPECT);
    if waits && incoming.body.size_hint().lower() > u64::try_from(limit).unwrap_or(u64::MAX) {
        return Err(incoming.too_large());
    }
    // A body that came together with its head, or that does not come at all.
    if let Some(Ok(whole)) = incoming.collect().now_or_never() {
        return Ok(whole);
    }
    let sender = parts.extensions.get::<Sender>().ok_or_else(Problem::internal)?;
    let mut arriving = state.bodies.admit(sender.caller, limit)?;
    sender.place.give_back();
    let whole = incoming.collect_in_time().await?;
    sender.place.retake()?;
    if whole.len() > SMALL {
        sender.place.held().body = arriving.room.take();
    }
    Ok(whole)
}

#[derive(Debug)]
struct Incoming {
    body: Body,
    limit: usize,
    read: Vec<u8>,
}

#[derive(Debug)]
enum Failure {
    TooLarge,
    Broken,
}

impl Incoming {
    /// Reads on to the end. Where the future is dropped, nothing is lost.
    async fn collect(&mut self) -> Result<Bytes, Failure> {
        while self.read_frame().await? {}
        Ok(std::mem::take(&mut self.read).into())
    }

    /// Reads a frame; returns whether more may follow.
    async fn read_frame(&mut self) -> Result<bool, Failure> {
        let Some(frame) = self.body.frame().await else {
            return Ok(false);
        };
        if let Ok(data) = frame.map_err(|_broken| Failure::Broken)?.into_data() {
            if self.read.len() + data.len() > self.limit {
                return Err(Failure::TooLarge);
            }
            self.read.extend_from_slice(&data);
        }
        Ok(true)
    }

    /// Reads on to the end, by the deadline and at the minimum pace.
    async fn collect_in_time(&mut self) -> Result<Bytes, Problem> {
        let started = Instant::now();
        loop {
            let seconds = u64::try_from(self.read.len() / MIN_BYTES_PER_SECOND).unwrap_or(u64::MAX);
            let deadline = started + BODY_TIMEOUT.min(MAX_REST + Duration::from_secs(seconds));
            match timeout_at(deadline, self.read_frame()).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return Ok(std::mem::take(&mut self.read).into()),
                Ok(Err(Failure::TooLarge)) => {
                    self.drain().await;
                    return Err(self.too_large());
                }
                Ok(Err(Failure::Broken)) => return Err(Problem::malformed("body", "did not arrive whole")),
                Err(_elapsed) => {
                    return Err(Problem::new(Code::RequestTimeout, "the body did not arrive in time"));
                }
            }
        }
    }

    fn too_large(&self) -> Problem {
        Problem::new(Code::PayloadTooLarge, format!("the body may have {} bytes at most", self.limit))
    }

    /// Lets a client that sends too much come to its end, within bounds. A client whose connection is closed while it
    /// still sends may never see the answer (RFC 9112 §9.6).
    async fn drain(&mut self) {
        let to_the_end = async {
            let mut left = DRAINED;
            while let Some(Ok(frame)) = self.body.frame().await
                && left > 0
            {
                left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            }
        };
        // A client that takes longer is cut off.
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, to_the_end).await;
    }
}
