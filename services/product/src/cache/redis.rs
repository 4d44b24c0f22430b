//! The Redis level of the product cache, shared by all processes and warm when a process starts.
//! `product:{epoch}:{id}` holds a product and its revision. `product:log` holds the epoch and the position:
//! the id of the change log up to which all invalidations were published.
//!
//! **A process reads Redis only over a connection on which it has itself published all invalidations.** It
//! first replays the log behind the stored position, page by page, and saves the position after each page.
//! Then it publishes the batch of each poll. A batch that is not published yet is at most [`MAX_SYNC_LAG`]
//! old; the memory level tracks minimum revisions for longer than that. Redis is bypassed after a broken
//! connection, a failed publish or a loss of data in Redis.
//!
//! If too many changes are missing, a new epoch begins, and no entry of the old one is read again. A process
//! takes the epoch before it reads a product that it will store, so no entry is older than its epoch.
//!
//! Redis has its own position in the log, apart from the memory level ([`crate::change_log`]). A slow Redis
//! therefore does not delay the memory level.

mod publisher;

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use fred::{clients::Client, interfaces::HashesInterface as _, types::scripts::Script};
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use shoppee_kit::pg::PgPool;
use shoppee_kit::{process::Process, redis::Clients, tasks::Tasks};
use time::OffsetDateTime;
use tokio::time::Instant;

use self::publisher::Publisher;
use super::{Cache, CacheEntry, MIN_REVISION_TTL, count};
use crate::{
    change_log::ChangeLog,
    product::{Product, is_depth_valid},
    store::change::Change,
};

/// The timeout of a read. Redis answers in under a millisecond; after the timeout PostgreSQL is read.
const READ_TIMEOUT: Duration = Duration::from_millis(50);
/// The timeout of one write; after it the connection is given up.
const WRITE_TIMEOUT: Duration = Duration::from_millis(300);
/// Invalidations written in one pipeline.
const INVALIDATION_BATCH_SIZE: usize = 500;
/// The lifetime of a tombstone: longer than any read that began before the change.
const TOMBSTONE_TTL: Duration = Duration::from_secs(30);
/// The maximum age of a read that is stored.
const MAX_PUT_AGE: Duration = Duration::from_secs(5);
/// The age above which an invalidation must have been published. The memory level tracks minimum revisions
/// for twice as long.
const MAX_SYNC_LAG: Duration = Duration::from_secs(MIN_REVISION_TTL.as_secs() / 2);
const LOG_KEY: &str = "product:log";

#[derive(Clone, Debug)]
pub struct RedisCache(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ttl: Duration,
    tasks: Tasks,
    connection: ArcSwapOption<Connection>,
}

impl RedisCache {
    /// Creates the level; a `ttl` of zero disables it.
    pub fn new(ttl: Duration, process: &Process) -> Self {
        let (tasks, connection) = (process.tasks.clone(), ArcSwapOption::empty());
        Self(Arc::new(Inner { ttl, tasks, connection }))
    }

    /// Reports whether the level is enabled.
    pub fn is_enabled(&self) -> bool {
        !self.0.ttl.is_zero()
    }

    /// Starts the publisher, which connects, publishes invalidations, and reconnects after each failure.
    pub fn spawn_publisher(
        &self,
        redis: &Clients,
        cache: &Cache,
        pool: &PgPool,
        change_log: &ChangeLog,
        process: &Process,
    ) {
        if self.is_enabled() {
            let publisher = Publisher {
                connector: redis.connector("shared cache"),
                redis: self.clone(),
                cache: cache.clone(),
                pool: pool.clone(),
                change_log: change_log.clone(),
            };
            let shutdown = process.tasks.shutdown_token();
            process.tasks.spawn("shared cache", async move {
                publisher.run(&shutdown).await;
                Ok(())
            });
        }
    }

    /// Reports whether Redis is usable in this generation of the memory.
    pub fn is_synced(&self, generation: u64) -> bool {
        self.synced_connection(generation).is_some()
    }

    /// Returns the connection if Redis is usable in this generation of the memory.
    pub fn synced_connection(&self, generation: u64) -> Option<Arc<Connection>> {
        self.0.connection.load_full().filter(|connection| connection.is_synced(generation))
    }

    /// Stores a product in the background. `connection` must have been taken before the product was read.
    pub fn put(&self, connection: Arc<Connection>, id: i64, entry: Arc<CacheEntry>) {
        let (ttl, read) = (self.0.ttl, Instant::now());
        self.0.tasks.track(async move {
            // Negative entries are not stored: a client can request any id.
            let Some(product) = &entry.product else {
                return;
            };
            let stored = StoredProduct { product: Cow::Borrowed(product), read_at: entry.read_at };
            let Ok(answer) = serde_json::to_string(&stored) else {
                return;
            };
            if read.elapsed() < MAX_PUT_AGE
                && let Err(error) = connection.put(id, entry.revision(), ttl, &answer).await
            {
                tracing::debug!(%error, product.id = id, "a product was not stored in the shared cache");
            }
        });
    }
}

/// A connection with the epoch that it has joined.
#[derive(Debug)]
pub struct Connection {
    client: Client,
    scripts: Arc<Scripts>,
    epoch: String,
    /// `None` until the replay has reached the end of the log.
    synced: Mutex<Option<SyncPoint>>,
}

#[derive(Debug)]
struct Scripts {
    put_if_newer: Script,
    advance_position: Script,
    begin_epoch: Script,
}

/// A point in the change log up to which all invalidations were published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SyncPoint {
    /// The start of the last published poll.
    at: Instant,
    /// The generation of the memory at that poll.
    generation: u64,
}

impl SyncPoint {
    /// Reports whether all invalidations were published that the memory level may have dropped by now.
    fn covers(self, generation: u64, now: Instant) -> bool {
        self.generation == generation && now.duration_since(self.at) < MAX_SYNC_LAG
    }
}

impl Connection {
    fn is_synced(&self, generation: u64) -> bool {
        let synced = *self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        synced.is_some_and(|synced| synced.covers(generation, Instant::now()))
    }

    fn mark_synced(&self, point: SyncPoint) {
        *self.synced.lock().unwrap_or_else(PoisonError::into_inner) = Some(point);
    }

    /// Reads a product and the time at which it was read from PostgreSQL.
    pub async fn get(&self, id: i64) -> Option<(Product, OffsetDateTime)> {
        let reply: Result<Result<Option<String>, _>, _> =
            tokio::time::timeout(READ_TIMEOUT, self.client.hget(self.key(id), "answer")).await;
        let Ok(Ok(answer)) = reply else {
            count("redis", "error");
            return None;
        };
        let stored: StoredProduct<'_> = serde_json::from_str(&answer?).ok()?;
        // A process of another version may have stored it.
        is_depth_valid(&stored.product.attributes).then_some(())?;
        Some((stored.product.into_owned(), stored.read_at))
    }

    async fn put(&self, id: i64, revision: i64, ttl: Duration, answer: &str) -> anyhow::Result<()> {
        let put = self.scripts.put_if_newer.evalsha(
            &self.client,
            self.key(id),
            put_if_newer_args(revision, ttl, answer),
        );
        let _: i64 = tokio::time::timeout(WRITE_TIMEOUT, put).await??;
        Ok(())
    }

    /// Writes tombstones for changed products: older entries are replaced, and cannot be stored again.
    async fn publish_invalidations(&self, changes: &[Change]) -> anyhow::Result<()> {
        for changes in changes.chunks(INVALIDATION_BATCH_SIZE) {
            // Pipelined, without waiting for each reply.
            let writes = changes.iter().map(async |change| {
                let arguments = put_if_newer_args(change.revision, TOMBSTONE_TTL, "");
                let key = self.key(change.product_id);
                self.scripts.put_if_newer.evalsha::<i64, _, _, _>(&self.client, key, arguments).await
            });
            tokio::time::timeout(WRITE_TIMEOUT, try_join_all(writes)).await??;
        }
        Ok(())
    }

    /// Advances the position to `upto`, if it is at least `published_up_to`. Returns `false` if the epoch has
    /// ended or Redis has lost data.
    async fn advance_position(&self, published_up_to: i64, upto: i64) -> anyhow::Result<bool> {
        let arguments = vec![self.epoch.clone(), published_up_to.to_string(), upto.to_string()];
        let advanced =
            self.scripts.advance_position.evalsha::<i64, _, _, _>(&self.client, LOG_KEY, arguments);
        Ok(tokio::time::timeout(WRITE_TIMEOUT, advanced).await?? == 1)
    }

    fn key(&self, id: i64) -> String {
        format!("product:{}:{id}", self.epoch)
    }
}

/// Returns the arguments of put_if_newer.lua.
fn put_if_newer_args(revision: i64, ttl: Duration, answer: &str) -> Vec<String> {
    vec![revision.to_string(), ttl.as_millis().to_string(), answer.to_owned()]
}

/// A product as it is stored in Redis.
#[derive(Serialize, Deserialize)]
struct StoredProduct<'a> {
    product: Cow<'a, Product>,
    #[serde(with = "crate::product::micros")]
    read_at: OffsetDateTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_point_covers_its_generation_until_the_maximum_lag() {
        let at = Instant::now();
        let sync_point = SyncPoint { at, generation: 3 };
        assert!(sync_point.covers(3, at + MAX_SYNC_LAG / 2));
        assert!(
            !sync_point.covers(3, at + MAX_SYNC_LAG),
            "a change may be older than what the memory remembers"
        );
        assert!(!sync_point.covers(4, at), "everything was dropped, and the epoch does not know");
        assert!(2 * MAX_SYNC_LAG <= MIN_REVISION_TTL);
    }
}
