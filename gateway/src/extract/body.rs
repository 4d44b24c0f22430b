//! Reads request bodies. While a body arrives, its request holds no permit of `MAX_REQUESTS`. Other limits apply: the bytes
//! of all arriving bodies, their number per caller, a deadline and a minimum rate.

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
};

/// Bounds every body but a batch. Bytes.
pub const DEFAULT_BODY_LIMIT: usize = 64 * 1024;
/// Bounds a batch, which has up to 10 000 rows. Bytes.
pub const BATCH_BODY_LIMIT: usize = 8 * 1024 * 1024;
/// Bounds the arrival of the whole body, with slack below the 30 s in which a slow sender must be gone.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);
/// Bounds a pause of an arriving body.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// The minimum rate of an arriving body, a tenth of a bad mobile network's.
const MIN_BYTES_PER_SECOND: usize = 1024;
/// Bounds the arriving bodies of one caller. A body that arrived together with its head does not count.
const MAX_BODIES_PER_CALLER: usize = 16;
/// The factor of a body's limit by which it is accounted: the body, and as much for the values parsed from it.
const ACCOUNTING_FACTOR: usize = 2;
/// Bounds the part of an oversized body that is read and discarded: twice the largest limit. Bytes.
const MAX_DRAIN_BYTES: usize = 2 * BATCH_BODY_LIMIT;
/// Bounds the time for which that part is read.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Limits the bodies that are arriving.
#[derive(Debug)]
pub struct BodyLimiter {
    /// One permit per KiB.
    permits: Arc<Semaphore>,
    callers: Mutex<HashMap<RateLimitKey, usize>>,
}

impl BodyLimiter {
    pub fn new(max_bytes: usize) -> Arc<Self> {
        Arc::new(Self { permits: Arc::new(Semaphore::new(max_bytes / 1024)), callers: Mutex::default() })
    }

    fn callers(&self) -> MutexGuard<'_, HashMap<RateLimitKey, usize>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a body of at most `limit` bytes.
    fn admit(self: &Arc<Self>, caller: RateLimitKey, limit: usize) -> Result<ArrivingBody, Problem> {
        let permits = u32::try_from(ACCOUNTING_FACTOR * limit / 1024).unwrap_or(u32::MAX);
        let mut callers = self.callers();
        let count = callers.entry(caller).or_default();
        if *count >= MAX_BODIES_PER_CALLER {
            let detail = "too many bodies of the same caller have not arrived yet";
            let problem = Problem::new(Code::RateLimited, detail).with_fact("limit", "bodies");
            return Err(problem.retry_after(Duration::from_secs(1)));
        }
        *count += 1;
        drop(callers);
        let mut arriving = ArrivingBody { limiter: self.clone(), caller, permit: None };
        let Ok(permit) = self.permits.clone().try_acquire_many_owned(permits) else {
            metrics::counter!("http_requests_shed_total").increment(1);
            return Err(Problem::unavailable());
        };
        arriving.permit = Some(permit);
        Ok(arriving)
    }
}

/// A body that is arriving; dropping it frees its share of the limits.
#[derive(Debug)]
struct ArrivingBody {
    limiter: Arc<BodyLimiter>,
    caller: RateLimitKey,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for ArrivingBody {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.limiter.callers().entry(self.caller) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// A permit of `MAX_REQUESTS`. It is released while the request's body arrives.
#[derive(Debug)]
pub struct RequestPermit {
    semaphore: Arc<Semaphore>,
    permits: Mutex<Permits>,
}

#[derive(Debug, Default)]
struct Permits {
    request: Option<OwnedSemaphorePermit>,
    /// The permit of a large body, held until the response.
    body: Option<OwnedSemaphorePermit>,
}

impl RequestPermit {
    /// Acquires a permit, or fails at once.
    pub fn try_acquire(semaphore: &Arc<Semaphore>) -> Result<Self, Problem> {
        let permit = Self { semaphore: semaphore.clone(), permits: Mutex::default() };
        permit.try_reacquire()?;
        Ok(permit)
    }

    fn permits(&self) -> MutexGuard<'_, Permits> {
        self.permits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Releases the permit while the request does no work.
    pub fn release(&self) {
        self.permits().request = None;
    }

    fn try_reacquire(&self) -> Result<(), Problem> {
        let Ok(permit) = self.semaphore.clone().try_acquire_owned() else {
            metrics::counter!("http_requests_shed_total").increment(1);
            return Err(Problem::unavailable());
        };
        self.permits().request = Some(permit);
        Ok(())
    }
}

/// The limits to which a body's arrival is accounted, in the extensions of its request.
#[derive(Clone, Debug)]
pub struct BodyAccount {
    pub limiter: Arc<BodyLimiter>,
    pub permit: Arc<RequestPermit>,
    pub caller: RateLimitKey,
}

/// Reads the whole body, of `limit` bytes at most.
pub async fn read(parts: &Parts, body: Body, limit: usize) -> Result<Bytes, Problem> {
    let mut reader = BodyReader { body, limit, buffer: Vec::new() };
    // The first read of the body would send `100 Continue` to a client that waits for it.
    let expects_continue = parts.headers.contains_key(EXPECT);
    if expects_continue && reader.body.size_hint().lower() > u64::try_from(limit).unwrap_or(u64::MAX) {
        return Err(reader.too_large());
    }
    // A body that arrived together with its head, or no body at all.
    if let Some(Ok(bytes)) = reader.collect().now_or_never() {
        return Ok(bytes);
    }
    let account = parts.extensions.get::<BodyAccount>().ok_or_else(Problem::internal)?;
    let mut arriving = account.limiter.admit(account.caller, limit)?;
    account.permit.release();
    let bytes = reader.collect_with_deadline().await?;
    account.permit.try_reacquire()?;
    if bytes.len() > DEFAULT_BODY_LIMIT {
        account.permit.permits().body = arriving.permit.take();
    }
    Ok(bytes)
}

#[derive(Debug)]
struct BodyReader {
    body: Body,
    limit: usize,
    buffer: Vec<u8>,
}

#[derive(Debug)]
enum ReadError {
    TooLarge,
    Incomplete,
}

impl BodyReader {
    /// Reads to the end. Is cancel-safe.
    async fn collect(&mut self) -> Result<Bytes, ReadError> {
        while self.read_frame().await? {}
        Ok(std::mem::take(&mut self.buffer).into())
    }

    /// Reads a frame; reports whether more may follow.
    async fn read_frame(&mut self) -> Result<bool, ReadError> {
        let Some(frame) = self.body.frame().await else {
            return Ok(false);
        };
        if let Ok(data) = frame.map_err(|_error| ReadError::Incomplete)?.into_data() {
            if self.buffer.len() + data.len() > self.limit {
                return Err(ReadError::TooLarge);
            }
            self.buffer.extend_from_slice(&data);
        }
        Ok(true)
    }

    /// Reads to the end, within the deadline and at the minimum rate.
    async fn collect_with_deadline(&mut self) -> Result<Bytes, Problem> {
        let started = Instant::now();
        loop {
            let seconds = u64::try_from(self.buffer.len() / MIN_BYTES_PER_SECOND).unwrap_or(u64::MAX);
            let deadline = started + BODY_TIMEOUT.min(IDLE_TIMEOUT + Duration::from_secs(seconds));
            match timeout_at(deadline, self.read_frame()).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return Ok(std::mem::take(&mut self.buffer).into()),
                Ok(Err(ReadError::TooLarge)) => {
                    self.drain().await;
                    return Err(self.too_large());
                }
                Ok(Err(ReadError::Incomplete)) => {
                    return Err(Problem::malformed("body", "did not arrive whole"));
                }
                Err(_elapsed) => {
                    return Err(Problem::new(Code::RequestTimeout, "the body did not arrive in time"));
                }
            }
        }
    }

    fn too_large(&self) -> Problem {
        Problem::new(Code::PayloadTooLarge, format!("the body may have {} bytes at most", self.limit))
    }

    /// Reads and discards the rest of an oversized body, within limits. A client whose connection closes while it still
    /// sends may not receive the response (RFC 9112 §9.6).
    async fn drain(&mut self) {
        let read_to_end = async {
            let mut remaining = MAX_DRAIN_BYTES;
            while let Some(Ok(frame)) = self.body.frame().await
                && remaining > 0
            {
                remaining = remaining.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            }
        };
        // The connection of a slower client is closed.
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, read_to_end).await;
    }
}
