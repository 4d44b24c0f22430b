//! Transitions of an order. Each is one transaction: it updates the order's row, and records an event with the user's
//! next number in the outbox. The transitions that need no payment provider stand here: ship, complete and cancel.

use shoppee_kit::{caller::Caller, telemetry};
use shoppee_proto::order::v1 as wire;
use sqlx::{Connection as _, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    OrderContext, audit_log, convert,
    error::Error,
    idempotent_request::IdempotentRequest,
    order::{self, Actor, Requester, Shipment, Status, Transition, TransitionError},
    order_metrics, outbox, refund,
    stock_tasks::{self, STOCK_LEASE},
    store::{
        event::{self, EventRow},
        order::{self as store, OrderRow},
        payment::Attempt,
        stock_task::{self, StockOperation, StockTask},
    },
};

/// The details of a transition that its event records.
#[derive(Clone, Copy, Debug)]
pub struct TransitionContext<'a> {
    pub previous: Option<Status>,
    pub actor: Actor,
    pub reason: Option<&'a str>,
}

/// Builds the event of a transition, with the number `seq`.
pub fn event(order: &OrderRow, seq: i64, transition: TransitionContext<'_>) -> EventRow {
    EventRow {
        user_id: order.user_id,
        seq,
        order_id: order.id,
        status: order.status.as_str().to_owned(),
        previous_status: transition.previous.map(|previous| previous.as_str().to_owned()),
        total: order.total,
        currency: order.currency.clone(),
        version: order.version,
        actor: transition.actor.as_str().to_owned(),
        reason: transition.reason.map(str::to_owned),
        at: order.updated_at,
        traceparent: telemetry::traceparent(),
    }
}

/// Wakes the relay and the appender of the event log, and counts the transition. Runs after the commit.
pub fn after_commit(context: &OrderContext, order: &OrderRow) {
    context.committed_users.wake(order.user_id);
    order_metrics::count_transition(order);
}

/// Moves a locked order to a status, and records its event.
pub async fn apply_transition(
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
    let event = self::event(order, seq, TransitionContext { previous: Some(previous), actor: to.1, reason });
    Ok(event::insert(conn, &event, &outbox::encode_event(&event)).await?)
}

/// Returns the target status and the role of a transition, or the error to return to the caller.
pub fn authorize_transition(
    transition: Transition,
    row: &OrderRow,
    requester: Requester,
    now: OffsetDateTime,
) -> Result<(Status, Actor), Error> {
    let to = order::next_status(transition, row.status, requester).map_err(|error| match error {
        TransitionError::Forbidden => Error::Forbidden,
        TransitionError::InvalidState if row.expired => Error::OrderExpired,
        TransitionError::InvalidState => invalid_transition(row, requester),
    })?;
    let is_overdue = row.status == Status::Pending && row.expires_at <= now;
    if is_overdue && transition != Transition::Expire { Err(Error::OrderExpired) } else { Ok(to) }
}

/// Builds the error of an invalid transition, with the transitions that are allowed instead.
pub fn invalid_transition(row: &OrderRow, requester: Requester) -> Error {
    Error::InvalidTransition {
        current: row.status,
        allowed: order::allowed_transitions(row.status, requester),
    }
}

/// Returns the owner of an order, and the caller's relation to the order. Another user's order exists for admins and
/// services only.
pub async fn find_owner(
    conn: &mut PgConnection,
    caller: &Caller,
    id: Uuid,
) -> Result<(i64, Requester), Error> {
    let caller_id = caller.user_id();
    if !caller.is_staff() {
        let order = store::find(conn, caller_id, id).await?;
        return order.map(|_| (caller_id, Requester::OWNER)).ok_or(Error::NotFound);
    }
    let owner = store::find_owner(conn, id).await?.ok_or(Error::NotFound)?;
    let (is_admin, is_service) = (caller.is_admin(), caller.is_service());
    Ok((owner, Requester { is_owner: owner == caller_id, is_admin, is_service }))
}

/// Returns an order if the caller may read it.
pub async fn get_order(context: &OrderContext, caller: &Caller, id: Uuid) -> Result<wire::Order, Error> {
    let mut conn = context.pool.acquire().await?;
    let (owner, _) = find_owner(&mut conn, caller, id).await?;
    let row = store::find(&mut conn, owner, id).await?.ok_or(Error::NotFound)?;
    order_message(&mut conn, &row).await
}

/// Builds the message of an order, with its lines.
pub async fn order_message(conn: &mut PgConnection, row: &OrderRow) -> Result<wire::Order, Error> {
    let lines = store::lines(conn, &[(row.user_id, row.id)]).await?;
    convert::order(row, &lines)
}

/// A caller's request for a transition.
#[derive(Debug)]
pub struct TransitionRequest {
    pub order_id: Uuid,
    pub key: Option<String>,
    pub action: OrderAction,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderAction {
    /// Releases the stock, and refunds the payment if the order is paid.
    Cancel { reason: Option<String> },
    /// Records the shipment; for admins and services.
    Ship(Shipment),
    /// Records the delivery.
    Complete,
}

impl OrderAction {
    const fn transition(&self) -> Transition {
        match self {
            Self::Cancel { .. } => Transition::Cancel,
            Self::Ship(_) => Transition::Ship,
            Self::Complete => Transition::Complete,
        }
    }

    /// Returns the action of the audit record.
    const fn audit_action(&self) -> &'static str {
        match self {
            Self::Cancel { .. } => "order.cancel",
            Self::Ship(_) => "order.ship",
            Self::Complete => "order.complete",
        }
    }

    /// Reports whether the order has made this transition already, with the same content. A repeat changes nothing.
    fn is_applied_to(&self, row: &OrderRow) -> bool {
        match self {
            Self::Cancel { reason } => {
                row.status == Status::Cancelled && !row.expired && row.cancel_reason == *reason
            }
            Self::Ship(shipment) => {
                matches!(row.status, Status::Shipped | Status::Completed)
                    && row.shipment.as_ref().is_some_and(|(current, _)| current == shipment)
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

    fn idempotent_request(&self, user_id: i64, order_id: Uuid, key: Option<String>) -> IdempotentRequest {
        match self {
            Self::Cancel { reason } => {
                IdempotentRequest::new(user_id, format!("cancel/{order_id}"), key, reason)
            }
            Self::Ship(Shipment { carrier, tracking_number }) => {
                let payload = (carrier, tracking_number);
                IdempotentRequest::new(user_id, format!("ship/{order_id}"), key, &payload)
            }
            Self::Complete => IdempotentRequest::new(user_id, format!("complete/{order_id}"), key, &()),
        }
    }
}

/// The work that a transition starts after its commit. All of it is recorded, and workers repeat what fails.
#[derive(Default)]
struct FollowUp {
    refund: Option<Attempt>,
    stock_task: Option<StockTask>,
}

/// Makes a transition. Returns the order, and whether the response is a replay under the same key.
#[tracing::instrument(
    name = "order.step",
    skip_all,
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn run_transition(
    context: &OrderContext,
    caller: &Caller,
    request: TransitionRequest,
) -> Result<(wire::Order, bool), Error> {
    let TransitionRequest { order_id: id, key, action } = request;
    let now = context.clock.now();
    let request = action.idempotent_request(caller.user_id(), id, key);
    let mut conn = context.pool.acquire().await?;
    let (owner, requester) = find_owner(&mut conn, caller, id).await?;
    let mut tx = conn.begin().await?;
    if let Some(response) = request.claim(&mut tx, now).await? {
        return Ok((response, true));
    }
    let mut row = store::get_for_update(&mut tx, owner, id).await?.ok_or(Error::NotFound)?;
    if action.is_applied_to(&row) {
        let order = order_message(&mut tx, &row).await?;
        request.save_response(&mut tx, &order).await?;
        tx.commit().await?;
        return Ok((order, false));
    }
    let to = authorize_transition(action.transition(), &row, requester, now)?;
    let before = audit_log::fields(&row);
    let follow_up = apply_action(&mut tx, &mut row, &action, now).await?;
    apply_transition(&mut tx, &mut row, to, now, action.reason()).await?;
    audit_log::record_transition(&mut tx, (caller, to.1), action.audit_action(), before, &row, now).await?;
    let order = order_message(&mut tx, &row).await?;
    request.save_response(&mut tx, &order).await?;
    tx.commit().await?;
    drop(conn);
    after_commit(context, &row);
    // The response does not wait for the provider.
    if let Some(attempt) = follow_up.refund {
        refund::spawn(context, attempt);
    }
    if let Some(task) = follow_up.stock_task {
        stock_tasks::spawn_and_wait(context, task).await;
    }
    Ok((order, false))
}

/// Applies the changes of an action other than the status.
async fn apply_action(
    tx: &mut PgConnection,
    row: &mut OrderRow,
    action: &OrderAction,
    now: OffsetDateTime,
) -> Result<FollowUp, Error> {
    let mut follow_up = FollowUp::default();
    match action {
        OrderAction::Cancel { reason } => {
            let key = (row.user_id, row.id);
            if row.status == Status::Paid {
                let attempt = refund::request(tx, key, now).await?;
                follow_up.refund = Some(attempt.ok_or(Error::Internal("a paid order without a payment"))?);
            }
            row.cancel_reason.clone_from(reason);
            let task =
                StockTask { user_id: row.user_id, order_id: row.id, operation: StockOperation::Release };
            stock_task::insert(tx, &task, now, now + STOCK_LEASE).await?;
            follow_up.stock_task = Some(task);
        }
        OrderAction::Ship(shipment) => row.shipment = Some((shipment.clone(), now)),
        OrderAction::Complete => {}
    }
    Ok(follow_up)
}
