//! The events of all users for an admin, as Server-Sent Events: each stream follows `WatchEvents` of the order service
//! with the token of its admin.

use std::{fmt::Write as _, time::Duration};

use axum::body::Body;
use shoppee_kit::{clock::Clock, status};
use shoppee_proto::order::v1::WatchEventsResponse;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{
    close_code::CloseReason,
    event_stream::{SseStream, retry_field, write_close, write_event},
    frame::Frame,
};

/// Bounds the streams of a process. Each has a stream of the order service.
pub const MAX_STREAMS: usize = 64;
/// Bounds the silence of the order service, which sends a message about every ten seconds.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(25);

/// A stream of all users' events. The ids are cursors of `WatchEvents`.
struct AllEvents {
    messages: Streaming<WatchEventsResponse>,
    user_id: i64,
    clock: Clock,
    shutdown: CancellationToken,
    is_started: bool,
    is_closed: bool,
    _permit: OwnedSemaphorePermit,
}

/// Returns the body of a stream of the admin `user_id`.
pub fn body(
    messages: Streaming<WatchEventsResponse>,
    user_id: i64,
    clock: Clock,
    shutdown: CancellationToken,
    permit: OwnedSemaphorePermit,
) -> Body {
    let (is_started, is_closed) = (false, false);
    AllEvents { messages, user_id, clock, shutdown, is_started, is_closed, _permit: permit }.into_body()
}

impl SseStream for AllEvents {
    async fn next_chunk(&mut self) -> Option<String> {
        if self.is_closed {
            return None;
        }
        let message = tokio::select! {
            message = timeout(SILENCE_TIMEOUT, self.messages.message()) => match message {
                Ok(Ok(Some(message))) => Ok(message),
                Ok(Err(status)) => Err(close_reason(&status)),
                Ok(Ok(None)) | Err(_) => Err(CloseReason::Resync),
            },
            () = self.shutdown.cancelled() => Err(CloseReason::GoingAway),
        };
        let mut chunk = if self.is_started { String::new() } else { retry_field() };
        self.is_started = true;
        match message {
            Ok(WatchEventsResponse { event, cursor }) => {
                // An event with an unknown status of a newer version has no frame; its id is sent.
                match event.as_ref().and_then(Frame::from_event) {
                    Some(frame) => write_event(&mut chunk, cursor, &frame.text),
                    // A block without data sets the client's last id, and is no event.
                    None => {
                        // Writing to a string does not fail.
                        let _ = write!(chunk, "id: {cursor}\n\n");
                    }
                }
            }
            Err(reason) => {
                write_close(&mut chunk, self.user_id, self.clock.unix(), reason);
                self.is_closed = true;
            }
        }
        Some(chunk)
    }
}

/// Returns the close code for the end of a stream of the order service.
fn close_reason(status: &Status) -> CloseReason {
    match status::parse(status).reason.as_str() {
        "TOKEN_EXPIRED" => CloseReason::TokenExpired,
        "SESSION_REVOKED" | "UNAUTHENTICATED" => CloseReason::SessionRevoked,
        _ => CloseReason::Resync,
    }
}
