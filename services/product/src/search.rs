//! Full-text search over an in-memory index of this process ([`index`]). The indexer follows the change log
//! ([`indexer`]); queries are resolved ([`query`]), ranked ([`ranking`]) and counted ([`facets`]). PostgreSQL
//! remains the source of truth. A search reads only the products of its page, mostly from the cache.

mod analyzer;
mod categories;
mod facets;
mod index;
mod indexer;
mod query;
mod ranking;
mod result_cache;
mod segment;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use serde::Serialize;
use shoppee_kit::{age::Age, pg::PgPool, process::Process};
use tokio::sync::{Semaphore, watch};

pub use self::facets::Facets;
use self::{
    index::Snapshot,
    ranking::{IndexQuery, TIER_COUNT},
    result_cache::ResultCache,
};
use crate::{
    cache::{Cache, CacheEntry},
    change_log::ChangeLog,
    error::Error,
    listing::{Filters, PageCursor, Sort, SortKey},
    product::Product,
};

/// The maximum length of a query. Characters.
const MAX_QUERY_LEN: usize = 200;
/// Searches that wait or run on blocking threads; more are refused.
const MAX_PENDING_SEARCHES: usize = 64;
/// Searches that run on blocking threads concurrently: the other requests need the cores too.
const MAX_CONCURRENT_SEARCHES: usize = 2;
/// The maximum products of an index, and characters of a query, for a search in the task of its caller. Such
/// a search takes less time than waking a blocking thread.
const MAX_INLINE_PRODUCTS: u32 = 5_000;
const MAX_INLINE_QUERY_LEN: usize = 40;
/// The maximum time for which an admin's search waits until its own writes are indexed.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(1);

/// The text of a search.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Query(String);

impl Query {
    pub fn parse(q: String) -> Result<Self, Error> {
        if !(1..=MAX_QUERY_LEN).contains(&q.chars().count()) {
            Err(Error::malformed("q", "must be 1 to 200 characters"))
        } else if q.contains('\0') {
            Err(Error::malformed("q", "must not contain NUL"))
        } else {
            Ok(Self(q))
        }
    }
}

/// A search, without the cursor of its page.
#[derive(Clone, Debug)]
pub struct SearchRequest {
    pub query: Query,
    pub filters: Filters,
    pub ranking: Ranking,
    /// The page size. Products.
    pub limit: i64,
    pub facets: bool,
}

/// The order of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Ranking {
    Relevance,
    By(Sort),
}

impl Ranking {
    /// Reports whether a cursor of this order can have such a key.
    fn accepts(self, key: &SortKey) -> bool {
        match (self, key) {
            (Self::Relevance, SortKey::Number(tier)) => {
                usize::try_from(*tier).is_ok_and(|tier| tier < TIER_COUNT)
            }
            (Self::Relevance, SortKey::Text(_)) => false,
            (Self::By(sort), key) => sort.accepts(key),
        }
    }
}

/// The hits of a query in the index.
#[derive(Debug)]
struct IndexResult {
    /// The sort keys and ids of the products, in order.
    hits: Vec<(SortKey, i64)>,
    more: bool,
    total: u64,
    facets: Option<Facets>,
}

/// A page of search results.
#[derive(Debug)]
pub struct Results {
    /// Entries that have a product.
    pub items: Vec<Arc<CacheEntry>>,
    pub next_cursor: Option<String>,
    /// The number of hits on all pages.
    pub total: u64,
    pub facets: Option<Facets>,
}

/// The search index of this process; cheap to clone.
#[derive(Clone, Debug)]
pub struct Search(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// `None` until the index is built.
    snapshot: ArcSwapOption<Snapshot>,
    results: ResultCache,
    /// The id of the change log up to which the snapshot contains all changes.
    applied: watch::Sender<i64>,
    /// The time since the snapshot contained all changes.
    age: Age,
    pending_permits: Semaphore,
    running_permits: Arc<Semaphore>,
}

impl Search {
    /// Starts to build the index and to follow the change log.
    pub fn start(pool: &PgPool, change_log: &ChangeLog, process: &Process) -> Self {
        let search = Self::new();
        indexer::start(&search, pool, change_log, process);
        search
    }

    fn new() -> Self {
        Self(Arc::new(Inner {
            snapshot: ArcSwapOption::empty(),
            results: ResultCache::new(),
            applied: watch::Sender::new(i64::MIN),
            age: Age::default(),
            pending_permits: Semaphore::new(MAX_PENDING_SEARCHES),
            running_permits: Arc::new(Semaphore::new(MAX_CONCURRENT_SEARCHES)),
        }))
    }

    /// Returns a page of the active products that match a query. With `read_your_writes`, the page includes
    /// the writes before this call.
    pub async fn find(
        &self,
        cache: &Cache,
        request: &SearchRequest,
        cursor: Option<&str>,
        read_your_writes: bool,
    ) -> Result<Results, Error> {
        let SearchRequest { query, filters, ranking, limit, facets } = request;
        let cursor_query = ("search", ranking, query, filters);
        let after = match cursor {
            None => None,
            Some(cursor) => {
                let PageCursor { key, id, .. } =
                    PageCursor::parse(cursor, &cursor_query).map_err(Error::Malformed)?;
                if !ranking.accepts(&key) {
                    return Err(Error::malformed("cursor", "is not a cursor of this search"));
                }
                Some((key, id))
            }
        };
        if read_your_writes && let Some(id) = cache.last_change_id().await {
            self.catch_up(id).await;
        }
        let index_query = IndexQuery {
            text: query.0.clone(),
            filters: filters.clone(),
            ranking: *ranking,
            limit: usize::try_from(*limit).unwrap_or_default(),
            after,
            facets: *facets,
        };
        let result = self.execute(index_query).await?;
        let ids: Vec<i64> = result.hits.iter().map(|(_, id)| *id).collect();
        let mut items = cache.get_many_or_stale(&ids).await?;
        // A product may have changed since it was indexed, so that it no longer matches.
        let is_match = |product: &Product| product.is_visible(false) && filters.matches(product);
        items.retain(|entry| entry.product.as_ref().is_some_and(is_match));
        let last = result.hits.last().filter(|_| result.more);
        Ok(Results {
            items,
            next_cursor: last.map(|(key, id)| PageCursor::new(&cursor_query, key.clone(), *id).encode()),
            total: result.total,
            facets: result.facets.clone(),
        })
    }

    /// Returns the number of products in the index; 0 until it is built.
    pub fn product_count(&self) -> u32 {
        self.0.snapshot.load().as_ref().map_or(0, |snapshot| snapshot.len())
    }

    /// Returns the time since all changes were in the index.
    pub fn age(&self) -> Duration {
        self.0.age.get()
    }

    /// Executes a query on the newest snapshot, or returns its cached result. Returns `Unavailable` while the
    /// index is being built, and if too many searches wait.
    async fn execute(&self, query: IndexQuery) -> Result<Arc<IndexResult>, Error> {
        let snapshot = self.0.snapshot.load_full().ok_or(Error::Unavailable)?;
        let key = (snapshot.generation, query);
        if let Some(result) = self.0.results.get(&key) {
            return Ok(result);
        }
        let result = Arc::new(self.compute(snapshot, key.1.clone()).await?);
        self.0.results.insert(key, result.clone());
        Ok(result)
    }

    /// Computes a result: inline if the query is small, else on a blocking thread.
    async fn compute(&self, snapshot: Arc<Snapshot>, query: IndexQuery) -> Result<IndexResult, Error> {
        if snapshot.len() <= MAX_INLINE_PRODUCTS && query.text.chars().count() <= MAX_INLINE_QUERY_LEN {
            return ranking::execute(&snapshot, &query).map_err(internal);
        }
        let _pending = self.0.pending_permits.try_acquire().map_err(|_| Error::Unavailable)?;
        let permit = self.0.running_permits.clone().acquire_owned().await.map_err(|_| Error::Unavailable)?;
        let searching = tokio::task::spawn_blocking(move || {
            // The search continues if the caller disconnects; the permit is released when it ends.
            let _permit = permit;
            ranking::execute(&snapshot, &query)
        });
        let hits = searching.await.map_err(internal)?;
        hits.map_err(internal)
    }

    /// Waits, for a bounded time, until the snapshot contains the changes up to an id of the log.
    async fn catch_up(&self, id: i64) {
        let mut applied = self.0.applied.subscribe();
        let _ = tokio::time::timeout(CATCH_UP_TIMEOUT, applied.wait_for(|applied| *applied >= id)).await;
    }
}

fn internal(error: impl std::fmt::Display) -> Error {
    tracing::error!(%error, "search failed");
    Error::Internal
}

#[cfg(test)]
mod tests;
