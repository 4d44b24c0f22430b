//! Conversions of orders and events to and from their protobuf messages.

use shoppee_kit::cursor;
use shoppee_proto::order::v1::{
    self as wire, Actor as WireActor, OrderEvent, OrderHistoryEvent, OrderItem, OrderStatus, Payment,
    PaymentStatus,
};

use crate::{
    error::Error,
    order::{Actor, Address, Status, UnknownName},
    store::{
        event::EventRow,
        order::{LineRow, OrderRow},
    },
};

pub fn status(status: Status) -> OrderStatus {
    match status {
        Status::Pending => OrderStatus::Pending,
        Status::Paid => OrderStatus::Paid,
        Status::Shipped => OrderStatus::Shipped,
        Status::Completed => OrderStatus::Completed,
        Status::Cancelled => OrderStatus::Cancelled,
    }
}

/// Parses the number of a status.
pub fn parse_status(number: i32) -> Result<Status, Error> {
    Status::ALL
        .into_iter()
        .find(|candidate| i32::from(status(*candidate)) == number)
        .ok_or_else(|| Error::Malformed(("status", "is not a status of orders").into()))
}

/// Returns the number of a stored status; 0 for a name of a newer version, which the message carries beside it.
fn status_number(name: &str) -> i32 {
    name.parse().map_or(OrderStatus::Unspecified, status).into()
}

/// Returns the number of a stored actor; 0 for a name of a newer version.
fn actor_number(name: &str) -> i32 {
    let actor = match name.parse() {
        Ok(Actor::Customer) => WireActor::Customer,
        Ok(Actor::Admin) => WireActor::Admin,
        Ok(Actor::Service) => WireActor::Service,
        Ok(Actor::System) => WireActor::System,
        Err(UnknownName) => WireActor::Unspecified,
    };
    actor.into()
}

/// Converts an order, with its lines out of `lines`.
pub fn order(row: &OrderRow, lines: &[LineRow]) -> Result<wire::Order, Error> {
    let items = lines
        .iter()
        .filter(|line| line.order_id == row.id)
        .map(|line| {
            Ok(OrderItem {
                product_id: line.product_id,
                sku: line.sku.clone(),
                name: line.name.clone(),
                unit_price: line.unit_price,
                quantity: line.quantity,
                line_total: line
                    .unit_price
                    .checked_mul(line.quantity)
                    .ok_or(Error::Internal("a line's total"))?,
            })
        })
        .collect::<Result<_, Error>>()?;
    Ok(wire::Order {
        id: row.id.to_string(),
        user_id: row.user_id,
        status: status(row.status).into(),
        items,
        total: row.total,
        currency: row.currency.clone(),
        shipping_address: Some(address(&row.shipping_address)),
        payment: Some(Payment {
            status: payment_status(row).into(),
            paid_at: row.paid_at.map(Into::into),
            refunded_at: row.refunded_at.map(Into::into),
        }),
        shipment: row.shipment.as_ref().map(|(shipment, at)| wire::Shipment {
            carrier: shipment.carrier.clone(),
            tracking_number: shipment.tracking_number.clone(),
            shipped_at: Some((*at).into()),
        }),
        cancel_reason: row.cancel_reason.clone(),
        expires_at: Some(row.expires_at.into()),
        version: row.version,
        created_at: Some(row.created_at.into()),
        updated_at: Some(row.updated_at.into()),
    })
}

pub fn payment_status(row: &OrderRow) -> PaymentStatus {
    if row.refunded_at.is_some() {
        PaymentStatus::Refunded
    } else if row.refund_failed_at.is_some() {
        PaymentStatus::RefundFailed
    } else if row.paid_at.is_none() {
        PaymentStatus::Unpaid
    } else if row.status == Status::Cancelled {
        PaymentStatus::RefundPending
    } else {
        PaymentStatus::Paid
    }
}

fn address(address: &Address) -> wire::Address {
    wire::Address {
        recipient: address.recipient.clone(),
        line1: address.line1.clone(),
        line2: address.line2.clone(),
        city: address.city.clone(),
        region: address.region.clone(),
        postal_code: address.postal_code.clone(),
        country: address.country.clone(),
        phone: address.phone.clone(),
    }
}

/// Converts an address without validating it.
pub fn parse_address(address: wire::Address) -> Address {
    Address {
        recipient: address.recipient,
        line1: address.line1,
        line2: address.line2,
        city: address.city,
        region: address.region,
        postal_code: address.postal_code,
        country: address.country,
        phone: address.phone,
    }
}

/// Converts an event for publication.
pub fn event(row: &EventRow) -> OrderEvent {
    OrderEvent {
        user_id: row.user_id,
        seq: row.seq,
        order_id: row.order_id.to_string(),
        status: status_number(&row.status),
        previous_status: row.previous_status.as_deref().map(status_number),
        total: row.total,
        currency: row.currency.clone(),
        version: row.version,
        at: Some(row.at.into()),
        traceparent: row.traceparent.clone(),
        status_word: row.status.clone(),
        previous_status_word: row.previous_status.clone().unwrap_or_default(),
    }
}

/// Converts an event for the history of an order.
pub fn history_event(row: EventRow) -> OrderHistoryEvent {
    OrderHistoryEvent {
        seq: row.seq,
        status: status_number(&row.status),
        previous_status: row.previous_status.as_deref().map(status_number),
        at: Some(row.at.into()),
        actor: actor_number(&row.actor),
        reason: row.reason,
        status_word: row.status,
        previous_status_word: row.previous_status.unwrap_or_default(),
        actor_word: row.actor,
    }
}

/// Encodes a position in the event log as the cursor of a stream.
pub fn log_cursor(position: i64) -> String {
    cursor::encode(&("log", position))
}

/// Decodes the cursor of a stream of the event log.
pub fn parse_log_cursor(cursor: &str) -> Result<i64, Error> {
    match cursor::decode::<(String, i64)>(cursor) {
        Ok((list, position)) if list == "log" && position >= 0 => Ok(position),
        Ok(_) => Err(Error::Malformed(("cursor", "is not a cursor of this stream").into())),
        Err(violations) => Err(Error::Malformed(violations)),
    }
}
