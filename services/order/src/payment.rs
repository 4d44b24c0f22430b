//! Payment in three phases: open an attempt; charge it at the provider; complete it in one small transaction. The call
//! to the provider is outside any transaction, with the attempt's id as its idempotency key. [`recover_due`] completes
//! or voids the attempts that a crash leaves open, by their outcome at the provider.

use std::{convert::Infallible, time::Duration};

use futures_util::future::join_all;
use shoppee_kit::{caller::Caller, idempotency::fingerprint, telemetry::Trace};
use shoppee_proto::order::v1 as wire;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{
    OrderContext,
    error::Error,
    idempotency::{self, Claim, StoredResponse},
    order::{HOLD_MARGIN, Requester, Status, Transition, next_status},
    product_client::HoldError,
    provider::{Outcome, PaymentToken},
    refund,
    stock_tasks::{self, STOCK_LEASE},
    store::{
        idempotency::{IdempotencyKey, delete_unanswered, end_unanswered},
        order as store,
        payment::{self as attempts, Attempt, Backoff},
        stock_task::{self, StockOperation, StockTask},
    },
    timeout::with_timeout,
    transitions,
};

/// Bounds the first and the third phase. The gateway reports an unavailable dependency within 2.5 s.
const PHASE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bounds the time for which a caller waits for the second and third phase. The gateway waits 10 s for all phases.
const CHARGE_TIMEOUT: Duration = Duration::from_millis(7500);
/// Bounds the call to the provider, which continues after the response. A later outcome is left to recovery.
const PROVIDER_TIMEOUT: Duration = Duration::from_secs(20);
/// The lease of an open attempt and of its key: longer than the first phase. The process that works on the attempt
/// renews it. After a crash, recovery begins within this time.
const LEASE: Duration = Duration::from_secs(3);
const LEASE_RENEWAL_INTERVAL: Duration = Duration::from_secs(1);
/// Bounds the recovery of one attempt.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(10);
/// The backoff of recovery for errors other than outages. After an outage, recovery continues when the lease ends.
const RECOVERY_BACKOFF: Backoff = Backoff { first: Duration::from_secs(15), max: Duration::from_mins(2) };
/// The time to live that a hold gets before a charge, so that no paid goods are sold twice. Each recovery extends the
/// hold again. If an attempt fails, the hold is shortened.
const PAYMENT_HOLD_TTL: Duration = Duration::from_hours(24);

/// Pays an order of the caller. Returns the order, and whether the response is a replay under the same key.
pub async fn pay(
    context: &OrderContext,
    caller: &Caller,
    id: Uuid,
    token: PaymentToken,
    key: Option<String>,
) -> Result<(wire::Order, bool), Error> {
    let preparing = prepare(context.clone(), caller.clone(), id, token, key);
    let charge = match with_timeout(PHASE_TIMEOUT, preparing).await? {
        Prepared::Replayed(order) => return Ok((*order, true)),
        Prepared::Pending(charge) => charge,
    };
    let charging = tokio::spawn(Trace::current().instrument(run_charge(context.clone(), charge, token)));
    match tokio::time::timeout(CHARGE_TIMEOUT, charging).await {
        Ok(Ok(outcome)) => outcome.map(|order| (order, false)),
        Ok(Err(_panicked)) => Err(Error::Internal("a task of a payment panicked")),
        // The provider takes longer than a caller waits. A repeat under the same key gets the response.
        Err(_elapsed) => Err(Error::InProgress),
    }
}

/// Runs the second and the third phase.
async fn run_charge(
    context: OrderContext,
    charge: PendingCharge,
    token: PaymentToken,
) -> Result<wire::Order, Error> {
    let PendingCharge { attempt, total, currency } = charge;
    let _lease = keep_lease(&context, &attempt);
    let (provider, id) = (context.provider.clone(), attempt.id);
    let charging = async move { provider.charge(id, total, &currency, token).await };
    let outcome = with_timeout(PROVIDER_TIMEOUT, charging).await?;
    with_timeout(PHASE_TIMEOUT, async move { complete(&context, &attempt, outcome).await }).await
}

/// Renews the lease of an open attempt in the background, until the returned value is dropped.
fn keep_lease(context: &OrderContext, attempt: &Attempt) -> oneshot::Sender<Infallible> {
    let (context, attempt) = (context.clone(), attempt.clone());
    let (guard, mut ended) = oneshot::channel();
    tokio::spawn(async move {
        while tokio::time::timeout(LEASE_RENEWAL_INTERVAL, &mut ended).await.is_err() {
            let renewing = async {
                let mut conn = context.pool.acquire().await?;
                let leased_until = context.clock.now() + LEASE;
                attempts::renew_lease(&mut conn, &attempt, key_of(&attempt).as_ref(), leased_until).await
            };
            if let Err(error) = renewing.await {
                tracing::debug!(%error, order.id = %attempt.order_id, "lease of a payment not renewed");
            }
        }
    });
    guard
}

enum Prepared {
    /// The response of an earlier request under the same key.
    Replayed(Box<wire::Order>),
    Pending(PendingCharge),
}

/// An attempt to be charged.
struct PendingCharge {
    attempt: Attempt,
    total: i64,
    currency: String,
}

/// Runs the first phase: claims the key, opens the attempt, and extends the hold.
async fn prepare(
    context: OrderContext,
    caller: Caller,
    id: Uuid,
    token: PaymentToken,
    key: Option<String>,
) -> Result<Prepared, Error> {
    let mut conn = context.pool.acquire().await?;
    let (owner, requester) = transitions::find_owner(&mut conn, &caller, id).await?;
    drop(conn);
    if !requester.is_owner {
        return Err(Error::Forbidden);
    }
    let key = key.map(|key| payment_key(owner, id, key));
    let fingerprint = fingerprint(&format!("{token:?}"));
    let mut key_lease = None;
    if let Some(key) = &key {
        match idempotency::claim(&context, key, fingerprint.clone(), id, LEASE).await? {
            Claim::Acquired(lease) => key_lease = Some(lease),
            Claim::Completed(response) => return replay(response),
        }
    }
    let charge = open_attempt(&context, (owner, id), requester, key.as_ref()).await;
    if let (Some(lease), Err(error)) = (&key_lease, &charge)
        && !idempotency::release(&context, lease, error).await
        && let Some(response) = idempotency::find_response(&context, lease, &fingerprint).await
    {
        // Recovery, or the former holder of the key, has completed the payment in the meantime.
        return replay(response);
    }
    charge.map(Prepared::Pending)
}

/// Returns the stored response of an earlier request under the same key.
fn replay(response: StoredResponse) -> Result<Prepared, Error> {
    match response {
        StoredResponse::Order(order) => Ok(Prepared::Replayed(order)),
        StoredResponse::Declined(decline) => Err(Error::PaymentDeclined { decline, replayed: true }),
    }
}

fn payment_key(user_id: i64, order_id: Uuid, key: String) -> IdempotencyKey {
    IdempotencyKey { user_id, scope: format!("pay/{order_id}"), key }
}

/// Returns the key of the request that opened an attempt.
fn key_of(attempt: &Attempt) -> Option<IdempotencyKey> {
    attempt.key.clone().map(|key| payment_key(attempt.user_id, attempt.order_id, key))
}

#[tracing::instrument(
    name = "payment.open",
    skip_all,
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
async fn open_attempt(
    context: &OrderContext,
    (owner, id): (i64, Uuid),
    requester: Requester,
    key: Option<&IdempotencyKey>,
) -> Result<PendingCharge, Error> {
    let now = context.clock.now();
    let mut attempt = Attempt {
        user_id: owner,
        order_id: id,
        id: Uuid::now_v7(),
        key: key.map(|key| key.key.clone()),
        fence: 0,
        tries: 0,
    };
    let mut tx = context.pool.begin().await?;
    let row = store::get_for_update(&mut tx, owner, id).await?.ok_or(Error::NotFound)?;
    transitions::authorize_transition(Transition::Pay, &row, requester, now)?;
    attempt.fence =
        attempts::insert(&mut tx, &attempt, key, now, now + LEASE).await?.ok_or(Error::InProgress)?;
    tx.commit().await?;

    let Err(hold_error) = context.product.extend_hold(id, attempt.fence, PAYMENT_HOLD_TTL).await else {
        return Ok(PendingCharge { attempt, total: row.total, currency: row.currency });
    };
    let mut conn = context.pool.acquire().await?;
    attempts::set_state(&mut conn, &attempt, "charging", "abandoned").await?;
    shorten_hold(context, &attempt, row.expires_at - now);
    Err(match hold_error {
        HoldError::Expired => {
            // The order was probably cancelled in the meantime.
            let row = store::find(&mut conn, owner, id).await?.ok_or(Error::NotFound)?;
            transitions::authorize_transition(Transition::Pay, &row, requester, now)
                .err()
                .unwrap_or(Error::OrderExpired)
        }
        HoldError::Rejected(error) => error,
        HoldError::Mismatch | HoldError::Unavailable => Error::Unavailable,
    })
}

/// Runs the third phase: applies the provider's outcome to the order, once.
#[tracing::instrument(
    name = "payment.finish",
    skip_all,
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
async fn complete(context: &OrderContext, attempt: &Attempt, outcome: Outcome) -> Result<wire::Order, Error> {
    let now = context.clock.now();
    let (owner, id) = (attempt.user_id, attempt.order_id);
    let key = key_of(attempt);
    let mut tx = context.pool.begin().await?;
    let mut row = store::get_for_update(&mut tx, owner, id)
        .await?
        .ok_or(Error::Internal("a payment without an order"))?;
    let is_late = outcome == Outcome::Approved && row.status != Status::Pending;
    let refund_attempt = if is_late { refund::request_late(&mut tx, attempt, now).await? } else { None };
    let is_completed = if is_late {
        refund_attempt.is_some()
    } else {
        let state = match outcome {
            Outcome::Approved => "captured",
            Outcome::Declined(_) => "declined",
            Outcome::Voided => "abandoned",
        };
        attempts::set_state(&mut tx, attempt, "charging", state).await?
    };
    if !is_completed {
        // Another process has completed the attempt.
        return Err(Error::InProgress);
    }
    match outcome {
        Outcome::Approved if row.status == Status::Pending => {
            row.paid_at = Some(now);
            // The deadline may have passed during the charge: a paid order keeps its goods.
            let to = next_status(Transition::Pay, row.status, Requester::OWNER)
                .map_err(|_| transitions::invalid_transition(&row, Requester::OWNER))?;
            transitions::apply_transition(&mut tx, &mut row, to, now, None).await?;
            let task = StockTask { user_id: owner, order_id: id, operation: StockOperation::Commit };
            stock_task::insert(&mut tx, &task, now, now + STOCK_LEASE).await?;
            let order = transitions::order_message(&mut tx, &row).await?;
            if let Some(key) = &key {
                // The attempt is completed once. If its key was deleted in the meantime, no response is saved.
                let response = StoredResponse::Order(Box::new(order.clone()));
                idempotency::save_response(&mut tx, key, id, &response).await?;
            }
            tx.commit().await?;
            transitions::after_commit(context, &row);
            stock_tasks::spawn_and_wait(context, task).await;
            Ok(order)
        }
        Outcome::Approved => {
            // The order was cancelled during the charge: the payment is refunded.
            if let Some(key) = &key {
                delete_unanswered(&mut tx, key, id).await?;
            }
            tx.commit().await?;
            if let Some(attempt) = refund_attempt {
                refund::spawn(context, attempt);
            }
            Err(if row.expired {
                Error::OrderExpired
            } else {
                transitions::invalid_transition(&row, Requester::OWNER)
            })
        }
        Outcome::Declined(decline) => {
            if let Some(key) = &key {
                idempotency::save_response(&mut tx, key, id, &StoredResponse::Declined(decline)).await?;
            }
            tx.commit().await?;
            shorten_hold(context, attempt, row.expires_at - now);
            Err(Error::PaymentDeclined { decline, replayed: false })
        }
        Outcome::Voided => {
            if let Some(key) = &key {
                // A repeat of the request opens another attempt.
                end_unanswered(&mut tx, key, id, now).await?;
            }
            tx.commit().await?;
            shorten_hold(context, attempt, row.expires_at - now);
            Err(Error::Unavailable)
        }
    }
}

/// Shortens the hold of an unpaid order to the order's own deadline, in the background. If the call is lost, the end of
/// the order releases the hold. If the call is late, the higher fence of a later attempt rejects it.
fn shorten_hold(context: &OrderContext, attempt: &Attempt, remaining: time::Duration) {
    let (product, attempt) = (context.product.clone(), attempt.clone());
    let ttl = Duration::try_from(remaining).unwrap_or_default() + HOLD_MARGIN;
    tokio::spawn(async move {
        if let Err(hold_error) = product.shorten_hold(attempt.order_id, attempt.fence, ttl).await {
            tracing::debug!(?hold_error, order.id = %attempt.order_id, "hold not shortened");
        }
    });
}

/// Recovers the attempts whose lease has ended, as their process has died, and returns their number. Each is leased, and
/// its failure affects no other: the attempt is due again later.
pub async fn recover_due(context: &OrderContext, limit: i64) -> Result<usize, Error> {
    let now = context.clock.now();
    let mut conn = context.pool.acquire().await?;
    let due = attempts::lease_due(&mut conn, "charging", now, now + LEASE, limit).await?;
    drop(conn);
    join_all(due.iter().map(|attempt| recover(context, attempt))).await;
    Ok(due.len())
}

/// Completes one attempt by its outcome at the provider. A decline completes an attempt too.
async fn recover(context: &OrderContext, attempt: &Attempt) {
    let lease = keep_lease(context, attempt);
    let (product, provider) = (context.product.clone(), context.provider.clone());
    let Attempt { order_id, id, fence, .. } = *attempt;
    let recovering = async move {
        // The attempt may have been charged: the goods stay reserved until the outcome is known.
        if let Err(hold_error) = product.extend_hold(order_id, fence, PAYMENT_HOLD_TTL).await {
            tracing::debug!(?hold_error, order.id = %order_id, "hold not extended");
        }
        provider.void_or_get_outcome(id).await
    };
    let outcome = with_timeout(RECOVERY_TIMEOUT, recovering).await;
    let (is_known, completed) = match outcome {
        Ok(outcome) => (true, complete(context, attempt, outcome).await.map(|_| ())),
        Err(error) => (false, Err(error)),
    };
    drop(lease);
    match completed {
        Ok(()) => tracing::info!(order.id = %order_id, "payment recovered"),
        Err(error) if !is_known || matches!(error, Error::Database(_) | Error::Internal(_)) => {
            record_failure(context, attempt, &error).await;
        }
        Err(error) => tracing::info!(%error, order.id = %order_id, "payment recovered as not paid"),
    }
}

async fn record_failure(context: &OrderContext, attempt: &Attempt, error: &Error) {
    metrics::counter!("payment_recovery_failures_total").increment(1);
    let Attempt { order_id, tries, .. } = attempt;
    tracing::warn!(%error, order.id = %order_id, tries, "payment recovery failed, retried later");
    if error.is_outage() {
        return;
    }
    let postponing = async {
        let mut conn = context.pool.acquire().await?;
        attempts::postpone(&mut conn, attempt, context.clock.now(), RECOVERY_BACKOFF, true).await
    };
    if let Err(error) = postponing.await {
        tracing::debug!(%error, order.id = %order_id, "payment recovery not postponed");
    }
}
