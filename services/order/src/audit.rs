//! The reconciliation audit: compares orders with their holds, the stock ledger, and payments.
//!
//! Four passes read the ids page by page, so that a page costs the same for any number of orders. Two repeat over the
//! orders and the holds of the last hour. Two go slowly through all orders and all holds. A mismatch is recorded, and
//! counted if it still exists [`MISMATCH_GRACE`] later: work in progress looks like a mismatch for a moment.

use std::{collections::BTreeMap, time::Duration};

use shoppee_kit::{
    age::Age,
    process::Process,
    worker::{self, Round},
};
use shoppee_proto::product::v1::{
    GetHoldsRequest, ListHoldsRequest, OrderHold, hold_audit_service_client::HoldAuditServiceClient,
};
use time::OffsetDateTime;
use tokio::{sync::watch, time::Instant};
use uuid::Uuid;

use crate::{
    OrderContext,
    error::Error,
    mismatch::{Hold, Kind, Mismatch, find_mismatch},
    order_id,
    store::audit as store,
};

/// The age at which a mismatch is checked again. It is longer than a transition, its retries and a restart.
const MISMATCH_GRACE: Duration = Duration::from_secs(30);
/// The page size of the recent passes and of the recheck. Orders.
const RECENT_PAGE_SIZE: u16 = 200;
/// The page size of the full passes, which is the maximum of the product service. Orders.
const FULL_PAGE_SIZE: u16 = 500;
/// The interval of the recent passes: 200 orders per second.
const RECENT_INTERVAL: Duration = Duration::from_secs(1);
/// The interval of the full passes: 100 orders per second, 2 000 000 in 6 hours.
const FULL_INTERVAL: Duration = Duration::from_secs(5);
/// The interval of the recheck of mismatches.
const RECHECK_INTERVAL: Duration = Duration::from_secs(5);
/// The age up to which an id is recent.
const RECENT_WINDOW: Duration = Duration::from_hours(1);
/// The lease of a pass. Another replica takes over after it.
const PASS_LEASE: Duration = Duration::from_secs(10);
/// A pass over the ids of orders or of holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    RecentOrders,
    AllOrders,
    RecentHolds,
    AllHolds,
}

impl Pass {
    const ALL: [Self; 4] = [Self::RecentOrders, Self::AllOrders, Self::RecentHolds, Self::AllHolds];

    const fn name(self) -> &'static str {
        match self {
            Self::RecentOrders => "recent-orders",
            Self::AllOrders => "all-orders",
            Self::RecentHolds => "recent-holds",
            Self::AllHolds => "all-holds",
        }
    }

    const fn interval(self) -> Duration {
        match self {
            Self::RecentOrders | Self::RecentHolds => RECENT_INTERVAL,
            Self::AllOrders | Self::AllHolds => FULL_INTERVAL,
        }
    }

    const fn page_size(self) -> u16 {
        match self {
            Self::RecentOrders | Self::RecentHolds => RECENT_PAGE_SIZE,
            Self::AllOrders | Self::AllHolds => FULL_PAGE_SIZE,
        }
    }

    /// Returns the id after which a round begins.
    fn start(self, now: OffsetDateTime) -> Uuid {
        match self {
            Self::AllOrders | Self::AllHolds => Uuid::nil(),
            Self::RecentOrders | Self::RecentHolds => order_id::first_at(now - RECENT_WINDOW),
        }
    }
}

/// Starts the passes and the recheck.
pub fn start(context: &OrderContext, process: &Process, ready: &watch::Receiver<bool>) {
    for kind in Kind::ALL {
        kind.gauge().set(0.0);
    }
    for pass in Pass::ALL {
        let age = Age::default();
        age.export(process, metrics::gauge!("order_audit_age_seconds", "pass" => pass.name()));
        let context = context.clone();
        let worker = match pass {
            Pass::RecentOrders => "audit-recent-orders",
            Pass::AllOrders => "audit-all-orders",
            Pass::RecentHolds => "audit-recent-holds",
            Pass::AllHolds => "audit-all-holds",
        };
        worker::spawn(process, worker, pass.interval(), ready.clone(), move || {
            let (context, age) = (context.clone(), age.clone());
            async move { run_page(&context, pass, &age).await }
        });
    }
    let context = context.clone();
    worker::spawn(process, "audit-recheck", RECHECK_INTERVAL, ready.clone(), move || {
        let context = context.clone();
        async move { recheck(&context).await }
    });
}

/// Compares the next page of a pass.
async fn run_page(context: &OrderContext, pass: Pass, age: &Age) -> Result<Round, Error> {
    let mut conn = context.pool.acquire().await?;
    store::insert_pass(&mut conn, pass.name()).await?;
    let position = store::lease_pass(&mut conn, pass.name(), PASS_LEASE).await?;
    let seconds = store::pass_age(&mut conn, pass.name()).await?;
    drop(conn);
    let ago = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    if let Some(ended_at) = ago.and_then(|ago| Instant::now().checked_sub(ago)) {
        age.reset(ended_at);
    }
    // Without a position another replica runs the pass.
    let Some(after) = position else {
        return Ok(Round::Done);
    };
    let start = pass.start(context.clock.now());
    let (ids, next) = fetch_page(context, pass, after.max(start)).await?;
    compare(context, &ids).await?;
    let mut conn = context.pool.acquire().await?;
    store::release_pass(&mut conn, pass.name(), next, start).await?;
    Ok(Round::Done)
}

/// Returns the ids of a page, and the id after which the next page begins.
async fn fetch_page(
    context: &OrderContext,
    pass: Pass,
    after: Uuid,
) -> Result<(Vec<Uuid>, Option<Uuid>), Error> {
    match pass {
        Pass::RecentOrders | Pass::AllOrders => {
            let mut conn = context.pool.acquire().await?;
            let ids = store::list_ids(&mut conn, after, pass.page_size().into()).await?;
            let next = ids.last().copied().filter(|_| ids.len() >= usize::from(pass.page_size()));
            Ok((ids, next))
        }
        Pass::RecentHolds | Pass::AllHolds => {
            let request = ListHoldsRequest {
                after_order_id: after.to_string(),
                limit: pass.page_size().into(),
                ..ListHoldsRequest::default()
            };
            let page = context
                .product
                .call(request, |channel, request| async move {
                    HoldAuditServiceClient::new(channel).list_holds(request).await
                })
                .await
                .map_err(|status| unavailable(&status))?;
            let next = page.next_after_order_id.map(|id| parse_order_id(&id)).transpose()?;
            let ids = page.order_ids.iter().map(|id| parse_order_id(id)).collect::<Result<_, _>>()?;
            Ok((ids, next))
        }
    }
}

/// Compares the recorded mismatches again, and exports the number of confirmed ones.
async fn recheck(context: &OrderContext) -> Result<Round, Error> {
    let mut conn = context.pool.acquire().await?;
    let ids = store::list_mismatched(&mut conn, MISMATCH_GRACE, RECENT_PAGE_SIZE.into()).await?;
    drop(conn);
    compare(context, &ids).await?;
    let mut conn = context.pool.acquire().await?;
    let confirmed: BTreeMap<Kind, i64> = store::count_confirmed(&mut conn).await?.into_iter().collect();
    for kind in Kind::ALL {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let count = confirmed.get(&kind).copied().unwrap_or_default() as f64;
        kind.gauge().set(count);
    }
    Ok(Round::Done)
}

/// Compares these orders, and records their mismatches.
async fn compare(context: &OrderContext, ids: &[Uuid]) -> Result<(), Error> {
    if ids.is_empty() {
        return Ok(());
    }
    let request = GetHoldsRequest { order_ids: ids.iter().map(Uuid::to_string).collect() };
    let response = context
        .product
        .call(request, |channel, request| async move {
            HoldAuditServiceClient::new(channel).get_holds(request).await
        })
        .await
        .map_err(|status| unavailable(&status))?;
    let holds: BTreeMap<Uuid, Hold> = response.holds.iter().map(parse_hold).collect::<Result<_, _>>()?;
    let mut conn = context.pool.acquire().await?;
    let orders = store::find_orders(&mut conn, ids).await?;
    let now = context.clock.now();
    let mut mismatches = Vec::new();
    for id in ids {
        if let Some(mismatch) = find_mismatch(orders.get(id), holds.get(id), now) {
            mismatches.push((*id, mismatch));
        }
    }
    let confirmed = store::record(&mut conn, ids, &mismatches, MISMATCH_GRACE).await?;
    for (id, Mismatch { kind, detail }) in mismatches.iter().filter(|(id, _)| confirmed.contains(id)) {
        tracing::error!(order.id = %id, kind = kind.as_str(), detail, "order does not match its hold or its payment");
    }
    Ok(())
}

fn parse_hold(message: &OrderHold) -> Result<(Uuid, Hold), Error> {
    let created_at = message.created_at.and_then(|at| OffsetDateTime::try_from(at).ok());
    let hold = Hold {
        state: message.state(),
        lines: message.lines.iter().map(|line| (line.product_id, line.quantity)).collect(),
        ledger_agrees: message.ledger_agrees,
        created_at: created_at.ok_or(Error::Internal("a hold without a valid time"))?,
    };
    Ok((parse_order_id(&message.order_id)?, hold))
}

fn parse_order_id(text: &str) -> Result<Uuid, Error> {
    text.parse().map_err(|_| Error::Internal("a hold with an invalid order id"))
}

fn unavailable(status: &tonic::Status) -> Error {
    tracing::debug!(code = ?status.code(), "holds not available");
    Error::Unavailable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recent_round_begins_after_the_ids_of_an_hour_ago() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::from_hours(24);
        let at = |ago: Duration| {
            let seconds = u64::try_from((now - ago).unix_timestamp()).unwrap();
            Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, 0))
        };
        let start = Pass::RecentOrders.start(now);
        let margin = Duration::from_secs(2);
        assert!(at(RECENT_WINDOW + margin) < start && start < at(RECENT_WINDOW.saturating_sub(margin)));
        assert_eq!(Pass::AllHolds.start(now), Uuid::nil());
    }
}
