//! Periodic work: orders run out, stock is settled, payments are recovered, refunds are made, old keys go. Any number
//! of replicas may run these at once, and be killed anywhere. Due work is leased, passed over by the others, and due
//! again later.

use std::time::Duration;

use shoppee_kit::{
    process::Process,
    worker::{self, Round},
};
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::{Orders, error::Error, idempotency, payment, refund, steps, store::backlog};

/// Orders of one transaction: the cursors of their users are locked for some hundred milliseconds.
const EXPIRY_BATCH: i64 = 100;
/// The work that is done at the same time: each piece ends before its lease does.
const STOCK_BATCH: i64 = 32;
const PAYMENT_BATCH: i64 = 16;
const KEYS_BATCH: i64 = 1000;

pub fn start(orders: &Orders, process: &Process, ready: &watch::Receiver<bool>) {
    let workers = Workers { orders, process, ready };
    let every = Duration::from_secs;
    workers.start("expiry", every(1), EXPIRY_BATCH, |orders| async move {
        steps::expire(&orders, EXPIRY_BATCH).await
    });
    workers.start("stock", every(1), STOCK_BATCH, |orders| async move {
        steps::settle_stock(&orders, STOCK_BATCH).await
    });
    workers.start("payments", every(5), PAYMENT_BATCH, |orders| async move {
        payment::recover(&orders, PAYMENT_BATCH).await
    });
    workers.start("refunds", every(5), PAYMENT_BATCH, |orders| async move {
        refund::recover(&orders, PAYMENT_BATCH).await
    });
    workers.start("idempotency-keys", every(10), KEYS_BATCH, |orders| async move {
        let swept = idempotency::sweep(&orders, orders.clock.now(), KEYS_BATCH).await?;
        Ok(usize::try_from(swept).unwrap_or(usize::MAX))
    });
    workers.start("backlog", every(10), i64::MAX, |orders| async move {
        measure_backlog(&orders).await.map(|()| 0)
    });
}

struct Workers<'a> {
    orders: &'a Orders,
    process: &'a Process,
    ready: &'a watch::Receiver<bool>,
}

impl Workers<'_> {
    /// Repeats `work`, which says how much it found, at this interval, and at once after a full batch.
    fn start<F, Fut>(&self, name: &'static str, interval: Duration, batch: i64, work: F)
    where
        F: Fn(Orders) -> Fut + Send + 'static,
        Fut: Future<Output = Result<usize, Error>> + Send,
    {
        let orders = self.orders.clone();
        worker::spawn(self.process, name, interval, self.ready.clone(), move || {
            let working = work(orders.clone());
            async move {
                let found = working.await?;
                Ok::<_, Error>(Round::more_if(i64::try_from(found).is_ok_and(|found| found >= batch)))
            }
        });
    }
}

/// Says how much is behind, and for how long.
async fn measure_backlog(orders: &Orders) -> Result<(), Error> {
    let now = orders.clock.now();
    let mut conn = orders.pool.acquire().await?;
    let found = backlog::read(&mut conn, now).await?;
    let age =
        |since: Option<OffsetDateTime>| since.map_or(0.0, |since| (now - since).as_seconds_f64().max(0.0));
    #[expect(clippy::cast_precision_loss, reason = "at most some ten thousand")]
    let count = |rows: i64| rows as f64;
    metrics::gauge!("payment_attempts_open").set(count(found.charging));
    metrics::gauge!("payment_attempts_oldest_open_seconds").set(age(found.charging_since));
    metrics::gauge!("refunds_pending").set(count(found.refunding));
    metrics::gauge!("refunds_oldest_pending_seconds").set(age(found.refunding_since));
    metrics::gauge!("refunds_failed").set(count(found.refunds_failed));
    metrics::gauge!("stock_tasks_due").set(count(found.stock_tasks));
    metrics::gauge!("stock_tasks_oldest_due_seconds").set(age(found.stock_tasks_since));
    metrics::gauge!("orders_overdue").set(count(found.overdue));
    metrics::gauge!("orders_overdue_oldest_seconds").set(age(found.overdue_since));
    Ok(())
}
