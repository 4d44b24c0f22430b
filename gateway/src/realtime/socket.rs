//! One socket, from its first frame to its last: one task, which sends what the hub puts into its queue and
//! listens to its client. It knows the number it sent last, so nothing is sent twice and nothing is left out:
//! where a number is missing, what follows waits until the missing part is found.

use std::{future::pending, ops::ControlFlow, pin::Pin, sync::Arc, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use shoppee_kit::caller::{Caller, Role, TokenType};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Bytes, Error, Message,
        protocol::{Role as Side, WebSocketConfig},
    },
};

use super::{
    Realtime,
    closing::{Closing, GONE, LEFT},
    frame::{self, Frame},
    hub::{Seat, Seated},
    resume::{Away, Frames, Missed, Start},
    said::Said,
    wire::Wire,
};

/// The longest frame, and message, of a client (contract §4).
const LONGEST: usize = 16 * 1024;
/// Read at a time: more than a client usually has to say. It is allocated for as long as the socket lives.
const READ: usize = 1024;
/// Written at a time where many events wait; nothing is allocated while there are none.
const WRITE: usize = 4 * 1024;
/// What may wait to be written: [`WRITE`] and the longest thing we say, with room to spare.
const MOST_WRITTEN: usize = 32 * 1024;
/// Events sent before the socket looks at anything else.
const BATCH: usize = 64;
/// A client that takes nothing for so long is too slow.
const SEND: Duration = Duration::from_secs(5);
const PING_EVERY: Duration = Duration::from_secs(25);
const PONG_WITHIN: Duration = Duration::from_secs(10);
/// What cannot be understood, before it is misbehaving.
const MISUNDERSTOOD: u8 = 10;
/// How long newer events wait for a missing one before the client had better come back.
const GAP: Duration = Duration::from_secs(10);
/// Between two tries to find a missing event.
const GAP_RETRY: Duration = Duration::from_millis(250);
/// Before asking again for what may have been missed, where nobody answered.
const CHECK_RETRY: Duration = Duration::from_secs(5);
/// How long a client may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);
/// The same for one that does not read: when it does again, it should find out why it must come back.
const SLOW_GOODBYE: Duration = Duration::from_secs(10);
/// What a client was sending when it was told to go is read and thrown away, or it could not read why: for so
/// long, and so much.
const DRAIN: Duration = Duration::from_secs(1);
const DRAINED: usize = 16 * 1024 * 1024;

/// How a socket ended.
enum End {
    /// We close it.
    Closing(Closing),
    /// The client said goodbye.
    Left,
    /// The connection broke.
    Gone,
}

type Flow = ControlFlow<End>;

/// What was asked of [`super::resume`]. Boxed: it is rare, and large beside everything else here.
type Catching = Pin<Box<dyn Future<Output = Caught> + Send>>;

enum Caught {
    Started(Result<Start, Away>),
    Missed(Result<Missed, Away>),
}

/// Serves a socket of `caller` whose client has seen everything up to `after`.
pub async fn serve(wire: Wire, caller: Caller, after: Option<i64>, realtime: Realtime) {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ)
        .write_buffer_size(WRITE)
        .max_write_buffer_size(MOST_WRITTEN)
        .max_message_size(Some(LONGEST))
        .max_frame_size(Some(LONGEST));
    let mut ws = WebSocketStream::from_raw_socket(wire, Side::Server, Some(config)).await;

    // From here on events are kept for this socket; what came before is found by the start.
    let seated = realtime.hub.seat(caller.clone());
    let start: Catching = {
        let realtime = realtime.clone();
        Box::pin(async move { Caught::Started(realtime.resume.start(&caller, after).await) })
    };
    let mut talk = Talk::new(&mut ws, seated, &realtime);
    let end = talk.run(start).await;
    // Nothing is kept for it any more while it says goodbye.
    drop(talk);

    let label = match end {
        End::Closing(closing) => {
            Box::pin(close(&mut ws, closing)).await;
            closing.label()
        }
        End::Left => {
            let _ = timeout(GOODBYE, async { while let Some(Ok(_)) = ws.next().await {} }).await;
            LEFT
        }
        End::Gone => GONE,
    };
    metrics::counter!("ws_closed_total", "code" => label).increment(1);
}

/// Tells the client to go, and hangs up when it has understood, or had the time to.
async fn close(ws: &mut WebSocketStream<Wire>, closing: Closing) {
    ws.get_ref().make_room();
    let patience = if closing == Closing::TooSlow { SLOW_GOODBYE } else { GOODBYE };
    let told = timeout(patience, async {
        ws.send(Message::Close(Some(closing.frame()))).await?;
        while ws.next().await.transpose()?.is_some() {}
        Ok::<(), Error>(())
    });
    let _ = told.await;
    // A connection that is dropped with something unread in it takes our last words with it.
    let tcp = ws.get_mut().tcp();
    let _ = timeout(DRAIN, async {
        tcp.shutdown().await?;
        let (mut drained, mut rest) = (0, vec![0; WRITE]);
        while drained < DRAINED {
            match tcp.read(&mut rest).await? {
                0 => break,
                read => drained += read,
            }
        }
        Ok::<(), std::io::Error>(())
    })
    .await;
}

struct Talk<'a> {
    ws: &'a mut WebSocketStream<Wire>,
    seated: Seated,
    realtime: &'a Realtime,
    /// The number sent last; none before the start is known.
    last: Option<i64>,
    /// An event that came while one before it is missing, and until when to look for that.
    held: Option<(Arc<Frame>, Instant)>,
    /// Not before then to ask again.
    retry_at: Option<Instant>,
    ping_at: Instant,
    pong_by: Option<Instant>,
    misunderstood: u8,
}

impl<'a> Talk<'a> {
    fn new(ws: &'a mut WebSocketStream<Wire>, seated: Seated, realtime: &'a Realtime) -> Self {
        Self {
            ws,
            seated,
            realtime,
            last: None,
            held: None,
            retry_at: None,
            ping_at: Instant::now() + PING_EVERY,
            pong_by: None,
            misunderstood: 0,
        }
    }

    async fn run(&mut self, start: Catching) -> End {
        let mut catching = Some(start);
        let alarm = sleep_until(self.alarm());
        tokio::pin!(alarm);
        loop {
            if let Some(closing) = self.seated.seat.closing() {
                return End::Closing(closing);
            }
            if catching.is_none() {
                catching = self.catch_up();
            }
            if alarm.deadline() != self.alarm() {
                alarm.as_mut().reset(self.alarm());
            }
            // `ready` is the first frame of all: a client that has something to say waits for it.
            let begun = self.last.is_some();
            let delivering = begun && self.held.is_none();
            let flow = tokio::select! {
                // What ends the socket first, then what the client says, which is little; the queue may never
                // be empty.
                biased;
                () = self.seated.seat.woken() => Flow::Continue(()),
                heard = self.ws.next(), if begun => self.hear(heard).await,
                caught = caught(&mut catching) => {
                    catching = None;
                    self.take_in(caught).await
                }
                () = &mut alarm => self.ring().await,
                Some(frame) = self.seated.queue.recv(), if delivering => self.forward(frame).await,
            };
            if let Flow::Break(end) = flow {
                return end;
            }
        }
    }

    /// When there is something to do, though nothing happens.
    fn alarm(&self) -> Instant {
        let next = self.pong_by.unwrap_or(self.ping_at);
        self.retry_at.map_or(next, |retry_at| retry_at.min(next))
    }

    async fn ring(&mut self) -> Flow {
        let now = Instant::now();
        self.retry_at = self.retry_at.filter(|retry_at| *retry_at > now);
        if self.pong_by.is_some_and(|by| by <= now) {
            return Flow::Break(End::Closing(Closing::NoPong));
        }
        if self.pong_by.is_none() && self.ping_at <= now {
            self.ping_at = now + PING_EVERY;
            self.pong_by = Some(now + PONG_WITHIN);
            return self.say(Message::Ping(Bytes::new())).await;
        }
        Flow::Continue(())
    }

    /// Asks for what is missing, or may be.
    fn catch_up(&mut self) -> Option<Catching> {
        let after = self.last?;
        if self.retry_at.is_some() {
            return None;
        }
        let until = match &self.held {
            Some((held, _)) => Some(held.seq),
            None if self.seated.seat.take_check() => None,
            None => return None,
        };
        let (realtime, caller) = (self.realtime.clone(), self.seated.seat.caller());
        Some(Box::pin(async move { Caught::Missed(realtime.resume.missed(&caller, after, until).await) }))
    }

    async fn take_in(&mut self, caught: Caught) -> Flow {
        match caught {
            Caught::Started(Ok(start)) => self.begin(start).await,
            Caught::Started(Err(Away)) | Caught::Missed(Ok(Missed::Broken)) => {
                Flow::Break(End::Closing(Closing::Resync))
            }
            Caught::Missed(Ok(Missed::Whole(frames))) => self.fill(frames).await,
            Caught::Missed(Err(Away)) => {
                if let Some((_, until)) = &self.held {
                    return self.look_again(*until);
                }
                self.retry_at = Some(Instant::now() + CHECK_RETRY);
                self.seated.seat.check();
                Flow::Continue(())
            }
        }
    }

    /// Says where the client stands, and what it missed.
    async fn begin(&mut self, start: Start) -> Flow {
        let now = self.realtime.clock.unix();
        let ready = frame::ready(self.seated.user_id, now, start.seq, start.recovered);
        self.feed(Message::Text(ready)).await?;
        for frame in start.frames.iter() {
            self.feed(Message::Text(frame.text.clone())).await?;
        }
        self.last = Some(start.seq);
        self.flush().await
    }

    /// Sends what was found of what was missing, then what waited for it.
    async fn fill(&mut self, found: Frames) -> Flow {
        for frame in found.iter() {
            // A check runs beside the queue, which may have been faster.
            if self.is_next(frame) {
                self.deliver(frame).await?;
            }
        }
        if let Some((held, until)) = self.held.take() {
            if self.is_next(&held) {
                self.deliver(&held).await?;
            } else if self.is_newer(&held) {
                self.held = Some((held, until));
                self.look_again(until)?;
            }
        }
        self.flush().await
    }

    fn look_again(&mut self, until: Instant) -> Flow {
        let again = Instant::now() + GAP_RETRY;
        if again > until {
            return Flow::Break(End::Closing(Closing::Resync));
        }
        self.retry_at = Some(again);
        Flow::Continue(())
    }

    fn is_next(&self, frame: &Frame) -> bool {
        self.last.and_then(|last| frame.seq.checked_sub(last)) == Some(1)
    }

    fn is_newer(&self, frame: &Frame) -> bool {
        self.last.is_some_and(|last| frame.seq > last)
    }

    /// Sends what came from the queue, and what more is in it.
    async fn forward(&mut self, first: Arc<Frame>) -> Flow {
        let mut frame = first;
        for sent in 1.. {
            if self.is_next(&frame) {
                self.deliver(&frame).await?;
            } else if self.is_newer(&frame) {
                tracing::debug!(user.id = self.seated.user_id, seq = frame.seq, "one before this is missing");
                self.held = Some((frame, Instant::now() + GAP));
                self.retry_at = None;
                break;
            }
            if sent == BATCH {
                break;
            }
            let Ok(next) = self.seated.queue.try_recv() else { break };
            frame = next;
        }
        self.flush().await
    }

    async fn deliver(&mut self, frame: &Frame) -> Flow {
        self.feed(Message::Text(frame.text.clone())).await?;
        self.last = Some(frame.seq);
        metrics::histogram!("event_delivery_seconds").record(frame.age(self.realtime.clock.now().into()));
        Flow::Continue(())
    }

    async fn hear(&mut self, heard: Option<Result<Message, Error>>) -> Flow {
        match heard {
            Some(Ok(Message::Text(text))) => self.answer(&text).await,
            Some(Ok(Message::Binary(_))) => self.misunderstand("invalid_request").await,
            // The pong to a ping is already on its way.
            Some(Ok(Message::Ping(_) | Message::Frame(_))) => Flow::Continue(()),
            Some(Ok(Message::Pong(_))) => {
                self.pong_by = None;
                Flow::Continue(())
            }
            Some(Ok(Message::Close(_))) => Flow::Break(End::Left),
            Some(Err(_)) if self.ws.get_ref().flooded() => Flow::Break(End::Closing(Closing::Misbehaving)),
            Some(Err(error)) => Flow::Break(Closing::answering(&error).map_or(End::Gone, End::Closing)),
            None => Flow::Break(End::Gone),
        }
    }

    async fn answer(&mut self, text: &str) -> Flow {
        match Said::parse(text) {
            Some(Said::Ping) => {
                let pong = frame::pong(self.seated.user_id, self.realtime.clock.unix());
                self.say(Message::Text(pong)).await
            }
            Some(Said::Auth { access_token }) => {
                match self.realtime.verifier.verify(&access_token, TokenType::Access) {
                    Ok(caller)
                        if caller.user_id() == self.seated.user_id && caller.claims.role != Role::Service =>
                    {
                        self.seated.seat.renew(caller);
                        Flow::Continue(())
                    }
                    Ok(_) => Flow::Break(End::Closing(Closing::Revoked)),
                    Err(error) => self.misunderstand(&error.reason().to_ascii_lowercase()).await,
                }
            }
            None => self.misunderstand("invalid_request").await,
        }
    }

    async fn misunderstand(&mut self, code: &str) -> Flow {
        let error = frame::error(self.seated.user_id, self.realtime.clock.unix(), code);
        self.say(Message::Text(error)).await?;
        self.misunderstood += 1;
        if self.misunderstood >= MISUNDERSTOOD {
            return Flow::Break(End::Closing(Closing::Misbehaving));
        }
        Flow::Continue(())
    }

    async fn say(&mut self, message: Message) -> Flow {
        self.feed(message).await?;
        self.flush().await
    }

    /// Hands a frame over, to be written with those that follow.
    async fn feed(&mut self, message: Message) -> Flow {
        written(&self.seated.seat, self.ws.feed(message)).await
    }

    async fn flush(&mut self) -> Flow {
        written(&self.seated.seat, self.ws.flush()).await
    }
}

/// Writes for as long as a client may take, and the socket is meant to live.
async fn written(seat: &Seat, writing: impl Future<Output = Result<(), Error>>) -> Flow {
    tokio::select! {
        biased;
        written = timeout(SEND, writing) => match written {
            Ok(Ok(())) => Flow::Continue(()),
            Ok(Err(_)) => Flow::Break(End::Gone),
            Err(_elapsed) => Flow::Break(End::Closing(Closing::TooSlow)),
        },
        closing = closing(seat) => Flow::Break(End::Closing(closing)),
    }
}

async fn closing(seat: &Seat) -> Closing {
    loop {
        if let Some(closing) = seat.closing() {
            return closing;
        }
        seat.woken().await;
    }
}

async fn caught(catching: &mut Option<Catching>) -> Caught {
    match catching {
        Some(catching) => catching.await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a task keeps of an asynchronous function of four arguments.
    fn size<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    /// With its buffer, its seat and its token it must stay below 8 KiB.
    #[test]
    fn an_idle_socket_is_small() {
        assert!(size(serve) <= 2560, "{} bytes", size(serve));
    }
}
