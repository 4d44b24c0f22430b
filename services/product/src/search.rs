//! Search: the index of this process ([`index`]), which a follower of the change log keeps up ([`follower`]), and how
//! a query is answered from it ([`words`], [`ranking`], [`facets`]). PostgreSQL stays the truth; no search asks it for
//! more than the products of a page, and those mostly come from memory.

mod facets;
mod fold;
mod follower;
mod index;
mod ranking;
mod result_cache;
mod segment;
mod tree;
mod words;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use serde::Serialize;
use shoppee_kit::{pg::PgPool, process::Process};
use tokio::sync::{Semaphore, watch};

pub use self::{facets::Facets, index::Entry};
use self::{
    index::Snapshot,
    ranking::{Question, TIERS},
    result_cache::ResultCache,
};
use crate::{
    cache::Known,
    catalogue::Catalogue,
    changes::Changes,
    error::Error,
    listing::{Filters, Key, Position, Sort},
    product::Product,
};

/// Characters of a query.
const MAX_QUERY_LEN: usize = 200;
/// Searches that run or wait; more are refused.
const MAX_SEARCHES: usize = 64;
/// Searches that run on blocking threads at a time: the rest of the service needs the cores too.
const MAX_RUNNING: usize = 2;
/// Products of an index, and characters of a query, up to which a search runs in the task of its caller. Such a search
/// takes less time than a blocking thread takes to wake up.
const MAX_INLINE_PRODUCTS: u32 = 5_000;
const MAX_INLINE_QUERY_LEN: usize = 40;
/// How long an admin's search waits for what was written before it.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(1);

/// What somebody looks for.
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

/// A search, but for where its page begins.
#[derive(Clone, Debug)]
pub struct SearchRequest {
    pub query: Query,
    pub filters: Filters,
    pub ranking: Ranking,
    /// Products of a page.
    pub limit: i64,
    pub facets: bool,
}

/// The order of what is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Ranking {
    Relevance,
    By(Sort),
}

impl Ranking {
    /// Reports whether a position of this order can have such a key.
    fn fits(self, key: &Key) -> bool {
        match (self, key) {
            (Self::Relevance, Key::Number(tier)) => usize::try_from(*tier).is_ok_and(|tier| tier < TIERS),
            (Self::Relevance, Key::Text(_)) => false,
            (Self::By(sort), key) => sort.fits(key),
        }
    }
}

/// What the index has found.
#[derive(Debug)]
struct Found {
    /// The keys of the products in the order asked for, and their ids.
    hits: Vec<(Key, i64)>,
    more: bool,
    total: u64,
    facets: Option<Facets>,
}

/// A page of what a search finds.
#[derive(Debug)]
pub struct Results {
    /// Each with its product.
    pub items: Vec<Arc<Known>>,
    pub next_cursor: Option<String>,
    /// On all pages.
    pub total: u64,
    pub facets: Option<Facets>,
}

/// The search index of this process; cheap to clone.
#[derive(Clone, Debug)]
pub struct Search(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// `None` until it was built.
    snapshot: ArcSwapOption<Snapshot>,
    results: ResultCache,
    /// The number of the change log up to which all changes are in the snapshot.
    applied: watch::Sender<i64>,
    waiting: Semaphore,
    running: Arc<Semaphore>,
}

impl Search {
    /// Starts to build the index, and to follow the log.
    pub fn start(pool: &PgPool, changes: &Changes, process: &Process) -> Self {
        let search = Self::unbuilt();
        follower::start(&search, pool, changes, process);
        search
    }

    fn unbuilt() -> Self {
        Self(Arc::new(Inner {
            snapshot: ArcSwapOption::empty(),
            results: ResultCache::new(),
            applied: watch::Sender::new(i64::MIN),
            waiting: Semaphore::new(MAX_SEARCHES),
            running: Arc::new(Semaphore::new(MAX_RUNNING)),
        }))
    }

    /// Answers a question, from the newest snapshot or the result of a repeat. Unavailable while the index is built, and
    /// where too many search.
    async fn answer(&self, question: Question) -> Result<Arc<Found>, Error> {
        let snapshot = self.0.snapshot.load_full().ok_or(Error::Unavailable)?;
        let key = (snapshot.generation, question);
        if let Some(found) = self.0.results.get(&key) {
            return Ok(found);
        }
        let found = Arc::new(self.compute(snapshot, key.1.clone()).await?);
        self.0.results.insert(key, found.clone());
        Ok(found)
    }

    /// Reads the index: at once where that is little work, on a blocking thread otherwise.
    async fn compute(&self, snapshot: Arc<Snapshot>, question: Question) -> Result<Found, Error> {
        if snapshot.len() <= MAX_INLINE_PRODUCTS && question.query.chars().count() <= MAX_INLINE_QUERY_LEN {
            return ranking::answer(&snapshot, &question).map_err(internal);
        }
        let _waiting = self.0.waiting.try_acquire().map_err(|_| Error::Unavailable)?;
        let running = self.0.running.clone().acquire_owned().await.map_err(|_| Error::Unavailable)?;
        let answering = tokio::task::spawn_blocking(move || {
            // A caller that hangs up does not end the work: the place is free when it is done.
            let _running = running;
            ranking::answer(&snapshot, &question)
        });
        let answer = answering.await.map_err(internal)?;
        answer.map_err(internal)
    }

    /// Waits until the changes up to a number of the log can be found, but not for ever.
    async fn catch_up(&self, number: i64) {
        let mut applied = self.0.applied.subscribe();
        let _ = tokio::time::timeout(CATCH_UP_TIMEOUT, applied.wait_for(|applied| *applied >= number)).await;
    }
}

fn internal(error: impl std::fmt::Display) -> Error {
    tracing::error!(%error, "search failed");
    Error::Internal
}

impl Catalogue {
    /// A page of the active products that a query finds; with `newest`, as they are after what was written just now.
    pub async fn search(
        &self,
        request: &SearchRequest,
        cursor: Option<&str>,
        newest: bool,
    ) -> Result<Results, Error> {
        let SearchRequest { query, filters, ranking, limit, facets } = request;
        let asked = ("search", ranking, query, filters);
        let after = match cursor {
            None => None,
            Some(cursor) => {
                let Position { key, id, .. } = Position::parse(cursor, &asked).map_err(Error::Malformed)?;
                if !ranking.fits(&key) {
                    return Err(Error::malformed("cursor", "is not a cursor of this search"));
                }
                Some((key, id))
            }
        };
        if newest && let Some(number) = self.cache.newest_change().await {
            self.search.catch_up(number).await;
        }
        let question = Question {
            query: query.0.clone(),
            filters: filters.clone(),
            ranking: *ranking,
            limit: usize::try_from(*limit).unwrap_or_default(),
            after,
            facets: *facets,
        };
        let found = self.search.answer(question).await?;
        let ids: Vec<i64> = found.hits.iter().map(|(_, id)| *id).collect();
        let mut items = self.cache.get_many_or_stale(&ids).await?;
        // What has changed since it was found fits no more, perhaps.
        let fits = |product: &Product| product.may_be_seen(false) && filters.fit(product);
        items.retain(|known| known.product.as_ref().is_some_and(fits));
        let last = found.hits.last().filter(|_| found.more);
        Ok(Results {
            items,
            next_cursor: last.map(|(key, id)| Position::new(&asked, key.clone(), *id).cursor()),
            total: found.total,
            facets: found.facets.clone(),
        })
    }
}

#[cfg(test)]
mod tests;
