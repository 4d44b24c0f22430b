//! The order that a checkout writes, at the prices of its hold.

use std::{collections::HashMap, time::Duration};

use shoppee_proto::product::v1::{HeldLine, HoldResponse, RefusedLine};
use time::OffsetDateTime;
use uuid::Uuid;

use super::PlaceOrder;
use crate::{
    error::Error,
    order::{Status, total},
    store::order::{LineRow, OrderRow},
};

/// Returns the lines whose price differs from the price that the cart was shown with; all lines if no difference is
/// known.
pub fn lines_with_new_price(
    lines: &[LineRow],
    available: &HashMap<i64, i64>,
    shown_prices: &HashMap<i64, i64>,
) -> Vec<RefusedLine> {
    let is_repriced =
        |line: &&LineRow| shown_prices.get(&line.product_id).is_some_and(|shown| *shown != line.unit_price);
    let mut repriced: Vec<&LineRow> = lines.iter().filter(is_repriced).collect();
    if repriced.is_empty() {
        repriced = lines.iter().collect();
    }
    let line = |line: &LineRow| RefusedLine {
        product_id: line.product_id,
        sku: Some(line.sku.clone()),
        requested: line.quantity,
        // The units of this order's hold become available again when it is released.
        available: line.quantity + available.get(&line.product_id).copied().unwrap_or_default(),
        unit_price: Some(line.unit_price),
        held_by_your_order: None,
    };
    repriced.into_iter().map(line).collect()
}

/// Builds the order at the prices of its hold.
pub fn build_order(
    command: &PlaceOrder,
    order_id: Uuid,
    hold: HoldResponse,
    now: OffsetDateTime,
    ttl: Duration,
) -> Result<(OrderRow, Vec<LineRow>), Error> {
    let total = total(hold.lines.iter().map(|line| (line.unit_price, line.quantity)))
        .ok_or(Error::Internal("an order's total overflows 64 bits"))?;
    let row = OrderRow {
        user_id: command.user_id,
        id: order_id,
        status: Status::Pending,
        total,
        currency: hold.currency,
        shipping_address: command.address.clone(),
        version: 1,
        expires_at: now + ttl,
        paid_at: None,
        refunded_at: None,
        refund_failed_at: None,
        shipment: None,
        cancel_reason: None,
        expired: false,
        created_at: now,
        updated_at: now,
    };
    let line = |line: HeldLine| LineRow {
        order_id,
        product_id: line.product_id,
        sku: line.sku,
        name: line.name,
        unit_price: line.unit_price,
        quantity: line.quantity,
    };
    Ok((row, hold.lines.into_iter().map(line).collect()))
}
