//! A response cache for pages of lists and searches, as JSON, for callers without special rights.
//!
//! Concurrent requests for one page cause one fetch (request coalescing), whose page is cached for [`MAX_PAGE_AGE`].
//! Any change of a product or category that the gateway learns of invalidates all pages.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics::{Counter, counter};
use prost::Message;
#[cfg(doc)]
use shoppee_proto::PRODUCT_MAX_STALENESS;
use shoppee_proto::product::v1::GetPageRequest;
use tokio::{
    sync::OnceCell,
    time::{Instant, timeout},
};

use super::Page;
use crate::error::Problem;

/// The maximum age of a page, counted from the start of its fetch. A search reads the service's memory, which lags by
/// up to [`PRODUCT_MAX_STALENESS`]. Both together stay below the second within which a change must show.
const MAX_PAGE_AGE: Duration = Duration::from_millis(300);
/// The capacity for pages and their keys.
const MAX_CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// The size of an entry without its key and body, in bytes.
const ENTRY_OVERHEAD_BYTES: usize = 512;
/// Bounds the wait for a page, whichever caller fetches it. A client learns within 2.5 s that a service is unavailable.
const FETCH_TIMEOUT: Duration = Duration::from_millis(2400);

/// The encoded request of a page.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PageKey(Vec<u8>);

impl From<&GetPageRequest> for PageKey {
    fn from(request: &GetPageRequest) -> Self {
        Self(request.encode_to_vec())
    }
}

/// A page that was fetched or is being fetched.
#[derive(Debug)]
struct Entry {
    fetch_started_at: Instant,
    generation: u64,
    /// Empty during the fetch.
    page: OnceCell<Result<Page, Problem>>,
}

impl Entry {
    fn new(fetch_started_at: Instant, generation: u64) -> Self {
        Self { fetch_started_at, generation, page: OnceCell::new() }
    }

    /// Reports whether a caller that comes at `now` may get the page. An error reaches only the callers that already
    /// wait.
    fn is_fresh(&self, now: Instant, generation: u64, max_age: Duration) -> bool {
        self.generation == generation
            && now < self.fetch_started_at + max_age
            && self.page.get().is_none_or(Result::is_ok)
    }

    /// Returns the bytes of the page and of its compressed form, which is not larger.
    fn size(&self) -> usize {
        2 * self.page.get().and_then(|page| page.as_ref().ok()).map_or(0, Page::len)
    }
}

/// A cache of pages.
#[derive(Debug)]
pub struct PageCache {
    entries: moka::sync::Cache<PageKey, Arc<Entry>>,
    max_age: Duration,
    /// Increases with each invalidation. A page of an earlier generation is stale.
    generation: AtomicU64,
    hits: Counter,
    misses: Counter,
    pub bypasses: Counter,
}

impl PageCache {
    pub fn new() -> Self {
        Self::with_max_age(MAX_PAGE_AGE)
    }

    fn with_max_age(max_age: Duration) -> Self {
        let size = |key: &PageKey, entry: &Arc<Entry>| {
            u32::try_from(ENTRY_OVERHEAD_BYTES + key.0.len() + entry.size())
        };
        let count =
            |result: &'static str| counter!("cache_requests_total", "level" => "pages", "result" => result);
        Self {
            entries: moka::sync::Cache::builder()
                .max_capacity(MAX_CACHE_BYTES)
                .weigher(move |key, entry| size(key, entry).unwrap_or(u32::MAX))
                .time_to_live(max_age)
                .build(),
            max_age,
            generation: AtomicU64::new(0),
            hits: count("hit"),
            misses: count("miss"),
            bypasses: count("bypass"),
        }
    }

    /// Returns the cached page, that of a fetch in progress, or the page that `fetch` returns. An error of `fetch` goes
    /// to all callers that wait for it. 503 after [`FETCH_TIMEOUT`].
    pub async fn get(
        &self,
        key: PageKey,
        fetch: impl Future<Output = Result<Page, Problem>>,
    ) -> Result<Page, Problem> {
        let entry = self.fresh_entry(&key);
        if let Some(page) = entry.page.get() {
            return page.clone();
        }
        let mut fetched = false;
        // If the fetching caller hangs up, the next waiting caller fetches.
        let page = entry.page.get_or_init(async || {
            fetched = true;
            fetch.await
        });
        let page = timeout(FETCH_TIMEOUT, page).await.map_err(|_elapsed| Problem::unavailable())?.clone();
        if fetched && self.is_fresh(&entry) {
            // Inserted again: its weight now includes the page.
            self.entries.insert(key, entry);
        }
        page
    }

    /// Makes all pages stale, those of fetches in progress included.
    pub fn invalidate(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Returns the fresh entry of `key`, or a new one.
    fn fresh_entry(&self, key: &PageKey) -> Arc<Entry> {
        if let Some(entry) = self.entries.get(key)
            && self.is_fresh(&entry)
        {
            self.hits.increment(1);
            return entry;
        }
        let new = || Arc::new(Entry::new(Instant::now(), self.generation()));
        let entry = self.entries.entry_by_ref(key).or_insert_with_if(new, |entry| !self.is_fresh(entry));
        let count = if entry.is_fresh() { &self.misses } else { &self.hits };
        count.increment(1);
        entry.into_value()
    }

    fn is_fresh(&self, entry: &Entry) -> bool {
        entry.is_fresh(Instant::now(), self.generation(), self.max_age)
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures_util::future::join_all;
    use shoppee_proto::product::v1::{ListProductsRequest, SearchProductsRequest};
    use tokio::sync::Semaphore;

    use super::*;
    use crate::error::Code;

    /// A service whose responses wait for a permit each. Each page is the number of its fetch.
    #[derive(Debug)]
    struct Source {
        fetches: AtomicUsize,
        permits: Semaphore,
    }

    impl Source {
        fn new(permits: usize) -> Self {
            Self { fetches: AtomicUsize::new(0), permits: Semaphore::new(permits) }
        }

        fn fetches(&self) -> usize {
            self.fetches.load(Ordering::Relaxed)
        }

        async fn fetch(&self) -> Result<Page, Problem> {
            let number = self.fetches.fetch_add(1, Ordering::Relaxed);
            self.permits.acquire().await.unwrap().forget();
            page(number)
        }

        async fn refuse(&self) -> Result<Page, Problem> {
            self.fetch().await?;
            Err(Problem::unavailable())
        }
    }

    fn page(number: usize) -> Result<Page, Problem> {
        Page::new(&number)
    }

    /// Returns a cache whose pages do not age during a test.
    fn ageless() -> PageCache {
        PageCache::with_max_age(Duration::from_hours(1))
    }

    fn key() -> PageKey {
        list_key(None)
    }

    fn list_key(limit: Option<i32>) -> PageKey {
        let list = ListProductsRequest { limit, ..ListProductsRequest::default() };
        PageKey::from(&GetPageRequest { list: Some(list), search: None })
    }

    #[test]
    fn an_entry_is_fresh_up_to_its_maximum_age_and_within_its_generation() {
        let (now, moment) = (Instant::now(), Duration::from_millis(1));
        let entry = Entry::new(now, 7);
        let is_fresh = |age, generation| entry.is_fresh(now + age, generation, MAX_PAGE_AGE);
        assert!(is_fresh(MAX_PAGE_AGE.saturating_sub(moment), 7));
        assert!(!is_fresh(MAX_PAGE_AGE, 7));
        assert!(!is_fresh(moment, 8));
    }

    #[tokio::test]
    async fn callers_at_the_same_moment_cause_one_fetch() {
        let (pages, source) = (ageless(), Source::new(0));
        let callers = join_all((0..100).map(|_| pages.get(key(), source.fetch())));
        let (answers, ()) = tokio::join!(callers, async { source.permits.add_permits(1) });
        assert!(answers.into_iter().all(|answer| answer == page(0)));
        assert_eq!(pages.get(key(), source.fetch()).await, page(0), "cached");
    }

    #[tokio::test]
    async fn an_invalidation_makes_pages_stale_also_those_being_fetched() {
        let (pages, source) = (ageless(), Source::new(0));
        let second = async {
            pages.invalidate();
            source.permits.add_permits(2);
            pages.get(key(), source.fetch()).await
        };
        let answers = tokio::join!(pages.get(key(), source.fetch()), second);
        assert_eq!(answers, (page(0), page(1)));
        assert_eq!(pages.get(key(), source.fetch()).await, page(1));
        pages.invalidate();
        source.permits.add_permits(1);
        assert_eq!(pages.get(key(), source.fetch()).await, page(2));
    }

    #[tokio::test]
    async fn an_error_reaches_the_waiting_callers_and_is_not_cached() {
        let (pages, source) = (ageless(), Source::new(0));
        let callers = join_all((0..10).map(|_| pages.get(key(), source.refuse())));
        let (answers, ()) = tokio::join!(callers, async { source.permits.add_permits(2) });
        assert!(answers.into_iter().all(|answer| answer.is_err_and(|error| error.code == Code::Unavailable)));
        assert_eq!(source.fetches(), 1);
        assert_eq!(pages.get(key(), source.fetch()).await, page(1));
    }

    #[tokio::test]
    async fn a_caller_that_hangs_up_leaves_its_fetch_to_the_next() {
        let (pages, source) = (ageless(), Source::new(0));
        let (gone, stays) = tokio::join!(
            timeout(Duration::ZERO, pages.get(key(), source.fetch())),
            timeout(FETCH_TIMEOUT, async {
                let page = pages.get(key(), source.fetch());
                let permit = async {
                    while source.fetches() < 2 {
                        tokio::task::yield_now().await;
                    }
                    source.permits.add_permits(1);
                };
                tokio::join!(page, permit).0
            })
        );
        assert!(gone.is_err());
        assert_eq!(stays, Ok(page(1)));
    }

    #[tokio::test]
    async fn each_request_has_its_own_page() {
        let (pages, source) = (ageless(), Source::new(3));
        let search = GetPageRequest { list: None, search: Some(SearchProductsRequest::default()) };
        for key in [key(), list_key(Some(20)), PageKey::from(&search)] {
            pages.get(key, source.fetch()).await.unwrap();
        }
        assert_eq!(source.fetches(), 3);
    }

    #[tokio::test]
    async fn pages_are_weighed_with_their_bodies() {
        let pages = ageless();
        let large = Page::new(&"x".repeat(usize::try_from(MAX_CACHE_BYTES / 8).unwrap())).unwrap();
        for limit in 0..8 {
            pages.get(list_key(Some(limit)), async { Ok(large.clone()) }).await.unwrap();
        }
        pages.entries.run_pending_tasks();
        let weight = pages.entries.weighted_size();
        assert!((MAX_CACHE_BYTES / 4..=MAX_CACHE_BYTES).contains(&weight), "{weight} bytes");
    }
}
