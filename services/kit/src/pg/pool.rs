//! The pool that requests use: each waits for a connection for a short time. A connection that is being made is made to
//! its end, whether the request still waits or not.

use std::{ops::Deref, sync::Arc};

use sqlx::{Postgres, Transaction, pool::PoolConnection, postgres::PgPoolOptions};
use tokio::sync::Semaphore;

use super::ACQUIRE;

/// A pool of connections; cheap to clone.
#[derive(Clone, Debug)]
pub struct PgPool {
    pool: sqlx::PgPool,
    /// Bounds the connections that are made beside the requests.
    making: Arc<Semaphore>,
}

impl PgPool {
    /// A pool that connects when it is first used.
    pub(super) fn new(options: PgPoolOptions, to: sqlx::postgres::PgConnectOptions) -> Self {
        let making = Arc::new(Semaphore::new(options.get_max_connections() as usize));
        Self { pool: options.connect_lazy_with(to), making }
    }

    /// Acquires a connection, soon or not at all.
    pub async fn acquire(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        let late = |_| Err(sqlx::Error::PoolTimedOut);
        if self.pool.num_idle() == 0
            && let Ok(permit) = self.making.clone().try_acquire_owned()
        {
            // A request that gives up must not break off a connection that takes longer: the next one would begin anew.
            let pool = self.pool.clone();
            let making = tokio::spawn(async move {
                let connection = pool.acquire().await;
                drop(permit);
                connection
            });
            let made = tokio::time::timeout(ACQUIRE, making).await;
            return made.map_or_else(late, |made| made.unwrap_or(Err(sqlx::Error::WorkerCrashed)));
        }
        tokio::time::timeout(ACQUIRE, self.pool.acquire()).await.unwrap_or_else(late)
    }

    /// Begins a transaction, soon or not at all.
    pub async fn begin(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        Transaction::begin(self.acquire().await?, None).await
    }
}

/// Gives access to the inner pool for its figures. A connection from there may be waited for longer.
impl Deref for PgPool {
    type Target = sqlx::PgPool;

    fn deref(&self) -> &sqlx::PgPool {
        &self.pool
    }
}
