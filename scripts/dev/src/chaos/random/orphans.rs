//! A monitor of orphan holds during a run: it measures the age that a hold of the order service without an order reaches.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Bounds a query while a fault of PostgreSQL lasts.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// A hold of a running checkout is younger than 10 s. An order id begins with its time in milliseconds.
const QUERY: &str = "select extract(epoch from max(clock_timestamp() - h.created_at))::float8
    from product.stock_hold as h
    where h.order_id > (lpad(to_hex((extract(epoch from clock_timestamp() - interval '10 minutes') * 1000)::bigint), 12, '0')
                        || '00000000000000000000')::uuid
      and h.state = 'held' and h.caller = 'order'
      and h.created_at < clock_timestamp() - interval '10 seconds'
      and not exists (select from orders.orders as o where o.id = h.order_id)";

#[derive(Debug)]
pub struct OrphanMonitor {
    stop: CancellationToken,
    task: JoinHandle<Duration>,
}

impl OrphanMonitor {
    /// Starts to poll as the superuser. Fails if the first poll does.
    pub async fn start(postgres_url: &str) -> anyhow::Result<Self> {
        read(postgres_url).await?;
        let (stop, url) = (CancellationToken::new(), postgres_url.to_owned());
        let stopping = stop.clone();
        let task = tokio::spawn(async move {
            let mut max_age = Duration::ZERO;
            while !stopping.is_cancelled() {
                // Without an answer PostgreSQL is away, and the next poll sees the age.
                if let Ok(Ok(Some(age))) = tokio::time::timeout(QUERY_TIMEOUT, read(&url)).await {
                    max_age = max_age.max(Duration::from_secs_f64(age));
                }
                stopping.run_until_cancelled(tokio::time::sleep(POLL_INTERVAL)).await;
            }
            max_age
        });
        Ok(Self { stop, task })
    }

    /// Stops, and returns the greatest age; zero if there was no orphan hold.
    pub async fn stop(self) -> anyhow::Result<Duration> {
        self.stop.cancel();
        Ok(self.task.await?)
    }
}

async fn read(url: &str) -> sqlx::Result<Option<f64>> {
    let mut connection = PgConnection::connect(url).await?;
    sqlx::query_scalar(QUERY).fetch_one(&mut connection).await
}
