//! Read replicas of PostgreSQL, for lists. One is asked only as long as it is known to lag behind by less
//! than a change may take to show; who changes the catalogue always reads from the server that was written to.

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

/// How often each is asked how far it is.
const INTERVAL: Duration = Duration::from_millis(200);
/// A change must show within a second; some of it goes by until we know.
const FRESH: Duration = Duration::from_millis(600);

/// Where to read; cheap to clone.
#[derive(Clone, Debug)]
pub struct Replicas(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    primary: PgPool,
    replicas: Vec<Replica>,
    turn: AtomicUsize,
    start: Instant,
}

#[derive(Debug)]
struct Replica {
    pool: PgPool,
    /// Milliseconds since the start.
    fresh_until: AtomicU64,
}

impl Replicas {
    /// Starts to watch how far behind each of the servers at `urls` is. An error for one that is no server's, or whose
    /// server does not let us in.
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
        let replicas = Self(Arc::new(Parts {
            primary: primary.clone(),
            replicas: replicas.await.into_iter().collect::<anyhow::Result<_>>()?,
            turn: AtomicUsize::new(0),
            start: Instant::now(),
        }));
        for index in 0..replicas.0.replicas.len() {
            let (watched, stopping) = (replicas.clone(), process.tasks.shutdown_token());
            process.tasks.spawn("replica", async move {
                while !stopping.is_cancelled() {
                    if let Err(error) = watched.look(&watched.0.replicas[index]).await {
                        tracing::debug!(%error, replica = index, "not read from");
                    }
                    tokio::select! {
                        () = tokio::time::sleep(INTERVAL) => {}
                        () = stopping.cancelled() => {}
                    }
                }
                Ok(())
            });
        }
        Ok(replicas)
    }

    /// Lets `read` run on a replica whose turn it is, and on the primary where none is fresh, where it fails there, or
    /// where `newest` says that what was written just now must be seen.
    pub async fn read<T, F>(&self, newest: bool, read: impl Fn(PgPool) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        if let Some(replica) = self.in_turn().filter(|_| !newest) {
            match read(replica.pool.clone()).await {
                Err(Error::Unavailable) => replica.fresh_until.store(0, Ordering::Relaxed),
                outcome => return outcome,
            }
        }
        read(self.0.primary.clone()).await
    }

    fn in_turn(&self) -> Option<&Replica> {
        let replicas = &self.0.replicas;
        let now = self.now();
        let turn = self.0.turn.fetch_add(1, Ordering::Relaxed);
        (0..replicas.len())
            .map(|offset| &replicas[turn.wrapping_add(offset) % replicas.len()])
            .find(|replica| now < replica.fresh_until.load(Ordering::Relaxed))
    }

    /// Waits until a replica has what the primary has now, and notes that it was as fresh as that.
    async fn look(&self, replica: &Replica) -> Result<(), Error> {
        let asked_at = self.now();
        let written = store::replica::written(&mut *self.0.primary.acquire().await?).await?;
        let until = asked_at + millis(FRESH);
        while self.now() < until {
            if store::replica::replayed(&mut *replica.pool.acquire().await?).await? >= written {
                replica.fresh_until.store(until, Ordering::Relaxed);
                return Ok(());
            }
            tokio::time::sleep(INTERVAL / 10).await;
        }
        Ok(())
    }

    fn now(&self) -> u64 {
        millis(self.0.start.elapsed())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
