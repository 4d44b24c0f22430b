//! The sweep of orphan holds: releases the stock of checkouts that ended between their hold and their order. The normal
//! path of an order writes nothing for it.
//!
//! A pass pages through the holds by order id, some time behind the present, so that it reads each hold once. An id without
//! an order gets a tombstone in this service's database (`orders.voided_order`). The statement that writes orders writes
//! none whose id has a tombstone. Then the hold is released.
//!
//! A statement may have begun before the tombstone was committed. It locks `orders.orders` before it takes its snapshot.
//! So the sweep waits for the end of all transactions that have the lock after the commit of the tombstone (a grace period,
//! as of RCU), and looks for the order again. Later ones see the tombstone. This needs one PostgreSQL server.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use shoppee_kit::{
    process::Process,
    worker::{self, Round},
};
use shoppee_proto::product::v1::{
    ListHoldsRequest, ReleaseReason, hold_audit_service_client::HoldAuditServiceClient,
};
use sqlx::PgConnection;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tonic::Code;
use uuid::Uuid;

use crate::{
    OrderContext,
    checkout::MAX_ORDER_ID_AGE,
    error::Error,
    order::HOLD_MARGIN,
    order_id,
    store::{audit as passes, voided_order as store},
};

const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Bounds the time from the last use of an order id to the commit of its hold: the timeout of the call, and a delay in the
/// product service.
const MAX_HOLD_DELAY: Duration = Duration::from_secs(5);
/// The same while a process, or the commit of a hold, stalls. A hold that is later still expires by itself.
const MAX_STALLED_HOLD_DELAY: Duration = Duration::from_secs(165);
/// Bounds the holds of a page, and the tombstones of a round.
const PAGE_SIZE: i32 = 500;
/// Bounds the orders that are read for a page. The insertion of tombstones looks for further ones.
const MAX_PAGE_ORDERS: i64 = 5_000;
/// The lease of a pass. Another replica takes over after it.
const PASS_LEASE: Duration = Duration::from_secs(10);
/// Bounds the wait for the end of transactions that write orders. The next round waits again.
const GRACE_TIMEOUT: Duration = Duration::from_secs(2);
const GRACE_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Bounds the concurrent calls to the product service, which releases holds in batches.
const MAX_CONCURRENT_RELEASES: usize = 32;
/// The time for which a tombstone is kept after the release. An order is written at most [`MAX_ORDER_ID_AGE`] and 10
/// minutes after the creation of its id (`store/checkout/insert.sql`).
const TOMBSTONE_TTL: Duration = Duration::from_hours(1);
const DELETE_BATCH: i64 = 1_000;

/// A pass over the holds.
#[derive(Clone, Copy, Debug)]
struct Pass {
    name: &'static str,
    /// The age of the ids that the pass looks at.
    lag: Duration,
}

const PASSES: [Pass; 2] = [
    Pass { name: "orphan-holds", lag: MAX_ORDER_ID_AGE.saturating_add(MAX_HOLD_DELAY) },
    Pass { name: "stalled-orphan-holds", lag: MAX_ORDER_ID_AGE.saturating_add(MAX_STALLED_HOLD_DELAY) },
];

/// Starts the sweep.
pub fn start(context: &OrderContext, process: &Process, ready: &watch::Receiver<bool>) {
    metrics::counter!("holds_voided_total").absolute(0);
    let context = context.clone();
    worker::spawn(process, "orphan-holds", SWEEP_INTERVAL, ready.clone(), move || {
        let context = context.clone();
        async move { sweep(&context).await }
    });
}

async fn sweep(context: &OrderContext) -> Result<Round, Error> {
    let mut is_done = true;
    for pass in PASSES {
        is_done &= run_page(context, pass).await?;
    }
    is_done &= release_voided(context).await?;
    let before = context.clock.now() - TOMBSTONE_TTL;
    let mut conn = context.pool.acquire().await?;
    store::delete_released(&mut conn, before, DELETE_BATCH).await?;
    Ok(Round::more_if(!is_done))
}

/// Inserts the tombstones of a page. Returns false if there is another page.
async fn run_page(context: &OrderContext, pass: Pass) -> Result<bool, Error> {
    let now = context.clock.now();
    let mut conn = context.pool.acquire().await?;
    passes::insert_pass(&mut conn, pass.name).await?;
    let Some(position) = passes::lease_pass(&mut conn, pass.name, PASS_LEASE).await? else {
        // Another replica runs the pass.
        return Ok(true);
    };
    drop(conn);
    // Older holds have expired.
    let oldest = order_id::first_at(now - context.order_ttl - HOLD_MARGIN);
    let (after, until) = (position.max(oldest), order_id::first_at(now - pass.lag));
    let (held, next) =
        if after < until { list_holds(context, after, until).await? } else { (Vec::new(), None) };
    let end = next.unwrap_or(until).max(after);
    let mut conn = context.pool.acquire().await?;
    if !held.is_empty() {
        let written = store::list_orders(&mut conn, after, end, MAX_PAGE_ORDERS).await?;
        let written: BTreeSet<Uuid> = written.into_iter().collect();
        let orphans: Vec<Uuid> = held.into_iter().filter(|id| !written.contains(id)).collect();
        if !orphans.is_empty() {
            store::insert(&mut conn, &orphans).await?;
        }
    }
    passes::release_pass(&mut conn, pass.name, Some(end), end).await?;
    Ok(next.is_none())
}

/// Lists the holds of a page, and returns its end if there is another page.
async fn list_holds(
    context: &OrderContext,
    after: Uuid,
    until: Uuid,
) -> Result<(Vec<Uuid>, Option<Uuid>), Error> {
    let request = ListHoldsRequest {
        after_order_id: after.to_string(),
        limit: PAGE_SIZE,
        until_order_id: until.to_string(),
        held_only: true,
    };
    let page = context
        .product
        .call(request, |channel, request| async move {
            HoldAuditServiceClient::new(channel).list_holds(request).await
        })
        .await
        .map_err(|status| {
            tracing::debug!(code = ?status.code(), "holds not listed");
            Error::Unavailable
        })?;
    let parse = |id: &String| id.parse().map_err(|_| Error::Internal("a hold with an invalid order id"));
    let next = page.next_after_order_id.as_ref().map(parse).transpose()?.filter(|next| *next < until);
    let ids = page.order_ids.iter().map(parse).collect::<Result<Vec<Uuid>, _>>()?;
    // A previous version of the product service does not know the bound.
    Ok((ids.into_iter().filter(|id| *id <= until).collect(), next))
}

/// Releases the holds of void orders. Returns false if there are more.
async fn release_voided(context: &OrderContext) -> Result<bool, Error> {
    let mut conn = context.pool.acquire().await?;
    let mut voided = store::list_pending(&mut conn, PAGE_SIZE.into()).await?;
    let is_done = voided.len() < usize::try_from(PAGE_SIZE).unwrap_or_default();
    if voided.is_empty() {
        return Ok(true);
    }
    wait_for_writers(&mut conn).await?;
    let written = store::delete_written(&mut conn, &voided).await?;
    drop(conn);
    voided.retain(|id| !written.contains(id));
    let released: Vec<Uuid> = stream::iter(voided.clone())
        .map(|id| async move { release(context, id).await.then_some(id) })
        .buffer_unordered(MAX_CONCURRENT_RELEASES)
        .filter_map(std::future::ready)
        .collect()
        .await;
    let mut conn = context.pool.acquire().await?;
    let count = store::set_released(&mut conn, &released, context.clock.now()).await?;
    metrics::counter!("holds_voided_total").increment(count);
    if count > 0 {
        tracing::info!(holds = count, "holds without an order released");
    }
    if released.len() < voided.len() { Err(Error::Unavailable) } else { Ok(is_done) }
}

/// Waits for the end of the transactions that have locked the orders for writing at the time of the call.
async fn wait_for_writers(conn: &mut PgConnection) -> Result<(), Error> {
    let deadline = Instant::now() + GRACE_TIMEOUT;
    let mut pending: HashSet<String> = store::list_writers(conn).await?.into_iter().collect();
    while !pending.is_empty() {
        if Instant::now() >= deadline {
            tracing::warn!(
                transactions = pending.len(),
                "orphan holds wait for transactions that write orders"
            );
            return Err(Error::Unavailable);
        }
        sleep(GRACE_POLL_INTERVAL).await;
        let writers = store::list_writers(conn).await?;
        pending.retain(|transaction| writers.contains(transaction));
    }
    Ok(())
}

/// Releases the hold of a void order. Returns false if it has to be repeated.
async fn release(context: &OrderContext, order_id: Uuid) -> bool {
    match context.product.release(order_id, ReleaseReason::CheckoutAbandoned).await {
        Ok(()) => true,
        // The audit counts it.
        Err(status) if status.code() == Code::FailedPrecondition => {
            tracing::error!(order.id = %order_id, "hold of an order that was not placed is committed");
            true
        }
        Err(status) => {
            tracing::debug!(code = ?status.code(), order.id = %order_id, "hold release failed");
            false
        }
    }
}
