//! Publishes the events of several users in one transaction. An error affects one user only: the events of a user that a
//! batch leaves out, or of a batch that fails, are published user by user.
//!
//! If Redis accepts an event in the fan-out stream and not in the user's history, only that history is faulty. The
//! sockets have the event then. The history is retried a few times, without another copy in the fan-out stream. After
//! that the history is deleted and the event becomes a dead letter. This leaves no silent gap: gateways read the events
//! that a history lacks from PostgreSQL (`ListEvents`).

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use fred::{
    clients::Client,
    interfaces::{ClientLike as _, KeysInterface as _},
};
use futures_util::{StreamExt as _, stream};
use prost::Message as _;
use shoppee_kit::pg::PgPool;
use shoppee_proto::{order::v1::OrderEvent, streams};
use sqlx::{PgConnection, Postgres, pool::PoolConnection};

use super::{
    cause::{Cause, Failure, Failures},
    pipeline::{self, SendResult},
};
use crate::{
    OrderContext, convert,
    store::{
        event,
        outbox::{self, OutboxRow},
    },
};

/// Bounds the events that are published in one transaction.
const BATCH_SIZE: i64 = 500;
/// Bounds the users of a batch.
const MAX_BATCH_USERS: usize = 100;
/// Bounds the batches that a pass publishes concurrently. Each takes a connection of the pool, which requests need too.
const MAX_CONCURRENT_BATCHES: usize = 3;
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

    fn affects(&self, user_id: i64) -> bool {
        self.database.load(Ordering::Relaxed) || self.shard(user_id).load(Ordering::Relaxed)
    }

    fn record(&self, user_id: i64, outcome: &Outcome) {
        if let Outcome::Failed(Failure { cause, .. }) = outcome
            && *cause != Cause::Database
        {
            self.shard(user_id).store(true, Ordering::Relaxed);
        }
    }
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
        let batches = self.split(users).into_iter().map(|batch| self.publish_users(batch, &outages));
        let mut outcomes = stream::iter(batches).buffer_unordered(MAX_CONCURRENT_BATCHES);
        let mut pass = PassOutcome::default();
        while let Some(batch) = outcomes.next().await {
            for (user_id, outcome) in batch {
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
        }
        pass
    }

    /// Splits users into batches. In a cluster a batch has one fan-out stream, so that a node that is away delays no
    /// batch of another node.
    fn split(&self, mut users: Vec<i64>) -> Vec<Vec<i64>> {
        let is_clustered = self.redis.is_clustered();
        let lane = |user_id: i64| if is_clustered { user_id.rem_euclid(streams::SHARDS) } else { 0 };
        users.sort_unstable_by_key(|user_id| (lane(*user_id), *user_id));
        let lanes = users.chunk_by(|one, other| lane(*one) == lane(*other));
        lanes.flat_map(|lane| lane.chunks(MAX_BATCH_USERS)).map(<[i64]>::to_vec).collect()
    }

    /// Publishes the due events of users: in one transaction, and those of users that it leaves out one by one.
    async fn publish_users(&self, users: Vec<i64>, outages: &Outages) -> Vec<(i64, Outcome)> {
        let mut outcomes = HashMap::new();
        if users.len() > 1
            && self.redis.is_connected()
            && users.iter().all(|user_id| !outages.affects(*user_id))
        {
            // An error comes again, and is recorded, with the first user.
            outcomes = self.publish_together(&users).await.unwrap_or_default();
        }
        for (user_id, outcome) in &outcomes {
            outages.record(*user_id, outcome);
        }
        let mut all = Vec::with_capacity(users.len());
        for user_id in users {
            match outcomes.remove(&user_id) {
                Some(outcome) => all.push((user_id, outcome)),
                None => all.push(self.publish_unless_outage(user_id, outages).await),
            }
        }
        all
    }

    /// Publishes the due events of users in one transaction. The outcome lacks users without due events, users that
    /// another relay publishes, and those beyond the bound of a batch.
    async fn publish_together(&self, users: &[i64]) -> sqlx::Result<HashMap<i64, Outcome>> {
        let mut tx = self.pool.begin().await?;
        let rows = outbox::lock_due_unlocked(&mut tx, users, BATCH_SIZE).await?;
        let mut outcomes = self.publish_batch(&mut tx, &rows).await?;
        tx.commit().await?;
        if is_full(&rows)
            && let Some(last) = rows.last()
        {
            outcomes.remove(&last.user_id);
        }
        Ok(outcomes)
    }

    async fn publish_unless_outage(&self, user_id: i64, outages: &Outages) -> (i64, Outcome) {
        if outages.affects(user_id) {
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
        outages.record(user_id, &outcome);
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
            let mut outcomes = self.publish_batch(&mut tx, &batch).await?;
            tx.commit().await?;
            published = true;
            match outcomes.remove(&user_id) {
                Some(Outcome::Failed(failure)) => return Ok(Outcome::Failed(failure)),
                _ if is_full(&batch) => {}
                _ => return Ok(Outcome::Published),
            }
        }
    }

    /// Sends events and records the result of each. The rows are in order of their users. The outcome of a user is
    /// published, or failed if the fan-out stream does not accept all of its events.
    async fn publish_batch(
        &self,
        conn: &mut PgConnection,
        rows: &[OutboxRow],
    ) -> sqlx::Result<HashMap<i64, Outcome>> {
        let mut users = Vec::new();
        for rows in rows.chunk_by(|one, other| one.user_id == other.user_id) {
            let user_id = rows[0].user_id;
            let (events, missing) = self.load_events(conn, user_id, rows).await?;
            if !missing.is_empty() {
                let reason = "the event does not exist".to_owned();
                let failure = Failure { cause: Cause::MissingEvent, reason };
                self.move_to_dead_letters(conn, user_id, &missing, failure).await?;
            }
            users.push((user_id, events));
        }
        let results = pipeline::send(&self.redis, &users).await;
        let (mut outcomes, mut published) = (HashMap::new(), Vec::with_capacity(rows.len()));
        for ((user_id, events), results) in users.into_iter().zip(results) {
            let failure = self.record_results(conn, user_id, events, results, &mut published).await?;
            outcomes.insert(user_id, failure.map_or(Outcome::Published, Outcome::Failed));
        }
        if !published.is_empty() {
            let (user_ids, seqs): (Vec<i64>, Vec<i64>) = published.into_iter().unzip();
            outbox::delete(conn, &user_ids, &seqs).await?;
        }
        Ok(outcomes)
    }

    /// Records the results of a user's events, and adds the accepted ones to `published`. Returns the failure if the
    /// fan-out stream does not accept them all.
    async fn record_results(
        &self,
        conn: &mut PgConnection,
        user_id: i64,
        rows: Vec<(&OutboxRow, OrderEvent)>,
        results: Vec<SendResult>,
        published: &mut Vec<(i64, i64)>,
    ) -> sqlx::Result<Option<Failure>> {
        let (mut rejected, mut exhausted, mut unavailable) = (Vec::new(), Vec::new(), Vec::new());
        let (mut rejection, mut outage) = (None, None);
        for ((row, _), SendResult { history, fan_out }) in rows.into_iter().zip(results) {
            if let Some(failure) = fan_out {
                self.failures.record(&failure, user_id, &streams::fan_out_stream(user_id));
                outage = Some(failure);
                // The next attempt sends this row and those after it, in order.
                break;
            }
            let Some(failure) = history else {
                published.push((user_id, row.seq));
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
}

/// Reports whether a batch may have left rows out.
fn is_full(rows: &[OutboxRow]) -> bool {
    i64::try_from(rows.len()).is_ok_and(|count| count == BATCH_SIZE)
}

/// Reports whether the wait for a lock timed out (SQLSTATE 55P03).
fn is_lock_timeout(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "55P03")
}
