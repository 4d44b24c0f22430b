//! The statements of a batch of checkouts. Each is a transaction of its own: one round trip for all checkouts of a batch.

use std::collections::HashMap;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    cart::CartLine,
    event::EventRow,
    idempotency::ClaimRow,
    order::{LineRow, OrderRow},
};

/// The scope of the keys of new orders.
pub const SCOPE: &str = "create";

/// A checkout that begins.
#[derive(Clone, Debug)]
pub struct Preparation {
    pub user_id: i64,
    /// The idempotency key to claim, with the fingerprint of the request.
    pub key: Option<(String, Vec<u8>)>,
    pub order_id: Uuid,
    /// True if the cart is to be ordered.
    pub reads_cart: bool,
}

/// The state of a user's orders at one moment.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// The number of the user's newest event.
    pub seq: i64,
    /// Orders that wait for payment.
    pub unpaid_orders: i64,
    /// The units of these orders by product.
    pub reserved: HashMap<i64, i64>,
}

#[derive(Clone, Debug)]
pub struct Prepared {
    /// True if the key is claimed for this request.
    pub is_claimed: bool,
    /// The claim that another request has made before.
    pub current_claim: Option<ClaimRow>,
    pub account: Account,
    /// In the order the products were added; empty unless it was asked for.
    pub cart: Vec<CartLine>,
}

/// The times of a batch of preparations.
#[derive(Clone, Copy, Debug)]
pub struct ClaimTimes {
    pub now: OffsetDateTime,
    /// The end of the new claims' leases.
    pub claimed_until: OffsetDateTime,
    /// Claims from before are replaced.
    pub expired_before: OffsetDateTime,
}

/// Claims the keys of checkouts, which are different, and reads the accounts and carts of their users. Returns one row per
/// checkout.
pub async fn prepare(
    conn: &mut PgConnection,
    checkouts: &[Preparation],
    times: ClaimTimes,
) -> sqlx::Result<Vec<Prepared>> {
    let user_ids: Vec<i64> = checkouts.iter().map(|checkout| checkout.user_id).collect();
    let key = |checkout: &Preparation| checkout.key.as_ref().map(|(key, _)| key.clone());
    let keys: Vec<Option<String>> = checkouts.iter().map(key).collect();
    let fingerprint =
        |checkout: &Preparation| checkout.key.as_ref().map(|(_, fingerprint)| fingerprint.clone());
    let fingerprints: Vec<Option<Vec<u8>>> = checkouts.iter().map(fingerprint).collect();
    let order_ids: Vec<Uuid> = checkouts.iter().map(|checkout| checkout.order_id).collect();
    let reads_cart: Vec<bool> = checkouts.iter().map(|checkout| checkout.reads_cart).collect();
    let rows = sqlx::query_file!(
        "src/store/checkout/prepare.sql",
        &user_ids,
        &keys as _,
        &fingerprints as _,
        &order_ids,
        &reads_cart,
        times.claimed_until,
        times.now,
        times.expired_before
    )
    .fetch_all(conn)
    .await?;
    let prepared = rows.into_iter().map(|row| {
        let claim = (row.fingerprint, row.order_id, row.claimed_until);
        let current_claim = match claim {
            (Some(fingerprint), Some(order_id), Some(claimed_until)) if !row.is_claimed => {
                Some(ClaimRow { fingerprint, order_id, claimed_until, answer: row.answer })
            }
            _ => None,
        };
        let reserved = row.reserved_products.unwrap_or_default().into_iter();
        let cart = row.cart_products.unwrap_or_default().into_iter();
        let cart = cart.zip(row.cart_quantities.unwrap_or_default()).zip(row.cart_prices.unwrap_or_default());
        let cart_line =
            |((product_id, quantity), shown_price)| CartLine { product_id, quantity, shown_price };
        Prepared {
            is_claimed: row.is_claimed,
            current_claim,
            account: Account {
                seq: row.seq,
                unpaid_orders: row.unpaid_orders,
                reserved: reserved.zip(row.reserved_units.unwrap_or_default()).collect(),
            },
            cart: cart.map(cart_line).collect(),
        }
    });
    Ok(prepared.collect())
}

/// A new order with its event, whose number is the one after the account's.
#[derive(Clone, Debug)]
pub struct NewOrder {
    pub row: OrderRow,
    pub lines: Vec<LineRow>,
    /// The claimed key, with the response to store.
    pub key: Option<(String, Vec<u8>)>,
    /// True if the lines are taken out of the cart.
    pub empties_cart: bool,
    pub event: EventRow,
    /// The event as the relay publishes it.
    pub message: Vec<u8>,
}

/// The outcome of a new order. It is written if all fields are true, otherwise nothing of it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The key still names this order, and has no response.
    pub has_key: bool,
    /// No other event of the user was written since the account was read.
    pub is_current: bool,
    /// The cart still has all that is ordered, the order id is not void, and the order is at most 10 minutes old:
    /// tombstones are kept for longer.
    pub is_valid: bool,
}

/// Writes new orders of different users: each with its lines, event, outbox row, response and emptied cart, or
/// nothing of it. Returns one outcome per order. Rows are locked in this order: key, cursor, cart, lines of the cart.
pub async fn insert(conn: &mut PgConnection, orders: &[NewOrder]) -> sqlx::Result<Vec<Written>> {
    let column = |column: fn(&NewOrder) -> i64| -> Vec<i64> { orders.iter().map(column).collect() };
    let time = |column: fn(&NewOrder) -> OffsetDateTime| -> Vec<OffsetDateTime> {
        orders.iter().map(column).collect()
    };
    let ids: Vec<Uuid> = orders.iter().map(|order| order.row.id).collect();
    let keys: Vec<Option<&str>> =
        orders.iter().map(|order| order.key.as_ref().map(|(key, _)| key.as_str())).collect();
    let responses: Vec<Option<&[u8]>> =
        orders.iter().map(|order| order.key.as_ref().map(|(_, response)| response.as_slice())).collect();
    let empties_cart: Vec<bool> = orders.iter().map(|order| order.empties_cart).collect();
    let currencies: Vec<&str> = orders.iter().map(|order| order.row.currency.as_str()).collect();
    let addresses: Vec<_> =
        orders.iter().map(|order| sqlx::types::Json(&order.row.shipping_address)).collect();
    let traceparents: Vec<&str> = orders.iter().map(|order| order.event.traceparent.as_str()).collect();
    let messages: Vec<&[u8]> = orders.iter().map(|order| order.message.as_slice()).collect();
    let lines =
        || (1_i64..).zip(orders).flat_map(|(index, order)| order.lines.iter().map(move |line| (index, line)));
    let line_column =
        |column: fn(&LineRow) -> i64| -> Vec<i64> { lines().map(|(_, line)| column(line)).collect() };
    let indexes: Vec<i64> = lines().map(|(index, _)| index).collect();
    let skus: Vec<&str> = lines().map(|(_, line)| line.sku.as_str()).collect();
    let names: Vec<&str> = lines().map(|(_, line)| line.name.as_str()).collect();
    sqlx::query_file_as!(
        Written,
        "src/store/checkout/insert.sql",
        &column(|order| order.row.user_id),
        &ids,
        &keys as _,
        &responses as _,
        &column(|order| order.event.seq),
        &empties_cart,
        &column(|order| order.row.total),
        &currencies as _,
        &addresses as _,
        &time(|order| order.row.expires_at),
        &time(|order| order.row.created_at),
        &traceparents as _,
        &messages as _,
        &indexes,
        &line_column(|line| line.product_id),
        &skus as _,
        &names as _,
        &line_column(|line| line.unit_price),
        &line_column(|line| line.quantity)
    )
    .fetch_all(conn)
    .await
}
