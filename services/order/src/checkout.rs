//! Placing an order: claim the key, hold the stock, then one transaction with the order, its event, the emptied cart
//! and the kept answer. Where that does not happen the hold is released, or runs out by itself.

use std::{collections::HashMap, sync::Arc, time::Duration};

use shoppee_kit::idempotency::fingerprint;
use shoppee_proto::{
    order::v1 as wire,
    product::v1::{HeldLine, HoldResponse, RefusedLine, ReleaseReason},
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use tonic::Code;
use uuid::Uuid;

use crate::{
    Orders,
    error::Error,
    idempotency::{self, Answer, Turn},
    order::{Actor, Address, Lines, Status, UnpaidCaps, UnpaidLine, total},
    steps::{self, Taken},
    stock::NoHold,
    store::{
        cart, event,
        idempotency::{KeyOf, Lease},
        order::{self as store, LineRow, OrderRow},
    },
    view,
};

/// A hold outlives the time to pay by this, so that an open order always has its stock.
pub const HOLD_MARGIN: Duration = Duration::from_mins(1);
/// How long a request may have its key for itself; longer than it can take.
const LEASE: Duration = Duration::from_secs(10);
/// The delay before a release is tried again, doubled each time; after the last try the hold runs out by itself.
const RELEASE_RETRY_DELAY: Duration = Duration::from_millis(500);
/// About a minute of tries: longer than product restarts, shorter than a hold lives.
const MAX_RELEASE_TRIES: u32 = 7;
/// Releases that may be tried at once. While product is away each refused order has one; what is more runs out.
pub const MAX_RELEASES: usize = 1024;
/// Refusals that look for the customer's own orders at a time. When everybody wants the last unit, connections are for
/// those who get one.
pub const MAX_EXPLAINED_REFUSALS: usize = 4;
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
        fingerprint(&(lines, &self.address, self.expected_total))
    }
}

/// Places an order; with whether the answer was given before.
pub async fn place(orders: &Orders, wish: Wish) -> Result<(wire::Order, bool), Error> {
    let key = wish.key.clone().map(|key| KeyOf { user_id: wish.user_id, scope: "create".to_owned(), key });
    let mut checkout =
        Checkout { orders, wish: &wish, order_id: Uuid::now_v7(), lease: None, may_hold: false };
    if let Some(of) = &key {
        match idempotency::claim(orders, of, wish.fingerprint(), checkout.order_id, LEASE).await? {
            Turn::Ours { lease, adopted } => {
                checkout.order_id = lease.order_id;
                checkout.lease = Some(lease);
                checkout.may_hold = adopted;
            }
            Turn::Done(Answer::Order(order)) => return Ok((*order, true)),
            Turn::Done(Answer::Declined(_)) => return Err(Error::Broken("an order that was declined")),
        }
    }
    match checkout.run().await {
        Ok(order) => Ok((order, false)),
        Err(failure) => Err(checkout.clean_up(failure).await),
    }
}

/// The reason why a checkout came to no order.
enum Failure {
    /// No transaction with the order's id was committed.
    NothingWritten(Error),
    /// It is not known if there is an order or a hold: an answer did not come, or another request has the key.
    Unknown(Error),
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::NothingWritten(error.into())
    }
}

/// The reason why a transaction was not committed.
enum NotWritten {
    /// The cart is no longer what it was.
    CartChanged,
    Failed(Failure),
}

impl<E: Into<Error>> From<E> for NotWritten {
    fn from(error: E) -> Self {
        Self::Failed(error.into().into())
    }
}

/// One request to place an order. An order id whose release may have been sent is never used again: the release may
/// arrive at any later time. With a key, another request may adopt the id; so the key names another id first, or
/// nothing, and only then the release is sent.
struct Checkout<'a> {
    orders: &'a Orders,
    wish: &'a Wish,
    order_id: Uuid,
    /// With a key.
    lease: Option<Lease>,
    /// True while product may hold something for `order_id`.
    may_hold: bool,
}

impl Checkout<'_> {
    async fn run(&mut self) -> Result<wire::Order, Failure> {
        for _ in 0..TRIES {
            let (lines, shown_prices) = wanted(self.orders, self.wish).await?;
            let ttl = self.orders.order_ttl + HOLD_MARGIN;
            match self.orders.stock.hold(self.order_id, &lines, ttl).await {
                Ok(held) => {
                    self.may_hold = true;
                    match self.write(held, &shown_prices).await {
                        Ok(order) => return Ok(order),
                        Err(NotWritten::Failed(failure)) => return Err(failure),
                        Err(NotWritten::CartChanged) => {}
                    }
                }
                Err(NoHold::Refused(error)) => {
                    self.may_hold = false;
                    return Err(self.with_own_orders(error).await.into());
                }
                // The hold of an earlier try is gone, or was for a cart that has changed since.
                Err(NoHold::Gone) => self.may_hold = false,
                Err(NoHold::Differs) => self.may_hold = true,
                Err(NoHold::Unavailable) => {
                    self.may_hold = true;
                    return Err(match self.lease {
                        // The next request with the key adopts what is held.
                        Some(_) => Failure::Unknown(Error::Unavailable),
                        None => Failure::NothingWritten(Error::Unavailable),
                    });
                }
            }
            self.renew().await?;
        }
        Err(Error::InProgress.into())
    }

    /// Names the user's own unpaid orders that hold what is short: to pay one helps, to wait does not. A crowd is refused
    /// without.
    async fn with_own_orders(&self, error: Error) -> Error {
        let Error::OutOfStock(mut lines) = error else {
            return error;
        };
        let Ok(_permit) = self.orders.refusals.try_acquire() else {
            return Error::OutOfStock(lines);
        };
        let products: Vec<i64> = lines.iter().map(|line| line.product_id).collect();
        let now = self.orders.clock.now();
        let read = async {
            let mut conn = self.orders.pool.acquire().await?;
            store::unpaid_with(&mut conn, self.wish.user_id, now, &products).await
        };
        match read.await {
            Ok(own) => {
                for line in &mut lines {
                    line.held_by_your_order = own.get(&line.product_id).map(Uuid::to_string);
                }
            }
            // The refusal is true without them.
            Err(error) => tracing::debug!(%error, "own orders not read"),
        }
        Error::OutOfStock(lines)
    }

    /// Goes on with another order id, and lets the goods of the first go.
    async fn renew(&mut self) -> Result<(), Failure> {
        let next = Uuid::now_v7();
        if let Some(lease) = &mut self.lease
            && !idempotency::renew(self.orders, lease, next).await?
        {
            return Err(Failure::Unknown(Error::InProgress));
        }
        if std::mem::take(&mut self.may_hold) {
            release(self.orders, self.order_id);
        }
        self.order_id = next;
        Ok(())
    }

    /// Gives the key up, and the goods where no order can have them; the error to answer.
    async fn clean_up(&self, failure: Failure) -> Error {
        let (error, abandoned) = match (failure, &self.lease) {
            (Failure::NothingWritten(error), None) => (error, true),
            (Failure::NothingWritten(error), Some(lease)) => {
                let retired = idempotency::retire(self.orders, lease, &error).await;
                (error, retired)
            }
            // The next request with the key adopts what there is; else the hold runs out.
            (Failure::Unknown(error), lease) => {
                if let Some(lease) = lease {
                    idempotency::give_up(self.orders, lease, &error).await;
                }
                (error, false)
            }
        };
        if abandoned && self.may_hold {
            release(self.orders, self.order_id);
        }
        error
    }
}

/// The lines to hold, and the prices by product that a cart was last shown with.
async fn wanted(orders: &Orders, wish: &Wish) -> Result<(Lines, HashMap<i64, i64>), Error> {
    if let Some(lines) = &wish.lines {
        return Ok((lines.clone(), HashMap::new()));
    }
    let mut conn = orders.pool.acquire().await?;
    let cart = cart::lines(&mut conn, wish.user_id).await?;
    if cart.is_empty() {
        return Err(Error::CartEmpty);
    }
    let pairs: Vec<_> = cart.iter().map(|line| (line.product_id, line.quantity)).collect();
    let shown_prices = cart.iter().filter_map(|line| Some((line.product_id, line.shown_price?))).collect();
    Ok((Lines::merge(&pairs)?, shown_prices))
}

/// Releases a hold in the background: no request waits for the stock of an order that was not placed.
fn release(orders: &Orders, order_id: Uuid) {
    let Ok(permit) = Arc::clone(&orders.releases).try_acquire_owned() else {
        tracing::debug!(order.id = %order_id, "hold left to run out");
        return;
    };
    let stock = orders.stock.clone();
    tokio::spawn(async move {
        let _permit = permit;
        for attempt in 0..MAX_RELEASE_TRIES {
            match stock.release(order_id, ReleaseReason::CheckoutAbandoned).await {
                Ok(()) => return,
                Err(status) if status.code() == Code::FailedPrecondition => {
                    tracing::error!(order.id = %order_id, "the hold of an order that was not placed is sold");
                    return;
                }
                Err(status) => {
                    tracing::info!(code = ?status.code(), order.id = %order_id, "hold not released");
                }
            }
            tokio::time::sleep(RELEASE_RETRY_DELAY * 2_u32.pow(attempt)).await;
        }
    });
}

impl Checkout<'_> {
    #[tracing::instrument(
        name = "order.write",
        skip_all,
        fields(otel.kind = "client", db.system.name = "postgresql")
    )]
    async fn write(
        &self,
        held: HoldResponse,
        shown_prices: &HashMap<i64, i64>,
    ) -> Result<wire::Order, NotWritten> {
        let Self { orders, wish, order_id, .. } = self;
        let now = orders.clock.now();
        let available: HashMap<i64, i64> =
            held.lines.iter().map(|line| (line.product_id, line.available)).collect();
        let (row, lines) = compose(wish, *order_id, held, now, orders.order_ttl)?;
        let shown = view::order(&row, &lines)?;
        if wish.expected_total.is_some_and(|expected| expected != row.total) {
            let lines = repriced(&lines, &available, shown_prices);
            return Err(Error::PriceChanged { current_total: row.total, lines }.into());
        }

        let mut tx = orders.pool.begin().await?;
        if let Err(not_written) = self.write_rows(&mut tx, &row, &lines, &available, &shown).await {
            // At once: what follows waits for the row of the key.
            tx.rollback().await.unwrap_or_else(|error| tracing::debug!(%error, "not rolled back"));
            return Err(not_written);
        }
        tx.commit().await.map_err(|error| NotWritten::Failed(Failure::Unknown(error.into())))?;
        steps::told(orders, &row);
        Ok(shown)
    }

    async fn write_rows(
        &self,
        tx: &mut PgConnection,
        row: &OrderRow,
        lines: &[LineRow],
        available: &HashMap<i64, i64>,
        shown: &wire::Order,
    ) -> Result<(), NotWritten> {
        if let Some(lease) = &self.lease
            && !idempotency::keep(tx, &lease.of, row.id, &Answer::Order(Box::new(shown.clone()))).await?
        {
            return Err(NotWritten::Failed(Failure::Unknown(Error::InProgress)));
        }
        // From here on all that this user's orders do waits for this transaction.
        let seq = event::next_seq(tx, row.user_id).await?;
        let unpaid = store::count_unpaid(tx, row.user_id, row.created_at).await?;
        if unpaid >= self.orders.max_unpaid {
            return Err(Error::TooManyUnpaid.into());
        }
        let held = if unpaid > 0 && self.orders.unpaid != UnpaidCaps::NONE {
            store::unpaid_units(tx, row.user_id, row.created_at).await?
        } else {
            HashMap::new()
        };
        let unpaid_line = |line: &LineRow| UnpaidLine {
            quantity: line.quantity,
            held_before: held.get(&line.product_id).copied().unwrap_or_default(),
            available: available.get(&line.product_id).copied().unwrap_or_default(),
        };
        let unpaid_lines: Vec<_> = lines.iter().map(unpaid_line).collect();
        if !self.orders.unpaid.allow(held.values().sum(), &unpaid_lines) {
            return Err(Error::TooManyUnpaidUnits.into());
        }
        if self.wish.lines.is_none() {
            cart::touch(tx, row.user_id, row.created_at).await?;
            let (products, quantities): (Vec<_>, Vec<_>) =
                lines.iter().map(|line| (line.product_id, line.quantity)).unzip();
            if !cart::take(tx, row.user_id, &products, &quantities).await? {
                return Err(NotWritten::CartChanged);
            }
        }
        store::insert(tx, row, lines).await?;
        let taken = Taken { previous: None, actor: Actor::Customer, reason: None };
        Ok(steps::tell(tx, row, seq, taken).await?)
    }
}

/// The lines whose price is not the one that the cart was shown with; all of them where none is known to have moved.
fn repriced(
    lines: &[LineRow],
    available: &HashMap<i64, i64>,
    shown_prices: &HashMap<i64, i64>,
) -> Vec<RefusedLine> {
    let has_moved =
        |line: &&LineRow| shown_prices.get(&line.product_id).is_some_and(|shown| *shown != line.unit_price);
    let mut moved: Vec<&LineRow> = lines.iter().filter(has_moved).collect();
    if moved.is_empty() {
        moved = lines.iter().collect();
    }
    let line = |line: &LineRow| RefusedLine {
        product_id: line.product_id,
        sku: Some(line.sku.clone()),
        requested: line.quantity,
        // What this order holds can be bought again when it is released.
        available: line.quantity + available.get(&line.product_id).copied().unwrap_or_default(),
        unit_price: Some(line.unit_price),
        held_by_your_order: None,
    };
    moved.into_iter().map(line).collect()
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
    Ok((row, held.lines.into_iter().map(line).collect()))
}
