//! The worker that keeps the index up with the change log.
//!
//! A pass goes through all products by id and brings the index to what they are: the first one builds it. Another one
//! follows where changes were not told one by one: after a large load, a change log that began anew, or a start within a
//! transaction that may have written before the log was followed; and now and then, as who writes past the service may
//! not have written to the log. Products that are new there are looked for at once. Until a pass is through, the index
//! answers as it is.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use metrics::{Gauge, gauge};
use shoppee_kit::{
    age::Age,
    pg::PgPool,
    process::Process,
    worker::{self, Round},
};
use tokio::{
    sync::broadcast::{self, error::TryRecvError},
    time::Instant,
};

use super::{
    Search,
    index::{Entry, Snapshot, Writer},
    tree::Tree,
};
use crate::{
    changes::{Changes, News},
    error::Error,
    store,
};

/// A change is found within about this and the interval of the log. A commit takes a few milliseconds.
const INTERVAL: Duration = Duration::from_millis(100);
/// The interval at which is looked at what the log does not tell: categories without products of their own, and products
/// that were loaded without stock.
const STATE_INTERVAL: Duration = Duration::from_millis(500);
/// The interval between passes that nothing asks for, at least, and in durations of the last one.
const MIN_PASS_INTERVAL: Duration = Duration::from_mins(10);
const PASS_INTERVAL_RATIO: u32 = 60;
/// How long the first pass waits for the log to be followed, so that one pass will do.
const START_DELAY: Duration = Duration::from_millis(300);
/// Products read by one statement.
const PAGE: i64 = 2_000;
/// Committed by a pass that changes an index in use, so that what it brings is found before it ends.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// Starts to keep up.
pub fn start(search: &Search, pool: &PgPool, changes: &Changes, process: &Process) {
    let age = Age::default();
    age.export(process, gauge!("search_index_age_seconds"));
    let follower = Arc::new(tokio::sync::Mutex::new(Follower::new(search, pool, changes, age)));
    worker::spawn(process, "search-index", INTERVAL, process.readiness.serving(), move || {
        let follower = follower.clone();
        async move { follower.lock().await.round().await }
    });
}

/// How far a pass is.
#[derive(Clone, Copy, Debug)]
struct Pass {
    began: Instant,
    /// The last product that was compared.
    after: i64,
    /// Only of products that are new.
    is_partial: bool,
}

/// When the next pass begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NextPass {
    Now,
    /// As soon as the log is followed: the last one began before, and what changed meanwhile was told by nobody.
    OnceFollowed,
    At(Instant),
}

struct Follower {
    search: Search,
    pool: PgPool,
    changes: Changes,
    news: broadcast::Receiver<Arc<News>>,
    /// `None` before it is opened, and where it failed: then the next pass builds another.
    writer: Option<Arc<Mutex<Writer>>>,
    /// A whole pass is through with this writer.
    is_complete: bool,
    tree: Arc<Tree>,
    /// The highest id that a product had.
    newest_id: i64,
    state_read_at: Option<Instant>,
    pass: Option<Pass>,
    next_pass: NextPass,
    first_round: Option<Instant>,
    /// Products that changed and are still to be read.
    pending: BTreeSet<i64>,
    /// The end of the log as of the news that were heard last: its settled number, and when it was looked at.
    heard: Option<(i64, Instant)>,
    /// Documents or categories that are not published.
    uncommitted: bool,
    committed_at: Instant,
    age: Age,
    documents: Gauge,
}

impl Follower {
    fn new(search: &Search, pool: &PgPool, changes: &Changes, age: Age) -> Self {
        Self {
            search: search.clone(),
            pool: pool.clone(),
            changes: changes.clone(),
            news: changes.watch(),
            writer: None,
            is_complete: false,
            tree: Arc::default(),
            newest_id: 0,
            state_read_at: None,
            pass: None,
            next_pass: NextPass::Now,
            first_round: None,
            pending: BTreeSet::new(),
            heard: None,
            uncommitted: false,
            committed_at: Instant::now(),
            age,
            documents: gauge!("search_index_documents"),
        }
    }

    async fn round(&mut self) -> Result<Round, Error> {
        self.hear();
        let outcome = self.work().await;
        if matches!(outcome, Err(Error::Internal)) {
            // The index that is published goes on answering.
            (self.writer, self.is_complete) = (None, false);
            (self.pass, self.next_pass) = (None, NextPass::Now);
        }
        outcome
    }

    /// Takes in what the log has told since the last round.
    fn hear(&mut self) {
        loop {
            match self.news.try_recv() {
                Ok(news) => {
                    if news.everything {
                        self.next_pass = NextPass::Now;
                    }
                    self.pending.extend(news.changes.iter().map(|change| change.product_id));
                    self.heard = Some((news.settled, news.looked_at));
                }
                Err(TryRecvError::Lagged(_)) => self.next_pass = NextPass::Now,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    async fn work(&mut self) -> Result<Round, Error> {
        let is_followed = self.changes.settled().is_some();
        let first_round = *self.first_round.get_or_insert_with(Instant::now);
        if !is_followed && first_round.elapsed() < START_DELAY {
            return Ok(Round::Done);
        }
        let is_due = match self.next_pass {
            NextPass::Now => true,
            NextPass::OnceFollowed => is_followed,
            NextPass::At(at) => at <= Instant::now(),
        };
        if is_due && self.pass.is_none_or(|pass| pass.is_partial) {
            self.next_pass = if is_followed {
                NextPass::At(Instant::now() + MIN_PASS_INTERVAL)
            } else {
                NextPass::OnceFollowed
            };
            self.pass = Some(Pass { began: Instant::now(), after: i64::MIN, is_partial: false });
        }
        let looks = self.state_read_at.is_none_or(|at| at.elapsed() >= STATE_INTERVAL);
        if looks {
            self.read_state().await?;
        }
        // What changes before the first pass is through it finds itself, or it is read then.
        if self.is_complete {
            self.apply().await?;
        }
        let more = self.go_on().await?;
        let is_first = !self.is_complete && !more && self.pass.is_some_and(|pass| !pass.is_partial);
        let is_due = self.uncommitted && (!more || self.committed_at.elapsed() > COMMIT_INTERVAL);
        let is_merged =
            !is_due && looks && self.is_complete && self.write(|writer| writer.has_merged()).await?;
        if is_first || is_merged || (self.is_complete && is_due) {
            self.publish().await?;
        }
        if let Some(pass) = self.pass.take_if(|_| !more)
            && !pass.is_partial
        {
            let took = pass.began.elapsed();
            if let NextPass::At(at) = &mut self.next_pass {
                *at = Instant::now() + MIN_PASS_INTERVAL.max(took * PASS_INTERVAL_RATIO);
            }
            gauge!("search_index_pass_seconds").set(took.as_secs_f64());
            if is_first {
                let duration_ms = (took.as_secs_f64() * 1e6).round() / 1e3;
                tracing::info!(products = self.len(), duration_ms, "search index built");
                self.is_complete = true;
            }
        }
        if let Some((settled, looked_at)) = self.heard
            && self.is_complete
            && self.pending.is_empty()
            && self.pass.is_none()
        {
            self.search.0.applied.send_replace(settled);
            self.age.reset(looked_at);
        }
        // The first pass hurries; what follows leaves the machine to requests for as long as it works.
        Ok(Round::more_if(more && !self.is_complete))
    }

    /// Brings up to date what changed.
    async fn apply(&mut self) -> Result<(), Error> {
        let limit = usize::try_from(PAGE).unwrap_or_default();
        let ids: Vec<i64> = self.pending.iter().copied().take(limit).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let mut conn = self.pool.acquire().await?;
        let entries = store::search::entries(&mut conn, &ids).await?;
        drop(conn);
        self.read_tree_for(&entries).await?;
        let wanted = ids.clone();
        self.uncommitted |= self
            .write(move |writer| {
                let there: BTreeSet<i64> = entries.iter().map(|entry| entry.id).collect();
                let mut changed = writer.put(&entries)? > 0;
                for id in wanted.iter().filter(|id| !there.contains(id)) {
                    changed |= writer.remove(*id);
                }
                Ok(changed)
            })
            .await?;
        for id in ids {
            self.pending.remove(&id);
        }
        Ok(())
    }

    /// Compares the next products of a pass. Returns whether there are more.
    async fn go_on(&mut self) -> Result<bool, Error> {
        let Some(pass) = self.pass else { return Ok(false) };
        let mut conn = self.pool.acquire().await?;
        let entries = store::search::page(&mut conn, pass.after, PAGE).await?;
        drop(conn);
        self.read_tree_for(&entries).await?;
        let more = i64::try_from(entries.len()).is_ok_and(|read| read == PAGE);
        let upto = entries.last().filter(|_| more).map_or(i64::MAX, |entry| entry.id);
        self.uncommitted |= self
            .write(move |writer| {
                let there: BTreeSet<i64> = entries.iter().map(|entry| entry.id).collect();
                let mut changed = false;
                for id in writer.ids(pass.after, upto) {
                    if !there.contains(&id) {
                        changed |= writer.remove(id);
                    }
                }
                Ok(writer.put(&entries)? > 0 || changed)
            })
            .await?;
        self.pass = Some(Pass { after: upto, ..pass });
        Ok(more)
    }

    /// Lets searches see what was written.
    async fn publish(&mut self) -> Result<(), Error> {
        let (tree, commit) = (self.tree.clone(), self.uncommitted);
        let snapshot: Snapshot = self
            .write(move |writer| if commit { writer.commit(tree) } else { writer.snapshot(tree) })
            .await?;
        let documents: u32 = snapshot.segments.iter().map(|segment| segment.len).sum();
        self.search.0.snapshot.store(Some(Arc::new(snapshot)));
        self.documents.set(documents);
        (self.uncommitted, self.committed_at) = (false, Instant::now());
        Ok(())
    }

    /// Looks at what the log does not tell: reads the categories anew where they have changed, and begins a pass where
    /// products have come.
    async fn read_state(&mut self) -> Result<(), Error> {
        let mut conn = self.pool.acquire().await?;
        let state = store::search::state(&mut conn).await?;
        if self.state_read_at.is_none() || state.tree_revision != self.tree.revision {
            self.tree = Arc::new(Tree::new(store::category::all(&mut conn).await?, state.tree_revision));
            self.uncommitted = true;
        }
        if state.newest_id > self.newest_id && self.pass.is_none() {
            self.pass = Some(Pass { began: Instant::now(), after: self.newest_id, is_partial: true });
        }
        self.newest_id = self.newest_id.max(state.newest_id);
        self.state_read_at = Some(Instant::now());
        Ok(())
    }

    /// Reads the categories where products stand in one that is not known yet.
    async fn read_tree_for(&mut self, entries: &[Entry]) -> Result<(), Error> {
        if entries.iter().filter_map(|entry| entry.category_id).any(|id| self.tree.get(id).is_none()) {
            let mut conn = self.pool.acquire().await?;
            let revision = self.tree.revision;
            self.tree = Arc::new(Tree::new(store::category::all(&mut conn).await?, revision));
            self.uncommitted = true;
        }
        Ok(())
    }

    /// Lets `work` change the index on a blocking thread.
    async fn write<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Writer) -> tantivy::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let writer = self.writer.clone();
        let working = tokio::task::spawn_blocking(move || {
            let writer = match writer {
                Some(writer) => writer,
                None => Arc::new(Mutex::new(Writer::open()?)),
            };
            let done = work(&mut writer.lock().unwrap_or_else(PoisonError::into_inner))?;
            Ok::<_, tantivy::TantivyError>((writer, done))
        });
        let (writer, done) = working.await.map_err(super::internal)?.map_err(super::internal)?;
        self.writer = Some(writer);
        Ok(done)
    }

    fn len(&self) -> usize {
        let len = |writer: &Arc<Mutex<Writer>>| writer.lock().unwrap_or_else(PoisonError::into_inner).len();
        self.writer.as_ref().map_or(0, len)
    }
}
