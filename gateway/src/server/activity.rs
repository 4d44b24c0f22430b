//! The deadlines of a connection: for the head of a request, for an idle connection, and for a response that the client
//! does not read.

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

use super::unsent::ConnectionAccount;

/// The deadlines that an operator can set.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// The time from the first byte of a request's head to its last, and from a connection's start to its first
    /// request.
    pub header: Duration,
    /// The time from the end of the last response to the next request.
    pub idle: Duration,
    /// The time from a response's start to its end, without the time granted to a slow client for its progress.
    pub send: Duration,
}

/// The deadline that ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpiredDeadline {
    /// A head that did not arrive in time.
    Head,
    /// A connection that had no request for too long.
    Idle,
    /// A client that does not read a response.
    Stalled,
}

impl ExpiredDeadline {
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
    /// The connection's unsent bytes.
    pub account: Arc<ConnectionAccount>,
}

#[derive(Debug)]
struct State {
    /// Requests without a complete response.
    active: usize,
    /// The arrival of the first byte of the next head.
    head_since: Option<Instant>,
    /// The end of the last response, or the start of the connection.
    idle_since: Instant,
    protocol: Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    /// A connection without a request so far.
    Unknown,
    Http1,
    /// An idle HTTP/2 client may send frames, such as a ping, that begin no head.
    Http2,
}

impl Activity {
    pub fn new(timeouts: Timeouts, account: Arc<ConnectionAccount>) -> Self {
        let state =
            State { active: 0, head_since: None, idle_since: Instant::now(), protocol: Protocol::Unknown };
        Self { timeouts, state: Mutex::new(state), account }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the arrival of bytes.
    fn record_read(&self) {
        let mut state = self.lock();
        if state.active == 0 && state.protocol == Protocol::Http1 && state.head_since.is_none() {
            state.head_since = Some(Instant::now());
        }
    }

    /// Records a complete head. The request ends when the guard is dropped.
    pub fn begin_request(self: &Arc<Self>, is_http2: bool) -> ActiveRequest {
        let mut state = self.lock();
        state.active += 1;
        state.head_since = None;
        state.protocol = if is_http2 { Protocol::Http2 } else { Protocol::Http1 };
        drop(state);
        ActiveRequest(self.clone())
    }

    /// Returns the start of the idle period; `None` while a request or an unsent response exists.
    pub fn idle_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.active == 0 && self.account.bytes() == 0).then_some(state.idle_since)
    }

    /// Returns the next deadline, and its meaning if it has passed. A connection with active requests is checked again
    /// after the shortest timeout.
    fn next_deadline(&self, now: Instant) -> (Instant, Option<ExpiredDeadline>) {
        let Timeouts { header, idle, send } = self.timeouts;
        if let Some(deadline) = self.account.deadline(send) {
            return (deadline.min(now + send), Some(ExpiredDeadline::Stalled).filter(|_| deadline <= now));
        }
        let state = self.lock();
        match (state.active, state.head_since, state.protocol) {
            (0, _, Protocol::Unknown) => (state.idle_since + header, Some(ExpiredDeadline::Head)),
            (0, Some(since), _) => (since + header, Some(ExpiredDeadline::Head)),
            (0, None, _) => (state.idle_since + idle, Some(ExpiredDeadline::Idle)),
            (1.., ..) => (now + header.min(idle).min(send), None),
        }
    }

    /// Waits until the connection must end. The task that reads from the connection polls this after each read.
    pub async fn expired(&self) -> ExpiredDeadline {
        let (mut armed, _) = self.next_deadline(Instant::now());
        let mut sleep = Box::pin(sleep_until(armed));
        poll_fn(|context| {
            // The deadline of a head that has begun is before that of an idle connection.
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

/// A guard for a request in progress.
#[derive(Debug)]
pub struct ActiveRequest(Arc<Activity>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.active -= 1;
        state.idle_since = Instant::now();
    }
}

/// A stream that records its reads.
#[derive(Debug)]
pub struct RecordedStream<S> {
    pub stream: S,
    pub activity: Arc<Activity>,
}

impl<S: AsyncRead + Unpin> AsyncRead for RecordedStream<S> {
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

impl<S: AsyncWrite + Unpin> AsyncWrite for RecordedStream<S> {
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
