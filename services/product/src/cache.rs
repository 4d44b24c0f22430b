//! The product cache: a read-through cache with three levels, which are the memory of this process, Redis
//! ([`redis`]) and PostgreSQL.
//!
//! Memory is used only while the change log is read to its end ([`crate::change_log`]). A change invalidates
//! the entries that it makes stale. Every entry has a revision, and an older one never replaces a newer one.
//! The cache tracks the minimum revision of recently changed products and discards slow reads below it.

mod many;
mod redis;

use std::{
    future::ready,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use moka::Expiry;
use shoppee_kit::{
    age::Age, clock::Clock, pg::PgPool, process::Process, redis::Clients, throttle::KeyedThrottle,
};
use shoppee_proto::PRODUCT_MAX_STALENESS;
use time::OffsetDateTime;
use tokio::time::Instant;

use self::redis::RedisCache;
use crate::{
    change_log::{ChangeBatch, ChangeLog},
    error::Error,
    product::Product,
    store::{self, change::Change},
};

/// The capacity of the memory level. Bytes.
const MAX_CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// The weight of an entry besides its texts and its rendered form. Bytes.
const ENTRY_OVERHEAD_BYTES: usize = 1024;
/// The lifetime of an entry of the negative cache: the product does not exist.
const NEGATIVE_TTL: Duration = Duration::from_secs(5);
/// The time for which concurrent requests share one read while memory is bypassed.
const COALESCE_TTL: Duration = Duration::from_millis(20);
const MAX_IN_FLIGHT: u64 = 1000;
/// The lifetime of a tracked minimum revision: longer than any read takes.
const MIN_REVISION_TTL: Duration = Duration::from_secs(10);
const MAX_TRACKED_REVISIONS: u64 = 100_000;
/// The interval at which the cache checks whether its levels are usable.
const BYPASS_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// The lifetimes of entries in each level; zero disables a level.
#[derive(Clone, Copy, Debug)]
pub struct CacheTtls {
    pub memory: Duration,
    pub redis: Duration,
}

/// A cached product, or its absence.
#[derive(Debug)]
pub struct CacheEntry {
    /// `None` if no product has the id.
    pub product: Option<Product>,
    /// The time of the read from PostgreSQL.
    read_at: OffsetDateTime,
    /// The generation of the memory before the read. An entry of an earlier generation is stale
    /// ([`Cache::invalidate_all`]).
    generation: u64,
    rendered: OnceLock<Option<Box<[u8]>>>,
}

impl CacheEntry {
    /// Creates an entry. `generation` was read before the product.
    fn new(product: Option<Product>, read_at: OffsetDateTime, generation: u64) -> Self {
        Self { product, read_at, generation, rendered: OnceLock::new() }
    }

    /// Returns the rendered product. `render` runs once per entry.
    pub fn rendered(&self, render: impl FnOnce(&Product) -> Option<Box<[u8]>>) -> Option<&[u8]> {
        self.rendered.get_or_init(|| self.product.as_ref().and_then(render)).as_deref()
    }

    /// Returns the revision; 0 if there is no such product.
    pub fn revision(&self) -> i64 {
        self.product.as_ref().map_or(0, |product| product.revision)
    }

    fn weight(&self) -> usize {
        let texts = self.product.as_ref().map_or(0, |product| {
            let json = serde_json::to_vec(product).map_or(0, |json| json.len());
            let attributes = serde_json::to_vec(&product.attributes).map_or(0, |json| json.len());
            // The fields and the rendered product; the map of the attributes takes about four times their JSON.
            2 * json + 3 * attributes
        });
        ENTRY_OVERHEAD_BYTES + texts
    }
}

struct EntryExpiry(Duration);

impl Expiry<i64, Arc<CacheEntry>> for EntryExpiry {
    fn expire_after_create(
        &self,
        _: &i64,
        entry: &Arc<CacheEntry>,
        _: std::time::Instant,
    ) -> Option<Duration> {
        Some(if entry.product.is_some() { self.0 } else { self.0.min(NEGATIVE_TTL) })
    }

    fn expire_after_update(
        &self,
        id: &i64,
        entry: &Arc<CacheEntry>,
        at: std::time::Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.expire_after_create(id, entry, at)
    }
}

type Memory = moka::future::Cache<i64, Arc<CacheEntry>>;

/// The product cache; cheap to clone.
#[derive(Clone, Debug)]
pub struct Cache(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pool: PgPool,
    clock: Clock,
    change_log: ChangeLog,
    /// `None` if the level is disabled.
    memory: Option<Memory>,
    /// Coalesces concurrent reads while memory is bypassed.
    in_flight: Memory,
    /// The number of times that everything was invalidated.
    generation: AtomicU64,
    /// The minimum revisions of products that changed recently.
    min_revisions: moka::sync::Cache<i64, i64>,
    redis: RedisCache,
    stock_throttle: KeyedThrottle,
}

impl Cache {
    /// Starts the cache and its connection to Redis. The poller of the change log must pass batches to [`Cache::apply`].
    pub fn start(
        pool: &PgPool,
        redis: &Clients,
        ttls: CacheTtls,
        change_log: &ChangeLog,
        process: &Process,
    ) -> Self {
        // Counters exist from the start, at 0.
        for (level, result) in [("memory", "hit"), ("memory", "miss"), ("memory", "bypass")]
            .into_iter()
            .chain([("redis", "hit"), ("redis", "miss"), ("redis", "error")])
        {
            count_many(level, result, 0);
        }
        let memory = (!ttls.memory.is_zero()).then(|| {
            moka::future::Cache::builder()
                .max_capacity(MAX_CACHE_BYTES)
                .weigher(|_, entry: &Arc<CacheEntry>| u32::try_from(entry.weight()).unwrap_or(u32::MAX))
                .expire_after(EntryExpiry(ttls.memory))
                .build()
        });
        let cache = Self(Arc::new(Inner {
            pool: pool.clone(),
            clock: process.clock.clone(),
            change_log: change_log.clone(),
            memory,
            in_flight: moka::future::Cache::builder()
                .max_capacity(MAX_IN_FLIGHT)
                .time_to_live(COALESCE_TTL)
                .build(),
            generation: AtomicU64::new(0),
            min_revisions: moka::sync::Cache::builder()
                .max_capacity(MAX_TRACKED_REVISIONS)
                .time_to_live(MIN_REVISION_TTL)
                .build(),
            redis: RedisCache::new(ttls.redis, process),
            stock_throttle: KeyedThrottle::default(),
        }));
        cache.0.redis.spawn_publisher(redis, &cache, pool, change_log, process);
        cache.export_bypass(process);
        cache
    }

    /// Returns an entry with at least `min_revision`, the revision that the caller has already seen.
    pub async fn get(&self, id: i64, min_revision: i64) -> Result<Arc<CacheEntry>, Error> {
        let Some(memory) = self.usable_memory() else {
            count("memory", "bypass");
            let reading = self.0.in_flight.try_get_with(id, async { self.read(id).await.map(Arc::new) });
            let entry = reading.await.map_err(|error| (*error).clone())?;
            return if self.is_current(&entry, id, min_revision) {
                Ok(entry)
            } else {
                self.read(id).await.map(Arc::new)
            };
        };
        if let Some(entry) = self.get_fresh(memory, id, min_revision).await {
            self.record_hit(&entry);
            return Ok(entry);
        }
        count("memory", "miss");
        // Concurrent requests are coalesced into one load.
        let loading = memory.try_get_with(id, self.load(id, min_revision));
        let entry = loading.await.map_err(|error| (*error).clone())?;
        if self.is_current(&entry, id, min_revision) {
            return Ok(entry);
        }
        if !self.is_current(&entry, id, 0) {
            // The product changed during the load.
            memory.invalidate(&id).await;
        }
        let entry = Arc::new(self.read(id).await?);
        self.insert_if_newer(id, entry.clone()).await;
        Ok(entry)
    }

    /// Returns an entry from memory only, without waiting, if its product matches `filter`.
    pub async fn get_in_memory(
        &self,
        id: i64,
        min_revision: i64,
        filter: impl FnOnce(&Product) -> bool,
    ) -> Option<Arc<CacheEntry>> {
        let entry = self.get_fresh(self.usable_memory()?, id, min_revision).await?;
        entry.product.as_ref().filter(|product| filter(product))?;
        self.record_hit(&entry);
        Some(entry)
    }

    /// Inserts a product that this process has just written.
    pub async fn insert_written(&self, product: &Product) {
        self.raise_min_revision(product.id, product.revision);
        let entry = CacheEntry::new(Some(product.clone()), self.0.clock.now(), self.generation());
        self.insert_if_newer(product.id, Arc::new(entry)).await;
        self.0.change_log.wake();
    }

    /// Returns the cached revisions of products whose stock this process is about to change. Products that
    /// change often are throttled and left out: the next poll of the change log invalidates them soon enough.
    pub async fn revisions_before_stock_change(&self, ids: impl IntoIterator<Item = i64>) -> Vec<(i64, i64)> {
        let mut before = Vec::new();
        for id in ids {
            let Some(memory) = self.0.memory.as_ref().filter(|_| self.0.stock_throttle.allow(id)) else {
                continue;
            };
            let cached = memory.get(&id).await.map_or(0, |entry| entry.revision());
            let revision = cached.max(self.min_revision(id));
            if revision > 0 {
                before.push((id, revision));
            }
        }
        before
    }

    /// Invalidates the entries after a stock change, so that the next read returns the new stock.
    pub async fn invalidate_stock(&self, before: impl IntoIterator<Item = (i64, i64)>) {
        for (id, revision) in before {
            self.invalidate_below(id, revision + 1).await;
        }
        self.0.change_log.wake();
    }

    /// Waits, for a bounded time, until the committed changes are visible in this process.
    pub async fn wait_visible(&self) {
        self.0.change_log.wait_visible().await;
    }

    /// Invalidates the entries that a batch of changes makes stale.
    pub async fn apply(&self, batch: &ChangeBatch) {
        if batch.everything {
            self.invalidate_all();
        }
        for change in &batch.changes {
            self.invalidate(change).await;
        }
    }

    /// Invalidates the entry that a change makes stale.
    async fn invalidate(&self, change: &Change) {
        self.invalidate_below(change.product_id, change.revision).await;
        let lag = self.0.clock.now() - change.at;
        metrics::histogram!("cache_invalidation_seconds", "level" => "memory")
            .record(lag.as_seconds_f64().max(0.0));
    }

    async fn invalidate_below(&self, id: i64, revision: i64) {
        self.raise_min_revision(id, revision);
        if let Some(memory) = &self.0.memory
            && memory.get(&id).await.is_some_and(|entry| entry.revision() < revision)
        {
            memory.invalidate(&id).await;
        }
    }

    /// Invalidates all entries, and all reads that are in flight. Used if there are too many changes to
    /// deliver individually. Redis is bypassed until it has begun a new epoch.
    fn invalidate_all(&self) {
        self.0.generation.fetch_add(1, Ordering::AcqRel);
        if let Some(memory) = &self.0.memory {
            memory.invalidate_all();
        }
    }

    /// Returns the number of times that everything was invalidated.
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// Reports whether an entry has at least the tracked minimum revision and `min_revision`.
    fn is_current(&self, entry: &CacheEntry, id: i64, min_revision: i64) -> bool {
        entry.generation == self.generation() && entry.revision() >= self.min_revision(id).max(min_revision)
    }

    /// Exports the time for which each level has been bypassed: below a second while it is usable.
    fn export_bypass(&self, process: &Process) {
        let level = |name: &'static str| {
            let age = Age::default();
            age.export(process, metrics::gauge!("cache_bypassed_seconds", "level" => name));
            age
        };
        let (memory_age, redis_age) = (
            self.0.memory.as_ref().map(|_| level("memory")),
            self.0.redis.is_enabled().then(|| level("redis")),
        );
        let (cache, shutdown) = (self.clone(), process.tasks.shutdown_token());
        process.tasks.spawn("cache bypass", async move {
            while !shutdown.is_cancelled() {
                let now = Instant::now();
                if let Some(age) = memory_age.as_ref().filter(|_| cache.usable_memory().is_some()) {
                    age.reset(now);
                }
                if let Some(age) = redis_age.as_ref().filter(|_| cache.0.redis.is_synced(cache.generation()))
                {
                    age.reset(now);
                }
                shutdown.run_until_cancelled(tokio::time::sleep(BYPASS_CHECK_INTERVAL)).await;
            }
            Ok(())
        });
    }

    /// Returns the memory level if it is usable.
    fn usable_memory(&self) -> Option<&Memory> {
        let fresh = self.0.change_log.age().is_some_and(|age| age < PRODUCT_MAX_STALENESS);
        self.0.memory.as_ref().filter(|_| fresh)
    }

    /// Returns an entry from memory if it is current.
    async fn get_fresh(&self, memory: &Memory, id: i64, min_revision: i64) -> Option<Arc<CacheEntry>> {
        let entry = memory.get(&id).await?;
        self.is_current(&entry, id, min_revision).then_some(entry)
    }

    /// Reads from Redis if it has a current entry, else from PostgreSQL.
    async fn load(&self, id: i64, min_revision: i64) -> Result<Arc<CacheEntry>, Error> {
        let generation = self.generation();
        // Taken before the read: an entry must not be stored behind an invalidation that it does not contain.
        let connection = self.0.redis.synced_connection(generation);
        if let Some(connection) = &connection
            && let Some((product, read_at)) = connection.get(id).await
        {
            let entry = CacheEntry::new(Some(product), read_at, generation);
            if self.is_current(&entry, id, min_revision) {
                count("redis", "hit");
                self.record_age("redis", &entry);
                return Ok(Arc::new(entry));
            }
        }
        count("redis", "miss");
        let entry = Arc::new(self.read(id).await?);
        if let Some(connection) = connection {
            self.0.redis.put(connection, id, entry.clone());
        }
        Ok(entry)
    }

    async fn read(&self, id: i64) -> Result<CacheEntry, Error> {
        let (read_at, generation) = (self.0.clock.now(), self.generation());
        let mut conn = self.0.pool.acquire().await?;
        Ok(CacheEntry::new(store::product::get(&mut conn, id).await?, read_at, generation))
    }

    /// Inserts an entry unless a newer one is present or known of.
    async fn insert_if_newer(&self, id: i64, entry: Arc<CacheEntry>) {
        let Some(memory) = self.usable_memory() else {
            return;
        };
        let revision = entry.revision();
        let keep_newer = |stored: Option<moka::Entry<i64, Arc<CacheEntry>>>| {
            let stored = stored.map(moka::Entry::into_value);
            let is_newer = |stored: &Arc<CacheEntry>| {
                (stored.generation, stored.revision()) > (entry.generation, revision)
            };
            ready(stored.filter(is_newer).unwrap_or_else(|| entry.clone()))
        };
        let stored = memory.entry(id).and_upsert_with(keep_newer).await.into_value();
        // Checked last: a concurrent call that raises the minimum revision finds the entry.
        if !self.is_current(&stored, id, 0) {
            memory.invalidate(&id).await;
        }
    }

    /// Returns the tracked minimum revision; 0 if there is none.
    pub fn min_revision(&self, id: i64) -> i64 {
        self.0.min_revisions.get(&id).unwrap_or_default()
    }

    fn raise_min_revision(&self, id: i64, revision: i64) {
        let higher = |stored: Option<moka::Entry<i64, i64>>| {
            stored.map_or(revision, |stored| stored.into_value().max(revision))
        };
        self.0.min_revisions.entry(id).and_upsert_with(higher);
    }

    fn record_hit(&self, entry: &CacheEntry) {
        count("memory", "hit");
        self.record_age("memory", entry);
    }

    fn record_age(&self, level: &'static str, entry: &CacheEntry) {
        let age = self.0.clock.now() - entry.read_at;
        metrics::histogram!("cache_age_seconds", "level" => level).record(age.as_seconds_f64().max(0.0));
    }
}

fn count(level: &'static str, result: &'static str) {
    count_many(level, result, 1);
}

fn count_many(level: &'static str, result: &'static str, amount: usize) {
    metrics::counter!("cache_requests_total", "level" => level, "result" => result)
        .increment(u64::try_from(amount).unwrap_or(u64::MAX));
}
