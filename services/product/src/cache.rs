//! What the catalogue shows, on three levels: the memory of this process, Redis ([`shared`]), PostgreSQL.
//!
//! The memory is believed only while the log of changes is read to its end ([`crate::changes`]); a change drops what
//! it outdates. Every answer has a revision, and an older one never takes the place of a newer one: the newest that
//! was heard of lately is remembered, and what a slow read brings home below it is thrown away.

mod many;
mod shared;

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

use crate::{
    changes::Changes,
    error::Error,
    product::Product,
    store::{self, change::Change},
};
use shared::Shared;

/// The memory for products. Bytes.
const ROOM: u64 = 64 * 1024 * 1024;
/// What an entry takes beside its texts and what it is rendered to. Bytes.
const OVERHEAD: usize = 1024;
/// That there is no such product is remembered for so long.
const ABSENT: Duration = Duration::from_secs(5);
/// What a read brings home is good for all who came within so long.
const FLIGHT: Duration = Duration::from_millis(20);
const MOST_FLIGHTS: u64 = 1000;
/// How long the newest revision is remembered that was heard of: longer than any read takes.
const FLOOR: Duration = Duration::from_secs(10);
const MOST_FLOORS: u64 = 100_000;
/// The interval at which the cache checks that the levels are believed.
const BYPASS_INTERVAL: Duration = Duration::from_millis(250);

/// How long each level keeps what it has; zero for not at all.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    pub memory: Duration,
    pub shared: Duration,
}

/// What is known of an id.
#[derive(Debug)]
pub struct Known {
    /// `None` where there is no such product.
    pub product: Option<Product>,
    /// When PostgreSQL said so.
    read_at: OffsetDateTime,
    /// The memory's generation at the read. An entry of an earlier generation than the present one is out of date
    /// ([`Cache::outdate_all`]).
    generation: u64,
    rendered: OnceLock<Option<Box<[u8]>>>,
}

impl Known {
    /// `generation` is that of before it was read.
    fn new(product: Option<Product>, read_at: OffsetDateTime, generation: u64) -> Self {
        Self { product, read_at, generation, rendered: OnceLock::new() }
    }

    /// The product as it is handed out, which `render` writes when that is first asked for.
    pub fn rendered(&self, render: impl FnOnce(&Product) -> Option<Box<[u8]>>) -> Option<&[u8]> {
        self.rendered.get_or_init(|| self.product.as_ref().and_then(render)).as_deref()
    }

    /// 0 where there is no such product.
    pub fn revision(&self) -> i64 {
        self.product.as_ref().map_or(0, |product| product.revision)
    }

    fn size(&self) -> usize {
        let texts = self.product.as_ref().map_or(0, |product| {
            let image = product.image_url.as_deref().unwrap_or_default();
            let rendered = serde_json::to_vec(product).map_or(0, |json| json.len());
            let attributes = serde_json::to_vec(&product.attributes).map_or(0, |json| json.len());
            product.name.len() + product.description.len() + image.len() + 4 * attributes + rendered
        });
        OVERHEAD + texts
    }
}

struct Lifetime(Duration);

impl Expiry<i64, Arc<Known>> for Lifetime {
    fn expire_after_create(&self, _: &i64, known: &Arc<Known>, _: std::time::Instant) -> Option<Duration> {
        Some(if known.product.is_some() { self.0 } else { self.0.min(ABSENT) })
    }

    fn expire_after_update(
        &self,
        id: &i64,
        known: &Arc<Known>,
        at: std::time::Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.expire_after_create(id, known, at)
    }
}

type Memory = moka::future::Cache<i64, Arc<Known>>;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cache(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    pool: PgPool,
    clock: Clock,
    changes: Changes,
    /// `None` where it was set to keep nothing.
    memory: Option<Memory>,
    /// While memory is not believed: for those who ask at the same moment.
    flights: Memory,
    /// Grows each time that everything is dropped.
    generation: AtomicU64,
    /// The newest revisions that were heard of.
    floors: moka::sync::Cache<i64, i64>,
    shared: Shared,
    throttle: KeyedThrottle,
}

impl Cache {
    /// Starts to connect to Redis, and to follow the log.
    pub fn start(
        pool: &PgPool,
        redis: &Clients,
        lifetimes: Lifetimes,
        changes: &Changes,
        process: &Process,
    ) -> Self {
        // What never happened is 0 for those who watch, not absent.
        for (level, result) in [("memory", "hit"), ("memory", "miss"), ("memory", "bypass")]
            .into_iter()
            .chain([("redis", "hit"), ("redis", "miss"), ("redis", "error")])
        {
            count_many(level, result, 0);
        }
        let memory = (!lifetimes.memory.is_zero()).then(|| {
            moka::future::Cache::builder()
                .max_capacity(ROOM)
                .weigher(|_, known: &Arc<Known>| u32::try_from(known.size()).unwrap_or(u32::MAX))
                .expire_after(Lifetime(lifetimes.memory))
                .build()
        });
        let cache = Self(Arc::new(Parts {
            pool: pool.clone(),
            clock: process.clock.clone(),
            changes: changes.clone(),
            memory,
            flights: moka::future::Cache::builder().max_capacity(MOST_FLIGHTS).time_to_live(FLIGHT).build(),
            generation: AtomicU64::new(0),
            floors: moka::sync::Cache::builder().max_capacity(MOST_FLOORS).time_to_live(FLOOR).build(),
            shared: Shared::new(lifetimes.shared, process),
            throttle: KeyedThrottle::default(),
        }));
        cache.0.shared.follow(redis, &cache, pool, changes, process);
        changes.follow(pool.clone(), cache.clone(), process);
        cache.watch_bypass(process);
        cache
    }

    /// What is known of an id; nothing older than revision `at_least`, which the caller has seen.
    pub async fn get(&self, id: i64, at_least: i64) -> Result<Arc<Known>, Error> {
        let Some(memory) = self.memory() else {
            count("memory", "bypass");
            let reading = self.0.flights.try_get_with(id, async { self.read(id).await.map(Arc::new) });
            let known = reading.await.map_err(|error| (*error).clone())?;
            return if self.is_good(&known, id, at_least) {
                Ok(known)
            } else {
                self.read(id).await.map(Arc::new)
            };
        };
        if let Some(known) = self.fresh(memory, id, at_least).await {
            self.note_hit(&known);
            return Ok(known);
        }
        count("memory", "miss");
        // One asks, the others wait for what it gets.
        let loading = memory.try_get_with(id, self.load(id, at_least));
        let known = loading.await.map_err(|error| (*error).clone())?;
        if self.is_good(&known, id, at_least) {
            return Ok(known);
        }
        if !self.is_good(&known, id, 0) {
            // It changed while it was read.
            memory.invalidate(&id).await;
        }
        let known = Arc::new(self.read(id).await?);
        self.keep(id, known.clone()).await;
        Ok(known)
    }

    /// The same without waiting, where a product is in memory that is as `wanted`.
    pub async fn in_memory(
        &self,
        id: i64,
        at_least: i64,
        wanted: impl FnOnce(&Product) -> bool,
    ) -> Option<Arc<Known>> {
        let known = self.fresh(self.memory()?, id, at_least).await?;
        known.product.as_ref().filter(|product| wanted(product))?;
        self.note_hit(&known);
        Some(known)
    }

    /// A product as this process has just written it.
    pub async fn wrote(&self, product: &Product) {
        self.raise_floor(product.id, product.revision);
        let known = Known::new(Some(product.clone()), self.0.clock.now(), self.generation());
        self.keep(product.id, Arc::new(known)).await;
        self.0.changes.nudge();
    }

    /// What is known of products whose stock this process is about to move. Of many moves of one stock a look at the
    /// log tells soon enough: then it is left out.
    pub async fn before_move(&self, ids: impl IntoIterator<Item = i64>) -> Vec<(i64, i64)> {
        let mut before = Vec::new();
        for id in ids {
            let Some(memory) = self.0.memory.as_ref().filter(|_| self.0.throttle.allow(id)) else {
                continue;
            };
            let known = memory.get(&id).await.map_or(0, |known| known.revision()).max(self.floor(id));
            if known > 0 {
                before.push((id, known));
            }
        }
        before
    }

    /// Takes notice that their stock was moved: whoever looks next is shown it.
    pub async fn moved(&self, before: impl IntoIterator<Item = (i64, i64)>) {
        for (id, revision) in before {
            self.drop_below(id, revision + 1).await;
        }
        self.0.changes.nudge();
    }

    /// Waits until what was just committed shows, but not for ever.
    pub async fn show(&self) {
        self.0.changes.show().await;
    }

    /// Drops what a change has made old in memory.
    pub async fn outdate(&self, change: &Change) {
        self.drop_below(change.product_id, change.revision).await;
        let late = self.0.clock.now() - change.at;
        metrics::histogram!("cache_invalidation_seconds", "level" => "memory")
            .record(late.as_seconds_f64().max(0.0));
    }

    async fn drop_below(&self, id: i64, revision: i64) {
        self.raise_floor(id, revision);
        if let Some(memory) = &self.0.memory
            && memory.get(&id).await.is_some_and(|known| known.revision() < revision)
        {
            memory.invalidate(&id).await;
        }
    }

    /// Drops all that was read before now from memory, and whatever a read on its way brings home. It serves more
    /// changes than are told one by one. The level in Redis is not believed until it has begun anew.
    pub fn outdate_all(&self) {
        self.0.generation.fetch_add(1, Ordering::AcqRel);
        if let Some(memory) = &self.0.memory {
            memory.invalidate_all();
        }
    }

    /// The number of times that everything was dropped.
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// Reports whether this is as new as what was heard of and what the caller has seen.
    fn is_good(&self, known: &Known, id: i64, at_least: i64) -> bool {
        known.generation == self.generation() && known.revision() >= self.floor(id).max(at_least)
    }

    /// Exports for how long each level was not believed: below a second while it is.
    fn watch_bypass(&self, process: &Process) {
        let level = |name: &'static str| {
            let age = Age::default();
            age.export(process, metrics::gauge!("cache_bypassed_seconds", "level" => name));
            age
        };
        let (memory, shared) =
            (self.0.memory.as_ref().map(|_| level("memory")), self.0.shared.is_on().then(|| level("redis")));
        let (cache, stop) = (self.clone(), process.tasks.shutdown_token());
        process.tasks.spawn("cache bypass", async move {
            while !stop.is_cancelled() {
                let now = Instant::now();
                if let Some(age) = memory.as_ref().filter(|_| cache.memory().is_some()) {
                    age.reset(now);
                }
                if let Some(age) = shared.as_ref().filter(|_| cache.0.shared.is_believed(cache.generation()))
                {
                    age.reset(now);
                }
                stop.run_until_cancelled(tokio::time::sleep(BYPASS_INTERVAL)).await;
            }
            Ok(())
        });
    }

    /// The memory, where it may be believed.
    fn memory(&self) -> Option<&Memory> {
        let fresh = self.0.changes.age().is_some_and(|age| age < PRODUCT_MAX_STALENESS);
        self.0.memory.as_ref().filter(|_| fresh)
    }

    /// What is in memory, unless something newer was heard of, or the caller has seen something newer.
    async fn fresh(&self, memory: &Memory, id: i64, at_least: i64) -> Option<Arc<Known>> {
        let known = memory.get(&id).await?;
        self.is_good(&known, id, at_least).then_some(known)
    }

    /// From Redis, where that knows something new enough, else from PostgreSQL.
    async fn load(&self, id: i64, at_least: i64) -> Result<Arc<Known>, Error> {
        let generation = self.generation();
        // Taken before anything is read: what is read now must not be kept where changes are told that it does not have.
        let link = self.0.shared.believed(generation);
        if let Some(link) = &link
            && let Some((product, read_at)) = link.get(id).await
        {
            let known = Known::new(Some(product), read_at, generation);
            if self.is_good(&known, id, at_least) {
                count("redis", "hit");
                self.note_age("redis", &known);
                return Ok(Arc::new(known));
            }
        }
        count("redis", "miss");
        let known = Arc::new(self.read(id).await?);
        if let Some(link) = link {
            self.0.shared.put(link, id, known.clone());
        }
        Ok(known)
    }

    async fn read(&self, id: i64) -> Result<Known, Error> {
        let (read_at, generation) = (self.0.clock.now(), self.generation());
        let mut conn = self.0.pool.acquire().await?;
        Ok(Known::new(store::product::get(&mut conn, id).await?, read_at, generation))
    }

    /// Puts it into memory, unless something newer is there or was heard of.
    async fn keep(&self, id: i64, known: Arc<Known>) {
        let Some(memory) = self.memory() else {
            return;
        };
        let revision = known.revision();
        let newest = |held: Option<moka::Entry<i64, Arc<Known>>>| {
            let held = held.map(moka::Entry::into_value);
            let is_newer =
                |held: &Arc<Known>| (held.generation, held.revision()) > (known.generation, revision);
            ready(held.filter(is_newer).unwrap_or_else(|| known.clone()))
        };
        let kept = memory.entry(id).and_upsert_with(newest).await.into_value();
        // Looked at last: a call that raises the floor now finds the entry.
        if !self.is_good(&kept, id, 0) {
            memory.invalidate(&id).await;
        }
    }

    /// The newest revision that was heard of lately; 0 where nothing was.
    pub fn floor(&self, id: i64) -> i64 {
        self.0.floors.get(&id).unwrap_or_default()
    }

    fn raise_floor(&self, id: i64, revision: i64) {
        let higher = |held: Option<moka::Entry<i64, i64>>| {
            held.map_or(revision, |held| held.into_value().max(revision))
        };
        self.0.floors.entry(id).and_upsert_with(higher);
    }

    fn note_hit(&self, known: &Known) {
        count("memory", "hit");
        self.note_age("memory", known);
    }

    fn note_age(&self, level: &'static str, known: &Known) {
        let age = self.0.clock.now() - known.read_at;
        metrics::histogram!("cache_age_seconds", "level" => level).record(age.as_seconds_f64().max(0.0));
    }
}

fn count(level: &'static str, result: &'static str) {
    count_many(level, result, 1);
}

fn count_many(level: &'static str, result: &'static str, number: usize) {
    metrics::counter!("cache_requests_total", "level" => level, "result" => result)
        .increment(u64::try_from(number).unwrap_or(u64::MAX));
}
