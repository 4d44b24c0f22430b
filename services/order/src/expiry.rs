//! Expiry: cancels unpaid orders whose payment deadline has passed, and releases their stock.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};

use crate::{
    OrderContext,
    error::Error,
    order::{Requester, Transition},
    stock_tasks,
    store::{
        order as store, payment as attempts,
        stock_task::{self, StockOperation, StockTask},
    },
    transitions,
};

/// The cancel reason of an expired order.
const EXPIRED_REASON: &str = "expired";
/// The lease of the stock tasks of a batch.
const BATCH_LEASE: Duration = Duration::from_secs(15);
/// Bounds the concurrent calls to the product service of one batch.
const MAX_CONCURRENT_RELEASES: usize = 16;
/// Bounds the batches whose stock is being released; the next one waits.
pub const MAX_CONCURRENT_BATCHES: usize = 2;

/// Cancels up to `limit` overdue orders in one transaction, and returns their number.
#[tracing::instrument(
    name = "order.expire",
    skip_all,
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn run(context: &OrderContext, limit: i64) -> Result<usize, Error> {
    let now = context.clock.now();
    let mut tx = context.pool.begin().await?;
    let mut rows = store::lock_overdue(&mut tx, now, limit).await?;
    let keys: Vec<_> = rows.iter().map(|row| (row.user_id, row.id)).collect();
    // A payment may begin between that statement's snapshot and its lock.
    let charging = attempts::find_charging(&mut tx, &keys).await?;
    rows.retain(|row| !charging.contains(&row.id));
    // Transactions that lock the event cursors of several users lock them in one order.
    rows.sort_by_key(|row| (row.user_id, row.id));
    let mut tasks = Vec::with_capacity(rows.len());
    for row in &mut rows {
        let to = transitions::authorize_transition(Transition::Expire, row, Requester::SYSTEM, now)?;
        row.cancel_reason = Some(EXPIRED_REASON.to_owned());
        row.expired = true;
        transitions::apply_transition(&mut tx, row, to, now, Some(EXPIRED_REASON)).await?;
        let task = StockTask { user_id: row.user_id, order_id: row.id, operation: StockOperation::Release };
        stock_task::insert(&mut tx, &task, now, now + BATCH_LEASE).await?;
        tasks.push(task);
    }
    tx.commit().await?;
    for row in &rows {
        transitions::after_commit(context, row);
    }
    // The stock is released in the background while the next batch is cancelled.
    let permit = Arc::clone(&context.expiry_permits).acquire_owned().await;
    let background = context.clone();
    tokio::spawn(async move {
        let _permit = permit;
        let release = |task: StockTask| {
            let context = background.clone();
            async move { stock_tasks::run(&context, &task).await }
        };
        stream::iter(tasks).for_each_concurrent(MAX_CONCURRENT_RELEASES, release).await;
    });
    Ok(rows.len())
}
