//! The task of one socket: sends the events that the hub enqueues, and handles the client's messages. It tracks the last
//! sequence number that it sent, so that no event is duplicated or skipped: after a gap, later events wait until the
//! missing ones are recovered.

use std::{future::pending, ops::ControlFlow, pin::Pin, sync::Arc, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use shoppee_kit::caller::{Caller, Role, TokenType};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Bytes, Error, Message,
        protocol::{Role as Side, WebSocketConfig},
    },
};

use super::{
    Realtime,
    close_code::{ABNORMAL_CLOSURE, CloseReason, NORMAL_CLOSURE},
    closing_handshake,
    command::ClientCommand,
    frame::{self, Frame},
    hub::{Connection, ConnectionGuard},
    metered_stream::MeteredStream,
    recovery::{Frames, InitialState, Recovered, Unavailable},
};

/// Bounds a frame, and a message, of a client. Bytes.
const MAX_MESSAGE_SIZE: usize = 16 * 1024;
/// The read buffer, larger than most messages of clients. It is allocated for the life of the socket. Bytes.
const READ_BUFFER_SIZE: usize = 1024;
/// The bytes that are buffered before a write. Nothing is allocated while no event waits.
const WRITE_BUFFER_SIZE: usize = 4 * 1024;
/// Bounds the write buffer: [`WRITE_BUFFER_SIZE`] and the longest frame, with slack. Bytes.
const MAX_WRITE_BUFFER_SIZE: usize = 32 * 1024;
/// Bounds the events that are sent before the socket handles anything else.
const SEND_BATCH_SIZE: usize = 64;
/// Bounds a write. A client that reads nothing for this long is too slow.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
const PING_INTERVAL: Duration = Duration::from_secs(25);
const PONG_TIMEOUT: Duration = Duration::from_secs(10);
/// The number of invalid messages at which a client is misbehaving.
const MAX_INVALID_MESSAGES: u8 = 10;
/// Bounds the recovery of a gap. After that the client has to reconnect.
const GAP_TIMEOUT: Duration = Duration::from_secs(10);
/// The delay between two attempts to recover a gap.
const GAP_RETRY_DELAY: Duration = Duration::from_millis(250);
/// The delay before another sync, after one failed.
const SYNC_RETRY_DELAY: Duration = Duration::from_secs(5);

/// The end of a socket.
enum Disconnect {
    /// The gateway closes it.
    Server(CloseReason),
    /// The client sent a close frame.
    ClientClosed,
    ConnectionLost,
}

type Flow = ControlFlow<Disconnect>;

const fn disconnect(reason: CloseReason) -> Flow {
    Flow::Break(Disconnect::Server(reason))
}

/// A call of [`super::recovery`]. Boxed: it is rare, and large beside the rest of the socket's state.
type RecoveryFuture = Pin<Box<dyn Future<Output = RecoveryResult> + Send>>;

enum RecoveryResult {
    Initial(Result<InitialState, Unavailable>),
    Missed(Result<Recovered, Unavailable>),
}

/// Serves a socket of `caller` whose client has all events up to `after`.
pub async fn serve(stream: MeteredStream, caller: Caller, after: Option<i64>, realtime: Realtime) {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_SIZE)
        .write_buffer_size(WRITE_BUFFER_SIZE)
        .max_write_buffer_size(MAX_WRITE_BUFFER_SIZE)
        .max_message_size(Some(MAX_MESSAGE_SIZE))
        .max_frame_size(Some(MAX_MESSAGE_SIZE));
    let mut ws = WebSocketStream::from_raw_socket(stream, Side::Server, Some(config)).await;

    // Events are enqueued from here on; earlier ones are part of the initial state.
    let guard = realtime.hub.register(caller.clone());
    let initial: RecoveryFuture = {
        let realtime = realtime.clone();
        Box::pin(
            async move { RecoveryResult::Initial(realtime.recovery.initial_state(&caller, after).await) },
        )
    };
    let mut session = Session::new(&mut ws, guard, &realtime);
    let end = session.run(initial).await;
    // No event is enqueued any more during the closing handshake.
    drop(session);

    let label = match end {
        Disconnect::Server(reason) => {
            Box::pin(closing_handshake::start(&mut ws, reason)).await;
            reason.label()
        }
        Disconnect::ClientClosed => {
            closing_handshake::finish(&mut ws).await;
            NORMAL_CLOSURE
        }
        Disconnect::ConnectionLost => ABNORMAL_CLOSURE,
    };
    metrics::counter!("ws_closed_total", "code" => label).increment(1);
}

/// The state of an open socket.
struct Session<'a> {
    ws: &'a mut WebSocketStream<MeteredStream>,
    guard: ConnectionGuard,
    realtime: &'a Realtime,
    /// The sequence number sent last; none before the initial state is known.
    last_seq: Option<i64>,
    /// The first event after a gap, and the deadline for recovering the gap.
    after_gap: Option<(Arc<Frame>, Instant)>,
    /// The time before which no recovery starts.
    retry_at: Option<Instant>,
    ping_at: Instant,
    pong_deadline: Option<Instant>,
    invalid_messages: u8,
}

impl<'a> Session<'a> {
    fn new(
        ws: &'a mut WebSocketStream<MeteredStream>,
        guard: ConnectionGuard,
        realtime: &'a Realtime,
    ) -> Self {
        Self {
            ws,
            guard,
            realtime,
            last_seq: None,
            after_gap: None,
            retry_at: None,
            ping_at: Instant::now() + PING_INTERVAL,
            pong_deadline: None,
            invalid_messages: 0,
        }
    }

    async fn run(&mut self, initial: RecoveryFuture) -> Disconnect {
        let mut recovery = Some(initial);
        let timer = sleep_until(self.next_deadline());
        tokio::pin!(timer);
        loop {
            if let Some(reason) = self.guard.connection.close_reason() {
                return Disconnect::Server(reason);
            }
            if recovery.is_none() {
                recovery = self.start_recovery();
            }
            if timer.deadline() != self.next_deadline() {
                timer.as_mut().reset(self.next_deadline());
            }
            // `ready` is the first frame: the client's messages are read after it.
            let is_ready = self.last_seq.is_some();
            let can_deliver = is_ready && self.after_gap.is_none();
            let flow = tokio::select! {
                // The end of the socket comes first, then the client's few messages; the queue may never be empty.
                biased;
                () = self.guard.connection.notified() => Flow::Continue(()),
                message = self.ws.next(), if is_ready => self.on_message(message).await,
                result = poll_recovery(&mut recovery) => {
                    recovery = None;
                    self.on_recovered(result).await
                }
                () = &mut timer => self.on_timer().await,
                Some(frame) = self.guard.queue.recv(), if can_deliver => self.send_queued(frame).await,
            };
            if let Flow::Break(end) = flow {
                return end;
            }
        }
    }

    /// Returns the time of the next ping, pong timeout or retry.
    fn next_deadline(&self) -> Instant {
        let next = self.pong_deadline.unwrap_or(self.ping_at);
        self.retry_at.map_or(next, |retry_at| retry_at.min(next))
    }

    async fn on_timer(&mut self) -> Flow {
        let now = Instant::now();
        self.retry_at = self.retry_at.filter(|retry_at| *retry_at > now);
        if self.pong_deadline.is_some_and(|deadline| deadline <= now) {
            return disconnect(CloseReason::NoPong);
        }
        if self.pong_deadline.is_none() && self.ping_at <= now {
            self.ping_at = now + PING_INTERVAL;
            self.pong_deadline = Some(now + PONG_TIMEOUT);
            return self.send(Message::Ping(Bytes::new())).await;
        }
        Flow::Continue(())
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

    async fn on_recovered(&mut self, result: RecoveryResult) -> Flow {
        match result {
            RecoveryResult::Initial(Ok(initial)) => self.send_ready(initial).await,
            RecoveryResult::Initial(Err(Unavailable)) | RecoveryResult::Missed(Ok(Recovered::Incomplete)) => {
                disconnect(CloseReason::Resync)
            }
            RecoveryResult::Missed(Ok(Recovered::Complete(frames))) => self.send_recovered(frames).await,
            RecoveryResult::Missed(Err(Unavailable)) => {
                if let Some((_, deadline)) = &self.after_gap {
                    return self.schedule_retry(*deadline);
                }
                self.retry_at = Some(Instant::now() + SYNC_RETRY_DELAY);
                self.guard.connection.request_sync();
                Flow::Continue(())
            }
        }
    }

    /// Sends `ready` and the missed events.
    async fn send_ready(&mut self, initial: InitialState) -> Flow {
        let now = self.realtime.clock.unix();
        let ready = frame::ready(self.guard.user_id, now, initial.seq, initial.recovered);
        self.feed(Message::Text(ready)).await?;
        for frame in initial.frames.iter() {
            self.feed(Message::Text(frame.text.clone())).await?;
        }
        self.last_seq = Some(initial.seq);
        self.flush().await
    }

    /// Sends the recovered events, then the event after the gap.
    async fn send_recovered(&mut self, frames: Frames) -> Flow {
        for frame in frames.iter() {
            // A sync runs beside the queue, which may have been faster.
            if self.is_next(frame) {
                self.send_event(frame).await?;
            }
        }
        if let Some((frame, deadline)) = self.after_gap.take() {
            if self.is_next(&frame) {
                self.send_event(&frame).await?;
            } else if self.is_newer(&frame) {
                self.after_gap = Some((frame, deadline));
                self.schedule_retry(deadline)?;
            }
        }
        self.flush().await
    }

    fn schedule_retry(&mut self, deadline: Instant) -> Flow {
        let retry_at = Instant::now() + GAP_RETRY_DELAY;
        if retry_at > deadline {
            return disconnect(CloseReason::Resync);
        }
        self.retry_at = Some(retry_at);
        Flow::Continue(())
    }

    fn is_next(&self, frame: &Frame) -> bool {
        self.last_seq.and_then(|last| frame.seq.checked_sub(last)) == Some(1)
    }

    fn is_newer(&self, frame: &Frame) -> bool {
        self.last_seq.is_some_and(|last| frame.seq > last)
    }

    /// Sends an event from the queue, and those queued behind it.
    async fn send_queued(&mut self, first: Arc<Frame>) -> Flow {
        let mut frame = first;
        for count in 1.. {
            if self.is_next(&frame) {
                self.send_event(&frame).await?;
            } else if self.is_newer(&frame) {
                tracing::debug!(user.id = self.guard.user_id, seq = frame.seq, "gap in the event sequence");
                self.after_gap = Some((frame, Instant::now() + GAP_TIMEOUT));
                self.retry_at = None;
                break;
            }
            if count == SEND_BATCH_SIZE {
                break;
            }
            let Ok(next) = self.guard.queue.try_recv() else { break };
            frame = next;
        }
        self.flush().await
    }

    async fn send_event(&mut self, frame: &Frame) -> Flow {
        self.feed(Message::Text(frame.text.clone())).await?;
        self.last_seq = Some(frame.seq);
        metrics::histogram!("event_delivery_seconds").record(frame.age(self.realtime.clock.now().into()));
        Flow::Continue(())
    }

    async fn on_message(&mut self, message: Option<Result<Message, Error>>) -> Flow {
        match message {
            Some(Ok(Message::Text(text))) => self.on_command(&text).await,
            Some(Ok(Message::Binary(_))) => self.reject("invalid_request").await,
            // The WebSocket layer answers pings.
            Some(Ok(Message::Ping(_) | Message::Frame(_))) => Flow::Continue(()),
            Some(Ok(Message::Pong(_))) => {
                self.pong_deadline = None;
                Flow::Continue(())
            }
            Some(Ok(Message::Close(_))) => Flow::Break(Disconnect::ClientClosed),
            Some(Err(_)) if self.ws.get_ref().rate_exceeded() => disconnect(CloseReason::Misbehaving),
            Some(Err(error)) => Flow::Break(
                CloseReason::from_error(&error).map_or(Disconnect::ConnectionLost, Disconnect::Server),
            ),
            None => Flow::Break(Disconnect::ConnectionLost),
        }
    }

    async fn on_command(&mut self, text: &str) -> Flow {
        match ClientCommand::parse(text) {
            Some(ClientCommand::Ping) => {
                let pong = frame::pong(self.guard.user_id, self.realtime.clock.unix());
                self.send(Message::Text(pong)).await
            }
            Some(ClientCommand::Auth { access_token }) => {
                match self.realtime.verifier.verify(&access_token, TokenType::Access) {
                    Ok(caller)
                        if caller.user_id() == self.guard.user_id && caller.claims.role != Role::Service =>
                    {
                        self.guard.connection.refresh_token(caller);
                        Flow::Continue(())
                    }
                    Ok(_) => disconnect(CloseReason::SessionRevoked),
                    Err(error) => self.reject(&error.reason().to_ascii_lowercase()).await,
                }
            }
            None => self.reject("invalid_request").await,
        }
    }

    async fn reject(&mut self, code: &str) -> Flow {
        let error = frame::error(self.guard.user_id, self.realtime.clock.unix(), code);
        self.send(Message::Text(error)).await?;
        self.invalid_messages += 1;
        if self.invalid_messages >= MAX_INVALID_MESSAGES {
            return disconnect(CloseReason::Misbehaving);
        }
        Flow::Continue(())
    }

    async fn send(&mut self, message: Message) -> Flow {
        self.feed(message).await?;
        self.flush().await
    }

    /// Buffers a message, to be written together with later ones.
    async fn feed(&mut self, message: Message) -> Flow {
        write_with_timeout(&self.guard.connection, self.ws.feed(message)).await
    }

    async fn flush(&mut self) -> Flow {
        write_with_timeout(&self.guard.connection, self.ws.flush()).await
    }
}

/// Completes a write, unless it times out or the connection is closed first.
async fn write_with_timeout(connection: &Connection, write: impl Future<Output = Result<(), Error>>) -> Flow {
    tokio::select! {
        biased;
        result = timeout(WRITE_TIMEOUT, write) => match result {
            Ok(Ok(())) => Flow::Continue(()),
            Ok(Err(_)) => Flow::Break(Disconnect::ConnectionLost),
            Err(_elapsed) => disconnect(CloseReason::TooSlow),
        },
        reason = wait_for_close(connection) => disconnect(reason),
    }
}

async fn wait_for_close(connection: &Connection) -> CloseReason {
    loop {
        if let Some(reason) = connection.close_reason() {
            return reason;
        }
        connection.notified().await;
    }
}

async fn poll_recovery(recovery: &mut Option<RecoveryFuture>) -> RecoveryResult {
    match recovery {
        Some(recovery) => recovery.await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the size of the future of an asynchronous function with four arguments.
    fn size<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    /// With its buffer, its connection and its token a socket must stay below 8 KiB.
    #[test]
    fn an_idle_socket_takes_at_most_2560_bytes() {
        assert!(size(serve) <= 2560, "{} bytes", size(serve));
    }
}
