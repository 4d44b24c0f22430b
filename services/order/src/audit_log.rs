//! The records of the audit log about orders.

use serde_json::{Value, json};
use shoppee_kit::{
    audit_log::{self, Change, Record, store::Store as _},
    caller::Caller,
};
use shoppee_proto::json::EnumName as _;
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    convert,
    order::Actor,
    store::{audit_log::AuditLog, order::OrderRow},
};

/// Returns the fields of an order that transitions change.
pub fn fields(order: &OrderRow) -> Value {
    let shipment = order.shipment.as_ref().map(|(shipment, _)| shipment);
    json!({
        "status": order.status.as_str(),
        "payment_status": convert::payment_status(order).json_name(),
        "carrier": shipment.map(|shipment| &shipment.carrier),
        "tracking_number": shipment.map(|shipment| &shipment.tracking_number),
        "cancel_reason": order.cancel_reason,
    })
}

/// Records a transition that `caller` made as an admin or a service; `before` are the [`fields`] before it. The acts of
/// customers on their orders are not recorded.
pub async fn record_transition(
    tx: &mut PgConnection,
    (caller, role): (&Caller, Actor),
    action: &'static str,
    before: Value,
    order: &OrderRow,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    match role {
        Actor::Customer | Actor::System => Ok(()),
        Actor::Admin | Actor::Service => {
            let actor = audit_log::Actor::from_caller(caller);
            let change = Change::between(before, fields(order));
            let record = Record::new(&actor, action, format!("order:{}", order.id), change);
            AuditLog::insert(tx, &[record], now).await
        }
    }
}
