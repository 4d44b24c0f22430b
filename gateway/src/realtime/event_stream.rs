//! The events of a user over plain HTTP, for clients without WebSockets: as a stream of Server-Sent Events, and by long
//! poll. Both are subscriptions of the hub like sockets, with the same frames and numbers.

use std::{convert::Infallible, fmt::Write as _, time::Duration};

use axum::body::{Body, Bytes};
use futures_util::stream;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::{
    close_code::CloseReason,
    frame,
    recovery::{InitialState, Unavailable},
    subscription::{Delivery, Subscription},
};

/// The interval of comments, below the idle timeouts of proxies.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
pub const HEARTBEAT: &str = ": heartbeat\n\n";
/// The delay before a client reconnects. Milliseconds.
const RECONNECT_DELAY_MS: u32 = 2_000;
/// Bounds the check of a poll that does not wait. The order service answers within milliseconds.
const SYNC_TIMEOUT: Duration = Duration::from_secs(1);

/// Returns the field that sets the client's delay, at the beginning of a stream.
pub fn retry_field() -> String {
    format!("retry: {RECONNECT_DELAY_MS}\n\n")
}

/// Adds an event to a chunk of a stream (HTML, "Server-sent events"). `data` is one line.
pub fn write_event(chunk: &mut String, id: impl std::fmt::Display, data: &str) {
    // Writing to a string does not fail.
    let _ = write!(chunk, "id: {id}\ndata: {data}\n\n");
}

/// Adds the last event of a stream, without an id, and counts the close.
pub fn write_close(chunk: &mut String, user_id: i64, now: i64, reason: CloseReason) {
    metrics::counter!("ws_closed_total", "code" => reason.label()).increment(1);
    let _ = write!(chunk, "data: {}\n\n", frame::close(user_id, now, reason));
}

/// A stream of Server-Sent Events.
pub trait SseStream: Send + Sized + 'static {
    /// Waits for the next events; `None` after the end.
    fn next_chunk(&mut self) -> impl Future<Output = Option<String>> + Send;

    /// Returns the body of a response with these events.
    fn into_body(self) -> Body {
        Body::from_stream(stream::unfold(self, |mut stream| async move {
            let chunk = stream.next_chunk().await?;
            Some((Ok::<_, Infallible>(Bytes::from(chunk)), stream))
        }))
    }
}

/// A stream of a user's events. It ends like a socket: the last event has the close code.
struct EventStream {
    subscription: Subscription,
    heartbeat_at: Instant,
    is_closed: bool,
    _permit: OwnedSemaphorePermit,
}

/// Returns the body of a stream. It reads the hub's queue as fast as the client reads.
pub fn body(subscription: Subscription, permit: OwnedSemaphorePermit) -> Body {
    let heartbeat_at = Instant::now() + HEARTBEAT_INTERVAL;
    EventStream { subscription, heartbeat_at, is_closed: false, _permit: permit }.into_body()
}

impl SseStream for EventStream {
    async fn next_chunk(&mut self) -> Option<String> {
        if self.is_closed {
            return None;
        }
        let delivery = tokio::select! {
            delivery = self.subscription.next() => delivery,
            () = sleep_until(self.heartbeat_at) => {
                self.heartbeat_at = Instant::now() + HEARTBEAT_INTERVAL;
                return Some(HEARTBEAT.to_owned());
            }
        };
        self.heartbeat_at = Instant::now() + HEARTBEAT_INTERVAL;
        let (clock, user_id) = (&self.subscription.realtime().clock, self.subscription.user_id());
        let mut chunk = String::new();
        match delivery {
            Ok(Delivery::Ready(initial)) => {
                chunk = retry_field();
                let ready = frame::ready(user_id, clock.unix(), initial.seq, initial.recovered);
                // A client that loses the connection before the missed events resumes before them.
                let position = initial.frames.first().map_or(initial.seq, |first| first.seq - 1);
                write_event(&mut chunk, position, &ready);
                for event in initial.frames.iter() {
                    write_event(&mut chunk, event.seq, &event.text);
                }
            }
            Ok(Delivery::Events(events)) => {
                for event in events {
                    write_event(&mut chunk, event.seq, &event.text);
                    self.subscription.realtime().record_delivery(&event);
                }
            }
            Err(reason) => {
                write_close(&mut chunk, user_id, clock.unix(), reason);
                self.is_closed = true;
            }
        }
        Some(chunk)
    }
}

/// Waits until the client lacks an event, at most for `wait`. Returns a JSON object: the frames of the missed events,
/// and the position after them. A client without a position gets the present one.
pub async fn poll(
    mut subscription: Subscription,
    after: Option<i64>,
    wait: Duration,
) -> Result<String, CloseReason> {
    let deadline = Instant::now() + wait;
    // Recovery has time limits of its own.
    let Delivery::Ready(initial) = subscription.next().await? else { return Err(CloseReason::Resync) };
    let InitialState { seq, recovered, frames } = initial;
    if !recovered || !frames.is_empty() || after.is_none() {
        return Ok(frame::batch(seq, recovered, &frames));
    }
    if wait.is_zero() {
        // Redis may have lost the last events. The hub syncs the subscriptions that wait, and this one has no time for it.
        let caller = subscription.connection().caller();
        let synced = timeout(SYNC_TIMEOUT, subscription.realtime().recovery.fetch_state(&caller, seq)).await;
        return Ok(match synced {
            Ok(Ok(InitialState { seq, recovered, frames })) => frame::batch(seq, recovered, &frames),
            Ok(Err(Unavailable)) | Err(_) => frame::batch(seq, true, &[]),
        });
    }
    match timeout_at(deadline, subscription.next()).await {
        Ok(Ok(Delivery::Events(events))) => {
            for event in &events {
                subscription.realtime().record_delivery(event);
            }
            Ok(frame::batch(events.last().map_or(seq, |last| last.seq), true, &events))
        }
        Ok(Err(reason)) => Err(reason),
        Ok(Ok(Delivery::Ready(_))) | Err(_) => Ok(frame::batch(seq, true, &[])),
    }
}
