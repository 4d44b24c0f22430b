//! The indexer: the worker that keeps the search index in sync with the change log.
//!
//! A pass iterates over all products by id and reconciles the index; the first pass builds it. Another pass
//! follows if changes were not delivered individually: after a bulk load, a reset of the change log, or a
//! start during a transaction that may have written earlier. A pass also runs periodically, because SQL that
//! bypasses the service may not write to the log. New products are looked up at once. The index stays in use
//! during a pass.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use metrics::{Gauge, gauge};
use shoppee_kit::{
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
    categories::CategoryTree,
    index::{Snapshot, Writer},
};
use crate::{
    change_log::{ChangeBatch, ChangeLog},
    error::Error,
    store::{self, search::IndexEntry},
};

/// The interval between rounds. A change is searchable within about this plus the poll interval of the log; a
/// commit takes a few milliseconds.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The interval at which the indexer checks for what is not in the log: categories without products, and
/// products that were loaded without stock.
const STATE_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// The minimum interval between periodic passes, absolute and as a multiple of the duration of the last pass.
const MIN_PASS_INTERVAL: Duration = Duration::from_mins(10);
const PASS_INTERVAL_RATIO: u32 = 60;
/// The maximum delay of the first pass, until the watermark of the log is known: then one pass is enough.
const MAX_START_DELAY: Duration = Duration::from_millis(300);
/// Products read by one statement.
const PAGE_SIZE: i64 = 2_000;
/// The interval between commits during a pass, so that its changes are searchable before it ends.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// Starts the indexer.
pub fn start(search: &Search, pool: &PgPool, change_log: &ChangeLog, process: &Process) {
    search.0.age.export(process, gauge!("search_index_age_seconds"));
    let indexer = Arc::new(tokio::sync::Mutex::new(Indexer::new(search, pool, change_log)));
    worker::spawn(process, "search-index", POLL_INTERVAL, process.readiness.serving(), move || {
        let indexer = indexer.clone();
        async move { indexer.lock().await.run_once().await }
    });
}

/// The progress of a pass.
#[derive(Debug)]
struct Pass {
    began: Instant,
    /// The last product that was compared.
    after: i64,
    /// The pass covers new products only.
    is_partial: bool,
    /// The products behind `after`, if they are already read.
    next_page: Option<Vec<IndexEntry>>,
}

impl Pass {
    fn new(after: i64, is_partial: bool) -> Self {
        Self { began: Instant::now(), after, is_partial, next_page: None }
    }
}

/// The start of the next pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NextPass {
    Now,
    /// As soon as the watermark is known: the last pass started before, and changes during it were not
    /// delivered.
    OnceFollowed,
    At(Instant),
}

/// Reads the products behind `after`.
async fn fetch_page(pool: &PgPool, after: i64) -> Result<Vec<IndexEntry>, Error> {
    let mut conn = pool.acquire().await?;
    Ok(store::search::fetch_page(&mut conn, after, PAGE_SIZE).await?)
}

struct Indexer {
    search: Search,
    pool: PgPool,
    change_log: ChangeLog,
    batches: broadcast::Receiver<Arc<ChangeBatch>>,
    /// `None` before it is opened and after an error; the next pass then builds another index.
    writer: Option<Arc<Mutex<Writer>>>,
    /// A full pass has completed with this writer.
    is_complete: bool,
    categories: Arc<CategoryTree>,
    /// The highest id of a product.
    newest_id: i64,
    state_read_at: Option<Instant>,
    pass: Option<Pass>,
    next_pass: NextPass,
    first_round: Option<Instant>,
    /// Changed products that are not read yet.
    pending: BTreeSet<i64>,
    /// The watermark and the poll time of the last batch.
    last_batch: Option<(i64, Instant)>,
    /// Documents or categories are not published yet.
    uncommitted: bool,
    committed_at: Instant,
    documents: Gauge,
}

impl Indexer {
    fn new(search: &Search, pool: &PgPool, change_log: &ChangeLog) -> Self {
        Self {
            search: search.clone(),
            pool: pool.clone(),
            change_log: change_log.clone(),
            batches: change_log.subscribe(),
            writer: None,
            is_complete: false,
            categories: Arc::default(),
            newest_id: 0,
            state_read_at: None,
            pass: None,
            next_pass: NextPass::Now,
            first_round: None,
            pending: BTreeSet::new(),
            last_batch: None,
            uncommitted: false,
            committed_at: Instant::now(),
            documents: gauge!("search_index_documents"),
        }
    }

    async fn run_once(&mut self) -> Result<Round, Error> {
        self.receive_changes();
        let outcome = self.step().await;
        if matches!(outcome, Err(Error::Internal)) {
            // The published snapshot stays in use.
            (self.writer, self.is_complete) = (None, false);
            (self.pass, self.next_pass) = (None, NextPass::Now);
        }
        outcome
    }

    /// Receives the batches since the last round.
    fn receive_changes(&mut self) {
        loop {
            match self.batches.try_recv() {
                Ok(batch) => {
                    if batch.everything {
                        self.next_pass = NextPass::Now;
                    }
                    self.pending.extend(batch.changes.iter().map(|change| change.product_id));
                    self.last_batch = Some((batch.watermark, batch.polled_at));
                }
                Err(TryRecvError::Lagged(_)) => self.next_pass = NextPass::Now,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    async fn step(&mut self) -> Result<Round, Error> {
        let has_watermark = self.change_log.watermark().is_some();
        let first_round = *self.first_round.get_or_insert_with(Instant::now);
        if !has_watermark && first_round.elapsed() < MAX_START_DELAY {
            return Ok(Round::Done);
        }
        let is_due = match self.next_pass {
            NextPass::Now => true,
            NextPass::OnceFollowed => has_watermark,
            NextPass::At(at) => at <= Instant::now(),
        };
        if is_due && self.pass.as_ref().is_none_or(|pass| pass.is_partial) {
            self.next_pass = if has_watermark {
                NextPass::At(Instant::now() + MIN_PASS_INTERVAL)
            } else {
                NextPass::OnceFollowed
            };
            self.pass = Some(Pass::new(i64::MIN, false));
        }
        let is_state_due = self.state_read_at.is_none_or(|at| at.elapsed() >= STATE_CHECK_INTERVAL);
        if is_state_due {
            self.read_state().await?;
        }
        // The first pass reads earlier changes itself; later ones stay pending until it completes.
        if self.is_complete {
            self.apply_pending().await?;
        }
        let more = self.continue_pass().await?;
        let is_first = !self.is_complete && !more && self.pass.as_ref().is_some_and(|pass| !pass.is_partial);
        let is_due = self.uncommitted && (!more || self.committed_at.elapsed() > COMMIT_INTERVAL);
        let is_merged =
            !is_due && is_state_due && self.is_complete && self.write(|writer| writer.has_merged()).await?;
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
        if let Some((watermark, polled_at)) = self.last_batch
            && self.is_complete
            && self.pending.is_empty()
            && self.pass.is_none()
        {
            self.search.0.applied.send_replace(watermark);
            self.search.0.age.reset(polled_at);
        }
        // The first pass runs without pauses. Later passes pause between pages, so that requests get the
        // processor.
        Ok(Round::more_if(more && !self.is_complete))
    }

    /// Applies the pending changes to the index.
    async fn apply_pending(&mut self) -> Result<(), Error> {
        let limit = usize::try_from(PAGE_SIZE).unwrap_or_default();
        let ids: Vec<i64> = self.pending.iter().copied().take(limit).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let mut conn = self.pool.acquire().await?;
        let entries = store::search::fetch(&mut conn, &ids).await?;
        drop(conn);
        self.load_missing_categories(&entries).await?;
        let changed_ids = ids.clone();
        self.uncommitted |= self
            .write(move |writer| {
                let present: BTreeSet<i64> = entries.iter().map(|entry| entry.id).collect();
                let mut changed = writer.upsert(&entries)? > 0;
                for id in changed_ids.iter().filter(|id| !present.contains(id)) {
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

    /// Compares the next page of a pass. Returns whether there are more. The first pass reads the page after it meanwhile.
    /// Later passes do not: a change that is applied between two pages would be overwritten with the older product.
    async fn continue_pass(&mut self) -> Result<bool, Error> {
        let Some(pass) = &mut self.pass else { return Ok(false) };
        let after = pass.after;
        let entries = match pass.next_page.take() {
            Some(entries) => entries,
            None => fetch_page(&self.pool, after).await?,
        };
        self.load_missing_categories(&entries).await?;
        let more = i64::try_from(entries.len()).is_ok_and(|read| read == PAGE_SIZE);
        let upto = entries.last().filter(|_| more).map_or(i64::MAX, |entry| entry.id);
        let reads_ahead = more && !self.is_complete;
        let pool = self.pool.clone();
        let reading = async { if reads_ahead { fetch_page(&pool, upto).await.map(Some) } else { Ok(None) } };
        let writing = self.write(move |writer| {
            let present: BTreeSet<i64> = entries.iter().map(|entry| entry.id).collect();
            let mut changed = false;
            for id in writer.ids_in_range(after, upto) {
                if !present.contains(&id) {
                    changed |= writer.remove(id);
                }
            }
            Ok(writer.upsert(&entries)? > 0 || changed)
        });
        let (written, next_page) = tokio::join!(writing, reading);
        self.uncommitted |= written?;
        if let Some(pass) = &mut self.pass {
            (pass.after, pass.next_page) = (upto, next_page?);
        }
        Ok(more)
    }

    /// Publishes the written documents to searches.
    async fn publish(&mut self) -> Result<(), Error> {
        let (categories, commit) = (self.categories.clone(), self.uncommitted);
        let snapshot: Snapshot = self
            .write(move |writer| if commit { writer.commit(categories) } else { writer.snapshot(categories) })
            .await?;
        let documents: u32 = snapshot.segments.iter().map(|segment| segment.len).sum();
        self.search.0.snapshot.store(Some(Arc::new(snapshot)));
        self.documents.set(documents);
        (self.uncommitted, self.committed_at) = (false, Instant::now());
        Ok(())
    }

    /// Checks for what is not in the log: reloads changed categories, and starts a partial pass if there are
    /// new products.
    async fn read_state(&mut self) -> Result<(), Error> {
        let mut conn = self.pool.acquire().await?;
        let state = store::search::fetch_state(&mut conn).await?;
        if self.state_read_at.is_none() || state.tree_revision != self.categories.revision {
            self.categories = Arc::new(CategoryTree::new(
                store::category::fetch_all(&mut conn).await?,
                state.tree_revision,
            ));
            self.uncommitted = true;
        }
        if state.newest_id > self.newest_id && self.pass.is_none() {
            self.pass = Some(Pass::new(self.newest_id, true));
        }
        self.newest_id = self.newest_id.max(state.newest_id);
        self.state_read_at = Some(Instant::now());
        Ok(())
    }

    /// Reloads the categories if a product is in an unknown one.
    async fn load_missing_categories(&mut self, entries: &[IndexEntry]) -> Result<(), Error> {
        if entries.iter().filter_map(|entry| entry.category_id).any(|id| self.categories.get(id).is_none()) {
            let mut conn = self.pool.acquire().await?;
            let revision = self.categories.revision;
            self.categories =
                Arc::new(CategoryTree::new(store::category::fetch_all(&mut conn).await?, revision));
            self.uncommitted = true;
        }
        Ok(())
    }

    /// Runs `work` with the index writer on a blocking thread.
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
