//! Publishes the events of users, one user at a time, so that an error stays with its user.
//!
//! Redis that takes a user's event in the fan-out stream and not in the user's history has a fault in that history
//! alone. The event has then reached the sockets; the history is tried again a few times, without another copy in the
//! fan-out stream. After that the history is deleted and the event becomes a dead letter. That leaves no silent gap:
//! gateways read what a history lacks from PostgreSQL (`ListEvents`).

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
    Orders,
    store::{
        event,
        outbox::{self, Waiting},
    },
    view,
};

/// Events of a user that are published in one transaction.
const BATCH: i64 = 500;
/// Users that a pass publishes at a time: each takes a connection of the pool, from which orders are served too.
const MAX_CONCURRENT_USERS: usize = 3;
/// The times that a user's history is tried before its events are given up.
const MAX_ATTEMPTS: i16 = 4;
/// The wait in seconds before a history that refused an event is tried again; it doubles with each attempt.
const REFUSED_RETRY: f64 = 0.5;
/// The same where the Redis that has the history is away; it does not count as an attempt.
const AWAY_RETRY: f64 = 5.0;
/// The reason of a dead letter is cut to this many characters.
const MAX_REASON_LENGTH: usize = 300;

/// Publishes events; cheap to clone.
#[derive(Clone, Debug)]
pub struct Publisher {
    pool: PgPool,
    redis: Client,
    failures: Arc<Failures>,
}

/// The outcome of a pass over users.
#[derive(Debug, Default)]
pub struct Pass {
    /// Users with events that were published.
    pub published: usize,
    /// Users whose events wait: Redis, or PostgreSQL, takes none, or another relay has them for too long.
    pub failed: Vec<i64>,
    pub failure: Option<Failure>,
}

enum Outcome {
    Published,
    /// Nothing waits, or nothing is due.
    Idle,
    Failed(Failure),
    /// Another relay has the user's events, or another user's turn has failed for a cause that is not the user's.
    Skipped,
}

/// The servers that a pass has found to be away.
struct Away {
    database: AtomicBool,
    /// Flags by fan-out stream, each of which may be on another node of a cluster.
    shards: Vec<AtomicBool>,
}

impl Away {
    fn new() -> Self {
        Self {
            database: AtomicBool::new(false),
            shards: (0..streams::SHARDS).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    fn of(&self, user_id: i64) -> &AtomicBool {
        let shard = usize::try_from(user_id.rem_euclid(streams::SHARDS)).unwrap_or_default();
        &self.shards[shard]
    }
}

/// The answers of Redis to one event; `None` where it was taken, or not sent.
struct Answers {
    history: Option<Failure>,
    fan_out: Option<Failure>,
}

impl Publisher {
    pub fn new(orders: &Orders, redis: &Client, failures: Arc<Failures>) -> Self {
        Self { pool: orders.pool.clone(), redis: redis.clone(), failures }
    }

    pub async fn acquire(&self) -> sqlx::Result<PoolConnection<Postgres>> {
        self.pool.acquire().await
    }

    /// Publishes what waits of these users.
    pub async fn pass(&self, users: Vec<i64>) -> Pass {
        let away = Away::new();
        let turns = users.into_iter().map(|user_id| self.turn(user_id, &away));
        let mut turns = stream::iter(turns).buffer_unordered(MAX_CONCURRENT_USERS);
        let mut pass = Pass::default();
        while let Some((user_id, outcome)) = turns.next().await {
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

    async fn turn(&self, user_id: i64, away: &Away) -> (i64, Outcome) {
        if away.database.load(Ordering::Relaxed) || away.of(user_id).load(Ordering::Relaxed) {
            return (user_id, Outcome::Skipped);
        }
        let outcome = self.publish(user_id).await.unwrap_or_else(|error| {
            if is_locked(&error) {
                return Outcome::Skipped;
            }
            away.database.fetch_or(shoppee_kit::pg::is_unavailable(&error), Ordering::Relaxed);
            let failure = Failure::from(error);
            self.failures.record(&failure, user_id, "orders.outbox");
            Outcome::Failed(failure)
        });
        if let Outcome::Failed(Failure { cause, .. }) = &outcome
            && *cause != Cause::Database
        {
            away.of(user_id).store(true, Ordering::Relaxed);
        }
        (user_id, outcome)
    }

    /// Publishes what waits of a user.
    async fn publish(&self, user_id: i64) -> sqlx::Result<Outcome> {
        // Nothing is read that cannot be sent.
        if !self.redis.is_connected() {
            let failure = Failure { cause: Cause::Unreachable, reason: "not connected".to_owned() };
            self.failures.record(&failure, user_id, &streams::fan_out(user_id));
            return Ok(Outcome::Failed(failure));
        }
        let mut published = false;
        loop {
            let mut tx = self.pool.begin().await?;
            let waiting = outbox::claim(&mut tx, user_id, BATCH).await?;
            if waiting.is_empty() {
                tx.rollback().await?;
                return Ok(if published { Outcome::Published } else { Outcome::Idle });
            }
            let full = i64::try_from(waiting.len()).is_ok_and(|count| count == BATCH);
            let outage = self.publish_claimed(&mut tx, user_id, &waiting).await?;
            tx.commit().await?;
            published = true;
            match outage {
                Some(failure) => return Ok(Outcome::Failed(failure)),
                None if full => {}
                None => return Ok(Outcome::Published),
            }
        }
    }

    /// Sends events and notes what became of each. Returns why the fan-out stream does not take them all.
    async fn publish_claimed(
        &self,
        conn: &mut PgConnection,
        user_id: i64,
        waiting: &[Waiting],
    ) -> sqlx::Result<Option<Failure>> {
        let (rows, missing) = self.with_events(conn, user_id, waiting).await?;
        if !missing.is_empty() {
            let reason = "the event does not exist".to_owned();
            self.give_up(conn, user_id, &missing, Failure { cause: Cause::MissingEvent, reason }).await?;
        }
        let answers = self.send(user_id, &rows).await;

        let (mut done, mut refused, mut last, mut owed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut refusal, mut outage) = (None, None);
        for ((row, _), Answers { history, fan_out }) in rows.into_iter().zip(answers) {
            if let Some(failure) = fan_out {
                self.failures.record(&failure, user_id, &streams::fan_out(user_id));
                outage = Some(failure);
                // The rows behind it are sent again with it, in order.
                break;
            }
            let Some(failure) = history else {
                done.push(row.seq);
                continue;
            };
            self.failures.record(&failure, user_id, &streams::history(user_id));
            if !failure.cause.is_of_key() {
                owed.push(row.seq);
            } else if row.attempts + 1 < MAX_ATTEMPTS {
                refused.push(row.seq);
            } else {
                last.push(row.seq);
                refusal = Some(failure);
            }
        }
        if let Some(refusal) = refusal {
            // Gateways believe a history whose newest entry is old, but not one that is gone.
            match self.redis.unlink::<(), _>(streams::history(user_id)).await {
                Ok(()) => self.give_up(conn, user_id, &last, refusal).await?,
                Err(_) => owed.extend(last),
            }
        }
        if !done.is_empty() {
            outbox::remove(conn, user_id, &done).await?;
        }
        if !refused.is_empty() {
            outbox::owe_history(conn, user_id, &refused, true, REFUSED_RETRY).await?;
        }
        if !owed.is_empty() {
            outbox::owe_history(conn, user_id, &owed, false, AWAY_RETRY).await?;
        }
        Ok(outage)
    }

    async fn give_up(
        &self,
        conn: &mut PgConnection,
        user_id: i64,
        seqs: &[i64],
        failure: Failure,
    ) -> sqlx::Result<()> {
        self.failures.record(&failure, user_id, "orders.outbox_dead_letter");
        let reason: String = failure.to_string().chars().take(MAX_REASON_LENGTH).collect();
        outbox::give_up(conn, user_id, seqs, &reason).await
    }

    /// Decodes what waits, and reads the events of rows without a message; also returns the numbers of those that do not
    /// exist.
    async fn with_events<'w>(
        &self,
        conn: &mut PgConnection,
        user_id: i64,
        waiting: &'w [Waiting],
    ) -> sqlx::Result<(Vec<(&'w Waiting, OrderEvent)>, Vec<i64>)> {
        let decode = |row: &Waiting| OrderEvent::decode(row.message.as_deref()?).ok();
        let mut events: Vec<Option<OrderEvent>> = waiting.iter().map(decode).collect();
        let without = |events: &[Option<OrderEvent>]| -> Vec<i64> {
            waiting.iter().zip(events).filter(|(_, event)| event.is_none()).map(|(row, _)| row.seq).collect()
        };
        let unread = without(&events);
        if !unread.is_empty() {
            for found in event::of_seqs(conn, user_id, &unread).await? {
                if let Ok(at) = waiting.binary_search_by_key(&found.seq, |row| row.seq) {
                    events[at] = Some(view::event(&found));
                }
            }
        }
        let missing = without(&events);
        let rows = waiting.iter().zip(events).filter_map(|(row, event)| Some((row, event?))).collect();
        Ok((rows, missing))
    }

    /// Puts events of a user into Redis, all into the user's history before the stream that all gateways read.
    async fn send(&self, user_id: i64, rows: &[(&Waiting, OrderEvent)]) -> Vec<Answers> {
        let mut spans: Vec<Span> = Vec::with_capacity(rows.len());
        let messages: Vec<(bool, i64, Vec<u8>)> = rows
            .iter()
            .map(|(row, event)| {
                let mut traced = event.clone();
                spans.push(trace(&mut traced));
                // A message goes as it is, with what a newer version has put into it, unless its trace goes on here.
                let message = match &row.message {
                    Some(message) if traced.traceparent == event.traceparent => message.clone(),
                    Some(_) | None => traced.encode_to_vec(),
                };
                (row.fanned_out, row.seq, message)
            })
            .collect();
        let pipeline = self.redis.pipeline();
        let results = match queue(&pipeline, user_id, &messages).await {
            Ok(()) => pipeline.try_all::<Value>().await,
            Err(error) => vec![Err(error)],
        };
        drop(spans);

        let fan_outs = messages.iter().filter(|(fanned_out, ..)| !fanned_out).count();
        let mut results = if results.len() == messages.len() + 1 + fan_outs {
            results
        } else {
            // The pipeline failed as a whole: its only result is why.
            let error = results.into_iter().find_map(Result::err).unwrap_or_else(RedisError::new_canceled);
            vec![Err(error); messages.len() + 1 + fan_outs]
        };
        let mut fan_outs = results.split_off(messages.len() + 1).into_iter();
        messages
            .iter()
            .zip(results)
            .map(|((fanned_out, ..), history)| Answers {
                history: failure(history),
                fan_out: if *fanned_out { None } else { fan_outs.next().and_then(failure) },
            })
            .collect()
    }
}

async fn queue(
    pipeline: &Pipeline<Client>,
    user_id: i64,
    messages: &[(bool, i64, Vec<u8>)],
) -> Result<(), RedisError> {
    let history = streams::history(user_id);
    let kept = ("MAXLEN", "~", i64::try_from(streams::HISTORY_KEPT).unwrap_or(i64::MAX));
    for (_, seq, message) in messages {
        let field = (streams::FIELD, message.as_slice());
        let () = pipeline.xadd(&history, false, kept, format!("{seq}-0"), field).await?;
    }
    let () = pipeline.expire(&history, streams::HISTORY_TTL, None).await?;
    let fan_out = streams::fan_out(user_id);
    let kept = ("MAXLEN", "~", i64::try_from(streams::FAN_OUT_KEPT).unwrap_or(i64::MAX));
    for (_, _, message) in messages.iter().filter(|(fanned_out, ..)| !fanned_out) {
        let field = (streams::FIELD, message.as_slice());
        let () = pipeline.xadd(&fan_out, false, kept, "*", field).await?;
    }
    Ok(())
}

/// Reports whether another transaction has had a lock for too long (SQLSTATE 55P03).
fn is_locked(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "55P03")
}

fn failure(result: Result<Value, RedisError>) -> Option<Failure> {
    match result {
        Ok(_) => None,
        // XADD's refusal of an id that is not above the last one: the event is there already.
        Err(error) if error.details().contains("equal or smaller") => None,
        Err(error) => Some(Failure::from(&error)),
    }
}

/// The publishing as a step of the event's own trace, which goes on from there in the gateways.
fn trace(event: &mut OrderEvent) -> Span {
    let span = tracing::info_span!(
        "event.publish",
        otel.kind = "producer",
        user.id = event.user_id,
        event.seq = event.seq,
        order.id = %event.order_id,
    );
    telemetry::go_through(&span, &mut event.traceparent);
    span
}
