//! Steps of an order that need nothing from outside to be taken: ship, complete, cancel, run out; and what every step
//! has in common: the row changes, the event gets the user's next number, both reach the outbox, in one transaction.

use shoppee_kit::{caller::Caller, telemetry};
use shoppee_proto::{order::v1 as wire, product::v1::ReleaseReason};
use sqlx::{Connection as _, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    Orders,
    error::Error,
    order::{self, Actor, Asker, Refused, Shipment, Status, Step},
    outbox,
    store::{
        event::{self, EventRow},
        order::{self as store, OrderRow},
        payment,
        stock_task::{self, StockStep, StockTask},
    },
    view,
};

/// What an order that ran out says of itself.
const EXPIRED: &str = "expired";

/// What is written of an order's step.
#[derive(Clone, Copy, Debug)]
pub struct Taken<'a> {
    pub previous: Option<Status>,
    pub actor: Actor,
    pub reason: Option<&'a str>,
}

/// Tells of a step: an event with the number `seq`, and its way to Redis.
pub async fn tell(
    conn: &mut PgConnection,
    order: &OrderRow,
    seq: i64,
    taken: Taken<'_>,
) -> Result<(), Error> {
    let event = EventRow {
        user_id: order.user_id,
        seq,
        order_id: order.id,
        status: order.status.word().to_owned(),
        previous_status: taken.previous.map(|previous| previous.word().to_owned()),
        total: order.total,
        currency: order.currency.clone(),
        version: order.version,
        actor: taken.actor.word().to_owned(),
        reason: taken.reason.map(str::to_owned),
        at: order.updated_at,
        traceparent: telemetry::traceparent(),
    };
    Ok(event::insert(conn, &event, &outbox::message(&event)).await?)
}

/// After the commit: the relay goes to work at once, and the step is counted, with the money it is about.
pub fn told(orders: &Orders, order: &OrderRow) {
    orders.relay.wake(order.user_id);
    let refunded = order.status == Status::Cancelled && order.refunded_at.is_some();
    // A total is never negative.
    let total = u64::try_from(order.total).unwrap_or_default();
    count(order.status, &order.currency, 1, total, if refunded { total } else { 0 });
}

/// What never happened is 0 for those who watch, not absent.
pub fn count_from_zero(currency: &str) {
    for status in Status::ALL {
        count(status, currency, 0, 0, 0);
    }
}

/// Orders that reached `status`, what they come to in minor units, and how much of that was paid and goes back.
fn count(status: Status, currency: &str, orders: u64, amount: u64, refunded: u64) {
    let (status, currency) = (status.word(), currency.to_owned());
    metrics::counter!("orders_total", "status" => status).increment(orders);
    metrics::counter!("orders_amount_total", "status" => status, "currency" => currency.clone())
        .increment(amount);
    metrics::counter!("orders_refunded_amount_total", "currency" => currency).increment(refunded);
}

/// Moves a locked order on and writes it.
pub async fn advance(
    conn: &mut PgConnection,
    order: &mut OrderRow,
    to: (Status, Actor),
    now: OffsetDateTime,
    reason: Option<&str>,
) -> Result<(), Error> {
    let previous = order.status;
    order.status = to.0;
    order.version += 1;
    order.updated_at = now;
    store::update(conn, order).await?;
    let seq = event::next_seq(conn, order.user_id).await?;
    tell(conn, order, seq, Taken { previous: Some(previous), actor: to.1, reason }).await
}

/// Where a step leads, with the reasons why it may not be taken in the caller's words.
pub fn check(
    step: Step,
    row: &OrderRow,
    asker: Asker,
    now: OffsetDateTime,
) -> Result<(Status, Actor), Error> {
    let to = order::step(step, row.status, asker).map_err(|refused| match refused {
        Refused::Forbidden => Error::Forbidden,
        Refused::Illegal if row.expired => Error::OrderExpired,
        Refused::Illegal => Error::InvalidTransition,
    })?;
    let ran_out = row.status == Status::Pending && row.expires_at <= now;
    if ran_out && step != Step::Expire { Err(Error::OrderExpired) } else { Ok(to) }
}

/// Whose order it is and how the caller stands to it. Another's order does not exist, but to an admin.
pub async fn owner_of(conn: &mut PgConnection, caller: &Caller, id: Uuid) -> Result<(i64, Asker), Error> {
    let me = caller.user_id();
    if !caller.is_admin() {
        let mine = store::find(conn, me, id).await?;
        return mine.map(|_| (me, Asker { owner: true, admin: false })).ok_or(Error::NotFound);
    }
    let owner = store::owner(conn, id).await?.ok_or(Error::NotFound)?;
    Ok((owner, Asker { owner: owner == me, admin: true }))
}

/// An order for whoever may see it.
pub async fn get(orders: &Orders, caller: &Caller, id: Uuid) -> Result<wire::Order, Error> {
    let mut conn = orders.pool.acquire().await?;
    let (owner, _) = owner_of(&mut conn, caller, id).await?;
    let row = store::find(&mut conn, owner, id).await?.ok_or(Error::NotFound)?;
    view(&mut conn, &row).await
}

/// The order as callers see it.
pub async fn view(conn: &mut PgConnection, row: &OrderRow) -> Result<wire::Order, Error> {
    let lines = store::lines(conn, &[(row.user_id, row.id)]).await?;
    view::order(row, &lines)
}

/// Hands an order over to a carrier; for admins.
pub async fn ship(
    orders: &Orders,
    caller: &Caller,
    id: Uuid,
    shipment: Shipment,
) -> Result<wire::Order, Error> {
    step(orders, caller, id, Step::Ship, None, |row, now| row.shipment = Some((shipment, now))).await
}

/// It has arrived.
pub async fn complete(orders: &Orders, caller: &Caller, id: Uuid) -> Result<wire::Order, Error> {
    step(orders, caller, id, Step::Complete, None, |_, _| ()).await
}

#[tracing::instrument(
    name = "order.step",
    skip_all,
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
async fn step(
    orders: &Orders,
    caller: &Caller,
    id: Uuid,
    step: Step,
    reason: Option<&str>,
    change: impl FnOnce(&mut OrderRow, OffsetDateTime),
) -> Result<wire::Order, Error> {
    let now = orders.clock.now();
    let mut conn = orders.pool.acquire().await?;
    let (owner, asker) = owner_of(&mut conn, caller, id).await?;
    let mut tx = conn.begin().await?;
    let mut row = store::lock(&mut tx, owner, id).await?.ok_or(Error::NotFound)?;
    let to = check(step, &row, asker, now)?;
    change(&mut row, now);
    advance(&mut tx, &mut row, to, now, reason).await?;
    let shown = view(&mut tx, &row).await?;
    tx.commit().await?;
    told(orders, &row);
    Ok(shown)
}

/// Cancels an order: its goods go back, and what was paid for it.
pub async fn cancel(
    orders: &Orders,
    caller: &Caller,
    id: Uuid,
    reason: Option<String>,
) -> Result<wire::Order, Error> {
    let mut conn = orders.pool.acquire().await?;
    let (owner, asker) = owner_of(&mut conn, caller, id).await?;
    drop(conn);
    end(orders, (owner, id), Step::Cancel, asker, reason).await
}

/// Ends an order whose time to pay has run out.
pub async fn expire(orders: &Orders, order: (i64, Uuid)) -> Result<wire::Order, Error> {
    end(orders, order, Step::Expire, Asker::SYSTEM, Some(EXPIRED.to_owned())).await
}

#[tracing::instrument(
    name = "order.end",
    skip_all,
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
async fn end(
    orders: &Orders,
    (owner, id): (i64, Uuid),
    step: Step,
    asker: Asker,
    reason: Option<String>,
) -> Result<wire::Order, Error> {
    let now = orders.clock.now();
    let mut tx = orders.pool.begin().await?;
    let mut row = store::lock(&mut tx, owner, id).await?.ok_or(Error::NotFound)?;
    let to = check(step, &row, asker, now)?;
    let refund = if row.status == Status::Paid {
        row.refunded_at = Some(now);
        payment::begin_refund(&mut tx, owner, id).await?
    } else {
        None
    };
    row.cancel_reason.clone_from(&reason);
    row.expired = step == Step::Expire;
    advance(&mut tx, &mut row, to, now, reason.as_deref()).await?;
    let task = StockTask { user_id: owner, order_id: id, step: StockStep::Release };
    stock_task::add(&mut tx, &task, now + crate::workers::STOCK_RETRY).await?;
    let shown = view(&mut tx, &row).await?;
    tx.commit().await?;
    told(orders, &row);

    // Both are noted down; where they fail now, workers do them later.
    do_stock_task(orders, &task).await;
    if let Some(attempt) = refund {
        crate::payment::refund(orders, &attempt).await;
    }
    Ok(shown)
}

/// Tells product about an order's stock, and crosses the task off.
pub async fn do_stock_task(orders: &Orders, task: &StockTask) {
    let outcome = match task.step {
        StockStep::Commit => orders.stock.commit(task.order_id).await,
        StockStep::Release => orders.stock.release(task.order_id, ReleaseReason::OrderCancelled).await,
    };
    match outcome {
        Ok(()) => {}
        // The hold is gone: nothing to commit. For a paid order that cannot be, as paying prolongs the hold by more
        // than any outage; for one that was cancelled meanwhile it is as it should be.
        Err(status)
            if status.code() == tonic::Code::FailedPrecondition || status.code() == tonic::Code::NotFound =>
        {
            tracing::warn!(order.id = %task.order_id, step = task.step.word(), "no hold to settle");
        }
        Err(status) => {
            tracing::info!(code = ?status.code(), order.id = %task.order_id, "stock to be settled later");
            return;
        }
    }
    let crossed_off = async {
        let mut conn = orders.pool.acquire().await?;
        stock_task::done(&mut conn, task).await
    };
    if let Err(error) = crossed_off.await {
        // It is done again, which changes nothing.
        tracing::debug!(%error, "stock task not crossed off");
    }
}
