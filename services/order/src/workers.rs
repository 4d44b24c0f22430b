//! What goes on without anybody asking: orders run out, stock is settled, payments are recovered, old keys go. Any
//! number of replicas may run these at once, and be killed anywhere.

use std::time::Duration;

use shoppee_kit::tasks::Tasks;
use tokio::sync::watch;

use crate::{
    Orders,
    error::Error,
    idempotency, payment, steps,
    store::{order as store, stock_task},
};

/// How soon stock that could not be settled is tried again; also how long whoever noted it down has for itself.
pub const STOCK_RETRY: Duration = Duration::from_secs(2);
/// A worker that found less than this has found all.
const BATCH: i64 = 100;

pub fn start(orders: &Orders, tasks: &Tasks, ready: &watch::Receiver<bool>) {
    every(Duration::from_secs(1), "expiry", orders, tasks, ready, expire);
    every(Duration::from_secs(1), "stock", orders, tasks, ready, settle_stock);
    every(Duration::from_secs(5), "payments", orders, tasks, ready, recover);
    every(Duration::from_mins(1), "keys", orders, tasks, ready, forget_keys);
}

/// Runs `work` at this interval, and again at once for as long as it finds a full batch.
fn every<F, Fut>(
    interval: Duration,
    name: &'static str,
    orders: &Orders,
    tasks: &Tasks,
    ready: &watch::Receiver<bool>,
    work: F,
) where
    F: Fn(Orders) -> Fut + Send + 'static,
    Fut: Future<Output = Result<usize, Error>> + Send,
{
    let (orders, ready, stop) = (orders.clone(), ready.clone(), tasks.stopping());
    tasks.spawn(name, async move {
        while !stop.is_cancelled() {
            if *ready.borrow() {
                match work(orders.clone()).await {
                    Ok(found) if i64::try_from(found).is_ok_and(|found| found >= BATCH) => continue,
                    Ok(_) => {}
                    Err(error) => tracing::warn!(%error, worker = name, "worker could not do its work"),
                }
            }
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = stop.cancelled() => {}
            }
        }
        Ok(())
    });
}

async fn expire(orders: Orders) -> Result<usize, Error> {
    let mut conn = orders.pool.acquire().await?;
    let run_out = store::run_out(&mut conn, orders.clock.now(), BATCH).await?;
    drop(conn);
    for order in &run_out {
        match steps::expire(&orders, *order).await {
            // Another replica was quicker, or its owner.
            Ok(_) | Err(Error::InvalidTransition | Error::OrderExpired) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(run_out.len())
}

async fn settle_stock(orders: Orders) -> Result<usize, Error> {
    let now = orders.clock.now();
    let mut conn = orders.pool.acquire().await?;
    let due = stock_task::take_due(&mut conn, now, now + STOCK_RETRY, BATCH).await?;
    drop(conn);
    for task in &due {
        steps::do_stock_task(&orders, task).await;
    }
    Ok(due.len())
}

async fn recover(orders: Orders) -> Result<usize, Error> {
    payment::recover(&orders, BATCH).await
}

async fn forget_keys(orders: Orders) -> Result<usize, Error> {
    let now = orders.clock.now();
    let swept = idempotency::sweep(&orders, now, BATCH).await?;
    Ok(usize::try_from(swept).unwrap_or(usize::MAX))
}
