//! A client's position in the events of its user: the part that sockets and streams share. The last delivered sequence
//! number keeps events from being duplicated or skipped. After a gap, later events wait until the missing ones are
//! recovered.

use std::{future::pending, pin::Pin, sync::Arc, time::Duration};

use shoppee_kit::caller::Caller;
use tokio::time::{Instant, sleep_until};

use super::{
    Realtime,
    close_code::CloseReason,
    connection_limit::ConnectionLease,
    frame::Frame,
    hub::{Connection, ConnectionGuard},
    recovery::{Frames, InitialState, Recovered, Unavailable},
};

/// Bounds the events of one delivery, after which the client's side is handled.
const MAX_DELIVERED_EVENTS: usize = 64;
/// Bounds the recovery of a gap. After that the client has to reconnect.
const GAP_TIMEOUT: Duration = Duration::from_secs(10);
/// The delay between two attempts to recover a gap.
const GAP_RETRY_DELAY: Duration = Duration::from_millis(250);
/// The delay before another sync, after one failed.
const SYNC_RETRY_DELAY: Duration = Duration::from_secs(5);

/// A call of [`super::recovery`]. Boxed: it is rare, and large beside the rest of the state.
type RecoveryFuture = Pin<Box<dyn Future<Output = RecoveryResult> + Send>>;

enum RecoveryResult {
    Initial(Result<InitialState, Unavailable>),
    Missed(Result<Recovered, Unavailable>),
}

/// The next part of a subscription.
#[derive(Debug)]
pub enum Delivery {
    /// The position, with the missed events; the first delivery.
    Ready(InitialState),
    /// The events after those before, in order.
    Events(Vec<Arc<Frame>>),
}

/// A registered connection with its position.
pub struct Subscription {
    guard: ConnectionGuard,
    /// Fields are dropped in their order: the lease ends after the connection was unregistered.
    _lease: ConnectionLease,
    realtime: Realtime,
    recovery: Option<RecoveryFuture>,
    /// The sequence number delivered last; none before the initial state is known.
    last_seq: Option<i64>,
    /// The first event after a gap, and the deadline for recovering the gap.
    after_gap: Option<(Arc<Frame>, Instant)>,
    /// The time before which no recovery starts.
    retry_at: Option<Instant>,
}

impl Subscription {
    /// Registers a connection of `caller`, whose client has all events up to `after`, or needs only new events.
    pub fn new(realtime: &Realtime, caller: Caller, after: Option<i64>) -> Self {
        // Events are enqueued from here on; earlier ones are part of the initial state.
        let guard = realtime.hub.register(caller.clone());
        let recovery: RecoveryFuture = {
            let realtime = realtime.clone();
            Box::pin(async move {
                let admission = realtime.connection_limiter.admit(caller.user_id());
                let (initial, ()) = tokio::join!(realtime.recovery.initial_state(&caller, after), admission);
                RecoveryResult::Initial(initial)
            })
        };
        Self {
            _lease: realtime.connection_limiter.lease(guard.user_id),
            guard,
            realtime: realtime.clone(),
            recovery: Some(recovery),
            last_seq: None,
            after_gap: None,
            retry_at: None,
        }
    }

    pub fn connection(&self) -> &Arc<Connection> {
        &self.guard.connection
    }

    pub fn user_id(&self) -> i64 {
        self.guard.user_id
    }

    pub fn realtime(&self) -> &Realtime {
        &self.realtime
    }

    /// Reports whether the initial state was delivered.
    pub fn is_ready(&self) -> bool {
        self.last_seq.is_some()
    }

    /// Waits for the next delivery, or for the end of the connection. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Delivery, CloseReason> {
        loop {
            if let Some(reason) = self.guard.connection.close_reason() {
                return Err(reason);
            }
            if self.recovery.is_none() {
                self.recovery = self.start_recovery();
            }
            let can_deliver = self.is_ready() && self.after_gap.is_none();
            let delivery = tokio::select! {
                // The end comes first; the queue may never be empty.
                biased;
                () = self.guard.connection.notified() => None,
                result = poll_recovery(&mut self.recovery) => {
                    self.recovery = None;
                    self.on_recovered(result)?
                }
                () = wait_until(self.retry_at) => {
                    self.retry_at = None;
                    None
                }
                Some(frame) = self.guard.queue.recv(), if can_deliver => Some(self.take_queued(frame)),
            };
            match delivery {
                Some(Delivery::Events(events)) if events.is_empty() => {}
                Some(delivery) => return Ok(delivery),
                None => {}
            }
        }
    }

    /// Starts the recovery of a gap, or a requested sync.
    fn start_recovery(&mut self) -> Option<RecoveryFuture> {
        let after = self.last_seq?;
        if self.retry_at.is_some() {
            return None;
        }
        let until = match &self.after_gap {
            Some((frame, _)) => Some(frame.seq),
            None if self.guard.connection.take_sync_request() => None,
            None => return None,
        };
        let (realtime, caller) = (self.realtime.clone(), self.guard.connection.caller());
        Some(Box::pin(async move {
            RecoveryResult::Missed(realtime.recovery.recover(&caller, after, until).await)
        }))
    }

    fn on_recovered(&mut self, result: RecoveryResult) -> Result<Option<Delivery>, CloseReason> {
        match result {
            RecoveryResult::Initial(Ok(initial)) => {
                self.set_position(initial.seq);
                Ok(Some(Delivery::Ready(initial)))
            }
            RecoveryResult::Initial(Err(Unavailable)) | RecoveryResult::Missed(Ok(Recovered::Incomplete)) => {
                Err(CloseReason::Resync)
            }
            RecoveryResult::Missed(Ok(Recovered::Complete(frames))) => {
                self.take_recovered(&frames).map(|events| Some(Delivery::Events(events)))
            }
            RecoveryResult::Missed(Err(Unavailable)) => {
                if let Some((_, deadline)) = &self.after_gap {
                    self.schedule_retry(*deadline)?;
                } else {
                    self.retry_at = Some(Instant::now() + SYNC_RETRY_DELAY);
                    self.guard.connection.request_sync();
                }
                Ok(None)
            }
        }
    }

    /// Takes the recovered events, then the event after the gap.
    fn take_recovered(&mut self, frames: &Frames) -> Result<Vec<Arc<Frame>>, CloseReason> {
        let mut events = Vec::with_capacity(frames.len());
        for frame in frames.iter() {
            // A sync runs beside the queue, which may have been faster.
            self.take_next(frame, &mut events);
        }
        if let Some((frame, deadline)) = self.after_gap.take()
            && !self.take_next(&frame, &mut events)
            && self.is_newer(&frame)
        {
            self.after_gap = Some((frame, deadline));
            self.schedule_retry(deadline)?;
        }
        Ok(events)
    }

    /// Takes an event from the queue, and those queued behind it.
    fn take_queued(&mut self, first: Arc<Frame>) -> Delivery {
        let (mut events, mut frame) = (Vec::new(), first);
        loop {
            if !self.take_next(&frame, &mut events) && self.is_newer(&frame) {
                tracing::debug!(user.id = self.guard.user_id, seq = frame.seq, "gap in the event sequence");
                self.after_gap = Some((frame, Instant::now() + GAP_TIMEOUT));
                self.retry_at = None;
                break;
            }
            if events.len() == MAX_DELIVERED_EVENTS {
                break;
            }
            let Ok(next) = self.guard.queue.try_recv() else { break };
            frame = next;
        }
        Delivery::Events(events)
    }

    /// Adds an event if it is the next one.
    fn take_next(&mut self, frame: &Arc<Frame>, events: &mut Vec<Arc<Frame>>) -> bool {
        let is_next = self.last_seq.and_then(|last| frame.seq.checked_sub(last)) == Some(1);
        if is_next {
            self.set_position(frame.seq);
            events.push(frame.clone());
        }
        is_next
    }

    fn set_position(&mut self, seq: i64) {
        self.last_seq = Some(seq);
        self.guard.connection.set_position(seq);
    }

    fn is_newer(&self, frame: &Frame) -> bool {
        self.last_seq.is_some_and(|last| frame.seq > last)
    }

    fn schedule_retry(&mut self, deadline: Instant) -> Result<(), CloseReason> {
        let retry_at = Instant::now() + GAP_RETRY_DELAY;
        if retry_at > deadline {
            return Err(CloseReason::Resync);
        }
        self.retry_at = Some(retry_at);
        Ok(())
    }
}

async fn poll_recovery(recovery: &mut Option<RecoveryFuture>) -> RecoveryResult {
    match recovery {
        Some(recovery) => recovery.await,
        None => pending().await,
    }
}

async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}
