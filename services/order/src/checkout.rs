//! Checkout: claims the key, holds the stock, then runs one transaction with the order, its event, the emptied cart and
//! the stored response. If the transaction is not committed, the hold is released or expires by itself.

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
    OrderContext, convert,
    error::Error,
    idempotency::{self, Claim, StoredResponse},
    order::{Actor, Address, HOLD_MARGIN, Lines, Status, UnpaidCaps, UnpaidLine, total},
    product_client::HoldError,
    store::{
        cart, event,
        idempotency::{IdempotencyKey, Lease},
        order::{self as store, LineRow, OrderRow},
    },
    transitions::{self, TransitionContext},
};

/// The lease of a key, longer than a request can take.
const IDEMPOTENCY_LEASE: Duration = Duration::from_secs(10);
/// The delay before a release is retried, doubled each time. After the last attempt the hold expires by itself.
const RELEASE_RETRY_DELAY: Duration = Duration::from_millis(500);
/// Bounds the attempts of a release to about a minute: longer than a restart of the product service, shorter than a
/// hold.
const MAX_RELEASE_ATTEMPTS: u32 = 7;
/// Bounds the pending releases. While the product service is unavailable each failed checkout has one. Further holds
/// expire by themselves.
pub const MAX_CONCURRENT_RELEASES: usize = 1024;
/// Bounds the rejections that read the customer's own orders concurrently. During a rush for the last unit, database
/// connections are kept for successful checkouts.
pub const MAX_CONCURRENT_EXPLANATIONS: usize = 4;
/// Bounds the attempts of a checkout, which is retried if the cart or the hold of an earlier attempt has changed.
const MAX_ATTEMPTS: u32 = 3;

/// The command to place an order.
#[derive(Clone, Debug)]
pub struct PlaceOrder {
    pub user_id: i64,
    /// The lines to order; `None` orders the cart.
    pub lines: Option<Lines>,
    pub address: Address,
    /// The total that the customer expects, in minor units.
    pub expected_total: Option<i64>,
    pub key: Option<String>,
}

impl PlaceOrder {
    fn fingerprint(&self) -> Vec<u8> {
        let lines = self.lines.as_ref().map(|lines| {
            let pairs = lines.as_slice().iter().map(|line| (line.product_id, line.quantity.get()));
            pairs.collect::<Vec<_>>()
        });
        fingerprint(&(lines, &self.address, self.expected_total))
    }
}

/// Places an order. Returns the order, and whether the response is a replay under the same key.
pub async fn place(context: &OrderContext, command: PlaceOrder) -> Result<(wire::Order, bool), Error> {
    let key = command.key.clone().map(|key| IdempotencyKey {
        user_id: command.user_id,
        scope: "create".to_owned(),
        key,
    });
    let mut checkout =
        Checkout { context, command: &command, order_id: Uuid::now_v7(), lease: None, may_have_hold: false };
    if let Some(key) = &key {
        match idempotency::claim(context, key, command.fingerprint(), checkout.order_id, IDEMPOTENCY_LEASE)
            .await?
        {
            Claim::Acquired { lease, adopted } => {
                checkout.order_id = lease.order_id;
                checkout.lease = Some(lease);
                checkout.may_have_hold = adopted;
            }
            Claim::Completed(StoredResponse::Order(order)) => return Ok((*order, true)),
            Claim::Completed(StoredResponse::Declined(_)) => {
                return Err(Error::Internal("a declined payment under the key of a checkout"));
            }
        }
    }
    match checkout.run().await {
        Ok(order) => Ok((order, false)),
        Err(error) => Err(checkout.clean_up(error).await),
    }
}

/// The failure of a checkout.
enum CheckoutError {
    /// No transaction with the order's id was committed.
    NotCommitted(Error),
    /// The order or the hold may exist: a response was lost, or another request has taken the key over.
    OutcomeUnknown(Error),
}

impl<E: Into<Error>> From<E> for CheckoutError {
    fn from(error: E) -> Self {
        Self::NotCommitted(error.into())
    }
}

/// The failure of a checkout's transaction.
enum PersistError {
    /// The cart has changed since it was read.
    CartChanged,
    Failed(CheckoutError),
}

impl<E: Into<Error>> From<E> for PersistError {
    fn from(error: E) -> Self {
        Self::Failed(error.into().into())
    }
}

/// One request to place an order. An order id is never reused after its release may have been sent, as the release may
/// arrive at any later time. With a key, another request may adopt the id. So the key's order id is replaced, or the
/// key is deleted, before the release is sent.
struct Checkout<'a> {
    context: &'a OrderContext,
    command: &'a PlaceOrder,
    order_id: Uuid,
    /// The lease of the key, if the request has one.
    lease: Option<Lease>,
    /// True while the product service may have a hold for `order_id`.
    may_have_hold: bool,
}

impl Checkout<'_> {
    async fn run(&mut self) -> Result<wire::Order, CheckoutError> {
        for _ in 0..MAX_ATTEMPTS {
            let (lines, shown_prices) = resolve_lines(self.context, self.command).await?;
            let ttl = self.context.order_ttl + HOLD_MARGIN;
            match self.context.product.hold(self.order_id, &lines, ttl).await {
                Ok(hold) => {
                    self.may_have_hold = true;
                    match self.persist(hold, &shown_prices).await {
                        Ok(order) => return Ok(order),
                        Err(PersistError::Failed(error)) => return Err(error),
                        Err(PersistError::CartChanged) => {}
                    }
                }
                Err(HoldError::Rejected(error)) => {
                    self.may_have_hold = false;
                    return Err(self.add_own_orders(error).await.into());
                }
                // The hold of an earlier attempt has expired, or was for a cart that has changed since.
                Err(HoldError::Expired) => self.may_have_hold = false,
                Err(HoldError::Mismatch) => self.may_have_hold = true,
                Err(HoldError::Unavailable) => {
                    self.may_have_hold = true;
                    return Err(match self.lease {
                        // The next request with the key adopts the hold.
                        Some(_) => CheckoutError::OutcomeUnknown(Error::Unavailable),
                        None => CheckoutError::NotCommitted(Error::Unavailable),
                    });
                }
            }
            self.switch_order_id().await?;
        }
        Err(Error::InProgress.into())
    }

    /// Adds the user's own unpaid orders that hold the missing units: paying one helps, waiting does not. Under load
    /// the orders are omitted.
    async fn add_own_orders(&self, error: Error) -> Error {
        let Error::OutOfStock(mut lines) = error else {
            return error;
        };
        let Ok(_permit) = self.context.refusal_permits.try_acquire() else {
            return Error::OutOfStock(lines);
        };
        let products: Vec<i64> = lines.iter().map(|line| line.product_id).collect();
        let now = self.context.clock.now();
        let reading = async {
            let mut conn = self.context.pool.acquire().await?;
            store::find_unpaid_with(&mut conn, self.command.user_id, now, &products).await
        };
        match reading.await {
            Ok(own_orders) => {
                for line in &mut lines {
                    line.held_by_your_order = own_orders.get(&line.product_id).map(Uuid::to_string);
                }
            }
            // The error is also correct without the orders.
            Err(error) => tracing::debug!(%error, "own orders not read"),
        }
        Error::OutOfStock(lines)
    }

    /// Continues with a new order id, and releases the hold of the former one.
    async fn switch_order_id(&mut self) -> Result<(), CheckoutError> {
        let next = Uuid::now_v7();
        if let Some(lease) = &mut self.lease
            && !idempotency::replace_order(self.context, lease, next).await?
        {
            return Err(CheckoutError::OutcomeUnknown(Error::InProgress));
        }
        if std::mem::take(&mut self.may_have_hold) {
            spawn_release(self.context, self.order_id);
        }
        self.order_id = next;
        Ok(())
    }

    /// Releases the key, and the hold if no order can use it. Returns the error for the caller.
    async fn clean_up(&self, error: CheckoutError) -> Error {
        let (error, is_abandoned) = match (error, &self.lease) {
            (CheckoutError::NotCommitted(error), None) => (error, true),
            (CheckoutError::NotCommitted(error), Some(lease)) => {
                let is_retired = idempotency::retire(self.context, lease, &error).await;
                (error, is_retired)
            }
            // The next request with the key adopts the order or the hold. Otherwise the hold expires.
            (CheckoutError::OutcomeUnknown(error), lease) => {
                if let Some(lease) = lease {
                    idempotency::release(self.context, lease, &error).await;
                }
                (error, false)
            }
        };
        if is_abandoned && self.may_have_hold {
            spawn_release(self.context, self.order_id);
        }
        error
    }
}

/// Returns the lines to hold, and the prices by product that the cart was last shown with.
async fn resolve_lines(
    context: &OrderContext,
    command: &PlaceOrder,
) -> Result<(Lines, HashMap<i64, i64>), Error> {
    if let Some(lines) = &command.lines {
        return Ok((lines.clone(), HashMap::new()));
    }
    let mut conn = context.pool.acquire().await?;
    let cart = cart::lines(&mut conn, command.user_id).await?;
    if cart.is_empty() {
        return Err(Error::CartEmpty);
    }
    let pairs: Vec<_> = cart.iter().map(|line| (line.product_id, line.quantity)).collect();
    let shown_prices = cart.iter().filter_map(|line| Some((line.product_id, line.shown_price?))).collect();
    Ok((Lines::merge(&pairs)?, shown_prices))
}

/// Releases the hold of an order that was not placed, in the background.
fn spawn_release(context: &OrderContext, order_id: Uuid) {
    let Ok(permit) = Arc::clone(&context.release_permits).try_acquire_owned() else {
        tracing::debug!(order.id = %order_id, "too many releases, hold left to expire");
        return;
    };
    let product = context.product.clone();
    tokio::spawn(async move {
        let _permit = permit;
        for attempt in 0..MAX_RELEASE_ATTEMPTS {
            match product.release(order_id, ReleaseReason::CheckoutAbandoned).await {
                Ok(()) => return,
                Err(status) if status.code() == Code::FailedPrecondition => {
                    tracing::error!(order.id = %order_id, "hold of an order that was not placed is committed");
                    return;
                }
                Err(status) => {
                    tracing::info!(code = ?status.code(), order.id = %order_id, "hold release failed");
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
    async fn persist(
        &self,
        hold: HoldResponse,
        shown_prices: &HashMap<i64, i64>,
    ) -> Result<wire::Order, PersistError> {
        let Self { context, command, order_id, .. } = self;
        let now = context.clock.now();
        let available: HashMap<i64, i64> =
            hold.lines.iter().map(|line| (line.product_id, line.available)).collect();
        let (row, lines) = build_order(command, *order_id, hold, now, context.order_ttl)?;
        let order = convert::order(&row, &lines)?;
        if command.expected_total.is_some_and(|expected| expected != row.total) {
            let lines = lines_with_new_price(&lines, &available, shown_prices);
            return Err(Error::PriceChanged { current_total: row.total, lines }.into());
        }

        let mut tx = context.pool.begin().await?;
        if let Err(persist_error) = self.insert_rows(&mut tx, &row, &lines, &available, &order).await {
            // Rolled back here, as the clean-up needs the lock of the key's row.
            tx.rollback().await.unwrap_or_else(|error| tracing::debug!(%error, "rollback failed"));
            return Err(persist_error);
        }
        tx.commit()
            .await
            .map_err(|error| PersistError::Failed(CheckoutError::OutcomeUnknown(error.into())))?;
        transitions::after_commit(context, &row);
        Ok(order)
    }

    async fn insert_rows(
        &self,
        tx: &mut PgConnection,
        row: &OrderRow,
        lines: &[LineRow],
        available: &HashMap<i64, i64>,
        order: &wire::Order,
    ) -> Result<(), PersistError> {
        if let Some(lease) = &self.lease
            && !idempotency::save_response(
                tx,
                &lease.key,
                row.id,
                &StoredResponse::Order(Box::new(order.clone())),
            )
            .await?
        {
            return Err(PersistError::Failed(CheckoutError::OutcomeUnknown(Error::InProgress)));
        }
        // From here on all transitions of this user's orders wait for this transaction.
        let seq = event::next_seq(tx, row.user_id).await?;
        let unpaid = store::count_unpaid(tx, row.user_id, row.created_at).await?;
        if unpaid >= self.context.max_unpaid_orders {
            return Err(Error::TooManyUnpaid.into());
        }
        let reserved = if unpaid > 0 && self.context.unpaid_caps != UnpaidCaps::NONE {
            store::unpaid_units(tx, row.user_id, row.created_at).await?
        } else {
            HashMap::new()
        };
        let unpaid_line = |line: &LineRow| UnpaidLine {
            quantity: line.quantity,
            reserved: reserved.get(&line.product_id).copied().unwrap_or_default(),
            available: available.get(&line.product_id).copied().unwrap_or_default(),
        };
        let unpaid_lines: Vec<_> = lines.iter().map(unpaid_line).collect();
        if !self.context.unpaid_caps.allow(reserved.values().sum(), &unpaid_lines) {
            return Err(Error::TooManyUnpaidUnits.into());
        }
        if self.command.lines.is_none() {
            cart::touch(tx, row.user_id, row.created_at).await?;
            let (products, quantities): (Vec<_>, Vec<_>) =
                lines.iter().map(|line| (line.product_id, line.quantity)).unzip();
            if !cart::remove_ordered(tx, row.user_id, &products, &quantities).await? {
                return Err(PersistError::CartChanged);
            }
        }
        store::insert(tx, row, lines).await?;
        let transition = TransitionContext { previous: None, actor: Actor::Customer, reason: None };
        Ok(transitions::record_event(tx, row, seq, transition).await?)
    }
}

/// Returns the lines whose price differs from the price that the cart was shown with; all lines if no difference is
/// known.
fn lines_with_new_price(
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
fn build_order(
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
