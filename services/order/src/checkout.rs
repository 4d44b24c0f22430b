//! Checkout: claims the key, holds the stock, then writes the order with its event, the emptied cart and the stored
//! response. If the order is not written, the hold is released, here or by the sweep of orphan holds.

mod build;
mod release;

use std::{collections::HashMap, time::Duration};

use shoppee_kit::idempotency::fingerprint;
use shoppee_proto::{order::v1 as wire, product::v1::HoldResponse};
use time::OffsetDateTime;
use tokio::{sync::MutexGuard, time::Instant};
use uuid::Uuid;

use self::{
    build::{build_order, lines_with_new_price},
    release::spawn_release,
};
use crate::{
    OrderContext, convert,
    error::Error,
    idempotency::{self, Claim, StoredResponse},
    order::{Actor, Address, HOLD_MARGIN, Lines, UnpaidLine},
    order_id,
    order_writer::CheckoutError,
    outbox,
    product_client::HoldError,
    store::{
        cart::CartLine,
        checkout::{Account, NewOrder, Preparation, SCOPE, Written},
        idempotency::{IdempotencyKey, Lease},
        order::{self as store, LineRow},
    },
    transitions::{self, TransitionContext},
};

/// Bounds the time for which a refusal waits for the release of its hold, so that the next order finds the units.
const MAX_RELEASE_WAIT: Duration = Duration::from_millis(500);
/// Bounds the pending releases. While the product service is unavailable each failed checkout has one. Further holds are
/// left to the sweep.
pub const MAX_CONCURRENT_RELEASES: usize = 1024;
/// Bounds the rejections that read the customer's own orders concurrently. During a rush for the last unit, database
/// connections are kept for successful checkouts.
pub const MAX_CONCURRENT_EXPLANATIONS: usize = 4;
/// Bounds the attempts of a checkout, which is retried if the cart or the hold of an earlier attempt has changed, or if its
/// order id is too old or void.
const MAX_ATTEMPTS: u32 = 3;
/// The age up to which an order id is used: longer than the lease of a key, so that a retry adopts the hold of a process
/// that has died. The sweep of orphan holds looks at older ids only.
pub const MAX_ORDER_ID_AGE: Duration = Duration::from_secs(15);
/// Bounds the readings of an account for one order. Other processes may write events of the user meanwhile.
const MAX_ACCOUNT_READS: u32 = 16;
/// The delay of another reading: longer than a transaction of another process takes.
const ACCOUNT_RETRY_DELAY: Duration = Duration::from_millis(20);

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
    // Of two checkouts of one cart, the second one must find it empty. It would hold units that others could buy.
    let user_lock = match command.lines {
        None => Some(context.writer.lock(command.user_id).await.0),
        Some(_) => None,
    };
    let mut checkout = Checkout {
        context,
        command: &command,
        order_id: order_id::new(context.clock.now()),
        lease: None,
        account: Account::default(),
        cart: Vec::new(),
        user_lock,
        may_have_hold: false,
    };
    if let Some(order) = checkout.begin().await? {
        return Ok((order, true));
    }
    match checkout.run().await {
        Ok(order) => Ok((order, false)),
        Err(error) => {
            let (error, lost_lease) = checkout.clean_up(error).await;
            // The former holder of the lease may have placed the order, and so emptied the cart or taken the last unit.
            if let Some(lease) = lost_lease
                && let Some(StoredResponse::Order(order)) =
                    idempotency::find_response(context, lease, &command.fingerprint()).await
            {
                return Ok((*order, true));
            }
            Err(error)
        }
    }
}

/// The failure of a checkout's transaction.
enum PersistError {
    /// The checkout continues with another order id: the cart has changed since it was read, or the id is too old or void.
    Restart,
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
    /// The user's orders, as they were read last.
    account: Account,
    /// The lines of the cart, if the command orders the cart.
    cart: Vec<CartLine>,
    /// The lock of the user's orders in this process.
    user_lock: Option<MutexGuard<'a, ()>>,
    /// True while the product service may have a hold for `order_id`.
    may_have_hold: bool,
}

impl<'a> Checkout<'a> {
    /// Claims the key, and reads the account and the cart. Returns the order if the key has one.
    #[tracing::instrument(
        name = "idempotency.claim",
        skip_all,
        fields(otel.kind = "client", db.system.name = "postgresql")
    )]
    async fn begin(&mut self) -> Result<Option<wire::Order>, Error> {
        let Some(key) = &self.command.key else {
            self.refresh().await?;
            return Ok(None);
        };
        let fingerprint = self.command.fingerprint();
        let key = IdempotencyKey { user_id: self.command.user_id, scope: SCOPE.to_owned(), key: key.clone() };
        let deadline = Instant::now() + idempotency::MAX_CLAIM_WAIT;
        loop {
            let claim = Some((key.key.clone(), fingerprint.clone()));
            let (prepared, times) = self.context.writer.prepare(self.preparation(claim)).await?;
            (self.account, self.cart) = (prepared.account, prepared.cart);
            if prepared.is_claimed {
                let (order_id, until) = (self.order_id, times.claimed_until);
                self.lease = Some(Lease { key, order_id, until });
                return Ok(None);
            }
            if let Some(current) = prepared.current_claim {
                let mut conn = self.context.pool.acquire().await?;
                match idempotency::resume(&mut conn, &key, &fingerprint, current, times).await? {
                    Some(Claim::Acquired(lease)) => {
                        // Another process began the work, and may have a hold.
                        (self.order_id, self.may_have_hold) = (lease.order_id, true);
                        self.lease = Some(lease);
                        return Ok(None);
                    }
                    Some(Claim::Completed(StoredResponse::Order(order))) => return Ok(Some(*order)),
                    Some(Claim::Completed(StoredResponse::Declined(_))) => {
                        return Err(Error::Internal("a declined payment under the key of a checkout"));
                    }
                    None => {}
                }
            }
            if Instant::now() >= deadline {
                return Err(Error::InProgress);
            }
            tokio::time::sleep(idempotency::POLL_INTERVAL).await;
        }
    }

    /// Reads the account and the cart again.
    async fn refresh(&mut self) -> Result<(), Error> {
        let (prepared, _) = self.context.writer.prepare(self.preparation(None)).await?;
        (self.account, self.cart) = (prepared.account, prepared.cart);
        Ok(())
    }

    fn preparation(&self, key: Option<(String, Vec<u8>)>) -> Preparation {
        let Self { command, order_id, .. } = self;
        Preparation {
            user_id: command.user_id,
            key,
            order_id: *order_id,
            reads_cart: command.lines.is_none(),
        }
    }

    /// Locks the user's orders, and reads the account again if another checkout had the lock.
    async fn lock_user(&mut self) -> Result<(), Error> {
        if self.user_lock.is_none() {
            let context: &'a OrderContext = self.context;
            let (guard, was_contended) = context.writer.lock(self.command.user_id).await;
            self.user_lock = Some(guard);
            if was_contended {
                self.refresh().await?;
            }
        }
        Ok(())
    }

    async fn run(&mut self) -> Result<wire::Order, CheckoutError> {
        for _ in 0..MAX_ATTEMPTS {
            if self.has_old_id(self.context.clock.now()) {
                self.switch_order_id().await?;
            }
            let (lines, shown_prices) = self.resolve_lines()?;
            self.check_unpaid_before_hold(lines.as_slice().iter().map(|line| line.quantity.get()).sum())?;
            let ttl = self.context.order_ttl + HOLD_MARGIN;
            match self.context.product.hold(self.order_id, &lines, ttl).await {
                Ok(hold) => {
                    self.may_have_hold = true;
                    match self.persist(hold, &shown_prices).await {
                        Ok(order) => return Ok(order),
                        Err(PersistError::Failed(error)) => return Err(error),
                        Err(PersistError::Restart) => {}
                    }
                }
                Err(HoldError::Rejected(error)) => {
                    self.may_have_hold = false;
                    return Err(self.add_own_orders(error).await.into());
                }
                // The hold of an earlier attempt has expired or is void, or was for a cart that has changed since.
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
            self.refresh().await?;
        }
        Err(Error::InProgress.into())
    }

    /// Returns the lines to hold, and the prices by product that the cart was last shown with.
    fn resolve_lines(&self) -> Result<(Lines, HashMap<i64, i64>), Error> {
        if let Some(lines) = &self.command.lines {
            return Ok((lines.clone(), HashMap::new()));
        }
        if self.cart.is_empty() {
            return Err(Error::CartEmpty);
        }
        let pairs: Vec<_> = self.cart.iter().map(|line| (line.product_id, line.quantity)).collect();
        let shown_prices =
            self.cart.iter().filter_map(|line| Some((line.product_id, line.shown_price?))).collect();
        Ok((Lines::merge(&pairs)?, shown_prices))
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

    /// Reports whether the order id is too old to be used.
    fn has_old_id(&self, now: OffsetDateTime) -> bool {
        order_id::age(self.order_id, now) > MAX_ORDER_ID_AGE
    }

    /// Continues with a new order id, and releases the hold of the former one.
    async fn switch_order_id(&mut self) -> Result<(), CheckoutError> {
        let next = order_id::new(self.context.clock.now());
        if let Some(lease) = &mut self.lease
            && !idempotency::replace_order(self.context, lease, next).await?
        {
            return Err(CheckoutError::OutcomeUnknown(Error::InProgress));
        }
        if std::mem::take(&mut self.may_have_hold) {
            drop(spawn_release(self.context, self.order_id));
        }
        self.order_id = next;
        Ok(())
    }

    /// Releases the key, and the hold if no order can use it. Returns the error for the caller, and the
    /// lease if another process has ended it.
    async fn clean_up(&self, error: CheckoutError) -> (Error, Option<&Lease>) {
        let (error, is_abandoned, is_ended) = match (error, &self.lease) {
            (CheckoutError::NotCommitted(error), None) => (error, true, true),
            (CheckoutError::NotCommitted(error), Some(lease)) => {
                let is_retired = idempotency::retire(self.context, lease, &error).await;
                (error, is_retired, is_retired)
            }
            // The sweep of orphan holds releases the hold if there is no order.
            (CheckoutError::OutcomeUnknown(error), None) => (error, false, true),
            // The next request with the key adopts the order or the hold.
            (CheckoutError::OutcomeUnknown(error), Some(lease)) => {
                let is_released = idempotency::release(self.context, lease, &error).await;
                (error, false, is_released)
            }
        };
        if is_abandoned
            && self.may_have_hold
            && let Some(releasing) = spawn_release(self.context, self.order_id)
            && idempotency::is_definitive(&error)
        {
            // After the timeout the release continues.
            let _ = tokio::time::timeout(MAX_RELEASE_WAIT, releasing).await;
        }
        (error, self.lease.as_ref().filter(|_| !is_ended))
    }
}

impl Checkout<'_> {
    #[tracing::instrument(
        name = "order.write",
        skip_all,
        fields(otel.kind = "client", db.system.name = "postgresql")
    )]
    async fn persist(
        &mut self,
        hold: HoldResponse,
        shown_prices: &HashMap<i64, i64>,
    ) -> Result<wire::Order, PersistError> {
        let (context, command) = (self.context, self.command);
        let available: HashMap<i64, i64> =
            hold.lines.iter().map(|line| (line.product_id, line.available)).collect();
        let now = context.clock.now();
        // The statement below accepts the order for a limited time from now.
        if self.has_old_id(now) {
            return Err(PersistError::Restart);
        }
        let (row, lines) = build_order(command, self.order_id, hold, now, context.order_ttl)?;
        let order = convert::order(&row, &lines)?;
        if command.expected_total.is_some_and(|expected| expected != row.total) {
            let lines = lines_with_new_price(&lines, &available, shown_prices);
            return Err(Error::PriceChanged { current_total: row.total, lines }.into());
        }
        let response = StoredResponse::Order(Box::new(order.clone())).encode();
        let key = self.lease.as_ref().map(|lease| (lease.key.key.clone(), response));
        self.lock_user().await?;
        for _ in 0..MAX_ACCOUNT_READS {
            self.check_unpaid(&lines, &available)?;
            let transition = TransitionContext { previous: None, actor: Actor::Customer, reason: None };
            let event = transitions::event(&row, self.account.seq + 1, transition);
            let message = outbox::encode_event(&event);
            let new_order = NewOrder {
                row: row.clone(),
                lines: lines.clone(),
                key: key.clone(),
                empties_cart: command.lines.is_none(),
                event,
                message,
            };
            match context.writer.insert(new_order).await.map_err(PersistError::Failed)? {
                Written { has_key: false, .. } => {
                    return Err(PersistError::Failed(CheckoutError::OutcomeUnknown(Error::InProgress)));
                }
                Written { is_valid: false, .. } => return Err(PersistError::Restart),
                Written { is_current: false, .. } => {
                    tokio::time::sleep(ACCOUNT_RETRY_DELAY).await;
                    self.refresh().await?;
                }
                Written { has_key: true, is_current: true, is_valid: true } => {
                    transitions::after_commit(context, &row);
                    return Ok(order);
                }
            }
        }
        Err(Error::Unavailable.into())
    }

    /// Checks the limits that need no hold: an order that is refused must not hold units that others could buy.
    fn check_unpaid_before_hold(&self, ordered: i64) -> Result<(), Error> {
        let Account { unpaid_orders, reserved, .. } = &self.account;
        if *unpaid_orders >= self.context.max_unpaid_orders {
            return Err(Error::TooManyUnpaid);
        }
        let is_allowed = self.context.unpaid_caps.allow_units(reserved.values().sum(), ordered);
        if is_allowed { Ok(()) } else { Err(Error::TooManyUnpaidUnits) }
    }

    /// Checks the limits of unpaid orders against the account. The order is written only if the account is unchanged.
    fn check_unpaid(&self, lines: &[LineRow], available: &HashMap<i64, i64>) -> Result<(), Error> {
        // The account may have been read again since the hold.
        self.check_unpaid_before_hold(lines.iter().map(|line| line.quantity).sum())?;
        let reserved = &self.account.reserved;
        let unpaid_line = |line: &LineRow| UnpaidLine {
            quantity: line.quantity,
            reserved: reserved.get(&line.product_id).copied().unwrap_or_default(),
            available: available.get(&line.product_id).copied().unwrap_or_default(),
        };
        let unpaid_lines: Vec<_> = lines.iter().map(unpaid_line).collect();
        let is_allowed = self.context.unpaid_caps.allow(reserved.values().sum(), &unpaid_lines);
        if is_allowed { Ok(()) } else { Err(Error::TooManyUnpaidUnits) }
    }
}
