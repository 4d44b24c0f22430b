//! A connection pool with a short acquire timeout and a longer connect timeout. A connect continues in the background
//! after the request that started it has given up.

use std::{ops::Deref, sync::Arc};

use sqlx::{Postgres, Transaction, pool::PoolConnection, postgres::PgPoolOptions};
use tokio::sync::Semaphore;

use super::ACQUIRE_TIMEOUT;

/// A pool of connections.
#[derive(Clone, Debug)]
pub struct PgPool {
    pool: sqlx::PgPool,
    /// Bounds the concurrent connects in the background.
    connects: Arc<Semaphore>,
}

impl PgPool {
    /// Creates a pool that connects on first use.
    pub(super) fn new(options: PgPoolOptions, connect_options: sqlx::postgres::PgConnectOptions) -> Self {
        let connects = Arc::new(Semaphore::new(options.get_max_connections() as usize));
        Self { pool: options.connect_lazy_with(connect_options), connects }
    }

    /// Acquires a connection within [`ACQUIRE_TIMEOUT`].
    pub async fn acquire(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        let timed_out = |_| Err(sqlx::Error::PoolTimedOut);
        if self.pool.num_idle() == 0
            && let Ok(permit) = self.connects.clone().try_acquire_owned()
        {
            // A slow connect must outlive its request: otherwise the next request would start it again.
            let pool = self.pool.clone();
            let connect = tokio::spawn(async move {
                let connection = pool.acquire().await;
                drop(permit);
                connection
            });
            let joined = tokio::time::timeout(ACQUIRE_TIMEOUT, connect).await;
            return joined.map_or_else(timed_out, |joined| joined.unwrap_or(Err(sqlx::Error::WorkerCrashed)));
        }
        tokio::time::timeout(ACQUIRE_TIMEOUT, self.pool.acquire()).await.unwrap_or_else(timed_out)
    }

    /// Begins a transaction on a connection that is acquired within [`ACQUIRE_TIMEOUT`].
    pub async fn begin(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        Transaction::begin(self.acquire().await?, None).await
    }
}

/// Derefs to the inner pool, for its metrics. Acquiring from the inner pool may take longer.
impl Deref for PgPool {
    type Target = sqlx::PgPool;

    fn deref(&self) -> &sqlx::PgPool {
        &self.pool
    }
}
