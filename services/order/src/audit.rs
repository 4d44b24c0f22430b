//! The audit that joins: orders against their holds, the ledger of the stock, and payments.
//!
//! Four passes go through the ids a page at a time, so that none gets slower with the number of orders. Two go through
//! the orders and the holds of the last hour again and again. Two go slowly through all orders and all holds there are.
//! A mismatch is noted, and counted once it is still there [`GRACE`] later: work in progress does not fit for a moment.

use std::{collections::BTreeMap, time::Duration};

use shoppee_kit::{
    age::Age,
    process::Process,
    worker::{self, Round},
};
use shoppee_proto::product::v1::{
    GetHoldsRequest, HoldState, ListHoldsRequest, OrderHold,
    hold_audit_service_client::HoldAuditServiceClient,
};
use time::OffsetDateTime;
use tokio::{sync::watch, time::Instant};
use uuid::Uuid;

use crate::{Orders, error::Error, store::audit as store};

/// The delay after which a mismatch is looked at a second time. Longer than a step, its retries and a restart take.
const GRACE: Duration = Duration::from_secs(30);
/// Orders of a page of the last hour, and of those that are looked at again.
const PAGE: u16 = 200;
/// Orders of a page of all of them; the product service answers no more at once.
const ALL_PAGE: u16 = 500;
/// The interval of the passes over the last hour: 200 orders a second.
const RECENT_INTERVAL: Duration = Duration::from_secs(1);
/// The interval of the passes over everything: 100 orders a second, 2 000 000 in 6 hours.
const ALL_INTERVAL: Duration = Duration::from_secs(5);
/// The interval at which mismatches are looked at again.
const RECHECK_INTERVAL: Duration = Duration::from_secs(5);
/// The age up to which an id is recent.
const RECENT: Duration = Duration::from_hours(1);
/// A replica that died in a page is waited for so long.
const LEASE: Duration = Duration::from_secs(10);
/// A hold may live so much longer than its order could stay unpaid: 60 s by design, and as long for being put back.
const HOLD_MARGIN: Duration = Duration::from_mins(2);

/// The kinds of mismatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The stock has something else than the order says.
    Stock,
    /// The order is paid, and its goods are not kept for it.
    PaidWithoutHold,
    /// Goods are held for an order that does not exist.
    HeldWithoutOrder,
    /// The order is paid and no payment was captured, or the reverse.
    Payment,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Stock, Self::PaidWithoutHold, Self::HeldWithoutOrder, Self::Payment];

    /// As it is stored.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::PaidWithoutHold => "paid_without_hold",
            Self::HeldWithoutOrder => "held_without_order",
            Self::Payment => "payment",
        }
    }

    /// The kind of a stored word.
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.word() == word)
    }

    fn gauge(self) -> metrics::Gauge {
        match self {
            Self::Stock => metrics::gauge!("order_stock_mismatches"),
            Self::PaidWithoutHold => metrics::gauge!("paid_without_hold"),
            Self::HeldWithoutOrder => metrics::gauge!("held_without_order"),
            Self::Payment => metrics::gauge!("order_payment_mismatches"),
        }
    }
}

/// A mismatch, in words for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    pub kind: Kind,
    pub detail: String,
}

/// The audit's view of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub status: String,
    pub expires_at: OffsetDateTime,
    /// Product and quantity, in the order of product ids.
    pub lines: Vec<(i64, i64)>,
    /// Attempts whose money was taken and not given back.
    pub captured: i64,
    /// The stock is still to be told something.
    pub is_settling: bool,
}

/// The stock's record of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hold {
    state: HoldState,
    lines: Vec<(i64, i64)>,
    ledger_agrees: bool,
    created_at: OffsetDateTime,
}

/// One way through the ids.
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
            Self::AllOrders | Self::AllHolds => ALL_INTERVAL,
        }
    }

    const fn page(self) -> u16 {
        match self {
            Self::RecentOrders | Self::RecentHolds => PAGE,
            Self::AllOrders | Self::AllHolds => ALL_PAGE,
        }
    }

    /// Returns the id behind which a round begins: ids have the time they were made in their first bits.
    fn first(self, now: OffsetDateTime) -> Uuid {
        match self {
            Self::AllOrders | Self::AllHolds => Uuid::nil(),
            Self::RecentOrders | Self::RecentHolds => {
                let milliseconds = (now - RECENT).unix_timestamp_nanos() / 1_000_000;
                Uuid::from_u128(u128::try_from(milliseconds).unwrap_or_default() << 80)
            }
        }
    }
}

/// Starts the passes, and what looks again at what they found.
pub fn start(orders: &Orders, process: &Process, ready: &watch::Receiver<bool>) {
    for kind in Kind::ALL {
        kind.gauge().set(0.0);
    }
    for pass in Pass::ALL {
        let age = Age::default();
        age.export(process, metrics::gauge!("order_audit_age_seconds", "pass" => pass.name()));
        let orders = orders.clone();
        let worker = match pass {
            Pass::RecentOrders => "audit-recent-orders",
            Pass::AllOrders => "audit-all-orders",
            Pass::RecentHolds => "audit-recent-holds",
            Pass::AllHolds => "audit-all-holds",
        };
        worker::spawn(process, worker, pass.interval(), ready.clone(), move || {
            let (orders, age) = (orders.clone(), age.clone());
            async move { go_on(&orders, pass, &age).await }
        });
    }
    let orders = orders.clone();
    worker::spawn(process, "audit-recheck", RECHECK_INTERVAL, ready.clone(), move || {
        let orders = orders.clone();
        async move { recheck(&orders).await }
    });
}

/// Looks at the next page of a pass.
async fn go_on(orders: &Orders, pass: Pass, age: &Age) -> Result<Round, Error> {
    let mut conn = orders.pool.acquire().await?;
    store::add_pass(&mut conn, pass.name()).await?;
    let taken = store::take_pass(&mut conn, pass.name(), LEASE).await?;
    let seconds = store::pass_age(&mut conn, pass.name()).await?;
    drop(conn);
    let ago = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    if let Some(ended) = ago.and_then(|ago| Instant::now().checked_sub(ago)) {
        age.reset(ended);
    }
    // Another replica goes on where there is none.
    let Some(after) = taken else {
        return Ok(Round::Done);
    };
    let first = pass.first(orders.clock.now());
    let (ids, next) = page(orders, pass, after.max(first)).await?;
    compare(orders, &ids).await?;
    let mut conn = orders.pool.acquire().await?;
    store::give_pass_back(&mut conn, pass.name(), next, first).await?;
    Ok(Round::Done)
}

/// The ids of a page, and where the next one begins.
async fn page(orders: &Orders, pass: Pass, after: Uuid) -> Result<(Vec<Uuid>, Option<Uuid>), Error> {
    match pass {
        Pass::RecentOrders | Pass::AllOrders => {
            let mut conn = orders.pool.acquire().await?;
            let ids = store::ids(&mut conn, after, pass.page().into()).await?;
            let next = ids.last().copied().filter(|_| ids.len() >= usize::from(pass.page()));
            Ok((ids, next))
        }
        Pass::RecentHolds | Pass::AllHolds => {
            let request = ListHoldsRequest { after_order_id: after.to_string(), limit: pass.page().into() };
            let listed = orders
                .stock
                .call(request, |channel, request| async move {
                    HoldAuditServiceClient::new(channel).list_holds(request).await
                })
                .await
                .map_err(|status| unavailable(&status))?;
            let next = listed.next_after_order_id.map(|id| order_id(&id)).transpose()?;
            let ids = listed.order_ids.iter().map(|id| order_id(id)).collect::<Result<_, _>>()?;
            Ok((ids, next))
        }
    }
}

/// Looks again at what did not fit, and exports how much of it still does not.
async fn recheck(orders: &Orders) -> Result<Round, Error> {
    let mut conn = orders.pool.acquire().await?;
    let suspects = store::suspects(&mut conn, GRACE, PAGE.into()).await?;
    drop(conn);
    compare(orders, &suspects).await?;
    let mut conn = orders.pool.acquire().await?;
    let confirmed: BTreeMap<Kind, i64> = store::confirmed(&mut conn).await?.into_iter().collect();
    for kind in Kind::ALL {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let count = confirmed.get(&kind).copied().unwrap_or_default() as f64;
        kind.gauge().set(count);
    }
    Ok(Round::Done)
}

/// Compares these orders, and notes what does not fit.
async fn compare(orders: &Orders, ids: &[Uuid]) -> Result<(), Error> {
    if ids.is_empty() {
        return Ok(());
    }
    let request = GetHoldsRequest { order_ids: ids.iter().map(Uuid::to_string).collect() };
    let held = orders
        .stock
        .call(request, |channel, request| async move {
            HoldAuditServiceClient::new(channel).get_holds(request).await
        })
        .await
        .map_err(|status| unavailable(&status))?;
    let holds: BTreeMap<Uuid, Hold> = held.holds.iter().map(parse_hold).collect::<Result<_, _>>()?;
    let mut conn = orders.pool.acquire().await?;
    let found = store::orders(&mut conn, ids).await?;
    let now = orders.clock.now();
    let mut mismatches = Vec::new();
    for id in ids {
        if let Some(mismatch) = judge(found.get(id), holds.get(id), now, orders.order_ttl) {
            mismatches.push((*id, mismatch));
        }
    }
    let confirmed = store::note(&mut conn, ids, &mismatches, GRACE).await?;
    for (id, Mismatch { kind, detail }) in mismatches.iter().filter(|(id, _)| confirmed.contains(id)) {
        tracing::error!(order.id = %id, kind = kind.word(), detail, "an order does not fit its hold or its payment");
    }
    Ok(())
}

/// Returns the mismatch of an order and its hold; `None` also where they may be on their way.
fn judge(
    order: Option<&Order>,
    hold: Option<&Hold>,
    now: OffsetDateTime,
    order_ttl: Duration,
) -> Option<Mismatch> {
    let mismatch = |kind, detail: String| Some(Mismatch { kind, detail });
    let state = hold.map_or(HoldState::Unspecified, |hold| hold.state);
    let keeps = matches!(state, HoldState::Held | HoldState::Committed);
    if let Some(hold) = hold
        && !hold.ledger_agrees
    {
        return mismatch(Kind::Stock, format!("the ledger has other movements than the hold, {state:?}"));
    }
    let Some(order) = order else {
        // A checkout that was given up leaves a hold, which runs out by itself.
        let may_run_out = hold.is_some_and(|hold| now < hold.created_at + order_ttl + HOLD_MARGIN);
        if !keeps || (state == HoldState::Held && may_run_out) {
            return None;
        }
        return mismatch(Kind::HeldWithoutOrder, format!("the goods are {state:?}"));
    };
    if order.is_settling {
        return None;
    }
    let paid = match order.status.as_str() {
        "pending" => false,
        "paid" | "shipped" | "completed" => true,
        "cancelled" => {
            if keeps {
                return mismatch(Kind::Stock, format!("the order is cancelled, the goods are {state:?}"));
            }
            false
        }
        // A status of a newer version.
        _ => return None,
    };
    let open = order.status == "pending" && now < order.expires_at;
    let wanted = if paid { state == HoldState::Committed } else { !open || state == HoldState::Held };
    if paid && !keeps {
        return mismatch(
            Kind::PaidWithoutHold,
            format!("the order is {}, the goods are {state:?}", order.status),
        );
    }
    if !wanted {
        return mismatch(Kind::Stock, format!("the order is {}, the goods are {state:?}", order.status));
    }
    if let Some(hold) = hold
        && keeps
        && hold.lines != order.lines
    {
        return mismatch(Kind::Stock, "other lines are held than were ordered".to_owned());
    }
    if i64::from(paid) != order.captured {
        let detail = format!("the order is {}, {} payments are captured", order.status, order.captured);
        return mismatch(Kind::Payment, detail);
    }
    None
}

fn parse_hold(answer: &OrderHold) -> Result<(Uuid, Hold), Error> {
    let created_at = answer.created_at.and_then(|at| OffsetDateTime::try_from(at).ok());
    let hold = Hold {
        state: answer.state(),
        lines: answer.lines.iter().map(|line| (line.product_id, line.quantity)).collect(),
        ledger_agrees: answer.ledger_agrees,
        created_at: created_at.ok_or(Error::Broken("the time of a hold"))?,
    };
    Ok((order_id(&answer.order_id)?, hold))
}

fn order_id(text: &str) -> Result<Uuid, Error> {
    text.parse().map_err(|_| Error::Broken("the order id of a hold"))
}

fn unavailable(status: &tonic::Status) -> Error {
    tracing::debug!(code = ?status.code(), "holds not known");
    Error::Unavailable
}

#[cfg(test)]
mod tests;
