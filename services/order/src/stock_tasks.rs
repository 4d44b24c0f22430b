//! Stock tasks: the commits and releases of holds that transitions leave behind. A transaction records the task with
//! its transition. The task runs at once in the background, and a worker repeats it until it succeeds.

use std::time::Duration;

use futures_util::future::join_all;
use shoppee_kit::telemetry::Trace;
use shoppee_proto::product::v1::ReleaseReason;
use tonic::Code;

use crate::{
    OrderContext,
    error::Error,
    store::{
        payment::Backoff,
        stock_task::{self as store, StockOperation, StockTask},
    },
};

/// The lease of a task: two calls to the product service end within it.
pub const STOCK_LEASE: Duration = Duration::from_secs(5);
/// Bounds the time for which a response waits for its stock task.
const MAX_RESPONSE_DELAY: Duration = Duration::from_millis(500);
/// The backoff for a task that the product service rejects for a reason that only manual work may remove.
const REJECTED_BACKOFF: Backoff = Backoff { first: Duration::from_secs(5), max: Duration::from_mins(10) };

/// Runs a task in the background, and waits for it as long as the product service usually takes.
pub async fn spawn_and_wait(context: &OrderContext, task: StockTask) {
    let context = context.clone();
    let running = tokio::spawn(Trace::current().instrument(async move { run(&context, &task).await }));
    // After the timeout the task continues.
    let _ = tokio::time::timeout(MAX_RESPONSE_DELAY, running).await;
}

/// Runs the tasks that are due, and returns their number. Each is leased, and its failure affects no other.
pub async fn run_due(context: &OrderContext) -> Result<usize, Error> {
    let now = context.clock.now();
    let mut conn = context.pool.acquire().await?;
    let tasks = store::lease_due(&mut conn, now, now + STOCK_LEASE).await?;
    drop(conn);
    join_all(tasks.iter().map(|task| run(context, task))).await;
    Ok(tasks.len())
}

/// Calls the product service about an order's stock, and deletes the task if it has nothing more to do.
pub async fn run(context: &OrderContext, task: &StockTask) {
    let outcome = match task.operation {
        StockOperation::Commit => context.product.commit(task.order_id).await,
        StockOperation::Release => {
            context.product.release(task.order_id, ReleaseReason::OrderCancelled).await
        }
    };
    let operation = task.operation.as_str();
    let recording = async {
        let mut conn = context.pool.acquire().await?;
        match outcome {
            Ok(()) => store::delete(&mut conn, task).await,
            // The hold is gone, so there is nothing to commit. This cannot happen to a paid order, as a payment extends
            // the hold beyond any outage. It is expected for an order that was cancelled meanwhile.
            Err(status) if status.code() == Code::FailedPrecondition || status.code() == Code::NotFound => {
                metrics::counter!("stock_tasks_without_hold_total", "step" => operation).increment(1);
                tracing::warn!(order.id = %task.order_id, step = operation, "stock task without a hold");
                store::delete(&mut conn, task).await
            }
            // The product service is unavailable: the task is due again when its lease ends.
            Err(status) if status.code() == Code::Unavailable || status.code() == Code::DeadlineExceeded => {
                tracing::debug!(order.id = %task.order_id, "stock task deferred, product service unavailable");
                Ok(())
            }
            Err(status) => {
                tracing::warn!(code = ?status.code(), order.id = %task.order_id, "stock task failed");
                store::postpone(&mut conn, task, context.clock.now(), REJECTED_BACKOFF).await
            }
        }
    };
    if let Err(error) = recording.await {
        // The task runs again, which changes nothing.
        tracing::debug!(%error, "outcome of a stock task not recorded");
    }
}
