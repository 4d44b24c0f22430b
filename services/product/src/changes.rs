//! Reading the log of the catalogue's changes behind its end, a few times a second, for the caches of this process and
//! of the watchers. [`place`] says what is still to be read, [`reader`] reads it.

mod place;
mod reader;

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

use self::reader::{Look, Reader};
use crate::{
    cache::Cache,
    error::Error,
    store::change::{self, Change},
};

/// The end of the log is looked at at least so often; a change shows everywhere within a second.
const INTERVAL: Duration = Duration::from_millis(200);
/// And, where this process makes changes itself, at most so often: many moves of one stock are one change.
const FOLD: Duration = Duration::from_millis(100);
/// News that wait for a watcher; one that falls behind starts anew.
const WAITING: usize = 256;
/// The settled number before it is known.
const UNKNOWN: i64 = i64::MIN;

/// What one look at the log found: nothing, mostly.
#[derive(Debug)]
pub struct News {
    pub changes: Vec<Change>,
    /// More changed than `changes` tells: all that was read before is out of date.
    pub everything: bool,
    /// The number of the log up to which no entry can appear any more, all of which were found by now.
    pub settled: i64,
    /// When the look began.
    pub looked_at: Instant,
}

/// The log as it is read by this process; cheap to clone.
#[derive(Clone, Debug)]
pub struct Changes(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    start: Instant,
    news: broadcast::Sender<Arc<News>>,
    /// How many looks have begun,
    begun: AtomicU64,
    /// and how many have ended.
    ended: watch::Sender<u64>,
    hurry: Notify,
    /// When the last look that succeeded began. Milliseconds since the start; 0 before the first.
    looked_at: AtomicU64,
    /// The number up to which no entry can appear any more, and the highest that was given, as of the last look.
    settled: AtomicI64,
    newest: AtomicI64,
}

impl Default for Changes {
    fn default() -> Self {
        Self(Arc::new(Parts {
            start: Instant::now(),
            news: broadcast::Sender::new(WAITING),
            begun: AtomicU64::new(0),
            ended: watch::Sender::new(0),
            hurry: Notify::new(),
            looked_at: AtomicU64::new(0),
            settled: AtomicI64::new(UNKNOWN),
            newest: AtomicI64::new(0),
        }))
    }
}

impl Changes {
    /// Says that this process has changed something.
    pub fn nudge(&self) {
        self.0.hurry.notify_one();
    }

    /// The same, and waits until it shows in this process, but not for ever: it is done whether it shows or not.
    pub async fn show(&self) {
        let mut ended = self.0.ended.subscribe();
        // One that is going on may have begun too early.
        let wanted = self.0.begun.load(Ordering::Acquire) + 1;
        self.nudge();
        let _ = tokio::time::timeout(3 * INTERVAL, ended.wait_for(|ended| *ended >= wanted)).await;
    }

    /// What is found from now on.
    pub fn watch(&self) -> broadcast::Receiver<Arc<News>> {
        self.0.news.subscribe()
    }

    /// How long ago the log was known to its end; `None` where it never was.
    pub fn age(&self) -> Option<Duration> {
        match self.0.looked_at.load(Ordering::Acquire) {
            0 => None,
            at => Some(self.0.start.elapsed().saturating_sub(Duration::from_millis(at))),
        }
    }

    /// Returns the number up to which no entry of the log can appear any more; `None` where it is not known yet.
    pub fn settled(&self) -> Option<i64> {
        Some(self.0.settled.load(Ordering::Acquire)).filter(|settled| *settled != UNKNOWN)
    }

    /// Returns the highest number that was given.
    pub fn newest(&self) -> i64 {
        self.0.newest.load(Ordering::Acquire)
    }

    /// Starts to read, and to tell `cache`.
    pub fn follow(&self, pool: PgPool, cache: Cache, process: &Process) {
        let (stopping, readiness) = (process.tasks.shutdown_token(), process.readiness.clone());
        let changes = self.clone();
        process.tasks.spawn("changes", async move {
            let (mut reader, failures) = (Reader::default(), LogThrottle::default());
            while !stopping.is_cancelled() {
                let began = Instant::now();
                let number = changes.0.begun.fetch_add(1, Ordering::AcqRel) + 1;
                let mut behind = false;
                // Until the migrations have run, there is nothing to read.
                if !readiness.failing().contains(&"postgres") {
                    match changes.look(&mut reader, &pool).await {
                        Ok(look) => {
                            failures.reset();
                            behind = matches!(look, Look::Behind);
                            changes.tell(look, began, &cache).await;
                        }
                        Err(error) => {
                            if let Some(suppressed) = failures.admit() {
                                tracing::warn!(%error, suppressed, "the change log was not read");
                            }
                        }
                    }
                }
                changes.0.ended.send_replace(number);
                if behind {
                    continue;
                }
                tokio::select! {
                    () = tokio::time::sleep_until(began + INTERVAL) => {}
                    () = changes.0.hurry.notified() => tokio::time::sleep_until(began + FOLD).await,
                    () = stopping.cancelled() => {}
                }
            }
            Ok(())
        });
    }

    async fn look(&self, reader: &mut Reader, pool: &PgPool) -> Result<Look, Error> {
        let mut conn = pool.acquire().await?;
        let newest = change::newest(&mut conn).await?;
        let look = reader.look(&mut conn, newest).await;
        self.0.newest.store(newest, Ordering::Release);
        self.0.settled.store(reader.place.settled().unwrap_or(UNKNOWN), Ordering::Release);
        look
    }

    async fn tell(&self, look: Look, looked_at: Instant, cache: &Cache) {
        let (changes, everything) = match look {
            Look::Unknown | Look::Behind => return,
            Look::Changes(changes) => (changes, false),
            Look::Everything => (Vec::new(), true),
        };
        if everything {
            tracing::info!("many products changed at once: all that is cached is read anew");
            cache.outdate_all();
        }
        for change in &changes {
            cache.outdate(change).await;
        }
        let began = u64::try_from((looked_at - self.0.start).as_millis()).unwrap_or(u64::MAX);
        self.0.looked_at.store(began.max(1), Ordering::Release);
        // Without a watcher there is nothing to send.
        let settled = self.0.settled.load(Ordering::Acquire);
        let _ = self.0.news.send(Arc::new(News { changes, everything, settled, looked_at }));
    }
}
