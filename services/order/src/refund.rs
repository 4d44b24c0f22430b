//! Refunds. The transaction that ends a paid order requests one; the money goes back behind the answer, or by
//! [`recover`] where the process died. A refund that the provider refuses for good ends as `refund_failed`, which an
//! operator sees and puts right.

use std::time::Duration;

use futures_util::future::join_all;
use shoppee_kit::{pg, telemetry::Trace};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    Orders,
    error::Error,
    payment::within,
    provider::RefundOutcome,
    steps,
    store::{
        order as store,
        payment::{self as attempts, Attempt, Backoff},
    },
};

/// The time that the provider may take: less than a lease.
const REFUND_TIMEOUT: Duration = Duration::from_secs(10);
const REFUND_BACKOFF: Backoff = Backoff { first: Duration::from_secs(15), max: Duration::from_mins(10) };
/// The number of errors that no outage explains, in about two hours, after which a refund has failed.
const MAX_REFUND_TRIES: i32 = 16;

/// Requests the refund of what paid an order, and leases it to the caller.
pub async fn request(
    conn: &mut PgConnection,
    order: (i64, Uuid),
    now: OffsetDateTime,
) -> sqlx::Result<Option<Attempt>> {
    attempts::request_refund(conn, order, None, "captured", now, now + REFUND_BACKOFF.first).await
}

/// The same for an attempt that was approved too late to pay its order.
pub async fn request_late(
    conn: &mut PgConnection,
    attempt: &Attempt,
    now: OffsetDateTime,
) -> sqlx::Result<Option<Attempt>> {
    let order = (attempt.user_id, attempt.order_id);
    let lease = now + REFUND_BACKOFF.first;
    attempts::request_refund(conn, order, Some(attempt.id), "charging", now, lease).await
}

/// Refunds an attempt that this process has leased, behind the answer.
pub fn spawn(orders: &Orders, attempt: Attempt) {
    let orders = orders.clone();
    tokio::spawn(Trace::current().of(async move { refund(&orders, &attempt).await }));
}

/// Refunds what is due; how many there were. Each is leased, and a failure of one is its own: it is due again later.
pub async fn recover(orders: &Orders, limit: i64) -> Result<usize, Error> {
    let mut conn = orders.pool.acquire().await?;
    let due = attempts::lease_due(&mut conn, "refunding", orders.clock.now(), REFUND_BACKOFF, limit).await?;
    drop(conn);
    join_all(due.iter().map(|attempt| refund(orders, attempt))).await;
    Ok(due.len())
}

#[tracing::instrument(name = "payment.refund", skip_all)]
async fn refund(orders: &Orders, attempt: &Attempt) {
    let (provider, id) = (orders.provider.clone(), attempt.id);
    let ended = match within(REFUND_TIMEOUT, async move { provider.refund(id).await }).await {
        Ok(RefundOutcome::Refunded) => end(orders, attempt, true).await,
        Ok(RefundOutcome::Refused(why)) => {
            tracing::error!(why, order.id = %attempt.order_id, "the provider refuses a refund");
            end(orders, attempt, false).await
        }
        Err(error) if attempt.tries >= MAX_REFUND_TRIES && !is_outage(&error) => {
            tracing::error!(%error, order.id = %attempt.order_id, "a refund has failed for good");
            end(orders, attempt, false).await
        }
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        metrics::counter!("refund_failures_total").increment(1);
        let Attempt { order_id, tries, .. } = attempt;
        tracing::warn!(%error, order.id = %order_id, tries, "not refunded; it is tried again later");
    }
}

fn is_outage(error: &Error) -> bool {
    matches!(error, Error::Unavailable)
        || matches!(error, Error::Database(error) if pg::is_unavailable(error))
}

/// Writes down how a refund ended, once.
async fn end(orders: &Orders, attempt: &Attempt, refunded: bool) -> Result<(), Error> {
    let now = orders.clock.now();
    let mut tx = orders.pool.begin().await?;
    let order = store::end_refund(&mut tx, (attempt.user_id, attempt.order_id), refunded, now).await?;
    let state = if refunded { "refunded" } else { "refund_failed" };
    if !attempts::advance(&mut tx, attempt, "refunding", state).await? {
        // Another worker has ended it.
        return Ok(tx.rollback().await?);
    }
    tx.commit().await?;
    if let Some((total, currency)) = order.filter(|_| refunded) {
        steps::count_refund(&currency, total);
    }
    Ok(())
}
