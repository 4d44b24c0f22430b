//! The task of one socket: sends the events of its [`Subscription`], and handles the client's messages.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use shoppee_kit::{
    caller::{Caller, Role, TokenType},
    clock::Clock,
};
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
    hub::Connection,
    metered_stream::MeteredStream,
    recovery::InitialState,
    subscription::{Delivery, Subscription},
};

/// Bounds a frame, and a message, of a client. Bytes.
const MAX_MESSAGE_SIZE: usize = 16 * 1024;
/// The read buffer, larger than most messages of clients. It is allocated for the life of the socket. Bytes.
const READ_BUFFER_SIZE: usize = 256;
/// The bytes that are buffered before a write. Nothing is allocated while no event waits.
const WRITE_BUFFER_SIZE: usize = 4 * 1024;
/// Bounds the write buffer: [`WRITE_BUFFER_SIZE`] and the longest frame, with slack. Bytes.
const MAX_WRITE_BUFFER_SIZE: usize = 32 * 1024;
/// Bounds a write. A client that reads nothing for this long is too slow.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
const PING_INTERVAL: Duration = Duration::from_secs(25);
const PONG_TIMEOUT: Duration = Duration::from_secs(10);
/// The number of invalid messages at which a client is misbehaving.
const MAX_INVALID_MESSAGES: u8 = 10;

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

/// Serves a socket of `caller` whose client has all events up to `after`.
pub async fn serve(stream: MeteredStream, caller: Caller, after: Option<i64>, realtime: Realtime) {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_SIZE)
        .write_buffer_size(WRITE_BUFFER_SIZE)
        .max_write_buffer_size(MAX_WRITE_BUFFER_SIZE)
        .max_message_size(Some(MAX_MESSAGE_SIZE))
        .max_frame_size(Some(MAX_MESSAGE_SIZE));
    let mut ws = WebSocketStream::from_raw_socket(stream, Side::Server, Some(config)).await;

    let mut session = Session::new(&mut ws, Subscription::new(&realtime, caller, after));
    let end = session.run().await;
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
    subscription: Subscription,
    ping_at: Instant,
    pong_deadline: Option<Instant>,
    invalid_messages: u8,
}

impl<'a> Session<'a> {
    fn new(ws: &'a mut WebSocketStream<MeteredStream>, subscription: Subscription) -> Self {
        Self {
            ws,
            subscription,
            ping_at: Instant::now() + PING_INTERVAL,
            pong_deadline: None,
            invalid_messages: 0,
        }
    }

    async fn run(&mut self) -> Disconnect {
        let timer = sleep_until(self.next_deadline());
        tokio::pin!(timer);
        loop {
            if timer.deadline() != self.next_deadline() {
                timer.as_mut().reset(self.next_deadline());
            }
            // `ready` is the first frame: the client's messages are read after it.
            let is_ready = self.subscription.is_ready();
            let flow = tokio::select! {
                // The client's few messages come first; there may always be an event.
                biased;
                message = self.ws.next(), if is_ready => self.on_message(message).await,
                () = &mut timer => self.on_timer().await,
                delivery = self.subscription.next() => match delivery {
                    Ok(Delivery::Ready(initial)) => self.send_ready(initial).await,
                    Ok(Delivery::Events(events)) => self.send_events(&events).await,
                    Err(reason) => disconnect(reason),
                },
            };
            if let Flow::Break(end) = flow {
                return end;
            }
        }
    }

    /// Returns the time of the next ping or pong timeout.
    fn next_deadline(&self) -> Instant {
        self.pong_deadline.unwrap_or(self.ping_at)
    }

    async fn on_timer(&mut self) -> Flow {
        let now = Instant::now();
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

    /// Sends `ready` and the missed events.
    async fn send_ready(&mut self, initial: InitialState) -> Flow {
        let now = self.clock().unix();
        let ready = frame::ready(self.subscription.user_id(), now, initial.seq, initial.recovered);
        self.feed(Message::Text(ready)).await?;
        for frame in initial.frames.iter() {
            self.feed(Message::Text(frame.text.clone())).await?;
        }
        self.flush().await
    }

    async fn send_events(&mut self, events: &[Arc<Frame>]) -> Flow {
        for frame in events {
            self.feed(Message::Text(frame.text.clone())).await?;
            self.subscription.realtime().record_delivery(frame);
        }
        self.flush().await
    }

    fn clock(&self) -> &Clock {
        &self.subscription.realtime().clock
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
                let pong = frame::pong(self.subscription.user_id(), self.clock().unix());
                self.send(Message::Text(pong)).await
            }
            Some(ClientCommand::Auth { access_token }) => {
                match self.subscription.realtime().verifier.verify(&access_token, TokenType::Access) {
                    Ok(caller)
                        if caller.user_id() == self.subscription.user_id()
                            && caller.claims.role != Role::Service =>
                    {
                        self.subscription.connection().refresh_token(caller);
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
        let error = frame::error(self.subscription.user_id(), self.clock().unix(), code);
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
        write_with_timeout(self.subscription.connection(), self.ws.feed(message)).await
    }

    async fn flush(&mut self) -> Flow {
        write_with_timeout(self.subscription.connection(), self.ws.flush()).await
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
