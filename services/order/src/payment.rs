//! Paying, in three phases: claim the attempt; ask the provider; finish in one small transaction. The call to the
//! provider is outside any transaction, with the attempt's id as its idempotency key. [`recover`] finishes, or undoes,
//! an attempt that a crash leaves open: it asks the provider for the outcome.

use std::time::Duration;

use futures_util::future::join_all;
use shoppee_kit::{caller::Caller, idempotency::fingerprint, telemetry::Trace};
use shoppee_proto::order::v1 as wire;
use uuid::Uuid;

use crate::{
    Orders,
    error::Error,
    idempotency::{self, Answer, Turn},
    order::{Asker, Status, Step},
    provider::{Outcome, PaymentToken},
    refund, steps,
    stock::NoHold,
    store::{
        idempotency::{KeyOf, forget_unanswered},
        order as store,
        payment::{self as attempts, Attempt, Backoff},
        stock_task::{self, StockStep, StockTask},
    },
};

/// The first phase, and the third, take less; a dead dependency is told of within 2.5 s at the edge.
const OWN_WORK_TIMEOUT: Duration = Duration::from_secs(2);
/// The time for which a caller waits for the other two; the edge waits 10 s for all of it.
const CHARGE_TIMEOUT: Duration = Duration::from_millis(7500);
/// The time that the provider may take behind the answer, before the attempt is left to recovery.
const PROVIDER_TIMEOUT: Duration = Duration::from_secs(20);
/// An attempt that is still open after this was left by a process that died: the two above are over by then.
pub const LEFT_OPEN: Duration = Duration::from_secs(30);
/// The time that one attempt to recover may take: less than its lease.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(10);
/// A customer cannot pay again while an attempt is open, so that its recovery is not put off for long.
const RECOVERY_BACKOFF: Backoff = Backoff { first: Duration::from_secs(15), max: Duration::from_mins(2) };
/// Before money moves, the hold is made to last this long, so that what is paid is never sold twice. Recovery prolongs it
/// at each try; where an attempt comes to nothing, the hold is cut back.
const HOLD_WHILE_PAYING: Duration = Duration::from_hours(24);

/// Pays an order of the caller's; with whether the answer was given before.
pub async fn pay(
    orders: &Orders,
    caller: &Caller,
    id: Uuid,
    token: PaymentToken,
    key: Option<String>,
) -> Result<(wire::Order, bool), Error> {
    let preparing = prepare(orders.clone(), caller.clone(), id, token, key);
    let opened = match within(OWN_WORK_TIMEOUT, preparing).await? {
        Prepared::Answered(order) => return Ok((*order, true)),
        Prepared::Opened(opened) => opened,
    };
    let charging = tokio::spawn(Trace::current().of(charge(orders.clone(), opened, token)));
    match tokio::time::timeout(CHARGE_TIMEOUT, charging).await {
        Ok(Ok(charged)) => charged.map(|order| (order, false)),
        Ok(Err(_panicked)) => Err(Error::Broken("a payment")),
        // The provider takes longer than a caller waits: the same request again gets its answer.
        Err(_elapsed) => Err(Error::InProgress),
    }
}

/// The second phase and the third.
async fn charge(orders: Orders, opened: Opened, token: PaymentToken) -> Result<wire::Order, Error> {
    let Opened { attempt, total, currency } = opened;
    let (provider, id) = (orders.provider.clone(), attempt.id);
    let charging = async move { provider.charge(id, total, &currency, token).await };
    let outcome = within(PROVIDER_TIMEOUT, charging).await?;
    within(OWN_WORK_TIMEOUT, async move { finish(&orders, &attempt, outcome).await }).await
}

/// Waits for `work` no longer than `limit`. The work goes on behind the answer: no query and no transaction is cut off
/// half-way.
pub async fn within<T: Send + 'static>(
    limit: Duration,
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    match tokio::time::timeout(limit, tokio::spawn(Trace::current().of(work))).await {
        Ok(Ok(done)) => done,
        Ok(Err(_panicked)) => Err(Error::Broken("a payment")),
        Err(_elapsed) => Err(Error::Unavailable),
    }
}

enum Prepared {
    /// Under the same key, before.
    Answered(Box<wire::Order>),
    Opened(Opened),
}

/// An attempt to be charged.
struct Opened {
    attempt: Attempt,
    total: i64,
    currency: String,
}

/// The first phase: the key is claimed, the attempt opened, and the hold made to last.
async fn prepare(
    orders: Orders,
    caller: Caller,
    id: Uuid,
    token: PaymentToken,
    key: Option<String>,
) -> Result<Prepared, Error> {
    let mut conn = orders.pool.acquire().await?;
    let (owner, asker) = steps::owner_of(&mut conn, &caller, id).await?;
    drop(conn);
    if !asker.owner {
        return Err(Error::Forbidden);
    }
    let key = key.map(|key| key_of(owner, id, key));
    let mut held = None;
    if let Some(of) = &key {
        let meaning = fingerprint(&format!("{token:?}"));
        match idempotency::claim(&orders, of, meaning, id, LEFT_OPEN).await? {
            Turn::Ours { lease, .. } => held = Some(lease),
            Turn::Done(Answer::Order(order)) => return Ok(Prepared::Answered(order)),
            Turn::Done(Answer::Declined(decline)) => {
                return Err(Error::PaymentDeclined { decline, replayed: true });
            }
        }
    }
    let opened = open(&orders, (owner, id), asker, key.as_ref()).await;
    if let (Some(lease), Err(error)) = (&held, &opened) {
        idempotency::give_up(&orders, lease, error).await;
    }
    opened.map(Prepared::Opened)
}

fn key_of(user_id: i64, order_id: Uuid, key: String) -> KeyOf {
    KeyOf { user_id, scope: format!("pay/{order_id}"), key }
}

#[tracing::instrument(
    name = "payment.open",
    skip_all,
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
async fn open(
    orders: &Orders,
    (owner, id): (i64, Uuid),
    asker: Asker,
    key: Option<&KeyOf>,
) -> Result<Opened, Error> {
    let now = orders.clock.now();
    let mut attempt = Attempt {
        user_id: owner,
        order_id: id,
        id: Uuid::now_v7(),
        key: key.map(|of| of.key.clone()),
        fence: 0,
        tries: 0,
    };
    let mut tx = orders.pool.begin().await?;
    let row = store::lock(&mut tx, owner, id).await?.ok_or(Error::NotFound)?;
    steps::check(Step::Pay, &row, asker, now)?;
    attempt.fence =
        attempts::open(&mut tx, &attempt, now, now + LEFT_OPEN).await?.ok_or(Error::InProgress)?;
    tx.commit().await?;

    let Err(no_hold) = orders.stock.prolong(id, attempt.fence, HOLD_WHILE_PAYING).await else {
        return Ok(Opened { attempt, total: row.total, currency: row.currency });
    };
    let mut conn = orders.pool.acquire().await?;
    attempts::advance(&mut conn, &attempt, "charging", "abandoned").await?;
    cut_back(orders, &attempt, row.expires_at - now);
    Err(match no_hold {
        NoHold::Gone => {
            // Most likely somebody has just cancelled the order.
            let row = store::find(&mut conn, owner, id).await?.ok_or(Error::NotFound)?;
            steps::check(Step::Pay, &row, asker, now).err().unwrap_or(Error::OrderExpired)
        }
        NoHold::Refused(error) => error,
        NoHold::Differs | NoHold::Unavailable => Error::Unavailable,
    })
}

/// The third phase: what the provider said becomes the order's state, once.
#[tracing::instrument(
    name = "payment.finish",
    skip_all,
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
async fn finish(orders: &Orders, attempt: &Attempt, outcome: Outcome) -> Result<wire::Order, Error> {
    let now = orders.clock.now();
    let (owner, id) = (attempt.user_id, attempt.order_id);
    let key = attempt.key.clone().map(|key| key_of(owner, id, key));
    let mut tx = orders.pool.begin().await?;
    let mut row =
        store::lock(&mut tx, owner, id).await?.ok_or(Error::Broken("a payment without an order"))?;
    let late = outcome == Outcome::Approved && row.status != Status::Pending;
    let to_refund = if late { refund::request_late(&mut tx, attempt, now).await? } else { None };
    let finished = if late {
        to_refund.is_some()
    } else {
        let state = match outcome {
            Outcome::Approved => "captured",
            Outcome::Declined(_) => "declined",
            Outcome::Voided => "abandoned",
        };
        attempts::advance(&mut tx, attempt, "charging", state).await?
    };
    if !finished {
        // Another has finished it.
        return Err(Error::InProgress);
    }
    match outcome {
        Outcome::Approved if row.status == Status::Pending => {
            row.paid_at = Some(now);
            let owner_pays = Asker { owner: true, admin: false };
            // Its time may have run out while the provider took its own; whoever has paid gets the goods.
            let to = crate::order::step(Step::Pay, row.status, owner_pays)
                .map_err(|_| steps::invalid_transition(&row, owner_pays))?;
            steps::advance(&mut tx, &mut row, to, now, None).await?;
            let task = StockTask { user_id: owner, order_id: id, step: StockStep::Commit };
            stock_task::add(&mut tx, &task, now, now + steps::STOCK_LEASE).await?;
            let shown = steps::view(&mut tx, &row).await?;
            if let Some(of) = &key {
                // The attempt is finished once; where its key was forgotten meanwhile there is nothing to keep it under.
                idempotency::keep(&mut tx, of, id, &Answer::Order(Box::new(shown.clone()))).await?;
            }
            tx.commit().await?;
            steps::told(orders, &row);
            steps::settle_soon(orders, task).await;
            Ok(shown)
        }
        Outcome::Approved => {
            // Cancelled while the provider was busy: the money goes back.
            if let Some(of) = &key {
                forget_unanswered(&mut tx, of, id).await?;
            }
            tx.commit().await?;
            if let Some(attempt) = to_refund {
                refund::spawn(orders, attempt);
            }
            Err(if row.expired {
                Error::OrderExpired
            } else {
                steps::invalid_transition(&row, Asker { owner: true, admin: false })
            })
        }
        Outcome::Declined(decline) => {
            if let Some(of) = &key {
                idempotency::keep(&mut tx, of, id, &Answer::Declined(decline)).await?;
            }
            tx.commit().await?;
            cut_back(orders, attempt, row.expires_at - now);
            Err(Error::PaymentDeclined { decline, replayed: false })
        }
        Outcome::Voided => {
            tx.commit().await?;
            cut_back(orders, attempt, row.expires_at - now);
            Err(Error::Unavailable)
        }
    }
}

/// Lets the hold of an order that was not paid run out soon after the order does, behind the answer. Where this gets
/// lost, the end of the order releases the hold; where it comes late, a later attempt has a higher number.
fn cut_back(orders: &Orders, attempt: &Attempt, remaining: time::Duration) {
    let (stock, attempt) = (orders.stock.clone(), attempt.clone());
    let ttl = Duration::try_from(remaining).unwrap_or_default() + crate::checkout::HOLD_MARGIN;
    tokio::spawn(async move {
        if let Err(no_hold) = stock.cut_back(attempt.order_id, attempt.fence, ttl).await {
            tracing::debug!(?no_hold, order.id = %attempt.order_id, "hold not cut back");
        }
    });
}

/// Finishes attempts that were left open; how many there were. Each is leased, and a failure of one is its own: it is
/// due again later.
pub async fn recover(orders: &Orders, limit: i64) -> Result<usize, Error> {
    let mut conn = orders.pool.acquire().await?;
    let due = attempts::lease_due(&mut conn, "charging", orders.clock.now(), RECOVERY_BACKOFF, limit).await?;
    drop(conn);
    join_all(due.iter().map(|attempt| settle(orders, attempt))).await;
    Ok(due.len())
}

/// Finishes one attempt by what the provider says of it. A refusal is the end of an attempt too.
async fn settle(orders: &Orders, attempt: &Attempt) {
    let (stock, provider) = (orders.stock.clone(), orders.provider.clone());
    let Attempt { order_id, id, fence, .. } = *attempt;
    let settling = async move {
        // Money may have been taken: the goods stay the order's until that is known.
        if let Err(no_hold) = stock.prolong(order_id, fence, HOLD_WHILE_PAYING).await {
            tracing::debug!(?no_hold, order.id = %order_id, "hold not prolonged");
        }
        provider.settle(id).await
    };
    let outcome = match within(RECOVERY_TIMEOUT, settling).await {
        Ok(outcome) => outcome,
        Err(error) => return postponed(attempt, &error),
    };
    match finish(orders, attempt, outcome).await {
        Ok(_) => tracing::info!(order.id = %attempt.order_id, "payment recovered"),
        Err(error @ (Error::Database(_) | Error::Broken(_))) => postponed(attempt, &error),
        Err(error) => tracing::info!(%error, order.id = %attempt.order_id, "payment settled"),
    }
}

fn postponed(attempt: &Attempt, error: &Error) {
    metrics::counter!("payment_recovery_failures_total").increment(1);
    let Attempt { order_id, tries, .. } = attempt;
    tracing::warn!(%error, order.id = %order_id, tries, "payment not recovered; it is tried again later");
}
