//! Deadlines of a connection: for a request's head once begun, a connection without a request, and an answer
//! that the client does not take.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep_until},
};

use super::unsent::Ledger;

/// The deadlines that an operator can set.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// The time from the first byte of a request's head to its last, and from a connection's start to its first
    /// request.
    pub header: Duration,
    /// The time from the end of the last answer to the next request.
    pub idle: Duration,
    /// The time from an answer's start to its end, but for the time granted to a slow client for its progress.
    pub send: Duration,
}

/// The reasons to end a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expired {
    /// A head that did not arrive in time.
    Head,
    /// A connection that had no request for too long.
    Idle,
    /// A client that does not take an answer.
    Stalled,
}

impl Expired {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Idle => "idle",
            Self::Stalled => "stalled",
        }
    }
}

/// The activity of a connection.
#[derive(Debug)]
pub struct Activity {
    timeouts: Timeouts,
    state: Mutex<State>,
    /// Answers that wait to be sent.
    pub ledger: Arc<Ledger>,
}

#[derive(Debug)]
struct State {
    /// Requests that are not answered yet.
    active: usize,
    /// The time at which the first byte of the next head came.
    head_since: Option<Instant>,
    /// The time at which the last answer ended, or the connection began.
    idle_since: Instant,
    protocol: Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    /// A connection without a request so far.
    Unknown,
    Http1,
    /// A connection over HTTP/2: an idle client may send frames, such as a ping, that begin no head.
    Http2,
}

impl Activity {
    pub fn new(timeouts: Timeouts, ledger: Arc<Ledger>) -> Self {
        let state =
            State { active: 0, head_since: None, idle_since: Instant::now(), protocol: Protocol::Unknown };
        Self { timeouts, state: Mutex::new(state), ledger }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that bytes came in.
    fn record_read(&self) {
        let mut state = self.lock();
        if state.active == 0 && state.protocol == Protocol::Http1 && state.head_since.is_none() {
            state.head_since = Some(Instant::now());
        }
    }

    /// Notes that a request's head is complete. It is answered when the guard is dropped.
    pub fn begin_request(self: &Arc<Self>, is_http2: bool) -> ActiveRequest {
        let mut state = self.lock();
        state.active += 1;
        state.head_since = None;
        state.protocol = if is_http2 { Protocol::Http2 } else { Protocol::Http1 };
        drop(state);
        ActiveRequest(self.clone())
    }

    /// Returns the time since which there is no request, nor an answer on its way; `None` where there is one.
    pub fn idle_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.active == 0 && self.ledger.bytes() == 0).then_some(state.idle_since)
    }

    /// Returns the next deadline, and its meaning if it has passed. A connection at work is looked at again after a
    /// while.
    fn next_deadline(&self, now: Instant) -> (Instant, Option<Expired>) {
        let Timeouts { header, idle, send } = self.timeouts;
        if let Some(deadline) = self.ledger.deadline(send) {
            return (deadline.min(now + send), Some(Expired::Stalled).filter(|_| deadline <= now));
        }
        let state = self.lock();
        match (state.active, state.head_since, state.protocol) {
            (0, _, Protocol::Unknown) => (state.idle_since + header, Some(Expired::Head)),
            (0, Some(since), _) => (since + header, Some(Expired::Head)),
            (0, None, _) => (state.idle_since + idle, Some(Expired::Idle)),
            (1.., ..) => (now + header.min(idle).min(send), None),
        }
    }

    /// Waits until the connection must end. To be polled by the task that reads from it, after it has read.
    pub async fn expired(&self) -> Expired {
        let (mut armed, _) = self.next_deadline(Instant::now());
        let mut sleep = Box::pin(sleep_until(armed));
        poll_fn(|context| {
            // A head that has begun is due before the end of an idle connection.
            let now = Instant::now();
            let (deadline, _) = self.next_deadline(now);
            if deadline < armed {
                armed = deadline;
                sleep.as_mut().reset(armed);
            }
            loop {
                ready!(sleep.as_mut().poll(context));
                let now = Instant::now();
                let (deadline, expired) = self.next_deadline(now);
                if let Some(expired) = expired.filter(|_| deadline <= now) {
                    return Poll::Ready(expired);
                }
                armed = deadline;
                sleep.as_mut().reset(armed);
            }
        })
        .await
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub struct ActiveRequest(Arc<Activity>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.active -= 1;
        state.idle_since = Instant::now();
    }
}

/// A stream whose reads are noted.
#[derive(Debug)]
pub struct Watched<S> {
    pub stream: S,
    pub activity: Arc<Activity>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.activity.record_read();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }
}
