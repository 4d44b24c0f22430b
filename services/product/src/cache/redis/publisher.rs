//! The publisher of invalidations to Redis. It uses one connection at a time.

use std::sync::{Arc, Mutex};

use fred::{
    clients::Client,
    interfaces::{ClientLike as _, HashesInterface as _},
    types::scripts::Script,
};
use shoppee_kit::pg::PgPool;
use shoppee_kit::{log_throttle::LogThrottle, redis::Connector};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Cache, Connection, LOG_KEY, RedisCache, Scripts, SyncPoint, WRITE_TIMEOUT};
use crate::{
    change_log::{ChangeBatch, ChangeLog},
    store::change::{self, Range},
};

/// The delay before a reconnect.
const RECONNECT_DELAY: Duration = Duration::from_millis(500);
/// Entries of the log that are replayed to a Redis that lacks them: some seconds of work. If more are
/// missing, a new epoch begins.
const MAX_REPLAY_ENTRIES: i64 = 100_000;

/// Entries per page of a replay. The position is saved after each page, so a broken connection loses at most
/// one page.
const REPLAY_PAGE_SIZE: usize = 1_000;

/// The publisher, with the sources and the target of its invalidations.
#[derive(Debug)]
pub struct Publisher {
    pub connector: Connector,
    pub redis: RedisCache,
    pub cache: Cache,
    pub pool: PgPool,
    pub change_log: ChangeLog,
}

/// The reason why a connection is left.
enum ServeEnd {
    /// The process shuts down.
    Shutdown,
    /// The epoch has ended or lacks invalidations. The next one is joined over the same connection.
    Behind,
}

impl Publisher {
    /// Runs until the process shuts down.
    pub async fn run(&self, shutdown: &CancellationToken) {
        let failures = LogThrottle::default();
        while !shutdown.is_cancelled() {
            let result = self.serve(shutdown, &failures).await;
            self.redis.0.connection.store(None);
            if let Err(error) = result
                && let Some(suppressed) = failures.admit()
            {
                tracing::warn!(
                    error = format!("{error:#}"),
                    suppressed,
                    "no shared cache: Redis is bypassed"
                );
            }
            shutdown.run_until_cancelled(tokio::time::sleep(RECONNECT_DELAY)).await;
        }
    }

    /// Connects and publishes until the connection breaks or the process shuts down.
    async fn serve(&self, shutdown: &CancellationToken, failures: &LogThrottle) -> anyhow::Result<()> {
        let (client, _ended) = self.connector.connect().await?;
        let scripts = Arc::new(Scripts {
            put_if_newer: Script::from_lua(include_str!("../put_if_newer.lua")),
            advance_position: Script::from_lua(include_str!("../advance_position.lua")),
            begin_epoch: Script::from_lua(include_str!("../begin_epoch.lua")),
        });
        let served = async {
            for script in [&scripts.put_if_newer, &scripts.advance_position, &scripts.begin_epoch] {
                script.load(&client).await?;
            }
            while let ServeEnd::Behind = self.follow(&client, &scripts, shutdown, failures).await? {}
            anyhow::Ok(())
        };
        let served = served.await;
        let _ = client.quit().await;
        served
    }

    /// Replays the missing invalidations of an epoch, then publishes the batch of each poll.
    async fn follow(
        &self,
        client: &Client,
        scripts: &Arc<Scripts>,
        shutdown: &CancellationToken,
        failures: &LogThrottle,
    ) -> anyhow::Result<ServeEnd> {
        // Subscribed before the first read: batches that arrive meanwhile are buffered.
        let mut batches = self.change_log.subscribe();
        let sync_point = SyncPoint { at: Instant::now(), generation: self.cache.generation() };
        let Some((epoch, mut position)) = self.find_epoch(client, scripts, &mut batches, shutdown).await?
        else {
            return Ok(ServeEnd::Shutdown);
        };
        let (client, scripts) = (client.clone(), scripts.clone());
        let connection = Arc::new(Connection { client, scripts, epoch, synced: Mutex::default() });
        if !self.catch_up(&connection, &mut position).await? {
            return Ok(ServeEnd::Behind);
        }
        connection.mark_synced(sync_point);
        self.redis.0.connection.store(Some(connection.clone()));
        if failures.reset() {
            tracing::info!("the shared cache is used again");
        }
        loop {
            let batch = match shutdown.run_until_cancelled(batches.recv()).await {
                Some(Ok(batch)) if !batch.everything => batch,
                Some(Ok(_) | Err(RecvError::Lagged(_))) => return Ok(ServeEnd::Behind),
                Some(Err(RecvError::Closed)) | None => return Ok(ServeEnd::Shutdown),
            };
            connection.publish_invalidations(&batch.changes).await?;
            if !connection.advance_position(position, batch.watermark).await? {
                return Ok(ServeEnd::Behind);
            }
            position = position.max(batch.watermark);
            connection.mark_synced(SyncPoint { at: batch.polled_at, ..sync_point });
        }
    }

    /// Returns the current epoch and its position. Begins a new epoch if too many invalidations are missing.
    /// Returns `None` if the process shuts down.
    async fn find_epoch(
        &self,
        client: &Client,
        scripts: &Scripts,
        batches: &mut Receiver<Arc<ChangeBatch>>,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Option<(String, i64)>> {
        loop {
            let stored: Vec<Option<String>> = client.hmget(LOG_KEY, vec!["epoch", "position"]).await?;
            let stored = match &stored[..] {
                [Some(epoch), Some(position)] => Some((epoch.clone(), position.parse::<i64>()?)),
                _ => None,
            };
            let last_id = change::fetch_last_id(&mut *self.pool.acquire().await?).await?;
            let is_near = |position: i64| (0..=MAX_REPLAY_ENTRIES).contains(&(last_id - position));
            if let Some((epoch, position)) = &stored
                && is_near(*position)
            {
                return Ok(Some((epoch.clone(), *position)));
            }
            if let Some(watermark) = self.change_log.watermark().filter(|watermark| is_near(*watermark)) {
                let ended = stored.map(|(epoch, _)| epoch).unwrap_or_default();
                let next = format!("{:010x}", Uuid::new_v4().as_u128() & 0xff_ffff_ffff);
                let arguments = vec![ended.clone(), next.clone(), watermark.to_string()];
                let begin = scripts.begin_epoch.evalsha::<i64, _, _, _>(client, LOG_KEY, arguments);
                if tokio::time::timeout(WRITE_TIMEOUT, begin).await?? == 1 {
                    tracing::info!(
                        ended,
                        begun = next,
                        position = watermark,
                        "the shared cache has begun a new epoch"
                    );
                }
                continue;
            }
            // The next polls advance the watermark past ids that were just assigned.
            match shutdown.run_until_cancelled(batches.recv()).await {
                Some(Ok(_) | Err(RecvError::Lagged(_))) => {}
                Some(Err(RecvError::Closed)) | None => return Ok(None),
            }
        }
    }

    /// Publishes everything behind `position` page by page, and saves the position. Returns `false` if the
    /// epoch has ended meanwhile.
    async fn catch_up(&self, connection: &Connection, position: &mut i64) -> anyhow::Result<bool> {
        let mut after = *position;
        loop {
            // Read before the page, which therefore contains all entries up to the watermark.
            let watermark = self.change_log.watermark().unwrap_or(*position);
            let remaining = [Range { after, upto: i64::MAX }];
            let mut conn = self.pool.acquire().await?;
            let page = change::fetch_page(
                &mut conn,
                &remaining,
                i64::try_from(REPLAY_PAGE_SIZE).unwrap_or(i64::MAX),
            )
            .await?;
            drop(conn);
            connection.publish_invalidations(&page.changes).await?;
            let last = page.ids.last().copied().filter(|_| page.ids.len() >= REPLAY_PAGE_SIZE);
            let upto = watermark.min(last.unwrap_or(watermark)).max(*position);
            if !connection.advance_position(*position, upto).await? {
                return Ok(false);
            }
            *position = upto;
            match last {
                Some(last) => after = last,
                None => return Ok(true),
            }
        }
    }
}
