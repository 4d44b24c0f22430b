//! Refunds. The transaction that cancels a paid order requests one. The refund runs in the background, or by
//! [`recover_due`] after a crash. If the provider rejects it for good, the attempt ends as `refund_failed`, and an
//! operator has to resolve it.

use std::time::Duration;

use futures_util::future::join_all;
use shoppee_kit::telemetry::Trace;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    OrderContext,
    error::Error,
    order_metrics,
    provider::RefundOutcome,
    store::{
        order as store,
        payment::{self as attempts, Attempt, Backoff},
    },
    timeout::with_timeout,
};

/// Bounds the call to the provider, within the lease.
const REFUND_TIMEOUT: Duration = Duration::from_secs(10);
/// The lease of a refund, after which another process repeats it.
const REFUND_LEASE: Duration = Duration::from_secs(15);
const REFUND_BACKOFF: Backoff = Backoff { first: REFUND_LEASE, max: Duration::from_mins(10) };
/// The number of errors other than outages, over about an hour and a half, after which a refund has failed.
const MAX_REFUND_FAILURES: i32 = 16;

/// Requests the refund of an order's captured payment, and leases it to the caller.
pub async fn request(
    conn: &mut PgConnection,
    order: (i64, Uuid),
    now: OffsetDateTime,
) -> sqlx::Result<Option<Attempt>> {
    attempts::request_refund(conn, order, None, "captured", now, now + REFUND_LEASE).await
}

/// Requests the refund of an attempt that was approved too late to pay its order.
pub async fn request_late(
    conn: &mut PgConnection,
    attempt: &Attempt,
    now: OffsetDateTime,
) -> sqlx::Result<Option<Attempt>> {
    let order = (attempt.user_id, attempt.order_id);
    attempts::request_refund(conn, order, Some(attempt.id), "charging", now, now + REFUND_LEASE).await
}

/// Refunds an attempt that this process has leased, in the background.
pub fn spawn(context: &OrderContext, attempt: Attempt) {
    let context = context.clone();
    tokio::spawn(Trace::current().instrument(async move { refund(&context, &attempt).await }));
}

/// Makes the refunds that are due, and returns their number. Each is leased, and its failure affects no other: the
/// refund is due again later.
pub async fn recover_due(context: &OrderContext, limit: i64) -> Result<usize, Error> {
    let now = context.clock.now();
    let mut conn = context.pool.acquire().await?;
    let due = attempts::lease_due(&mut conn, "refunding", now, now + REFUND_LEASE, limit).await?;
    drop(conn);
    join_all(due.iter().map(|attempt| refund(context, attempt))).await;
    Ok(due.len())
}

#[tracing::instrument(name = "payment.refund", skip_all)]
async fn refund(context: &OrderContext, attempt: &Attempt) {
    let (provider, id) = (context.provider.clone(), attempt.id);
    let recorded = match with_timeout(REFUND_TIMEOUT, async move { provider.refund(id).await }).await {
        Ok(RefundOutcome::Refunded) => complete(context, attempt, true).await,
        Ok(RefundOutcome::Rejected(reason)) => {
            tracing::error!(reason, order.id = %attempt.order_id, "refund rejected by the provider");
            complete(context, attempt, false).await
        }
        Err(error) if attempt.tries + 1 >= MAX_REFUND_FAILURES && !error.is_outage() => {
            tracing::error!(%error, order.id = %attempt.order_id, "refund failed, no more retries");
            complete(context, attempt, false).await
        }
        Err(error) => {
            metrics::counter!("refund_failures_total").increment(1);
            let Attempt { order_id, tries, .. } = attempt;
            tracing::warn!(%error, order.id = %order_id, tries, "refund failed, retried later");
            postpone(context, attempt, !error.is_outage()).await
        }
    };
    if let Err(error) = recorded {
        // The refund is due again when its lease ends; a repeat changes nothing.
        tracing::warn!(%error, order.id = %attempt.order_id, "outcome of a refund not recorded");
    }
}

async fn postpone(context: &OrderContext, attempt: &Attempt, is_counted: bool) -> Result<(), Error> {
    let mut conn = context.pool.acquire().await?;
    Ok(attempts::postpone(&mut conn, attempt, context.clock.now(), REFUND_BACKOFF, is_counted).await?)
}

/// Records the outcome of a refund, once.
async fn complete(context: &OrderContext, attempt: &Attempt, refunded: bool) -> Result<(), Error> {
    let now = context.clock.now();
    let mut tx = context.pool.begin().await?;
    let order = store::record_refund(&mut tx, (attempt.user_id, attempt.order_id), refunded, now).await?;
    let state = if refunded { "refunded" } else { "refund_failed" };
    if !attempts::set_state(&mut tx, attempt, "refunding", state).await? {
        // Another worker has completed the refund.
        return Ok(tx.rollback().await?);
    }
    tx.commit().await?;
    if let Some((total, currency)) = order.filter(|_| refunded) {
        order_metrics::count_refund(&currency, total);
    }
    Ok(())
}
