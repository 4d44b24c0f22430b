//! Placing an order: claim the key, hold the stock, then one transaction with the order, its event, the emptied cart
//! and the kept answer. Where that does not happen the hold is released, or runs out by itself.

use std::time::Duration;

use shoppee_proto::{
    order::v1 as wire,
    product::v1::{HeldLine, HoldResponse},
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    Orders,
    error::Error,
    idempotency::{self, Answer, Turn},
    order::{Actor, Address, Lines, Status, total},
    steps::{self, Taken},
    stock::NoHold,
    store::{
        cart, event,
        idempotency::KeyOf,
        order::{self as store, LineRow, OrderRow},
    },
    view,
};

/// A hold outlives the time to pay by this, so that an open order always has its stock.
const HOLD_MARGIN: Duration = Duration::from_mins(1);
/// How long a request may have its key for itself; longer than it can take.
const LEASE: Duration = Duration::from_secs(10);
/// Between tries to release a hold; after the last it runs out by itself.
const RELEASE_RETRY: Duration = Duration::from_secs(1);
/// How often an order is tried anew because the cart, or the hold of an earlier try, had changed meanwhile.
const TRIES: u32 = 3;

/// What a customer wants to buy.
#[derive(Clone, Debug)]
pub struct Wish {
    pub user_id: i64,
    /// `None`: what is in the cart.
    pub lines: Option<Lines>,
    pub address: Address,
    /// Minor units.
    pub expected_total: Option<i64>,
    pub key: Option<String>,
}

impl Wish {
    fn fingerprint(&self) -> Vec<u8> {
        let lines = self.lines.as_ref().map(|lines| {
            let pairs = lines.as_slice().iter().map(|line| (line.product_id, line.quantity.get()));
            pairs.collect::<Vec<_>>()
        });
        idempotency::fingerprint(&(lines, &self.address, self.expected_total))
    }
}

/// Places an order; with whether the answer was given before.
pub async fn place(orders: &Orders, wish: Wish) -> Result<(wire::Order, bool), Error> {
    let key = wish.key.clone().map(|key| KeyOf { user_id: wish.user_id, scope: "create".to_owned(), key });
    let mut order_id = Uuid::now_v7();
    if let Some(of) = &key {
        match idempotency::claim(orders, of, wish.fingerprint(), order_id, LEASE).await? {
            Turn::Ours(adopted) => order_id = adopted,
            Turn::Done(Answer::Order(order)) => return Ok((*order, true)),
            Turn::Done(Answer::Declined(_)) => return Err(Error::Broken("an order that was declined")),
        }
    }
    let placed = hold_and_write(orders, &wish, key.as_ref(), order_id).await;
    if let (Some(of), Err(error)) = (&key, &placed) {
        idempotency::give_up(orders, of, error).await;
    }
    Ok((placed?, false))
}

/// One try came to nothing, but another may not.
enum Again {
    /// The cart is no longer what it was.
    CartChanged,
    /// Nothing was written.
    Failed(Error),
    /// Whether it was written is not known: the answer to the commit did not come, or another writes the same order.
    Unknown(Error),
}

impl<E: Into<Error>> From<E> for Again {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

async fn hold_and_write(
    orders: &Orders,
    wish: &Wish,
    key: Option<&KeyOf>,
    mut order_id: Uuid,
) -> Result<wire::Order, Error> {
    for _ in 0..TRIES {
        let lines = wanted(orders, wish).await?;
        let ttl = orders.order_ttl + HOLD_MARGIN;
        match orders.stock.hold(order_id, &lines, ttl).await {
            Ok(held) => match write(orders, wish, key, order_id, held).await {
                Ok(order) => return Ok(order),
                Err(Again::Failed(error)) => {
                    release(orders, order_id);
                    return Err(error);
                }
                // The hold may be an order's: who comes back with the key finds out, and else it runs out.
                Err(Again::Unknown(error)) => return Err(error),
                Err(Again::CartChanged) => release(orders, order_id),
            },
            Err(NoHold::Refused(error)) => return Err(error),
            // What an earlier try held is gone, or was for a cart that has changed since.
            Err(NoHold::Gone) => {}
            Err(NoHold::Differs) => release(orders, order_id),
            Err(NoHold::Unavailable) => {
                if key.is_none() {
                    // Nobody will come back for it.
                    release(orders, order_id);
                }
                return Err(Error::Unavailable);
            }
        }
        order_id = Uuid::now_v7();
        if let Some(of) = key {
            let mut conn = orders.pool.acquire().await?;
            crate::store::idempotency::change_order(&mut conn, of, order_id).await?;
        }
    }
    Err(Error::InProgress)
}

/// The lines to hold.
async fn wanted(orders: &Orders, wish: &Wish) -> Result<Lines, Error> {
    if let Some(lines) = &wish.lines {
        return Ok(lines.clone());
    }
    let mut conn = orders.pool.acquire().await?;
    let cart = cart::lines(&mut conn, wish.user_id).await?;
    if cart.is_empty() {
        return Err(Error::CartEmpty);
    }
    let pairs: Vec<_> = cart.iter().map(|line| (line.product_id, line.quantity)).collect();
    Ok(Lines::merge(&pairs)?)
}

/// In the background: nobody waits for stock to come back from an order that was not placed.
fn release(orders: &Orders, order_id: Uuid) {
    let stock = orders.stock.clone();
    tokio::spawn(async move {
        for _ in 0..TRIES {
            match stock.release(order_id).await {
                Ok(()) => return,
                Err(status) => {
                    tracing::info!(code = ?status.code(), order.id = %order_id, "hold not released");
                }
            }
            tokio::time::sleep(RELEASE_RETRY).await;
        }
    });
}

#[tracing::instrument(
    name = "order.write",
    skip_all,
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
async fn write(
    orders: &Orders,
    wish: &Wish,
    key: Option<&KeyOf>,
    order_id: Uuid,
    held: HoldResponse,
) -> Result<wire::Order, Again> {
    let now = orders.clock.now();
    let (row, lines) = compose(wish, order_id, held, now, orders.order_ttl)?;
    let shown = view::order(&row, &lines)?;
    if wish.expected_total.is_some_and(|expected| expected != row.total) {
        return Err(Again::Failed(Error::PriceChanged(row.total)));
    }

    let mut tx = orders.pool.begin().await?;
    if let Some(of) = key
        && !idempotency::keep(&mut tx, of, order_id, &Answer::Order(Box::new(shown.clone()))).await?
    {
        return Err(Again::Unknown(Error::InProgress));
    }
    // From here on all that this user's orders do waits for this transaction.
    let seq = event::next_seq(&mut tx, row.user_id).await?;
    if store::count_unpaid(&mut tx, row.user_id, now).await? >= orders.max_unpaid {
        return Err(Again::Failed(Error::TooManyUnpaid));
    }
    if wish.lines.is_none() {
        cart::touch(&mut tx, row.user_id, now).await?;
        let (products, quantities): (Vec<_>, Vec<_>) =
            lines.iter().map(|line| (line.product_id, line.quantity)).unzip();
        if !cart::take(&mut tx, row.user_id, &products, &quantities).await? {
            return Err(Again::CartChanged);
        }
    }
    store::insert(&mut tx, &row, &lines).await?;
    steps::tell(&mut tx, &row, seq, Taken { previous: None, actor: Actor::Customer, reason: None }).await?;
    tx.commit().await.map_err(|error| Again::Unknown(error.into()))?;
    steps::told(orders, &row);
    Ok(shown)
}

/// The order as it will be, at the prices it was held at.
fn compose(
    wish: &Wish,
    order_id: Uuid,
    held: HoldResponse,
    now: OffsetDateTime,
    ttl: Duration,
) -> Result<(OrderRow, Vec<LineRow>), Error> {
    let total = total(held.lines.iter().map(|line| (line.unit_price, line.quantity)))
        .ok_or(Error::Broken("a total beyond 64 bits"))?;
    let row = OrderRow {
        user_id: wish.user_id,
        id: order_id,
        status: Status::Pending,
        total,
        currency: held.currency,
        shipping_address: wish.address.clone(),
        version: 1,
        expires_at: now + ttl,
        paid_at: None,
        refunded_at: None,
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
    Ok((row, held.lines.into_iter().map(line).collect()))
}
