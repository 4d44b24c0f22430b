//! The change log poller. Reads new entries of the catalogue's change log several times a second and
//! publishes them to the caches and watchers of this process. [`watermark`] tracks the ids that are still
//! unread; [`reader`] reads them.

mod reader;
mod watermark;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use shoppee_kit::{log_throttle::LogThrottle, pg::PgPool, process::Process};
use tokio::{
    sync::{Notify, broadcast, watch},
    time::Instant,
};

use self::reader::{PollOutcome, Reader};
use crate::{
    error::Error,
    store::change::{self, Change},
};

/// The maximum interval between two polls. It keeps the lag of a change below one second everywhere.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The minimum interval between two polls while this process writes changes. Several stock movements of one
/// product become one change.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Batches that are buffered for a watcher. A watcher that lags behind starts anew.
const CHANNEL_CAPACITY: usize = 256;
/// The watermark before the first successful poll.
const UNKNOWN: i64 = i64::MIN;

/// The changes that one poll has found. Most batches are empty.
#[derive(Debug)]
pub struct ChangeBatch {
    pub changes: Vec<Change>,
    /// More changed than `changes` lists: everything that was read before is out of date.
    pub everything: bool,
    /// The watermark of the log: no entry up to this id can appear any more, and all of them have been read.
    pub watermark: i64,
    /// The start of the poll.
    pub polled_at: Instant,
}

/// The change log as this process reads it; cheap to clone.
#[derive(Clone, Debug)]
pub struct ChangeLog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    start: Instant,
    batches: broadcast::Sender<Arc<ChangeBatch>>,
    /// The number of polls that were started.
    polls_started: AtomicU64,
    /// The number of polls that have finished.
    polls_finished: watch::Sender<u64>,
    wake: Notify,
    /// The start of the last successful poll, in milliseconds since `start`; 0 before the first.
    polled_at: AtomicU64,
    /// The watermark and the last assigned id, as of the last poll.
    watermark: AtomicI64,
    last_id: AtomicI64,
}

impl Default for ChangeLog {
    fn default() -> Self {
        Self(Arc::new(Inner {
            start: Instant::now(),
            batches: broadcast::Sender::new(CHANNEL_CAPACITY),
            polls_started: AtomicU64::new(0),
            polls_finished: watch::Sender::new(0),
            wake: Notify::new(),
            polled_at: AtomicU64::new(0),
            watermark: AtomicI64::new(UNKNOWN),
            last_id: AtomicI64::new(0),
        }))
    }
}

impl ChangeLog {
    /// Requests a poll, because this process has written a change.
    pub fn wake(&self) {
        self.0.wake.notify_one();
    }

    /// Requests a poll and waits until it has finished, at most three poll intervals. Returns in either case.
    pub async fn wait_visible(&self) {
        let mut finished = self.0.polls_finished.subscribe();
        // A poll that is already running may have started before the change was committed.
        let required = self.0.polls_started.load(Ordering::Acquire) + 1;
        self.wake();
        let _ = tokio::time::timeout(3 * POLL_INTERVAL, finished.wait_for(|finished| *finished >= required))
            .await;
    }

    /// Returns the batches of all polls from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<ChangeBatch>> {
        self.0.batches.subscribe()
    }

    /// Returns the time since the log was last read to its end; `None` before the first time.
    pub fn age(&self) -> Option<Duration> {
        match self.0.polled_at.load(Ordering::Acquire) {
            0 => None,
            at => Some(self.0.start.elapsed().saturating_sub(Duration::from_millis(at))),
        }
    }

    /// Returns the id up to which no entry can appear any more; `None` before it is known.
    pub fn watermark(&self) -> Option<i64> {
        Some(self.0.watermark.load(Ordering::Acquire)).filter(|watermark| *watermark != UNKNOWN)
    }

    /// Returns the last assigned id of the log.
    pub fn last_id(&self) -> i64 {
        self.0.last_id.load(Ordering::Acquire)
    }

    /// Starts the poller. `apply` completes for a batch before the log counts as read, and before watchers get the
    /// batch.
    pub fn spawn_poller<F, Fut>(&self, pool: PgPool, process: &Process, apply: F)
    where
        F: Fn(Arc<ChangeBatch>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send,
    {
        let (stopping, readiness) = (process.tasks.shutdown_token(), process.readiness.clone());
        let change_log = self.clone();
        process.tasks.spawn("changes", async move {
            let (mut reader, failures) = (Reader::default(), LogThrottle::default());
            while !stopping.is_cancelled() {
                let started_at = Instant::now();
                let poll_number = change_log.0.polls_started.fetch_add(1, Ordering::AcqRel) + 1;
                let mut is_behind = false;
                // The log does not exist before the migrations have run.
                if !readiness.failing().contains(&"postgres") {
                    match change_log.poll(&mut reader, &pool).await {
                        Ok(outcome) => {
                            failures.reset();
                            is_behind = matches!(outcome, PollOutcome::Behind);
                            change_log.publish(outcome, started_at, &apply).await;
                        }
                        Err(error) => {
                            if let Some(suppressed) = failures.admit() {
                                tracing::warn!(%error, suppressed, "the change log was not read");
                            }
                        }
                    }
                }
                change_log.0.polls_finished.send_replace(poll_number);
                if is_behind {
                    continue;
                }
                tokio::select! {
                    () = tokio::time::sleep_until(started_at + POLL_INTERVAL) => {}
                    () = change_log.0.wake.notified() => tokio::time::sleep_until(started_at + MIN_POLL_INTERVAL).await,
                    () = stopping.cancelled() => {}
                }
            }
            Ok(())
        });
    }

    async fn poll(&self, reader: &mut Reader, pool: &PgPool) -> Result<PollOutcome, Error> {
        let mut conn = pool.acquire().await?;
        let last_id = change::fetch_last_id(&mut conn).await?;
        let outcome = reader.poll(&mut conn, last_id).await;
        self.0.last_id.store(last_id, Ordering::Release);
        self.0.watermark.store(reader.watermark.get().unwrap_or(UNKNOWN), Ordering::Release);
        outcome
    }

    async fn publish<Fut>(
        &self,
        outcome: PollOutcome,
        polled_at: Instant,
        apply: &(impl Fn(Arc<ChangeBatch>) -> Fut + Sync),
    ) where
        Fut: Future<Output = ()> + Send,
    {
        let (changes, everything) = match outcome {
            PollOutcome::NotReady | PollOutcome::Behind => return,
            PollOutcome::Changes(changes) => (changes, false),
            PollOutcome::Everything => (Vec::new(), true),
        };
        if everything {
            tracing::info!("many products changed at once: all caches are invalidated");
        }
        let watermark = self.0.watermark.load(Ordering::Acquire);
        let batch = Arc::new(ChangeBatch { changes, everything, watermark, polled_at });
        apply(batch.clone()).await;
        let polled_at_ms = u64::try_from((polled_at - self.0.start).as_millis()).unwrap_or(u64::MAX);
        self.0.polled_at.store(polled_at_ms.max(1), Ordering::Release);
        // An error means that there is no watcher.
        let _ = self.0.batches.send(batch);
    }
}
