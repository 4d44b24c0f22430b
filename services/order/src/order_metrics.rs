//! The counters of orders: transitions, and the money they are about.

use crate::{order::Status, store::order::OrderRow};

/// Initializes each counter to 0, so that it is exported before its first event.
pub fn initialize(currency: &str) {
    for status in Status::ALL {
        count(status, currency, 0, 0);
    }
    count_refund(currency, 0);
}

/// Counts the transition of an order to its present status, with its total.
pub fn count_transition(order: &OrderRow) {
    // A total is never negative.
    count(order.status, &order.currency, 1, u64::try_from(order.total).unwrap_or_default());
}

/// Counts refunded money, in minor units.
pub fn count_refund(currency: &str, amount: i64) {
    let amount = u64::try_from(amount).unwrap_or_default();
    metrics::counter!("orders_refunded_amount_total", "currency" => currency.to_owned()).increment(amount);
}

/// Counts orders that reached `status`, with their total in minor units.
fn count(status: Status, currency: &str, orders: u64, amount: u64) {
    let (status, currency) = (status.as_str(), currency.to_owned());
    metrics::counter!("order_transitions_total", "status" => status).increment(orders);
    metrics::counter!("orders_amount_total", "status" => status, "currency" => currency).increment(amount);
}
