//! Adds events to the streams of Redis: to the history of each user, and to the fan-out stream that the gateways read.

use fred::{
    clients::{Client, Pipeline},
    error::Error as RedisError,
    interfaces::{KeysInterface as _, StreamsInterface as _},
    types::Value,
};
use prost::Message as _;
use shoppee_kit::telemetry;
use shoppee_proto::{order::v1::OrderEvent, streams};
use tracing::Span;

use super::cause::Failure;
use crate::store::outbox::OutboxRow;

/// The failures of one event; `None` if it was accepted, or not sent.
pub struct SendResult {
    pub history: Option<Failure>,
    pub fan_out: Option<Failure>,
}

/// Adds events of users to Redis in one pipeline. All events of a user go to its history first, then to the fan-out
/// stream of all gateways. Returns the results by user and event.
pub async fn send(redis: &Client, users: &[(i64, Vec<(&OutboxRow, OrderEvent)>)]) -> Vec<Vec<SendResult>> {
    let mut spans: Vec<Span> = Vec::new();
    let users: Vec<(i64, Vec<Message>)> = users
        .iter()
        .map(|(user_id, rows)| (*user_id, rows.iter().map(|row| Message::new(row, &mut spans)).collect()))
        .collect();
    let pipeline = redis.pipeline();
    let mut queued = Ok(());
    for (user_id, messages) in &users {
        if queued.is_ok() {
            queued = pipeline_events(&pipeline, *user_id, messages).await;
        }
    }
    let results = match queued {
        Ok(()) => pipeline.try_all::<Value>().await,
        Err(error) => vec![Err(error)],
    };
    drop(spans);

    let count = users.iter().map(|(_, messages)| messages.len() + 1 + count_fan_outs(messages)).sum();
    let mut results = if results.len() == count {
        results.into_iter()
    } else {
        // The pipeline failed as a whole: its only result is the error.
        let error = results.into_iter().find_map(Result::err).unwrap_or_else(RedisError::new_canceled);
        vec![Err(error); count].into_iter()
    };
    users.iter().map(|(_, messages)| take_results(&mut results, messages)).collect()
}

/// An event as it is sent to Redis.
struct Message {
    /// True if the fan-out stream has it already.
    fanned_out: bool,
    seq: i64,
    encoded: Vec<u8>,
}

impl Message {
    /// Encodes an event with the span of its publication, which is added to `spans`.
    fn new((row, event): &(&OutboxRow, OrderEvent), spans: &mut Vec<Span>) -> Self {
        let mut traced = event.clone();
        spans.push(start_publish_span(&mut traced));
        // An unchanged message is sent as it is, with the unknown fields of a newer version.
        let encoded = match &row.message {
            Some(message) if traced.traceparent == event.traceparent => message.clone(),
            Some(_) | None => traced.encode_to_vec(),
        };
        Self { fanned_out: row.fanned_out, seq: row.seq, encoded }
    }
}

fn count_fan_outs(messages: &[Message]) -> usize {
    messages.iter().filter(|message| !message.fanned_out).count()
}

/// Adds the commands for the events of a user to a pipeline.
async fn pipeline_events(
    pipeline: &Pipeline<Client>,
    user_id: i64,
    messages: &[Message],
) -> Result<(), RedisError> {
    let history = streams::history_stream(user_id);
    let max_len = ("MAXLEN", "~", i64::try_from(streams::HISTORY_MAXLEN).unwrap_or(i64::MAX));
    for Message { seq, encoded, .. } in messages {
        let field = (streams::MESSAGE_FIELD, encoded.as_slice());
        let () = pipeline.xadd(&history, false, max_len, format!("{seq}-0"), field).await?;
    }
    let () = pipeline.expire(&history, streams::HISTORY_TTL_SECONDS, None).await?;
    let fan_out = streams::fan_out_stream(user_id);
    let max_len = ("MAXLEN", "~", i64::try_from(streams::FAN_OUT_MAXLEN).unwrap_or(i64::MAX));
    for Message { encoded, .. } in messages.iter().filter(|message| !message.fanned_out) {
        let field = (streams::MESSAGE_FIELD, encoded.as_slice());
        let () = pipeline.xadd(&fan_out, false, max_len, "*", field).await?;
    }
    Ok(())
}

/// Takes the results of the commands of [`pipeline_events`].
fn take_results(
    results: &mut impl Iterator<Item = Result<Value, RedisError>>,
    messages: &[Message],
) -> Vec<SendResult> {
    let histories: Vec<_> = results.by_ref().take(messages.len()).map(to_failure).collect();
    let _expire = results.next();
    let mut fan_out =
        |message: &Message| if message.fanned_out { None } else { results.next().and_then(to_failure) };
    messages
        .iter()
        .zip(histories)
        .map(|(message, history)| SendResult { history, fan_out: fan_out(message) })
        .collect()
}

fn to_failure(result: Result<Value, RedisError>) -> Option<Failure> {
    match result {
        Ok(_) => None,
        // XADD rejects an id that is not above the last one: the stream has the event already.
        Err(error) if error.details().contains("equal or smaller") => None,
        Err(error) => Some(Failure::from(&error)),
    }
}

/// Starts the span of a publication within the event's trace, which the gateways continue.
fn start_publish_span(event: &mut OrderEvent) -> Span {
    let span = tracing::info_span!(
        "event.publish",
        otel.kind = "producer",
        user.id = event.user_id,
        event.seq = event.seq,
        order.id = %event.order_id,
    );
    telemetry::propagate_through(&span, &mut event.traceparent);
    span
}
