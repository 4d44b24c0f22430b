//! The outbox and its relay: events leave PostgreSQL for Redis, in order for each user, at least once.
//!
//! The relay publishes user by user ([`publish`]): an error stays with its user. A commit wakes the relay of its own
//! process; a look each second finds the events that another process has left. A relay that is killed anywhere leaves
//! its lock and its events to the others. An entry of the user's history has the event's number as its id, so
//! publishing twice changes nothing there. Gateways drop the copy in a fan-out stream.

mod cause;
mod publish;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use uuid::Uuid;

use self::{cause::Failures, publish::Publisher};
use crate::{
    Orders,
    store::{event::EventRow, outbox},
    view,
};

/// The time until a look finds an event that another process has left.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Events that a look takes at most; where there are more, the next look follows at once.
const LOOK_LIMIT: i64 = 1_000;
/// A look begins this long before the last one: an event may be committed so much later than it was created.
const LOOK_MARGIN: Duration = Duration::from_secs(10);
/// The interval of looks at the whole outbox. They find what was committed later still, or while a clock went back.
const WHOLE_LOOK_INTERVAL: Duration = Duration::from_mins(1);
/// Rows that the gauges count at most, so that a long outage does not make each look slower.
const MAX_COUNTED: i64 = 100_000;
/// Users that wait for the relay of this process; a look finds the events of more.
const MAX_DUE_USERS: usize = 10_000;
/// The wait after Redis, or PostgreSQL, took no event.
const OUTAGE_RETRY: Duration = Duration::from_millis(250);
/// The interval at which the epoch is kept.
const EPOCH_INTERVAL: Duration = Duration::from_secs(1);

/// Returns an event as it travels.
pub fn message(event: &EventRow) -> Vec<u8> {
    view::event(event).encode_to_vec()
}

/// The users whose events this process has committed, for its relay; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Relay {
    due: Arc<Mutex<HashSet<i64>>>,
    wake: Arc<Notify>,
}

impl Relay {
    /// Wakes the relay: an event of this user was committed.
    pub fn wake(&self, user_id: i64) {
        self.add([user_id]);
        self.wake.notify_one();
    }

    fn add(&self, users: impl IntoIterator<Item = i64>) {
        let mut due = self.lock();
        for user_id in users {
            if due.len() < MAX_DUE_USERS {
                due.insert(user_id);
            }
        }
    }

    fn take(&self) -> Vec<i64> {
        self.lock().drain().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<i64>> {
        // A set is whole after a panic too.
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the relay, its looks, and the worker that keeps the epoch.
pub fn start(orders: &Orders, redis: &Client, process: &Process, ready: &watch::Receiver<bool>) {
    let publisher = Publisher::new(orders, redis, Arc::new(Failures::new()));
    let relay = relay(orders.relay.clone(), publisher.clone(), process.clone(), ready.clone());
    process.tasks.spawn("relay", relay);

    let since = Arc::new(Mutex::new(Since::default()));
    worker::spawn(process, "outbox", LOOK_INTERVAL, ready.clone(), move || {
        look(publisher.clone(), since.clone())
    });

    let redis = redis.clone();
    worker::spawn(process, "epoch", EPOCH_INTERVAL, ready.clone(), move || keep_epoch(redis.clone()));
}

/// Publishes what this process commits.
async fn relay(
    relay: Relay,
    publisher: Publisher,
    process: Process,
    ready: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let stop = process.tasks.stopping();
    while !stop.is_cancelled() {
        tokio::select! {
            () = relay.wake.notified() => {}
            () = stop.cancelled() => break,
        }
        if !*ready.borrow() {
            // A look finds the events once PostgreSQL is back.
            continue;
        }
        let pass = publisher.pass(relay.take()).await;
        if !pass.failed.is_empty() {
            relay.add(pass.failed);
            relay.wake.notify_one();
            stop.run_until_cancelled(tokio::time::sleep(OUTAGE_RETRY)).await;
        }
    }
    // A rolling restart leaves nothing to wait for.
    publisher.pass(relay.take()).await;
    Ok(())
}

/// The time from which a look reads the outbox: before that time nothing waits.
#[derive(Debug)]
struct Since {
    at: OffsetDateTime,
    whole_look_at: Instant,
}

impl Default for Since {
    fn default() -> Self {
        Self { at: OffsetDateTime::UNIX_EPOCH, whole_look_at: Instant::now() }
    }
}

impl Since {
    /// Returns the time from which the next look reads.
    fn next(&mut self, now: Instant) -> OffsetDateTime {
        if now >= self.whole_look_at {
            self.whole_look_at = now + WHOLE_LOOK_INTERVAL;
            self.at = OffsetDateTime::UNIX_EPOCH;
        }
        self.at
    }

    /// Notes what a look at the time `now` of the database found: its oldest event, if any.
    fn looked(&mut self, now: OffsetDateTime, oldest: Option<OffsetDateTime>) {
        let settled = now - LOOK_MARGIN;
        self.at = oldest.map_or(settled, |oldest| oldest.min(settled));
    }
}

/// Looks for events that wait, measures them, and publishes them.
#[expect(clippy::cast_precision_loss, reason = "gauges of at most 100 000 rows")]
async fn look(publisher: Publisher, since: Arc<Mutex<Since>>) -> anyhow::Result<Round> {
    let from = since.lock().unwrap_or_else(PoisonError::into_inner).next(Instant::now());
    let mut conn = publisher.acquire().await?;
    let look = outbox::look(&mut conn, MAX_COUNTED).await?;
    let waiting = outbox::waiting(&mut conn, from, LOOK_LIMIT).await?;
    let found = i64::try_from(waiting.len()).unwrap_or(LOOK_LIMIT);
    let full = found == LOOK_LIMIT;
    let count = if full { outbox::count_waiting(&mut conn, from, MAX_COUNTED).await? } else { found };
    let oldest = waiting.first().map(|(_, created_at)| *created_at);
    let mut users: Vec<i64> = waiting.into_iter().map(|(user_id, _)| user_id).collect();
    if look.owed > 0 {
        users.extend(outbox::due(&mut conn, LOOK_LIMIT).await?);
    }
    drop(conn);
    since.lock().unwrap_or_else(PoisonError::into_inner).looked(look.now, oldest);

    let lag = oldest.into_iter().chain(look.owed_since).min().map_or(0.0, |oldest| {
        // The clock of a process of the version before may be ahead.
        (look.now - oldest).as_seconds_f64().max(0.0)
    });
    metrics::gauge!("outbox_pending").set((count + look.owed) as f64);
    metrics::gauge!("outbox_lag_seconds").set(lag);
    metrics::gauge!("outbox_dead_letters").set(look.dead_letters as f64);

    let mut seen = HashSet::new();
    users.retain(|user_id| seen.insert(*user_id));
    let pass = publisher.pass(users).await;
    if let Some(failure) = pass.failure {
        anyhow::bail!("{} events wait, the oldest for {lag:.1} s: {failure}", count + look.owed);
    }
    Ok(Round::more_if(full && pass.published > 0))
}

/// Keeps the word in Redis whose loss tells gateways that Redis lost its data.
async fn keep_epoch(redis: Client) -> Result<Round, fred::error::Error> {
    let redis = redis.with_options(&shoppee_kit::redis::on_request_path());
    let word = Uuid::new_v4().to_string();
    let _kept: Value = redis.set(streams::EPOCH, word, None, Some(SetOptions::NX), false).await?;
    Ok(Round::Done)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_look_begins_where_nothing_waited_before_and_at_times_at_the_beginning() {
        let (start, now) = (Instant::now(), datetime!(2026-01-01 12:00 UTC));
        let mut since = Since::default();
        assert_eq!(since.next(start), OffsetDateTime::UNIX_EPOCH);
        since.looked(now, None);
        assert_eq!(since.next(start), now - LOOK_MARGIN);
        let oldest = now - time::Duration::minutes(5);
        since.looked(now, Some(oldest));
        assert_eq!(since.next(start), oldest, "what still waits is found again");
        assert_eq!(since.next(start + WHOLE_LOOK_INTERVAL), OffsetDateTime::UNIX_EPOCH);
    }

    #[test]
    fn the_relay_forgets_users_beyond_its_bound() {
        let relay = Relay::default();
        relay.add(0..20_000);
        assert_eq!(relay.take().len(), MAX_DUE_USERS);
        assert!(relay.take().is_empty());
    }
}
