//! The relay of the transactional outbox: publishes events from PostgreSQL to Redis, in order per user, at least once.
//!
//! The relay publishes the events of several users at a time ([`publish`]); an error affects one user only. A commit wakes the relay of
//! its own process. A poll each second finds the events that another process has left. A killed relay releases its
//! locks and leaves its events to the other relays. An entry of the user's history has the event's number as its id, so
//! a second publication changes nothing there. Gateways drop the duplicate in a fan-out stream.

mod cause;
mod pipeline;
mod publish;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use fred::{
    clients::Client,
    interfaces::{ClientLike as _, KeysInterface as _},
    types::{SetOptions, Value},
};
use prost::Message as _;
use shoppee_kit::{
    process::Process,
    worker::{self, Round},
};
use shoppee_proto::streams;
use time::OffsetDateTime;
use tokio::{sync::watch, time::Instant};
use uuid::Uuid;

use self::{cause::Failures, publish::Publisher};
use crate::{
    OrderContext, convert,
    store::{event::EventRow, outbox},
    user_queue::UserQueue,
};

/// The interval of the poll for events that another process has left.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Bounds the events of a poll. If there are more, the next poll follows at once.
const MAX_POLLED_EVENTS: i64 = 1_000;
/// The overlap of polls: an event may be committed so much later than it was created.
const POLL_OVERLAP: Duration = Duration::from_secs(10);
/// The interval of polls of the whole outbox. They find events that were committed even later, or while a clock went
/// back.
const FULL_POLL_INTERVAL: Duration = Duration::from_mins(1);
/// Bounds the rows that the gauges count, so that a long outage does not slow down each poll.
const MAX_COUNTED: i64 = 100_000;
/// The delay after a failure to publish.
const OUTAGE_RETRY_DELAY: Duration = Duration::from_millis(250);
/// The interval of the check that the epoch exists.
const EPOCH_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Encodes an event for publication.
pub fn encode_event(event: &EventRow) -> Vec<u8> {
    convert::event(event).encode_to_vec()
}

/// The queues of users whose events this process has committed: one for the relay, one for the event log.
#[derive(Clone, Debug, Default)]
pub struct CommittedUsers {
    relay: UserQueue,
    pub event_log: UserQueue,
}

impl CommittedUsers {
    /// Queues a user with a committed event, and wakes both tasks.
    pub fn wake(&self, user_id: i64) {
        self.relay.push([user_id]);
        self.event_log.push([user_id]);
    }
}

/// The events that are not published, at the last poll.
#[derive(Clone, Copy, Debug, Default)]
pub struct OutboxBacklog {
    pub pending: i64,
    /// The age of the oldest one; zero without any.
    pub lag_seconds: f64,
    pub dead_letters: i64,
}

/// Starts the relay, the poll, and the worker that ensures the epoch.
pub fn start(context: &OrderContext, redis: &Client, process: &Process, ready: &watch::Receiver<bool>) {
    let publisher = Publisher::new(context, redis, Arc::new(Failures::new()));
    let relay =
        run_relay(context.committed_users.relay.clone(), publisher.clone(), process.clone(), ready.clone());
    process.tasks.spawn("relay", relay);

    let position = Arc::new(Mutex::new(PollPosition::default()));
    let backlog = context.outbox_backlog.clone();
    worker::spawn(process, "outbox", POLL_INTERVAL, ready.clone(), move || {
        poll(publisher.clone(), position.clone(), backlog.clone())
    });

    let redis = redis.clone();
    worker::spawn(process, "epoch", EPOCH_CHECK_INTERVAL, ready.clone(), move || ensure_epoch(redis.clone()));
}

/// Publishes the events that this process commits.
async fn run_relay(
    users: UserQueue,
    publisher: Publisher,
    process: Process,
    ready: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let stop = process.tasks.shutdown_token();
    while !stop.is_cancelled() {
        tokio::select! {
            () = users.notified() => {}
            () = stop.cancelled() => break,
        }
        if !*ready.borrow() {
            // A poll finds the events when PostgreSQL is available again.
            continue;
        }
        let pass = publisher.run_pass(users.take()).await;
        if !pass.failed.is_empty() {
            users.push(pass.failed);
            stop.run_until_cancelled(tokio::time::sleep(OUTAGE_RETRY_DELAY)).await;
        }
    }
    // A last pass, so that events do not wait for another process during a rolling restart.
    publisher.run_pass(users.take()).await;
    Ok(())
}

/// The time from which a poll reads the outbox. No older event is pending.
#[derive(Debug)]
struct PollPosition {
    since: OffsetDateTime,
    next_full_poll: Instant,
}

impl Default for PollPosition {
    fn default() -> Self {
        Self { since: OffsetDateTime::UNIX_EPOCH, next_full_poll: Instant::now() }
    }
}

impl PollPosition {
    /// Returns the time from which the next poll reads.
    fn next(&mut self, now: Instant) -> OffsetDateTime {
        if now >= self.next_full_poll {
            self.next_full_poll = now + FULL_POLL_INTERVAL;
            self.since = OffsetDateTime::UNIX_EPOCH;
        }
        self.since
    }

    /// Moves the position after a poll at the time `now` of the database, with its oldest event, if any.
    fn advance(&mut self, now: OffsetDateTime, oldest: Option<OffsetDateTime>) {
        let latest = now - POLL_OVERLAP;
        self.since = oldest.map_or(latest, |oldest| oldest.min(latest));
    }
}

/// Finds pending events, records their metrics, and publishes them.
#[expect(clippy::cast_precision_loss, reason = "gauges of at most 100 000 rows")]
async fn poll(
    publisher: Publisher,
    position: Arc<Mutex<PollPosition>>,
    backlog: Arc<watch::Sender<OutboxBacklog>>,
) -> anyhow::Result<Round> {
    let since = position.lock().unwrap_or_else(PoisonError::into_inner).next(Instant::now());
    let mut conn = publisher.acquire().await?;
    let stats = outbox::read_stats(&mut conn, MAX_COUNTED).await?;
    let events = outbox::list_pending(&mut conn, since, MAX_POLLED_EVENTS).await?;
    let len = i64::try_from(events.len()).unwrap_or(MAX_POLLED_EVENTS);
    let is_full = len == MAX_POLLED_EVENTS;
    let count = if is_full { outbox::count_pending(&mut conn, since, MAX_COUNTED).await? } else { len };
    let oldest = events.first().map(|(_, created_at)| *created_at);
    let mut users: Vec<i64> = events.into_iter().map(|(user_id, _)| user_id).collect();
    if stats.owed > 0 {
        users.extend(outbox::list_due_retries(&mut conn, MAX_POLLED_EVENTS).await?);
    }
    drop(conn);
    position.lock().unwrap_or_else(PoisonError::into_inner).advance(stats.now, oldest);

    let lag = oldest.into_iter().chain(stats.owed_since).min().map_or(0.0, |oldest| {
        // The clock of a process of the previous version may be ahead.
        (stats.now - oldest).as_seconds_f64().max(0.0)
    });
    metrics::gauge!("outbox_pending").set((count + stats.owed) as f64);
    metrics::gauge!("outbox_lag_seconds").set(lag);
    metrics::gauge!("outbox_dead_letters").set(stats.dead_letters as f64);
    let (pending, dead_letters) = (count + stats.owed, stats.dead_letters);
    backlog.send_replace(OutboxBacklog { pending, lag_seconds: lag, dead_letters });

    let mut unique = HashSet::new();
    users.retain(|user_id| unique.insert(*user_id));
    let pass = publisher.run_pass(users).await;
    if let Some(failure) = pass.failure {
        anyhow::bail!("{} events are pending, the oldest for {lag:.1} s: {failure}", count + stats.owed);
    }
    Ok(Round::more_if(is_full && pass.published > 0))
}

/// Sets the epoch in Redis if it does not exist. Its loss shows gateways that Redis lost its data.
async fn ensure_epoch(redis: Client) -> Result<Round, fred::error::Error> {
    let redis = redis.with_options(&shoppee_kit::redis::fail_fast_options());
    let epoch = Uuid::new_v4().to_string();
    let _reply: Value = redis.set(streams::EPOCH_KEY, epoch, None, Some(SetOptions::NX), false).await?;
    Ok(Round::Done)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_poll_begins_at_the_oldest_pending_event_and_periodically_at_the_beginning() {
        let (start, now) = (Instant::now(), datetime!(2026-01-01 12:00 UTC));
        let mut position = PollPosition::default();
        assert_eq!(position.next(start), OffsetDateTime::UNIX_EPOCH);
        position.advance(now, None);
        assert_eq!(position.next(start), now - POLL_OVERLAP);
        let oldest = now - time::Duration::minutes(5);
        position.advance(now, Some(oldest));
        assert_eq!(position.next(start), oldest, "a pending event is found again");
        assert_eq!(position.next(start + FULL_POLL_INTERVAL), OffsetDateTime::UNIX_EPOCH);
    }
}
