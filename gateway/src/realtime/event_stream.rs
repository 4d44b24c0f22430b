//! The events of a user over plain HTTP, for clients without WebSockets: as a stream of Server-Sent Events, and by long
//! poll. Both are subscriptions of the hub like sockets, with the same frames and numbers.

use std::{convert::Infallible, fmt::Write as _, time::Duration};

use axum::body::{Body, Bytes};
use futures_util::stream;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    close_code::CloseReason,
    frame,
    recovery::InitialState,
    subscription::{Delivery, Subscription},
};

/// The interval of comments, below the idle timeouts of proxies.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
pub const HEARTBEAT: &str = ": heartbeat\n\n";
/// The delay before a client reconnects. Milliseconds.
const RECONNECT_DELAY_MS: u32 = 2_000;

/// Returns the field that sets the client's delay, at the beginning of a stream.
pub fn retry_field() -> String {
    format!("retry: {RECONNECT_DELAY_MS}\n\n")
}

/// Adds an event to a chunk of a stream (HTML, "Server-sent events"). `data` is one line.
pub fn write_event(chunk: &mut String, id: impl std::fmt::Display, data: &str) {
    // Writing to a string does not fail.
    let _ = write!(chunk, "id: {id}\ndata: {data}\n\n");
}

/// Adds the last event of a stream, without an id.
pub fn write_close(chunk: &mut String, user_id: i64, now: i64, reason: CloseReason) {
    let _ = write!(chunk, "data: {}\n\n", frame::close(user_id, now, reason));
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
    let stream = EventStream {
        subscription,
        heartbeat_at: Instant::now() + HEARTBEAT_INTERVAL,
        is_closed: false,
        _permit: permit,
    };
    Body::from_stream(stream::unfold(stream, |mut stream| async move {
        let chunk = stream.next_chunk().await?;
        Some((Ok::<_, Infallible>(Bytes::from(chunk)), stream))
    }))
}

impl EventStream {
    /// Waits for the next events; `None` after the end.
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
                    event.record_delivery(clock);
                }
            }
            Err(reason) => {
                metrics::counter!("ws_closed_total", "code" => reason.label()).increment(1);
                write_close(&mut chunk, user_id, clock.unix(), reason);
                self.is_closed = true;
            }
        }
        Some(chunk)
    }
}

/// Waits until the client lacks an event, at most for `wait`, and returns the JSON of the answer: the frames of the
/// missed events, and the position after them.
pub async fn poll(mut subscription: Subscription, wait: Duration) -> Result<String, CloseReason> {
    let deadline = Instant::now() + wait;
    // Recovery has time limits of its own.
    let Delivery::Ready(initial) = subscription.next().await? else { return Err(CloseReason::Resync) };
    let InitialState { seq, recovered, frames } = initial;
    if !recovered || !frames.is_empty() || wait.is_zero() {
        return Ok(frame::batch(seq, recovered, &frames));
    }
    match timeout_at(deadline, subscription.next()).await {
        Ok(Ok(Delivery::Events(events))) => {
            for event in &events {
                event.record_delivery(&subscription.realtime().clock);
            }
            Ok(frame::batch(events.last().map_or(seq, |last| last.seq), true, &events))
        }
        Ok(Err(reason)) => Err(reason),
        Ok(Ok(Delivery::Ready(_))) | Err(_) => Ok(frame::batch(seq, true, &[])),
    }
}
