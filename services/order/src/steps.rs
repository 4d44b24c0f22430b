//! Steps of an order that need nothing from outside to be taken: ship, complete, cancel, run out; and what every step
//! has in common: the row changes, the event gets the user's next number, both reach the outbox, in one transaction.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::join_all, stream};
use shoppee_kit::{
    caller::Caller,
    telemetry::{self, Trace},
};
use shoppee_proto::{order::v1 as wire, product::v1::ReleaseReason};
use sqlx::{Connection as _, PgConnection};
use time::OffsetDateTime;
use tonic::Code;
use uuid::Uuid;

use crate::{
    Orders,
    error::Error,
    order::{self, Actor, Asker, Refused, Shipment, Status, Step},
    outbox, refund,
    request::IdempotentRequest,
    store::{
        event::{self, EventRow},
        order::{self as store, OrderRow},
        payment::{self as attempts, Attempt, Backoff},
        stock_task::{self, StockStep, StockTask},
    },
    view,
};

/// What an order that ran out says of itself.
const EXPIRED: &str = "expired";
/// The time for which a stock task is left to the process that took it: two calls to product end within this.
pub const STOCK_LEASE: Duration = Duration::from_secs(5);
/// The same for the tasks of a batch of orders that ran out.
const EXPIRY_LEASE: Duration = Duration::from_secs(15);
/// The time for which an answer waits for its stock task.
const STOCK_WAIT: Duration = Duration::from_millis(500);
/// Calls to product at a time, of one batch.
const MAX_STOCK_CALLS: usize = 16;
/// Batches of orders that ran out whose stock is being released at a time; the next one waits.
pub const MAX_EXPIRIES: usize = 2;
/// The backoff for a task that product refuses for a reason that passes, if at all, by manual work.
const STOCK_BACKOFF: Backoff = Backoff { first: Duration::from_secs(5), max: Duration::from_mins(10) };

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
    // A total is never negative.
    count(order.status, &order.currency, 1, u64::try_from(order.total).unwrap_or_default());
}

/// What never happened is 0 for those who watch, not absent.
pub fn count_from_zero(currency: &str) {
    for status in Status::ALL {
        count(status, currency, 0, 0);
    }
    count_refund(currency, 0);
}

/// Orders that reached `status`, and what they come to in minor units.
fn count(status: Status, currency: &str, orders: u64, amount: u64) {
    let (status, currency) = (status.word(), currency.to_owned());
    metrics::counter!("order_transitions_total", "status" => status).increment(orders);
    metrics::counter!("orders_amount_total", "status" => status, "currency" => currency).increment(amount);
}

/// Counts the money that was paid and has gone back, in minor units.
pub fn count_refund(currency: &str, amount: i64) {
    let amount = u64::try_from(amount).unwrap_or_default();
    metrics::counter!("orders_refunded_amount_total", "currency" => currency.to_owned()).increment(amount);
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
        Refused::Illegal => invalid_transition(row, asker),
    })?;
    let ran_out = row.status == Status::Pending && row.expires_at <= now;
    if ran_out && step != Step::Expire { Err(Error::OrderExpired) } else { Ok(to) }
}

/// The refusal of a step, with what the caller can do instead.
pub fn invalid_transition(row: &OrderRow, asker: Asker) -> Error {
    Error::InvalidTransition { current: row.status, allowed: order::allowed(row.status, asker) }
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

/// A step as a caller asks for it.
#[derive(Debug)]
pub struct StepRequest {
    pub order_id: Uuid,
    pub key: Option<String>,
    pub content: StepContent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepContent {
    /// An order's goods go back, and what was paid for it.
    Cancel { reason: Option<String> },
    /// Its goods are handed over to a carrier; for admins.
    Ship(Shipment),
    /// It has arrived.
    Complete,
}

impl StepContent {
    const fn step(&self) -> Step {
        match self {
            Self::Cancel { .. } => Step::Cancel,
            Self::Ship(_) => Step::Ship,
            Self::Complete => Step::Complete,
        }
    }

    /// Reports whether the order has taken this step already, with the same content: a repeat then changes nothing.
    fn is_taken_by(&self, row: &OrderRow) -> bool {
        match self {
            Self::Cancel { reason } => {
                row.status == Status::Cancelled && !row.expired && row.cancel_reason == *reason
            }
            Self::Ship(shipment) => {
                matches!(row.status, Status::Shipped | Status::Completed)
                    && row.shipment.as_ref().is_some_and(|(shipped, _)| shipped == shipment)
            }
            Self::Complete => row.status == Status::Completed,
        }
    }

    fn reason(&self) -> Option<&str> {
        match self {
            Self::Cancel { reason } => reason.as_deref(),
            Self::Ship(_) | Self::Complete => None,
        }
    }

    fn request(&self, user_id: i64, order_id: Uuid, key: Option<String>) -> IdempotentRequest {
        match self {
            Self::Cancel { reason } => {
                IdempotentRequest::new(user_id, format!("cancel/{order_id}"), key, reason)
            }
            Self::Ship(Shipment { carrier, tracking_number }) => {
                let meaning = (carrier, tracking_number);
                IdempotentRequest::new(user_id, format!("ship/{order_id}"), key, &meaning)
            }
            Self::Complete => IdempotentRequest::new(user_id, format!("complete/{order_id}"), key, &()),
        }
    }
}

/// The work that a step leaves behind the answer. All of it is noted down: workers do later what fails.
#[derive(Default)]
struct Aftermath {
    refund: Option<Attempt>,
    task: Option<StockTask>,
}

/// Takes a step; with whether the answer was given before, under the same key.
#[tracing::instrument(
    name = "order.step",
    skip_all,
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn take(
    orders: &Orders,
    caller: &Caller,
    request: StepRequest,
) -> Result<(wire::Order, bool), Error> {
    let StepRequest { order_id: id, key, content } = request;
    let now = orders.clock.now();
    let keyed = content.request(caller.user_id(), id, key);
    let mut conn = orders.pool.acquire().await?;
    let (owner, asker) = owner_of(&mut conn, caller, id).await?;
    let mut tx = conn.begin().await?;
    if let Some(answer) = keyed.claim(&mut tx, now).await? {
        return Ok((answer, true));
    }
    let mut row = store::lock(&mut tx, owner, id).await?.ok_or(Error::NotFound)?;
    if content.is_taken_by(&row) {
        let shown = view(&mut tx, &row).await?;
        keyed.answer(&mut tx, &shown).await?;
        tx.commit().await?;
        return Ok((shown, false));
    }
    let to = check(content.step(), &row, asker, now)?;
    let aftermath = change(&mut tx, &mut row, &content, now).await?;
    advance(&mut tx, &mut row, to, now, content.reason()).await?;
    let shown = view(&mut tx, &row).await?;
    keyed.answer(&mut tx, &shown).await?;
    tx.commit().await?;
    drop(conn);
    told(orders, &row);
    // The provider is not waited for.
    if let Some(attempt) = aftermath.refund {
        refund::spawn(orders, attempt);
    }
    if let Some(task) = aftermath.task {
        settle_soon(orders, task).await;
    }
    Ok((shown, false))
}

/// Changes what a step changes beside the status.
async fn change(
    tx: &mut PgConnection,
    row: &mut OrderRow,
    content: &StepContent,
    now: OffsetDateTime,
) -> Result<Aftermath, Error> {
    let mut aftermath = Aftermath::default();
    match content {
        StepContent::Cancel { reason } => {
            let key = (row.user_id, row.id);
            if row.status == Status::Paid {
                let requested = refund::request(tx, key, now).await?;
                aftermath.refund = Some(requested.ok_or(Error::Broken("a paid order without a payment"))?);
            }
            row.cancel_reason.clone_from(reason);
            let task = StockTask { user_id: row.user_id, order_id: row.id, step: StockStep::Release };
            stock_task::add(tx, &task, now, now + STOCK_LEASE).await?;
            aftermath.task = Some(task);
        }
        StepContent::Ship(shipment) => row.shipment = Some((shipment.clone(), now)),
        StepContent::Complete => {}
    }
    Ok(aftermath)
}

/// Cancels orders whose time to pay has run out, many in one transaction; how many.
#[tracing::instrument(
    name = "order.expire",
    skip_all,
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn expire(orders: &Orders, limit: i64) -> Result<usize, Error> {
    let now = orders.clock.now();
    let mut tx = orders.pool.begin().await?;
    let mut rows = store::lock_overdue(&mut tx, now, limit).await?;
    let keys: Vec<_> = rows.iter().map(|row| (row.user_id, row.id)).collect();
    // A payment that began between that statement's snapshot and its lock.
    let charging = attempts::charging(&mut tx, &keys).await?;
    rows.retain(|row| !charging.contains(&row.id));
    // Transactions that take several users' cursors take them in one order.
    rows.sort_by_key(|row| (row.user_id, row.id));
    let mut tasks = Vec::with_capacity(rows.len());
    for row in &mut rows {
        let to = check(Step::Expire, row, Asker::SYSTEM, now)?;
        row.cancel_reason = Some(EXPIRED.to_owned());
        row.expired = true;
        advance(&mut tx, row, to, now, Some(EXPIRED)).await?;
        let task = StockTask { user_id: row.user_id, order_id: row.id, step: StockStep::Release };
        stock_task::add(&mut tx, &task, now, now + EXPIRY_LEASE).await?;
        tasks.push(task);
    }
    tx.commit().await?;
    for row in &rows {
        told(orders, row);
    }
    // The next batch is cancelled meanwhile.
    let permit = Arc::clone(&orders.expiries).acquire_owned().await;
    let settling = orders.clone();
    tokio::spawn(async move {
        let _permit = permit;
        let settle = |task: StockTask| {
            let orders = settling.clone();
            async move { do_stock_task(&orders, &task).await }
        };
        stream::iter(tasks).for_each_concurrent(MAX_STOCK_CALLS, settle).await;
    });
    Ok(rows.len())
}

/// Does a stock task at once, behind the answer, which waits for it as long as product usually takes.
pub async fn settle_soon(orders: &Orders, task: StockTask) {
    let orders = orders.clone();
    let settling = tokio::spawn(Trace::current().of(async move { do_stock_task(&orders, &task).await }));
    // It goes on where it takes longer.
    let _ = tokio::time::timeout(STOCK_WAIT, settling).await;
}

/// Does stock tasks that are due; how many there were. Each is leased, and a failure of one is its own.
pub async fn settle_stock(orders: &Orders, limit: i64) -> Result<usize, Error> {
    let now = orders.clock.now();
    let mut conn = orders.pool.acquire().await?;
    let due = stock_task::take_due(&mut conn, now, now + STOCK_LEASE, limit).await?;
    drop(conn);
    join_all(due.iter().map(|task| do_stock_task(orders, task))).await;
    Ok(due.len())
}

/// Tells product about an order's stock, and crosses the task off.
async fn do_stock_task(orders: &Orders, task: &StockTask) {
    let outcome = match task.step {
        StockStep::Commit => orders.stock.commit(task.order_id).await,
        StockStep::Release => orders.stock.release(task.order_id, ReleaseReason::OrderCancelled).await,
    };
    let written = async {
        let mut conn = orders.pool.acquire().await?;
        match outcome {
            Ok(()) => stock_task::done(&mut conn, task).await,
            // The hold is gone: nothing to commit. For a paid order that cannot be, as paying prolongs the hold by more
            // than any outage. For one that was cancelled meanwhile it is as it should be.
            Err(status) if status.code() == Code::FailedPrecondition || status.code() == Code::NotFound => {
                metrics::counter!("stock_tasks_without_hold_total", "step" => task.step.word()).increment(1);
                tracing::warn!(order.id = %task.order_id, step = task.step.word(), "no hold to settle");
                stock_task::done(&mut conn, task).await
            }
            // Product is away: due again when the lease ends.
            Err(status) if status.code() == Code::Unavailable || status.code() == Code::DeadlineExceeded => {
                tracing::debug!(order.id = %task.order_id, "stock to be settled later");
                Ok(())
            }
            Err(status) => {
                tracing::warn!(code = ?status.code(), order.id = %task.order_id, "stock not settled");
                stock_task::postpone(&mut conn, task, orders.clock.now(), STOCK_BACKOFF).await
            }
        }
    };
    if let Err(error) = written.await {
        // It is done again, which changes nothing.
        tracing::debug!(%error, "stock task not crossed off");
    }
}
