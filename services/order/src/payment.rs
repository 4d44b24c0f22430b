//! Paying, in three phases: claim the attempt; ask the provider, outside any transaction, with the attempt's id as its
//! idempotency key; finish in one small transaction. What a crash leaves open is finished, or undone, by
//! [`recover`], which asks the provider what became of it.

use std::time::Duration;

use shoppee_kit::{
    caller::Caller, clock::Clock, idempotency::fingerprint, pg::PgPool, status::Violations, telemetry::Trace,
};
use shoppee_proto::order::v1 as wire;
use uuid::Uuid;

use crate::{
    Orders,
    error::Error,
    idempotency::{self, Answer, Turn},
    order::{Asker, Status, Step},
    steps,
    stock::NoHold,
    store::{
        idempotency::{KeyOf, forget_unanswered},
        order as store,
        payment::{self as attempts, Attempt},
        stock_task::{self, StockStep, StockTask},
    },
};

pub const DECLINED: &str = "the card was declined";
pub const INSUFFICIENT_FUNDS: &str = "there are not sufficient funds";

/// How long the slow sandbox token takes.
const SLOW: Duration = Duration::from_secs(3);
/// A dead dependency is told of within 2.5 s at the edge.
const PATIENCE: Duration = Duration::from_secs(2);
/// An attempt that is still open after this was left by a process that died: no caller waits that long.
pub const LEFT_OPEN: Duration = Duration::from_secs(30);
/// Before money moves, the hold is made to last longer than any outage, so that what is paid is never sold twice.
const HOLD_WHILE_PAYING: Duration = Duration::from_hours(7 * 24);

/// What a payment token stands for, in the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentToken {
    Ok,
    Slow,
    Declined,
    InsufficientFunds,
}

impl PaymentToken {
    pub fn parse(token: &str) -> Result<Self, Violations> {
        match token {
            "tok_ok" => Ok(Self::Ok),
            "tok_slow" => Ok(Self::Slow),
            "tok_declined" => Ok(Self::Declined),
            "tok_insufficient_funds" => Ok(Self::InsufficientFunds),
            _ => Err(("payment_token", "is not a payment token").into()),
        }
    }
}

/// What the provider says of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Approved,
    Declined(&'static str),
    /// It will never be charged.
    Voided,
}

/// Who takes the money. To add one, add a variant and its arms; each call carries the attempt's id and may be repeated.
#[derive(Clone, Debug)]
pub enum Provider {
    Sandbox(Sandbox),
}

/// Takes no money. Its books stand in tables of their own, as a real provider keeps its on its side, so that they
/// survive a crash of ours.
#[derive(Clone, Debug)]
pub struct Sandbox {
    pool: PgPool,
    clock: Clock,
}

impl Provider {
    pub fn sandbox(pool: PgPool, clock: Clock) -> Self {
        Self::Sandbox(Sandbox { pool, clock })
    }

    #[tracing::instrument(name = "payment.charge", skip_all)]
    async fn charge(
        &self,
        attempt: Uuid,
        amount: i64,
        currency: &str,
        token: PaymentToken,
    ) -> Result<Outcome, Error> {
        match self {
            Self::Sandbox(sandbox) => sandbox.charge(attempt, amount, currency, token).await,
        }
    }

    /// What became of an attempt; one that has not been charged never will be.
    async fn settle(&self, attempt: Uuid) -> Result<Outcome, Error> {
        match self {
            Self::Sandbox(sandbox) => sandbox.record(attempt, "voided", 0, "").await,
        }
    }

    async fn refund(&self, attempt: Uuid) -> Result<(), Error> {
        match self {
            Self::Sandbox(sandbox) => {
                let mut conn = sandbox.pool.acquire().await?;
                Ok(attempts::sandbox_refund(&mut conn, attempt).await?)
            }
        }
    }
}

impl Sandbox {
    async fn charge(
        &self,
        attempt: Uuid,
        amount: i64,
        currency: &str,
        token: PaymentToken,
    ) -> Result<Outcome, Error> {
        let outcome = match token {
            PaymentToken::Ok => "approved",
            PaymentToken::Slow => {
                tokio::time::sleep(SLOW).await;
                "approved"
            }
            PaymentToken::Declined => "declined",
            PaymentToken::InsufficientFunds => "insufficient_funds",
        };
        self.record(attempt, outcome, amount, currency).await
    }

    async fn record(
        &self,
        attempt: Uuid,
        outcome: &str,
        amount: i64,
        currency: &str,
    ) -> Result<Outcome, Error> {
        let mut conn = self.pool.acquire().await?;
        let now = self.clock.now();
        let outcome = attempts::sandbox_record(&mut conn, attempt, outcome, amount, currency, now).await?;
        match outcome.as_str() {
            "approved" => Ok(Outcome::Approved),
            "declined" => Ok(Outcome::Declined(DECLINED)),
            "insufficient_funds" => Ok(Outcome::Declined(INSUFFICIENT_FUNDS)),
            "voided" | "refunded" => Ok(Outcome::Voided),
            _ => Err(Error::Broken("the sandbox's books")),
        }
    }
}

/// Pays an order of the caller's; with whether the answer was given before.
pub async fn pay(
    orders: &Orders,
    caller: &Caller,
    id: Uuid,
    token: PaymentToken,
    key: Option<String>,
) -> Result<(wire::Order, bool), Error> {
    let Opened { attempt, total, currency } =
        match soon(prepare(orders.clone(), caller.clone(), id, token, key)).await? {
            Prepared::Answered(order) => return Ok((*order, true)),
            Prepared::Opened(opened) => opened,
        };
    let outcome = orders.provider.charge(attempt.id, total, &currency, token).await?;
    let finishing = {
        let orders = orders.clone();
        async move { finish(&orders, &attempt, outcome).await }
    };
    Ok((soon(finishing).await?, false))
}

/// Only the provider may take its time; what we do ourselves is done soon, or something is away. The work goes on
/// behind the answer, so that no transaction is cut in half.
async fn soon<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    match tokio::time::timeout(PATIENCE, tokio::spawn(Trace::current().of(work))).await {
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
            Turn::Done(Answer::Declined(why)) => return Err(Error::PaymentDeclined { why, replayed: true }),
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
    let attempt =
        Attempt { user_id: owner, order_id: id, id: Uuid::now_v7(), key: key.map(|of| of.key.clone()) };
    let mut tx = orders.pool.begin().await?;
    let row = store::lock(&mut tx, owner, id).await?.ok_or(Error::NotFound)?;
    steps::check(Step::Pay, &row, asker, now)?;
    if !attempts::open(&mut tx, &attempt, now).await? {
        return Err(Error::InProgress);
    }
    tx.commit().await?;

    let Err(no_hold) = orders.stock.prolong(id, HOLD_WHILE_PAYING).await else {
        return Ok(Opened { attempt, total: row.total, currency: row.currency });
    };
    let mut conn = orders.pool.acquire().await?;
    attempts::advance(&mut conn, &attempt, "charging", "abandoned").await?;
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
    let state = match outcome {
        Outcome::Approved if row.status == Status::Pending => "captured",
        Outcome::Approved => "refunding",
        Outcome::Declined(_) => "declined",
        Outcome::Voided => "abandoned",
    };
    if !attempts::advance(&mut tx, attempt, "charging", state).await? {
        // Another has finished it.
        return Err(Error::InProgress);
    }
    match outcome {
        Outcome::Approved if row.status == Status::Pending => {
            row.paid_at = Some(now);
            let owner_pays = Asker { owner: true, admin: false };
            // Its time may have run out while the provider took its own; whoever has paid gets the goods.
            let to = crate::order::step(Step::Pay, row.status, owner_pays)
                .map_err(|_| Error::InvalidTransition)?;
            steps::advance(&mut tx, &mut row, to, now, None).await?;
            let task = StockTask { user_id: owner, order_id: id, step: StockStep::Commit };
            stock_task::add(&mut tx, &task, now + crate::workers::STOCK_RETRY).await?;
            let shown = steps::view(&mut tx, &row).await?;
            if let Some(of) = &key {
                // The attempt is finished once; where its key was forgotten meanwhile there is nothing to keep it under.
                idempotency::keep(&mut tx, of, id, &Answer::Order(Box::new(shown.clone()))).await?;
            }
            tx.commit().await?;
            steps::told(orders, &row);
            steps::do_stock_task(orders, &task).await;
            Ok(shown)
        }
        Outcome::Approved => {
            // Cancelled while the provider was busy: the money goes back.
            if let Some(of) = &key {
                forget_unanswered(&mut tx, of, id).await?;
            }
            tx.commit().await?;
            refund(orders, attempt).await;
            Err(if row.expired { Error::OrderExpired } else { Error::InvalidTransition })
        }
        Outcome::Declined(why) => {
            if let Some(of) = &key {
                idempotency::keep(&mut tx, of, id, &Answer::Declined(why)).await?;
            }
            tx.commit().await?;
            Err(Error::PaymentDeclined { why, replayed: false })
        }
        Outcome::Voided => {
            tx.commit().await?;
            Err(Error::Unavailable)
        }
    }
}

/// Gives the money of an attempt back. It is noted down that this is to be done; [`recover`] does it where we cannot.
pub async fn refund(orders: &Orders, attempt: &Attempt) {
    let refunded = async {
        orders.provider.refund(attempt.id).await?;
        let mut conn = orders.pool.acquire().await?;
        attempts::advance(&mut conn, attempt, "refunding", "refunded").await?;
        Ok::<_, Error>(())
    };
    if let Err(error) = refunded.await {
        tracing::warn!(%error, order.id = %attempt.order_id, "refund to be tried again");
    }
}

/// Finishes what others left open; how many there were. A refusal is the end of an attempt too.
pub async fn recover(orders: &Orders, limit: i64) -> Result<usize, Error> {
    let since = orders.clock.now() - LEFT_OPEN;
    let mut conn = orders.pool.acquire().await?;
    let charging = attempts::left_open(&mut conn, "charging", since, limit).await?;
    let refunding = attempts::left_open(&mut conn, "refunding", since, limit).await?;
    drop(conn);
    for attempt in &charging {
        let outcome = orders.provider.settle(attempt.id).await?;
        match finish(orders, attempt, outcome).await {
            Ok(_) => tracing::info!(order.id = %attempt.order_id, "payment recovered"),
            Err(error) => tracing::info!(%error, order.id = %attempt.order_id, "payment settled"),
        }
    }
    for attempt in &refunding {
        refund(orders, attempt).await;
    }
    Ok(charging.len() + refunding.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sandbox_tokens_are_tokens() {
        assert_eq!(PaymentToken::parse("tok_ok"), Ok(PaymentToken::Ok));
        for odd in ["", "tok", "TOK_OK", "tok_ok ", "tok_visa"] {
            assert!(PaymentToken::parse(odd).is_err(), "{odd}");
        }
    }
}
