//! A response cache for products: the rendered JSON and its entity tag, in the memory of the gateway.
//!
//! The product service reads its change log several times a second and streams the changes. The gateway serves cached
//! responses only under a [`CacheLease`], which the stream renews; without a lease, every request goes to the service.
//!
//! Each response carries a revision. The gateway remembers the highest revision of a product for [`MIN_REVISION_TTL`]
//! and sends it as the minimum with every fetch. It does not cache responses below the minimum. This gives monotonic
//! reads per gateway.

mod entry;
mod lease;
mod loader;
mod page_cache;
mod response;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics::{Counter, Histogram, counter, histogram};
use shoppee_kit::{client, clock::Clock, process::Process, throttle::KeyedThrottle};
use shoppee_proto::{
    PRODUCT_REVISION,
    product::v1::{
        GetPageRequest, Product, ProductAsOf, ProductChangeResult, RowStatus, WatchRequest, WatchResponse,
    },
};
use time::OffsetDateTime;
use tokio::{
    task::coop::consume_budget,
    time::{Instant, timeout},
};
use tonic::{Code as Grpc, Response, Status, metadata::MetadataMap};

use crate::{
    auth::{Anonymous, MaybeUser},
    error::{Code, Problem},
    upstream::{Credential, Upstream},
};
use entry::{CacheEntry, FetchedProduct};
use lease::CacheLease;
use loader::BatchLoader;
use page_cache::{PageCache, PageKey};
pub use response::{Page, ProductResponse};

const MAX_CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// The bytes of an entry without its body.
const ENTRY_OVERHEAD_BYTES: usize = 512;
/// A change stream without a message for so long is abandoned for another replica.
const WATCH_IDLE_TIMEOUT: Duration = Duration::from_secs(2);
const RECONNECT_DELAY: Duration = Duration::from_millis(200);
/// The time for which a minimum revision is remembered at least. It exceeds the time of a fetch, and the lag between
/// replicas of the service.
const MIN_REVISION_TTL: Duration = Duration::from_secs(10);
const MAX_TRACKED_REVISIONS: u64 = 100_000;
/// The revision of a response that carries none; older than all others.
const UNKNOWN_REVISION: i64 = 0;
/// The throttle key of all pages, among product ids; no product has it.
const PAGES_KEY: i64 = 0;
/// Bounds a coalesced fetch, with the second fetch that may follow. A client learns within 2.5 s that a service is
/// unavailable.
const FETCH_TIMEOUT: Duration = Duration::from_millis(2400);

type Entries = moka::future::Cache<i64, Arc<CacheEntry>>;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct ProductCache(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    upstream: Upstream,
    loader: BatchLoader,
    clock: Clock,
    /// `None` if the cache is disabled.
    entries: Option<Entries>,
    min_revisions: moka::sync::Cache<i64, MinRevision>,
    /// Increases with each invalidation of all entries.
    generation: AtomicU64,
    pages: PageCache,
    lease: CacheLease,
    /// Limits invalidations by orders of one product.
    throttle: KeyedThrottle,
    metrics: CacheMetrics,
}

/// The highest known revision of a product.
#[derive(Clone, Copy, Debug)]
struct MinRevision {
    revision: i64,
    raised_at: Instant,
}

/// Metrics that are looked up once, as nearly every request records a hit.
#[derive(Debug)]
struct CacheMetrics {
    hits: Counter,
    misses: Counter,
    bypasses: Counter,
    ages: Histogram,
    invalidation_delays: Histogram,
}

impl CacheMetrics {
    fn new() -> Self {
        let count =
            |result: &'static str| counter!("cache_requests_total", "level" => "gateway", "result" => result);
        Self {
            hits: count("hit"),
            misses: count("miss"),
            bypasses: count("bypass"),
            ages: histogram!("cache_age_seconds", "level" => "gateway"),
            invalidation_delays: histogram!("cache_invalidation_seconds", "level" => "gateway"),
        }
    }
}

impl ProductCache {
    /// Starts to watch the service's changes. Entries live for `ttl` at most; zero disables the cache.
    pub fn start(upstream: Upstream, ttl: Duration, process: &Process) -> Self {
        let entries = (!ttl.is_zero()).then(|| {
            let size =
                |entry: &Arc<CacheEntry>| u32::try_from(ENTRY_OVERHEAD_BYTES + entry.product.response.len());
            moka::future::Cache::builder()
                .max_capacity(MAX_CACHE_BYTES)
                .weigher(move |_, entry| size(entry).unwrap_or(u32::MAX))
                .time_to_live(ttl)
                .build()
        });
        let min_revisions = moka::sync::Cache::builder()
            .max_capacity(MAX_TRACKED_REVISIONS)
            .time_to_live(2 * MIN_REVISION_TTL)
            .build();
        let cache = Self(Arc::new(Inner {
            loader: BatchLoader::new(upstream.clone(), process.tasks.clone()),
            upstream,
            clock: process.clock.clone(),
            entries,
            min_revisions,
            generation: AtomicU64::new(0),
            pages: PageCache::new(),
            lease: CacheLease::new(Instant::now()),
            throttle: KeyedThrottle::default(),
            metrics: CacheMetrics::new(),
        }));
        if cache.0.entries.is_some() {
            let (watcher, shutdown) = (cache.clone(), process.tasks.shutdown_token());
            process.tasks.spawn("product cache", async move {
                while !shutdown.is_cancelled() {
                    tokio::select! {
                        () = watcher.watch_changes() => {}
                        () = shutdown.cancelled() => {}
                    }
                    tokio::time::sleep(RECONNECT_DELAY).await;
                }
                Ok(())
            });
        }
        cache
    }

    /// Returns a product as `user` may see it.
    pub async fn get(&self, user: &MaybeUser, id: i64) -> Result<ProductResponse, Problem> {
        let metrics = &self.0.metrics;
        // Read before the lease: when the lease is revoked, the next generation has begun already.
        let generation = self.0.generation.load(Ordering::Acquire);
        let Some(entries) = self.valid_entries() else {
            metrics.bypasses.increment(1);
            return Ok(self.fetch(user, id).await?.response);
        };
        if let Some(entry) = entries.get(&id).await
            && self.is_valid(id, &entry)
        {
            metrics.hits.increment(1);
            metrics.ages.record(entry.product.fetched_at.elapsed().as_secs_f64());
            return Ok(entry.product.response.clone());
        }
        if user.is_privileged() {
            metrics.bypasses.increment(1);
            return Ok(self.fetch(user, id).await?.response);
        }
        metrics.misses.increment(1);
        let response = timeout(FETCH_TIMEOUT, self.get_coalesced(entries, generation, id));
        response.await.unwrap_or_else(|_elapsed| Err(Problem::unavailable()))
    }

    /// Returns the page that `request` asks for, as `user` may see it.
    pub async fn get_page(&self, user: &MaybeUser, request: GetPageRequest) -> Result<Page, Problem> {
        let pages = &self.0.pages;
        if user.is_privileged() {
            pages.bypasses.increment(1);
            return self.fetch_and_render_page(user, request).await;
        }
        if self.valid_entries().is_none() {
            pages.bypasses.increment(1);
            return self.fetch_page(request).await;
        }
        pages.get(PageKey::from(&request), self.fetch_page(request)).await
    }

    /// Fetches a public page, which the service renders.
    async fn fetch_page(&self, request: GetPageRequest) -> Result<Page, Problem> {
        match self.0.upstream.call_with_metadata(&Anonymous, request.clone()).await {
            Ok(response) => Ok(Page::from_json(response.into_inner().json)),
            // A service of the previous version, during a rolling update.
            Err(status) if status.code() == Grpc::Unimplemented => {
                self.fetch_and_render_page(&Anonymous, request).await
            }
            Err(status) => Err(status.into()),
        }
    }

    /// Fetches the products of a page and renders it.
    async fn fetch_and_render_page(
        &self,
        user: &impl Credential,
        request: GetPageRequest,
    ) -> Result<Page, Problem> {
        let upstream = &self.0.upstream;
        match request.search {
            Some(request) => Page::new(&upstream.call(user, request).await?),
            None => Page::new(&upstream.call(user, request.list.unwrap_or_default()).await?),
        }
    }

    /// Fetches a product once for all concurrent callers (request coalescing), and caches it.
    async fn get_coalesced(
        &self,
        entries: &Entries,
        generation: u64,
        id: i64,
    ) -> Result<ProductResponse, Problem> {
        let min_revision = self.min_revision(id);
        let fetch = async {
            let product = self.fetch_public(id).await?;
            Ok(Arc::new(CacheEntry::new(product, generation)))
        };
        match entries.try_get_with::<_, Problem>(id, fetch).await {
            Ok(entry) if self.is_valid(id, &entry) => return Ok(entry.product.response.clone()),
            Ok(_) => entries.invalidate(&id).await,
            // The product may have been created since the coalesced fetch began.
            Err(problem) if problem.code == Code::NotFound && self.min_revision(id) > min_revision => {}
            Err(problem) => return Err(Problem::clone(&problem)),
        }
        Ok(self.fetch_public(id).await?.response)
    }

    /// Reports whether every caller may get the entry.
    fn is_valid(&self, id: i64, entry: &CacheEntry) -> bool {
        if entry.valid.load(Ordering::Acquire) {
            return true;
        }
        let is_current = entry.generation == self.0.generation.load(Ordering::Acquire);
        let valid = is_current && entry.product.public && entry.product.revision >= self.min_revision(id);
        entry.valid.store(valid, Ordering::Release);
        valid
    }

    async fn fetch(&self, user: &MaybeUser, id: i64) -> Result<FetchedProduct, Problem> {
        if user.is_privileged() { self.fetch_direct(user, id).await } else { self.fetch_public(id).await }
    }

    /// Fetches a product as every caller may see it, from the service's memory if possible.
    async fn fetch_public(&self, id: i64) -> Result<FetchedProduct, Problem> {
        let Some(product) = self.0.loader.load(id, self.min_revision(id)).await else {
            return self.fetch_direct(&Anonymous, id).await;
        };
        self.invalidate_below(id, product.revision).await;
        Ok(product)
    }

    async fn fetch_direct(&self, user: &impl Credential, id: i64) -> Result<FetchedProduct, Problem> {
        let response = self.fetch_at_min_revision(user, id).await?;
        FetchedProduct::new(response.get_ref(), revision_from_metadata(response.metadata()))
    }

    /// Fetches a product in a state that is not older than any this gateway knows of.
    pub async fn fetch_at_min_revision(
        &self,
        user: &impl Credential,
        id: i64,
    ) -> Result<Response<Product>, Status> {
        let request = ProductAsOf { id, revision: self.min_revision(id) };
        let response = self.0.upstream.call_with_metadata(user, request).await;
        // An error carries a revision too: that of the removal from the shop.
        let metadata = response.as_ref().map_or_else(Status::metadata, Response::metadata);
        self.invalidate_below(id, revision_from_metadata(metadata)).await;
        response
    }

    /// Records a write through this gateway: later reads return it.
    pub async fn record_update(&self, id: i64, metadata: &MetadataMap) {
        self.0.pages.invalidate();
        self.invalidate_below(id, revision_from_metadata(metadata)).await;
    }

    /// Records the writes of a batch.
    pub async fn record_batch_update(&self, results: &[ProductChangeResult]) {
        self.0.pages.invalidate();
        let mut needs_full_invalidation = false;
        for result in results {
            match (result.id, result.status()) {
                (Some(id), RowStatus::Updated) if result.revision > UNKNOWN_REVISION => {
                    self.invalidate_below(id, result.revision).await;
                }
                (Some(_), RowStatus::Updated) => needs_full_invalidation = true,
                (_, _) => needs_full_invalidation |= is_outcome_unknown(result),
            }
        }
        if needs_full_invalidation {
            self.invalidate_all();
        }
    }

    /// Invalidates the products of an order, whose stock has moved. A throttle bounds invalidations of one product; the
    /// change stream covers the others.
    pub async fn invalidate_stock(&self, ids: &[i64]) {
        if self.0.throttle.allow(PAGES_KEY) {
            self.0.pages.invalidate();
        }
        if let Some(entries) = &self.0.entries {
            for id in ids.iter().filter(|id| self.0.throttle.allow(**id)) {
                entries.invalidate(id).await;
            }
        }
    }

    /// Invalidates all entries and pages, those of fetches in progress included.
    pub fn invalidate_all(&self) {
        self.0.generation.fetch_add(1, Ordering::AcqRel);
        self.0.pages.invalidate();
        if let Some(entries) = &self.0.entries {
            entries.invalidate_all();
        }
    }

    /// Raises the minimum revision of a product, and removes an older entry.
    async fn invalidate_below(&self, id: i64, revision: i64) {
        if revision == UNKNOWN_REVISION {
            return;
        }
        // A large batch has thousands of products: other tasks get their turn in between.
        consume_budget().await;
        self.raise_min_revision(id, revision);
        // In this order: see `is_valid`.
        if let Some(entries) = &self.0.entries
            && entries.get(&id).await.is_some_and(|entry| entry.product.revision < revision)
        {
            entries.invalidate(&id).await;
        }
    }

    /// Applies the changes from one replica of the service until its stream ends or goes silent.
    async fn watch_changes(&self) {
        let watch = async { self.0.upstream.change_feed().watch(WatchRequest {}).await };
        let Ok(stream) = client::with_deadline(WATCH_IDLE_TIMEOUT, watch).await else {
            return;
        };
        let mut stream = stream.into_inner();
        while let Ok(Ok(Some(message))) = timeout(WATCH_IDLE_TIMEOUT, stream.message()).await {
            self.apply_changes(message).await;
        }
    }

    async fn apply_changes(&self, message: WatchResponse) {
        if message.everything {
            self.0.lease.revoke();
            self.invalidate_all();
            return;
        }
        if !message.changed.is_empty() {
            self.0.pages.invalidate();
        }
        for change in message.changed {
            self.invalidate_below(change.product_id, change.revision).await;
            if let Some(Ok(changed_at)) = change.changed_at.map(OffsetDateTime::try_from) {
                let delay = self.0.clock.now() - changed_at;
                self.0.metrics.invalidation_delays.record(delay.as_seconds_f64().max(0.0));
            }
        }
        self.0.lease.renew(Instant::now(), Duration::from_millis(message.age_ms));
    }

    /// Returns the entries while the lease is valid.
    fn valid_entries(&self) -> Option<&Entries> {
        self.0.entries.as_ref().filter(|_| self.0.lease.is_valid(Instant::now()))
    }

    fn min_revision(&self, id: i64) -> i64 {
        self.0.min_revisions.get(&id).map_or(UNKNOWN_REVISION, |min| min.revision)
    }

    fn raise_min_revision(&self, id: i64, revision: i64) {
        let now = Instant::now();
        // A write costs several times as much as a read.
        let is_recent = |min: MinRevision| min.revision >= revision && now < min.raised_at + MIN_REVISION_TTL;
        if self.0.min_revisions.get(&id).is_some_and(is_recent) {
            return;
        }
        let raised = |entry: Option<moka::Entry<i64, MinRevision>>| {
            let current = entry.map_or(UNKNOWN_REVISION, |entry| entry.into_value().revision);
            MinRevision { revision: current.max(revision), raised_at: now }
        };
        self.0.min_revisions.entry(id).and_upsert_with(raised);
    }
}

/// Reports whether a row that failed may have been updated nevertheless.
fn is_outcome_unknown(result: &ProductChangeResult) -> bool {
    result.error.as_ref().is_some_and(|error| error.code == Code::Unavailable.as_str())
}

fn revision_from_metadata(metadata: &MetadataMap) -> i64 {
    let value = metadata.get(PRODUCT_REVISION).and_then(|value| value.to_str().ok());
    value.and_then(|value| value.parse().ok()).unwrap_or(UNKNOWN_REVISION)
}
