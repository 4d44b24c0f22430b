//! Reading the log of the catalogue's changes behind its end, a few times a second, for the caches of this process
//! and of whoever watches.
//!
//! Numbers are given before their transactions commit, so a smaller one may appear after a larger one was read. What
//! is read is therefore everything behind the [`Place`] below which no number can appear any more: entries are seen
//! twice, and none is missed.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use shoppee_kit::{pg::PgPool, process::Process};
use tokio::{
    sync::{Notify, broadcast, watch},
    time::Instant,
};

use crate::{
    cache::Cache,
    error::Error,
    store::change::{self, Change, Running},
};

/// The end of the log is looked at at least so often; a change shows everywhere within a second.
const INTERVAL: Duration = Duration::from_millis(200);
/// And, where this process makes changes itself, at most so often: many moves of one stock are one change.
const FOLD: Duration = Duration::from_millis(100);
/// Entries read by one statement.
const PAGE: i64 = 10_000;
/// News that wait for a watcher; one that falls behind starts anew.
const WAITING: usize = 256;

/// What one look at the log found: nothing, mostly.
#[derive(Debug)]
pub struct News {
    pub changes: Vec<Change>,
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

    /// Starts to read, and to tell `cache`.
    pub fn follow(&self, pool: PgPool, cache: Cache, process: &Process) {
        let (stopping, readiness) = (process.tasks.stopping(), process.readiness.clone());
        let changes = self.clone();
        process.tasks.spawn("changes", async move {
            let mut reader = Reader::default();
            while !stopping.is_cancelled() {
                let began = Instant::now();
                let number = changes.0.begun.fetch_add(1, Ordering::AcqRel) + 1;
                // Until the migrations have run, there is nothing to read.
                if !readiness.missing().contains(&"postgres") {
                    match reader.look(&pool, &cache).await {
                        Ok(Some(found)) => {
                            let news = News { changes: found, looked_at: began };
                            changes.tell(news, &cache).await;
                        }
                        Ok(None) => {}
                        Err(error) => tracing::debug!(%error, "changes not read"),
                    }
                }
                changes.0.ended.send_replace(number);
                tokio::select! {
                    () = tokio::time::sleep_until(began + INTERVAL) => {}
                    () = changes.0.hurry.notified() => tokio::time::sleep_until(began + FOLD).await,
                    () = stopping.cancelled() => {}
                }
            }
            Ok(())
        });
    }

    async fn tell(&self, news: News, cache: &Cache) {
        for change in &news.changes {
            cache.outdate(change).await;
        }
        let began = u64::try_from((news.looked_at - self.0.start).as_millis()).unwrap_or(u64::MAX);
        self.0.looked_at.store(began.max(1), Ordering::Release);
        // Nobody watches: fine.
        let _ = self.0.news.send(Arc::new(news));
    }
}

/// How far the log was read.
#[derive(Debug, Default)]
struct Reader {
    place: Option<Place>,
    /// What was told of the entries that are still read again.
    told: HashMap<i64, i64>,
}

impl Reader {
    /// Reads everything behind the place; each revision that was not told before. `None` while there is no place yet.
    async fn look(&mut self, pool: &PgPool, cache: &Cache) -> Result<Option<Vec<Change>>, Error> {
        let mut conn = pool.acquire().await?;
        let place = match &mut self.place {
            Some(place) => place,
            none => none.insert(Place::new(change::newest(&mut conn).await?)),
        };
        place.see(change::running(&mut conn).await?);
        let Some(settled) = place.settled else {
            return Ok(None);
        };
        // Redis may know less than we do.
        let from = cache.shared_from().map_or(settled, |from| from.min(settled));
        let mut changes = HashMap::new();
        let mut after = Some(from);
        while let Some(number) = after {
            let page = change::page(&mut conn, number, PAGE).await?;
            changes.extend(page.changes.into_iter().map(|change| (change.product_id, change)));
            after = page.more_after;
        }
        let all: Vec<Change> = changes.into_values().collect();
        cache.outdate_shared(&all, from, settled).await;
        place.advance(change::newest(&mut conn).await?);

        let told = std::mem::take(&mut self.told);
        self.told = all.iter().map(|change| (change.product_id, change.revision)).collect();
        let is_new =
            |change: &Change| told.get(&change.product_id).is_none_or(|told| *told < change.revision);
        Ok(Some(all.into_iter().filter(is_new).collect()))
    }
}

/// Where in the log everything was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// No entry up to this number can appear any more, and all of them were read, or are of no concern. Not known yet
    /// at the beginning: what is running then may still write below the end of the log.
    settled: Option<i64>,
    /// The number that will be settled next.
    mark: i64,
    /// Whoever took a number up to the mark is a transaction before this one; not known yet where the mark is new.
    before: Option<i64>,
    /// All of those have ended.
    over: bool,
}

impl Place {
    const fn new(newest: i64) -> Self {
        Self { settled: None, mark: newest, before: None, over: false }
    }

    /// To be called before the log is read.
    fn see(&mut self, running: Running) {
        self.over = running.oldest >= *self.before.get_or_insert(running.next);
        if self.over && self.settled.is_none() {
            self.settled = Some(self.mark);
        }
    }

    /// To be called after the log was read, with the highest number that was given by now.
    fn advance(&mut self, newest: i64) {
        if self.over {
            *self = Self { settled: Some(self.mark), ..Self::new(newest) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(oldest: i64, next: i64) -> Running {
        Running { oldest, next }
    }

    #[test]
    fn where_nothing_runs_every_look_settles_what_the_one_before_saw() {
        let mut place = Place::new(7);
        place.see(running(100, 100));
        assert_eq!(place.settled, Some(7));
        place.advance(9);
        place.see(running(102, 102));
        assert_eq!(place.settled, Some(7), "9 is read once more");
        place.advance(9);
        assert_eq!(place.settled, Some(9));
    }

    #[test]
    fn a_number_is_settled_when_all_who_could_have_taken_it_have_ended() {
        let mut place = Place::new(7);
        place.see(running(100, 101));
        assert_eq!(place.settled, None, "100 may have taken 5 and not written it yet");
        place.see(running(100, 200));
        assert_eq!(place.settled, None);
        place.see(running(101, 200));
        assert_eq!(place.settled, Some(7));
        place.advance(20);
        place.see(running(101, 210));
        place.advance(30);
        assert_eq!(place.settled, Some(7), "101 runs still, and may write 8");
        place.see(running(210, 220));
        place.advance(30);
        assert_eq!(place.settled, Some(20));
    }
}
