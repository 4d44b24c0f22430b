//! The log of the events of all users: one sequence of gapless positions, which consumers follow by `WatchEvents`.
//!
//! A trigger queues the key of each event in the transaction of the event. The appender moves keys from the queue to the
//! log after the commit and numbers them there, under the lock of the log's head. The order of positions is therefore the
//! order of the appender's commits: an entry never appears below a position that a consumer has read, and no identity
//! column and no transaction horizon is needed. Redis takes no part. A commit wakes the appender of its own process; a
//! poll finds the events that another process has left.
//!
//! [`tail`] holds the newest entries in memory for all streams of the process, [`watch`] serves one stream.

mod tail;
mod watch;

use std::{sync::Arc, time::Duration};

use shoppee_kit::{
    log_throttle::LogThrottle,
    pg::PgPool,
    process::Process,
    worker::{self, Round},
};
use sqlx::PgConnection;
use tokio::sync::{Semaphore, watch as watch_channel};

use crate::{
    OrderContext, convert,
    error::Error,
    store::event_log::{self, LogBounds},
    user_queue::UserQueue,
};

use self::tail::{Entry, Tail};
pub use self::watch::{EventStreams, Messages, Start};

/// The interval of the poll for events that another process has left.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Bounds the events that are appended in one transaction, which holds the lock of the head.
const APPEND_BATCH_SIZE: i64 = 1_000;
/// Bounds the events of a poll. If there are more, the next poll follows at once.
const MAX_POLLED_EVENTS: i64 = 1_000;
/// Bounds the rows that the gauge counts, so that a long outage does not slow down each poll.
const MAX_COUNTED: i64 = 100_000;
/// The delay after a failure to append.
const RETRY_DELAY: Duration = Duration::from_millis(250);
/// Bounds the events of a page.
const PAGE_SIZE: i64 = 256;
/// Bounds the pages that are read concurrently. Each takes a connection of the pool, which requests need too.
const MAX_CONCURRENT_PAGES: usize = 3;

/// The log, with its newest entries. Clones share them.
#[derive(Clone, Debug)]
pub struct EventLog {
    pool: PgPool,
    tail: Arc<Tail>,
    page_permits: Arc<Semaphore>,
}

/// The entries of a part of the log, up to the position `until`.
#[derive(Debug)]
struct Page {
    entries: Vec<Arc<Entry>>,
    until: i64,
}

impl EventLog {
    pub fn new(pool: &PgPool) -> Self {
        Self {
            pool: pool.clone(),
            tail: Arc::default(),
            page_permits: Arc::new(Semaphore::new(MAX_CONCURRENT_PAGES)),
        }
    }

    /// Appends the queued events of these users.
    async fn append(&self, users: &[i64]) -> sqlx::Result<()> {
        if users.is_empty() {
            return Ok(());
        }
        loop {
            let mut tx = self.pool.begin().await?;
            let head = event_log::lock_head(&mut tx).await?;
            let appended = event_log::append(&mut tx, head, users, APPEND_BATCH_SIZE).await?;
            tx.commit().await?;
            if appended > 0 {
                self.tail.wake();
            }
            if appended < APPEND_BATCH_SIZE {
                return Ok(());
            }
        }
    }

    async fn bounds(&self) -> sqlx::Result<LogBounds> {
        event_log::bounds(&mut *self.pool.acquire().await?).await
    }

    /// Returns a page of the entries after the position `after`, up to the position `head`: those with one of
    /// `statuses`, or all if there are none.
    async fn read_page(&self, after: i64, head: i64, statuses: &[String]) -> Result<Page, Error> {
        if let Some(page) = self.tail.page(after, PAGE_SIZE, statuses) {
            return Ok(page);
        }
        // The semaphore is never closed.
        let _permit = self.page_permits.acquire().await;
        let until = head.min(after + PAGE_SIZE);
        let mut conn = self.pool.acquire().await?;
        let entries = list(&mut conn, after, until, statuses).await?;
        // Read last: the entries of the page are complete if the oldest one is still below them.
        if event_log::bounds(&mut conn).await?.oldest > after + 1 {
            return Err(Error::CursorOutOfRange);
        }
        Ok(Page { entries, until })
    }
}

async fn list(
    conn: &mut PgConnection,
    after: i64,
    until: i64,
    statuses: &[String],
) -> sqlx::Result<Vec<Arc<Entry>>> {
    let rows = event_log::list(conn, after, until, statuses).await?;
    let entry = |row: event_log::LogRow| Entry { position: row.position, event: convert::event(&row.event) };
    Ok(rows.into_iter().map(|row| Arc::new(entry(row))).collect())
}

/// Starts the appender, the poll, and the reader of the tail.
pub fn start(
    context: &OrderContext,
    log: &EventLog,
    process: &Process,
    ready: &watch_channel::Receiver<bool>,
) {
    metrics::gauge!("event_streams").set(0);
    let users = context.committed_users.event_log.clone();
    process.tasks.spawn("event-appender", run_appender(log.clone(), users, process.clone(), ready.clone()));
    process.tasks.spawn("event-tail", tail::run(log.clone(), process.tasks.clone()));
    let log = log.clone();
    worker::spawn(process, "event-log", POLL_INTERVAL, ready.clone(), move || poll(log.clone()));
}

/// Appends the events that this process commits.
async fn run_appender(
    log: EventLog,
    users: UserQueue,
    process: Process,
    ready: watch_channel::Receiver<bool>,
) -> anyhow::Result<()> {
    let failures = LogThrottle::default();
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
        if let Err(error) = log.append(&users.take()).await {
            if let Some(suppressed) = failures.admit() {
                tracing::warn!(%error, suppressed, "events were not appended to the log");
            }
            // The poll finds the events.
            stop.run_until_cancelled(tokio::time::sleep(RETRY_DELAY)).await;
        }
    }
    // A last pass, so that events do not wait for another process during a rolling restart.
    if let Err(error) = log.append(&users.take()).await {
        tracing::warn!(%error, "events were left to the log of another process");
    }
    Ok(())
}

/// Appends the events that another process has left, and records their number.
#[expect(clippy::cast_precision_loss, reason = "a gauge of at most 100 000 rows")]
async fn poll(log: EventLog) -> sqlx::Result<Round> {
    let mut conn = log.pool.acquire().await?;
    let users = event_log::list_queued_users(&mut conn, MAX_POLLED_EVENTS).await?;
    let pending = if users.is_empty() { 0 } else { event_log::count_queued(&mut conn, MAX_COUNTED).await? };
    drop(conn);
    metrics::gauge!("event_log_pending").set(pending as f64);
    log.append(&users).await?;
    Ok(Round::more_if(pending > MAX_POLLED_EVENTS))
}
