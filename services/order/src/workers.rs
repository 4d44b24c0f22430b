//! The periodic workers: order expiry, stock tasks, payment recovery, refunds, and deletion of expired keys. Any number
//! of replicas may run them at once, and may be killed at any point. Due work is leased: other workers skip it, and it
//! is due again when the lease ends.

use std::time::Duration;

use shoppee_kit::{
    process::Process,
    worker::{self, Round},
};
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::{
    OrderContext,
    error::Error,
    expiry, idempotency, payment, refund, stock_tasks,
    store::{self, backlog, stock_task},
};

/// Bounds the orders of one transaction, which locks the event cursors of their users for a few hundred milliseconds.
const EXPIRY_BATCH: i64 = 100;
const PAYMENT_BATCH: i64 = 16;

pub fn start(context: &OrderContext, process: &Process, ready: &watch::Receiver<bool>) {
    let workers = Workers { context, process, ready };
    let seconds = Duration::from_secs;
    workers.start("expiry", seconds(1), EXPIRY_BATCH, |context| async move {
        expiry::run(&context, EXPIRY_BATCH).await
    });
    workers.start("stock", seconds(1), stock_task::LEASE_BATCH, |context| async move {
        stock_tasks::run_due(&context).await
    });
    workers.start("payments", seconds(1), PAYMENT_BATCH, |context| async move {
        payment::recover_due(&context, PAYMENT_BATCH).await
    });
    workers.start("refunds", seconds(5), PAYMENT_BATCH, |context| async move {
        refund::recover_due(&context, PAYMENT_BATCH).await
    });
    workers.start("idempotency-keys", seconds(10), store::idempotency::DELETE_BATCH, |context| async move {
        let deleted = idempotency::delete_expired(&context, context.clock.now()).await?;
        Ok(usize::try_from(deleted).unwrap_or(usize::MAX))
    });
    workers.start("backlog", seconds(10), i64::MAX, |context| async move {
        record_backlog(&context).await.map(|()| 0)
    });
}

struct Workers<'a> {
    context: &'a OrderContext,
    process: &'a Process,
    ready: &'a watch::Receiver<bool>,
}

impl Workers<'_> {
    /// Repeats `work` at this interval, and at once after a full batch. `work` returns the number of items.
    fn start<F, Fut>(&self, name: &'static str, interval: Duration, batch: i64, work: F)
    where
        F: Fn(OrderContext) -> Fut + Send + 'static,
        Fut: Future<Output = Result<usize, Error>> + Send,
    {
        let context = self.context.clone();
        worker::spawn(self.process, name, interval, self.ready.clone(), move || {
            let round = work(context.clone());
            async move {
                let count = round.await?;
                Ok::<_, Error>(Round::more_if(i64::try_from(count).is_ok_and(|count| count >= batch)))
            }
        });
    }
}

/// Records the size and the age of the backlog.
async fn record_backlog(context: &OrderContext) -> Result<(), Error> {
    let now = context.clock.now();
    let mut conn = context.pool.acquire().await?;
    let backlog = backlog::read(&mut conn, now).await?;
    let age =
        |since: Option<OffsetDateTime>| since.map_or(0.0, |since| (now - since).as_seconds_f64().max(0.0));
    #[expect(clippy::cast_precision_loss, reason = "at most some ten thousand")]
    let count = |rows: i64| rows as f64;
    metrics::gauge!("payment_attempts_open").set(count(backlog.charging));
    metrics::gauge!("payment_attempts_oldest_open_seconds").set(age(backlog.charging_since));
    metrics::gauge!("refunds_pending").set(count(backlog.refunding));
    metrics::gauge!("refunds_oldest_pending_seconds").set(age(backlog.refunding_since));
    metrics::gauge!("refunds_failed").set(count(backlog.refunds_failed));
    metrics::gauge!("stock_tasks_due").set(count(backlog.stock_tasks));
    metrics::gauge!("stock_tasks_oldest_due_seconds").set(age(backlog.stock_tasks_since));
    metrics::gauge!("orders_overdue").set(count(backlog.overdue));
    metrics::gauge!("orders_overdue_oldest_seconds").set(age(backlog.overdue_since));
    Ok(())
}
