//! The streams of `WatchEvents`. Each is a task that reads pages on demand: a consumer that does not read holds up no
//! other, and costs a page. HTTP/2 flow control holds its task; its token ends it.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shoppee_kit::{
    caller::{Caller, Verifier},
    process::Process,
    status::{self, ServiceError},
    tasks::Tasks,
};
use shoppee_proto::order::v1::WatchEventsResponse;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::EventLog;
use crate::{convert, error::Error, order};

/// Bounds the streams of a process, each with a page of events: at 100 KiB each, 13 MiB.
const MAX_STREAMS: usize = 128;
/// Bounds the streams of one caller.
const MAX_STREAMS_PER_CALLER: usize = 32;
/// Bounds the messages that wait for the connection of a stream.
const STREAM_BUFFER: usize = 32;
/// The interval of messages without an event.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// The interval of checks of the token. A stream ends within 1 s of the revocation of its session.
const TOKEN_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Bounds the wait of the last message, the reason of the end, for a consumer that does not read.
const END_TIMEOUT: Duration = Duration::from_secs(1);

pub type Messages = ReceiverStream<Result<WatchEventsResponse, Status>>;

/// The position at which a stream starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Oldest,
    Now,
    After(i64),
}

/// The streams of this process.
#[derive(Clone, Debug)]
pub struct EventStreams(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    log: EventLog,
    verifier: Arc<Verifier>,
    tasks: Tasks,
    permits: Arc<Semaphore>,
    /// The number of open streams of each caller, by client id or user id. The names of clients are not unique.
    callers: Mutex<HashMap<String, usize>>,
}

impl EventStreams {
    pub fn new(log: &EventLog, verifier: &Arc<Verifier>, process: &Process) -> Self {
        Self(Arc::new(Inner {
            log: log.clone(),
            verifier: verifier.clone(),
            tasks: process.tasks.clone(),
            permits: Arc::new(Semaphore::new(MAX_STREAMS)),
            callers: Mutex::default(),
        }))
    }

    /// Opens a stream of the events with one of `statuses`, or of all if there are none.
    pub async fn open(
        &self,
        caller: Caller,
        start: Start,
        statuses: &[order::Status],
    ) -> Result<Messages, Error> {
        let permit = StreamPermit::acquire(&self.0, &caller).ok_or(Error::Unavailable)?;
        let bounds = self.0.log.bounds().await?;
        let position = match start {
            Start::Oldest => bounds.oldest - 1,
            Start::Now => bounds.head,
            Start::After(position) if (bounds.oldest - 1..=bounds.head).contains(&position) => position,
            Start::After(_) => return Err(Error::CursorOutOfRange),
        };
        let (sender, messages) = mpsc::channel(STREAM_BUFFER);
        let mut token_check = interval(TOKEN_CHECK_INTERVAL);
        token_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stream = Stream {
            head: self.0.log.tail.subscribe(),
            streams: self.0.clone(),
            caller,
            statuses: statuses.iter().map(|status| status.as_str().to_owned()).collect(),
            position,
            newest: 0,
            sender,
            token_check,
            heartbeat_at: Instant::now(),
            _permit: permit,
        };
        self.0.tasks.track(stream.run());
        Ok(ReceiverStream::new(messages))
    }
}

/// The permit of an open stream.
#[derive(Debug)]
struct StreamPermit {
    streams: Arc<Inner>,
    caller: String,
    _permit: OwnedSemaphorePermit,
}

impl StreamPermit {
    /// Returns `None` if the process or the caller has no stream left.
    fn acquire(streams: &Arc<Inner>, caller: &Caller) -> Option<Self> {
        let permit = streams.permits.clone().try_acquire_owned().ok()?;
        let user_id = || caller.user_id().to_string();
        let caller = caller.client_id().map_or_else(user_id, str::to_owned);
        let mut callers = streams.callers();
        let count = callers.entry(caller.clone()).or_default();
        if *count == MAX_STREAMS_PER_CALLER {
            return None;
        }
        *count += 1;
        drop(callers);
        metrics::gauge!("event_streams").increment(1);
        Some(Self { streams: streams.clone(), caller, _permit: permit })
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        metrics::gauge!("event_streams").decrement(1);
        let mut callers = self.streams.callers();
        if let Some(count) = callers.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                callers.remove(&self.caller);
            }
        }
    }
}

impl Inner {
    fn callers(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        // A panic cannot leave the counts inconsistent.
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of a stream.
enum End {
    ConsumerGone,
    Status(Status),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Status(error.into())
    }
}

struct Stream {
    streams: Arc<Inner>,
    caller: Caller,
    /// The names of the statuses; empty for all.
    statuses: Vec<String>,
    /// The position of the last event that was sent or filtered out.
    position: i64,
    /// The newest position of the log that the stream has seen.
    newest: i64,
    head: watch::Receiver<i64>,
    sender: mpsc::Sender<Result<WatchEventsResponse, Status>>,
    token_check: Interval,
    heartbeat_at: Instant,
    _permit: StreamPermit,
}

impl Stream {
    async fn run(mut self) {
        let Err(end) = self.serve().await;
        if let End::Status(status) = end {
            let _ = timeout(END_TIMEOUT, self.sender.send(Err(status))).await;
        }
    }

    async fn serve(&mut self) -> Result<Infallible, End> {
        loop {
            if self.heartbeat_at <= Instant::now() {
                self.send(None, self.position).await?;
            }
            let head = *self.head.borrow_and_update();
            // A failover has lost entries that the consumer may have: their positions get other events.
            if head < std::mem::replace(&mut self.newest, head) {
                return Err(Error::CursorOutOfRange.into());
            }
            let shutdown = self.streams.tasks.shutdown_token();
            if self.position < head {
                // A page without a match sends nothing, and a stream may read many.
                self.check_token()?;
                if self.sender.is_closed() {
                    return Err(End::ConsumerGone);
                }
                if shutdown.is_cancelled() {
                    return Err(End::Status(status::unavailable().into()));
                }
                let page = self.streams.log.read_page(self.position, head, &self.statuses).await?;
                for entry in page.entries {
                    self.send(Some(&entry), entry.position).await?;
                }
                self.position = page.until;
                continue;
            }
            tokio::select! {
                // The sender is part of the log, which outlives the stream.
                _ = self.head.changed() => {}
                () = sleep_until(self.heartbeat_at) => {}
                _ = self.token_check.tick() => self.check_token()?,
                () = self.sender.closed() => return Err(End::ConsumerGone),
                () = shutdown.cancelled() => return Err(End::Status(status::unavailable().into())),
            }
        }
    }

    /// Sends a message as soon as the consumer reads.
    async fn send(&mut self, entry: Option<&super::Entry>, position: i64) -> Result<(), End> {
        let event = entry.map(|entry| entry.event.clone());
        let message = WatchEventsResponse { event, cursor: convert::log_cursor(position) };
        let shutdown = self.streams.tasks.shutdown_token();
        loop {
            tokio::select! {
                biased;
                _ = self.token_check.tick() => {}
                slot = self.sender.reserve() => {
                    slot.map_err(|_closed| End::ConsumerGone)?.send(Ok(message));
                    self.heartbeat_at = Instant::now() + HEARTBEAT_INTERVAL;
                    return Ok(());
                }
                () = shutdown.cancelled() => return Err(End::Status(status::unavailable().into())),
            }
            self.check_token()?;
        }
    }

    /// Ends the stream if the token has expired or its session has ended.
    fn check_token(&self) -> Result<(), End> {
        let checked = self.streams.verifier.check_active(&self.caller);
        checked.map_err(|error| End::Status(ServiceError::from(error).into()))
    }
}
