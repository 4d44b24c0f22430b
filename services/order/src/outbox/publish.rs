//! Publishes events user by user, so that an error affects one user only.
//!
//! If Redis accepts an event in the fan-out stream and not in the user's history, only that history is faulty. The
//! sockets have the event then. The history is retried a few times, without another copy in the fan-out stream. After
//! that the history is deleted and the event becomes a dead letter. This leaves no silent gap: gateways read the events
//! that a history lacks from PostgreSQL (`ListEvents`).

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use fred::{
    clients::{Client, Pipeline},
    error::Error as RedisError,
    interfaces::{ClientLike as _, KeysInterface as _, StreamsInterface as _},
    types::Value,
};
use futures_util::{StreamExt as _, stream};
use prost::Message as _;
use shoppee_kit::pg::PgPool;
use shoppee_kit::telemetry;
use shoppee_proto::{order::v1::OrderEvent, streams};
use sqlx::{PgConnection, Postgres, pool::PoolConnection};
use tracing::Span;

use super::cause::{Cause, Failure, Failures};
use crate::{
    OrderContext, convert,
    store::{
        event,
        outbox::{self, OutboxRow},
    },
};

/// Bounds the events of a user that are published in one transaction.
const BATCH_SIZE: i64 = 500;
/// Bounds the users that a pass publishes concurrently. Each takes a connection of the pool, which requests need too.
const MAX_CONCURRENT_USERS: usize = 3;
/// Bounds the attempts to write an event to a user's history before it becomes a dead letter.
const MAX_ATTEMPTS: i16 = 4;
/// The delay before a history that rejected an event is retried, doubled with each attempt. Seconds.
const REJECTED_RETRY_DELAY: f64 = 0.5;
/// The delay before a history on an unavailable Redis node is retried. This does not count as an attempt. Seconds.
const UNAVAILABLE_RETRY_DELAY: f64 = 5.0;
/// Bounds the reason of a dead letter. Characters.
const MAX_REASON_CHARS: usize = 300;

/// A publisher of events. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Publisher {
    pool: PgPool,
    redis: Client,
    failures: Arc<Failures>,
}

/// The outcome of a pass over users.
#[derive(Debug, Default)]
pub struct PassOutcome {
    /// The number of users with published events.
    pub published: usize,
    /// Users whose events are still pending: a server failed, or another relay holds their locks for too long.
    pub failed: Vec<i64>,
    pub failure: Option<Failure>,
}

enum Outcome {
    Published,
    /// The user has no due event.
    Idle,
    Failed(Failure),
    /// Another relay holds the user's locks, or an outage was detected with another user.
    Skipped,
}

/// The servers that a pass has found to be unavailable.
struct Outages {
    database: AtomicBool,
    /// One flag per fan-out stream, which may be on different nodes of a cluster.
    shards: Vec<AtomicBool>,
}

impl Outages {
    fn new() -> Self {
        Self {
            database: AtomicBool::new(false),
            shards: (0..streams::SHARDS).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    fn shard(&self, user_id: i64) -> &AtomicBool {
        let shard = usize::try_from(user_id.rem_euclid(streams::SHARDS)).unwrap_or_default();
        &self.shards[shard]
    }
}

/// The failures of one event; `None` if it was accepted, or not sent.
struct SendResult {
    history: Option<Failure>,
    fan_out: Option<Failure>,
}

impl Publisher {
    pub fn new(context: &OrderContext, redis: &Client, failures: Arc<Failures>) -> Self {
        Self { pool: context.pool.clone(), redis: redis.clone(), failures }
    }

    pub async fn acquire(&self) -> sqlx::Result<PoolConnection<Postgres>> {
        self.pool.acquire().await
    }

    /// Publishes the pending events of these users.
    pub async fn run_pass(&self, users: Vec<i64>) -> PassOutcome {
        let outages = Outages::new();
        let users = users.into_iter().map(|user_id| self.publish_unless_outage(user_id, &outages));
        let mut outcomes = stream::iter(users).buffer_unordered(MAX_CONCURRENT_USERS);
        let mut pass = PassOutcome::default();
        while let Some((user_id, outcome)) = outcomes.next().await {
            match outcome {
                Outcome::Published => pass.published += 1,
                Outcome::Idle => {}
                Outcome::Skipped => pass.failed.push(user_id),
                Outcome::Failed(failure) => {
                    pass.failed.push(user_id);
                    pass.failure.get_or_insert(failure);
                }
            }
        }
        pass
    }

    async fn publish_unless_outage(&self, user_id: i64, outages: &Outages) -> (i64, Outcome) {
        if outages.database.load(Ordering::Relaxed) || outages.shard(user_id).load(Ordering::Relaxed) {
            return (user_id, Outcome::Skipped);
        }
        let outcome = self.publish(user_id).await.unwrap_or_else(|error| {
            if is_lock_timeout(&error) {
                return Outcome::Skipped;
            }
            outages.database.fetch_or(shoppee_kit::pg::is_unavailable(&error), Ordering::Relaxed);
            let failure = Failure::from(error);
            self.failures.record(&failure, user_id, "orders.outbox");
            Outcome::Failed(failure)
        });
        if let Outcome::Failed(Failure { cause, .. }) = &outcome
            && *cause != Cause::Database
        {
            outages.shard(user_id).store(true, Ordering::Relaxed);
        }
        (user_id, outcome)
    }

    /// Publishes the due events of a user.
    async fn publish(&self, user_id: i64) -> sqlx::Result<Outcome> {
        // Without a connection no event is read.
        if !self.redis.is_connected() {
            let failure = Failure { cause: Cause::Unreachable, reason: "not connected".to_owned() };
            self.failures.record(&failure, user_id, &streams::fan_out_stream(user_id));
            return Ok(Outcome::Failed(failure));
        }
        let mut published = false;
        loop {
            let mut tx = self.pool.begin().await?;
            let batch = outbox::lock_due(&mut tx, user_id, BATCH_SIZE).await?;
            if batch.is_empty() {
                tx.rollback().await?;
                return Ok(if published { Outcome::Published } else { Outcome::Idle });
            }
            let is_full = i64::try_from(batch.len()).is_ok_and(|count| count == BATCH_SIZE);
            let outage = self.publish_batch(&mut tx, user_id, &batch).await?;
            tx.commit().await?;
            published = true;
            match outage {
                Some(failure) => return Ok(Outcome::Failed(failure)),
                None if is_full => {}
                None => return Ok(Outcome::Published),
            }
        }
    }

    /// Sends events and records the result of each. Returns the failure if the fan-out stream does not accept them all.
    async fn publish_batch(
        &self,
        conn: &mut PgConnection,
        user_id: i64,
        batch: &[OutboxRow],
    ) -> sqlx::Result<Option<Failure>> {
        let (rows, missing) = self.load_events(conn, user_id, batch).await?;
        if !missing.is_empty() {
            let reason = "the event does not exist".to_owned();
            self.move_to_dead_letters(
                conn,
                user_id,
                &missing,
                Failure { cause: Cause::MissingEvent, reason },
            )
            .await?;
        }
        let results = self.send(user_id, &rows).await;

        let (mut published, mut rejected) = (Vec::new(), Vec::new());
        let (mut exhausted, mut unavailable) = (Vec::new(), Vec::new());
        let (mut rejection, mut outage) = (None, None);
        for ((row, _), SendResult { history, fan_out }) in rows.into_iter().zip(results) {
            if let Some(failure) = fan_out {
                self.failures.record(&failure, user_id, &streams::fan_out_stream(user_id));
                outage = Some(failure);
                // The next attempt sends this row and those after it, in order.
                break;
            }
            let Some(failure) = history else {
                published.push(row.seq);
                continue;
            };
            self.failures.record(&failure, user_id, &streams::history_stream(user_id));
            if !failure.cause.is_key_specific() {
                unavailable.push(row.seq);
            } else if row.attempts + 1 < MAX_ATTEMPTS {
                rejected.push(row.seq);
            } else {
                exhausted.push(row.seq);
                rejection = Some(failure);
            }
        }
        if let Some(rejection) = rejection {
            // Gateways trust a history whose newest entry is old, but not one that does not exist.
            match self.redis.unlink::<(), _>(streams::history_stream(user_id)).await {
                Ok(()) => self.move_to_dead_letters(conn, user_id, &exhausted, rejection).await?,
                Err(_) => unavailable.extend(exhausted),
            }
        }
        if !published.is_empty() {
            outbox::delete(conn, user_id, &published).await?;
        }
        if !rejected.is_empty() {
            outbox::schedule_history_retry(conn, user_id, &rejected, true, REJECTED_RETRY_DELAY).await?;
        }
        if !unavailable.is_empty() {
            let delay = UNAVAILABLE_RETRY_DELAY;
            outbox::schedule_history_retry(conn, user_id, &unavailable, false, delay).await?;
        }
        Ok(outage)
    }

    async fn move_to_dead_letters(
        &self,
        conn: &mut PgConnection,
        user_id: i64,
        seqs: &[i64],
        failure: Failure,
    ) -> sqlx::Result<()> {
        self.failures.record(&failure, user_id, "orders.outbox_dead_letter");
        let reason: String = failure.to_string().chars().take(MAX_REASON_CHARS).collect();
        outbox::move_to_dead_letters(conn, user_id, seqs, &reason).await
    }

    /// Decodes the events of a batch, and reads the events of rows without a message. Also returns the numbers of
    /// events that do not exist.
    async fn load_events<'b>(
        &self,
        conn: &mut PgConnection,
        user_id: i64,
        batch: &'b [OutboxRow],
    ) -> sqlx::Result<(Vec<(&'b OutboxRow, OrderEvent)>, Vec<i64>)> {
        let decode = |row: &OutboxRow| OrderEvent::decode(row.message.as_deref()?).ok();
        let mut events: Vec<Option<OrderEvent>> = batch.iter().map(decode).collect();
        let seqs_without_event = |events: &[Option<OrderEvent>]| -> Vec<i64> {
            batch.iter().zip(events).filter(|(_, event)| event.is_none()).map(|(row, _)| row.seq).collect()
        };
        let without_message = seqs_without_event(&events);
        if !without_message.is_empty() {
            for row in event::find_by_seqs(conn, user_id, &without_message).await? {
                if let Ok(index) = batch.binary_search_by_key(&row.seq, |row| row.seq) {
                    events[index] = Some(convert::event(&row));
                }
            }
        }
        let missing = seqs_without_event(&events);
        let rows = batch.iter().zip(events).filter_map(|(row, event)| Some((row, event?))).collect();
        Ok((rows, missing))
    }

    /// Adds events of a user to Redis: all of them to the user's history first, then to the fan-out stream of all
    /// gateways.
    async fn send(&self, user_id: i64, rows: &[(&OutboxRow, OrderEvent)]) -> Vec<SendResult> {
        let mut spans: Vec<Span> = Vec::with_capacity(rows.len());
        let messages: Vec<(bool, i64, Vec<u8>)> = rows
            .iter()
            .map(|(row, event)| {
                let mut traced = event.clone();
                spans.push(start_publish_span(&mut traced));
                // An unchanged message is sent as it is, with the unknown fields of a newer version.
                let message = match &row.message {
                    Some(message) if traced.traceparent == event.traceparent => message.clone(),
                    Some(_) | None => traced.encode_to_vec(),
                };
                (row.fanned_out, row.seq, message)
            })
            .collect();
        let pipeline = self.redis.pipeline();
        let results = match pipeline_events(&pipeline, user_id, &messages).await {
            Ok(()) => pipeline.try_all::<Value>().await,
            Err(error) => vec![Err(error)],
        };
        drop(spans);

        let fan_outs = messages.iter().filter(|(fanned_out, ..)| !fanned_out).count();
        let mut results = if results.len() == messages.len() + 1 + fan_outs {
            results
        } else {
            // The pipeline failed as a whole: its only result is the error.
            let error = results.into_iter().find_map(Result::err).unwrap_or_else(RedisError::new_canceled);
            vec![Err(error); messages.len() + 1 + fan_outs]
        };
        let mut fan_outs = results.split_off(messages.len() + 1).into_iter();
        messages
            .iter()
            .zip(results)
            .map(|((fanned_out, ..), history)| SendResult {
                history: to_failure(history),
                fan_out: if *fanned_out { None } else { fan_outs.next().and_then(to_failure) },
            })
            .collect()
    }
}

/// Adds the commands for events to a pipeline.
async fn pipeline_events(
    pipeline: &Pipeline<Client>,
    user_id: i64,
    messages: &[(bool, i64, Vec<u8>)],
) -> Result<(), RedisError> {
    let history = streams::history_stream(user_id);
    let max_len = ("MAXLEN", "~", i64::try_from(streams::HISTORY_MAXLEN).unwrap_or(i64::MAX));
    for (_, seq, message) in messages {
        let field = (streams::MESSAGE_FIELD, message.as_slice());
        let () = pipeline.xadd(&history, false, max_len, format!("{seq}-0"), field).await?;
    }
    let () = pipeline.expire(&history, streams::HISTORY_TTL_SECONDS, None).await?;
    let fan_out = streams::fan_out_stream(user_id);
    let max_len = ("MAXLEN", "~", i64::try_from(streams::FAN_OUT_MAXLEN).unwrap_or(i64::MAX));
    for (_, _, message) in messages.iter().filter(|(fanned_out, ..)| !fanned_out) {
        let field = (streams::MESSAGE_FIELD, message.as_slice());
        let () = pipeline.xadd(&fan_out, false, max_len, "*", field).await?;
    }
    Ok(())
}

/// Reports whether the wait for a lock timed out (SQLSTATE 55P03).
fn is_lock_timeout(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "55P03")
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
