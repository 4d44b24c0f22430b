//! Read replicas of PostgreSQL, for lists. A replica is used only while its replication lag is known to be
//! below [`MAX_LAG`]. Callers that must read their own writes use the primary.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use futures_util::future::join_all;
use secrecy::{ExposeSecret as _, SecretString};
use shoppee_kit::{
    pg::{self, PgPool},
    process::Process,
};
use tokio::time::Instant;

use crate::{error::Error, store};

/// The interval at which the lag of each replica is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The maximum replication lag. A change must be visible within one second, including the delay of the check.
const MAX_LAG: Duration = Duration::from_millis(600);

/// The primary and its read replicas; cheap to clone.
#[derive(Clone, Debug)]
pub struct Replicas(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    primary: PgPool,
    replicas: Vec<Replica>,
    next: AtomicUsize,
    started_at: Instant,
}

#[derive(Debug)]
struct Replica {
    pool: PgPool,
    /// The time until which the lag is within bounds. Milliseconds since `started_at`.
    fresh_until: AtomicU64,
}

impl Replicas {
    /// Starts to check the lag of the servers at `urls`. Returns an error for an invalid URL and for a server
    /// that refuses the credentials.
    pub async fn start(
        primary: &PgPool,
        urls: &[SecretString],
        connections: u32,
        process: &Process,
    ) -> anyhow::Result<Self> {
        let urls = urls.iter().map(|url| url.expose_secret().trim()).filter(|url| !url.is_empty());
        let replicas = join_all(urls.map(async |url| {
            let pool =
                pg::open_replica("shoppee-product", url, connections).await.context("DATABASE_READ_URLS")?;
            anyhow::Ok(Replica { pool, fresh_until: AtomicU64::new(0) })
        }));
        let replicas = Self(Arc::new(Inner {
            primary: primary.clone(),
            replicas: replicas.await.into_iter().collect::<anyhow::Result<_>>()?,
            next: AtomicUsize::new(0),
            started_at: Instant::now(),
        }));
        for index in 0..replicas.0.replicas.len() {
            let (replicas, shutdown) = (replicas.clone(), process.tasks.shutdown_token());
            process.tasks.spawn("replica", async move {
                while !shutdown.is_cancelled() {
                    if let Err(error) = replicas.check_lag(&replicas.0.replicas[index]).await {
                        tracing::debug!(%error, replica = index, "a read replica is not used");
                    }
                    tokio::select! {
                        () = tokio::time::sleep(POLL_INTERVAL) => {}
                        () = shutdown.cancelled() => {}
                    }
                }
                Ok(())
            });
        }
        Ok(replicas)
    }

    /// Runs `read` on the next replica that is fresh. Runs it on the primary if `require_primary` is set, no
    /// replica is fresh, or the replica is unavailable.
    pub async fn read<T, F>(&self, require_primary: bool, read: impl Fn(PgPool) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        if let Some(replica) = self.pick().filter(|_| !require_primary) {
            match read(replica.pool.clone()).await {
                Err(Error::Unavailable) => replica.fresh_until.store(0, Ordering::Relaxed),
                outcome => return outcome,
            }
        }
        read(self.0.primary.clone()).await
    }

    fn pick(&self) -> Option<&Replica> {
        let replicas = &self.0.replicas;
        let now = self.now();
        let next = self.0.next.fetch_add(1, Ordering::Relaxed);
        (0..replicas.len())
            .map(|offset| &replicas[next.wrapping_add(offset) % replicas.len()])
            .find(|replica| now < replica.fresh_until.load(Ordering::Relaxed))
    }

    /// Waits until a replica has replayed what the primary has written by now, and extends its freshness from
    /// the start of the check.
    async fn check_lag(&self, replica: &Replica) -> Result<(), Error> {
        let checked_at = self.now();
        let written_lsn = store::replica::fetch_written_lsn(&mut *self.0.primary.acquire().await?).await?;
        let until = checked_at + millis(MAX_LAG);
        while self.now() < until {
            if store::replica::fetch_replayed_lsn(&mut *replica.pool.acquire().await?).await? >= written_lsn {
                replica.fresh_until.store(until, Ordering::Relaxed);
                return Ok(());
            }
            tokio::time::sleep(POLL_INTERVAL / 10).await;
        }
        Ok(())
    }

    fn now(&self) -> u64 {
        millis(self.0.started_at.elapsed())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
