//! Stock holds for orders: hold, commit, release and expiry.
//!
//! Holds use group commit ([`BatchQueue`]). One statement reads the stock of a batch, the batch is decided in
//! memory, and one statement writes it if the stock still allows it ([`decide_on_snapshot`]). A popular product
//! therefore costs one row lock and one flush for hundreds of orders. A batch that conflicts with other writes, or
//! repeats a hold, is decided in a transaction, under the locks of all its products ([`try_decide`]).

mod release;

use std::collections::{BTreeMap, BTreeSet};

use shoppee_kit::{
    batch_queue::{BatchQueue, Limits},
    database_clock::DatabaseClock,
    pg::PgPool,
    tasks::Tasks,
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    cache::Cache,
    error::Error,
    stock::{
        HeldLine, Hold, HoldBatch, HoldError, HoldLines, HoldRequest, HoldState, MovementKind, ReleaseReason,
    },
    store::{self, stock::Movement},
};

/// The bounds of the queue. At the slowest batch measured, a full queue drains within 2 s. While one worker
/// waits for the disk, the other decides; more would only wait for row locks.
const QUEUE_LIMITS: Limits = Limits { capacity: 4096, batch_size: 256, workers: 2 };
/// Attempts at a batch. It is decided again if an order in it was released or held by another process
/// meanwhile.
const MAX_ATTEMPTS: usize = 3;
/// The stock below which a product is not measured: one customer may legitimately hold all of it.
const MIN_MEASURED_STOCK: i64 = 100;
/// Expired holds released in one transaction.
const EXPIRE_BATCH: i64 = 256;

/// The use cases of holds; cheap to clone.
#[derive(Clone, Debug)]
pub struct Holds {
    pool: PgPool,
    clock: DatabaseClock,
    queue: BatchQueue<HoldRequest, Result<Hold, Error>>,
    /// Requests without lines, which take no units.
    extensions: BatchQueue<HoldRequest, Result<Hold, Error>>,
    releases: BatchQueue<(Uuid, ReleaseReason), Result<(), Error>>,
    cache: Cache,
}

impl Holds {
    /// Starts the workers, which end when the last clone of the result is dropped.
    pub fn start(pool: PgPool, clock: DatabaseClock, cache: Cache, tasks: &Tasks) -> Self {
        let start_queue = |name| {
            let context = (pool.clone(), clock.clone(), cache.clone());
            BatchQueue::start(name, QUEUE_LIMITS, tasks, move |requests| {
                let (pool, clock, cache) = context.clone();
                async move { hold_batch(&pool, &cache, &requests, clock.now()).await }
            })
        };
        let (queue, extensions) = (start_queue("holds"), start_queue("hold extensions"));
        let context = (pool.clone(), clock.clone(), cache.clone());
        let releases = BatchQueue::start("releases", QUEUE_LIMITS, tasks, move |requests: Vec<_>| {
            let (pool, clock, cache) = context.clone();
            async move { release::release_batch(&pool, &cache, &requests, clock.now()).await }
        });
        Self { pool, clock, queue, extensions, releases, cache }
    }

    /// Holds all lines of an order or none. A repeated request returns the same hold.
    #[tracing::instrument(name = "stock.hold", skip_all)]
    pub async fn hold(&self, request: HoldRequest) -> Result<Hold, Error> {
        let queue = if request.lines.is_some() { &self.queue } else { &self.extensions };
        queue.submit(request).await.unwrap_or(Err(Error::Unavailable))
    }

    /// Commits the hold of an order as sold. Idempotent.
    #[tracing::instrument(
        name = "stock.commit",
        skip_all,
        fields(otel.kind = "client", db.system.name = "postgresql")
    )]
    pub async fn commit(&self, order_id: Uuid) -> Result<(), Error> {
        let mut conn = self.pool.acquire().await?;
        if store::hold::commit(&mut conn, order_id, self.clock.now()).await? {
            return Ok(());
        }
        match store::hold::fetch_state(&mut conn, order_id).await? {
            Some(HoldState::Committed) => Ok(()),
            Some(HoldState::Held | HoldState::Released | HoldState::Expired) => Err(Error::HoldExpired),
            None => Err(Error::NotFound),
        }
    }

    /// Releases the hold of an order; returns sold units if `reason` allows it. Idempotent. An order without
    /// a hold gets a tombstone and can never be held.
    #[tracing::instrument(name = "stock.release", skip_all)]
    pub async fn release(&self, order_id: Uuid, reason: ReleaseReason) -> Result<(), Error> {
        self.releases.submit((order_id, reason)).await.unwrap_or(Err(Error::Unavailable))
    }

    /// Releases the stock of expired holds, in one transaction. Returns the number of released holds.
    pub async fn expire(&self) -> sqlx::Result<usize> {
        let now = self.clock.now();
        let mut tx = self.pool.begin().await?;
        let expired_ids = store::hold::fetch_expired(&mut tx, now, EXPIRE_BATCH).await?;
        if expired_ids.is_empty() {
            return Ok(0);
        }
        let mut lines = store::hold::fetch_lines(&mut tx, &expired_ids).await?;
        store::stock::lock(&mut tx, &products(&lines)).await?;
        let expired = store::hold::lock_expired(&mut tx, &expired_ids, now).await?;
        lines.retain(|(order_id, _)| expired.binary_search(order_id).is_ok());
        store::hold::set_state(&mut tx, &expired, HoldState::Expired, now).await?;
        store::stock::apply(&mut tx, &movements(&lines, MovementKind::Release, 1), now).await?;
        let revisions = self.cache.revisions_before_stock_change(products(&lines)).await;
        tx.commit().await?;
        self.cache.invalidate_stock(revisions).await;
        Ok(expired.len())
    }

    /// Measures the maximum share of a product's stock that unpaid orders hold: it shows abuse by accounts
    /// that order without paying.
    pub async fn measure_unpaid_share(&self) -> Result<(), Error> {
        let mut conn = self.pool.acquire().await?;
        let share = store::hold::fetch_max_held_share(&mut conn, MIN_MEASURED_STOCK).await?;
        metrics::gauge!("stock_held_unpaid_share").set(share);
        Ok(())
    }

    /// Returns the expiry of a hold that is requested now.
    pub fn expires_at(&self, ttl: time::Duration) -> OffsetDateTime {
        self.clock.now() + ttl
    }
}

/// Returns one response per request.
async fn hold_batch(
    pool: &PgPool,
    cache: &Cache,
    requests: &[HoldRequest],
    now: OffsetDateTime,
) -> Vec<Result<Hold, Error>> {
    let revisions = cache.revisions_before_stock_change(requested_products(requests)).await;
    match decide_batch(pool, requests, now).await {
        Ok(BatchResult { outcomes, changed_products }) => {
            if !changed_products.is_empty() {
                let is_changed = |(id, _): &(i64, i64)| changed_products.contains(id);
                cache.invalidate_stock(revisions.into_iter().filter(is_changed)).await;
            }
            outcomes.into_iter().map(|outcome| outcome.map_err(Error::from)).collect()
        }
        Err(error) => vec![Err(error); requests.len()],
    }
}

/// The result of a batch.
struct BatchResult {
    /// One outcome per request.
    outcomes: Vec<Result<Hold, HoldError>>,
    /// Products from which units were taken.
    changed_products: BTreeSet<i64>,
}

/// Decides a batch and writes it.
#[tracing::instrument(
    name = "stock.hold_batch",
    skip_all,
    fields(otel.kind = "client", db.system.name = "postgresql", orders = requests.len())
)]
async fn decide_batch(
    pool: &PgPool,
    requests: &[HoldRequest],
    now: OffsetDateTime,
) -> Result<BatchResult, Error> {
    if let Some(result) = decide_on_snapshot(pool, requests, now).await? {
        return Ok(result);
    }
    for _ in 0..MAX_ATTEMPTS {
        let mut tx = pool.begin().await?;
        if let Some(result) = try_decide(&mut tx, requests, now).await? {
            tx.commit().await?;
            return Ok(result);
        }
        tx.rollback().await?;
    }
    Err(Error::Unavailable)
}

/// Decides new holds without locks, and writes them if the stock still allows it: two round trips. Returns `None` if an
/// order has a hold already, or if the stock does not allow it any more.
async fn decide_on_snapshot(
    pool: &PgPool,
    requests: &[HoldRequest],
    now: OffsetDateTime,
) -> Result<Option<BatchResult>, Error> {
    let products = requested_products(requests);
    if products.is_empty() {
        return Ok(None);
    }
    let mut conn = pool.acquire().await?;
    let snapshot =
        store::stock::fetch_snapshot(&mut conn, &products.into_iter().collect::<Vec<_>>(), &orders(requests))
            .await?;
    if snapshot.is_held || snapshot.levels.is_empty() {
        return Ok(None);
    }
    let mut batch = HoldBatch::new(now, snapshot.levels, BTreeMap::new());
    let outcomes = requests.iter().map(|request| batch.decide(request)).collect();
    let (created, withdrawals) = (batch.with_holds(&batch.created), batch.withdrawals());
    if !created.is_empty() && !store::hold::insert_decided(&mut conn, &withdrawals, &created, now).await? {
        return Ok(None);
    }
    let changed_products = withdrawals.iter().map(|withdrawal| withdrawal.product_id).collect();
    Ok(Some(BatchResult { outcomes, changed_products }))
}

/// Decides a batch under the locks of its products and orders. Returns `None` if another transaction has created a hold
/// or a tombstone for one of the orders meanwhile.
async fn try_decide(
    conn: &mut PgConnection,
    requests: &[HoldRequest],
    now: OffsetDateTime,
) -> Result<Option<BatchResult>, Error> {
    let levels =
        store::stock::lock(conn, &requested_products(requests).into_iter().collect::<Vec<_>>()).await?;
    let holds = store::hold::lock(conn, &orders(requests)).await?;

    let mut batch = HoldBatch::new(now, levels, holds);
    let outcomes = requests.iter().map(|request| batch.decide(request)).collect();

    let (created, extended) = (batch.with_holds(&batch.created), batch.with_holds(&batch.extended));
    let changed_products =
        created.iter().flat_map(|(_, hold)| &hold.lines).map(|line| line.product_id).collect();
    if !created.is_empty() {
        if store::hold::insert(conn, &created, now).await? < created.len() as u64 {
            return Ok(None);
        }
        let lines: Vec<(Uuid, HeldLine)> = created
            .into_iter()
            .flat_map(|(order_id, hold)| hold.lines.into_iter().map(move |line| (order_id, line)))
            .collect();
        store::stock::apply(conn, &movements(&lines, MovementKind::Hold, -1), now).await?;
    }
    if !extended.is_empty() {
        store::hold::extend(conn, &extended, now).await?;
    }
    Ok(Some(BatchResult { outcomes, changed_products }))
}

/// Returns the orders of all requests, each once, in the order of their ids.
fn orders(requests: &[HoldRequest]) -> Vec<Uuid> {
    let orders: BTreeSet<Uuid> = requests.iter().map(|request| request.order_id).collect();
    orders.into_iter().collect()
}

/// Returns the products of all requests, in the order of their ids.
fn requested_products(requests: &[HoldRequest]) -> BTreeSet<i64> {
    let lines = requests.iter().filter_map(|request| request.lines.as_ref());
    lines.flat_map(HoldLines::lines).map(|line| line.product_id).collect()
}

/// Returns the products of some lines.
fn products(lines: &[(Uuid, HeldLine)]) -> Vec<i64> {
    let ids: BTreeSet<i64> = lines.iter().map(|(_, line)| line.product_id).collect();
    ids.into_iter().collect()
}

fn movements(lines: &[(Uuid, HeldLine)], kind: MovementKind, sign: i64) -> Vec<Movement<'static>> {
    let movements = lines.iter().map(|(order_id, line)| Movement {
        product_id: line.product_id,
        kind,
        quantity: sign * line.quantity,
        order_id: Some(*order_id),
        reason: None,
    });
    movements.collect()
}

impl From<HoldError> for Error {
    fn from(error: HoldError) -> Self {
        match error {
            HoldError::ProductUnavailable(lines) => Self::ProductUnavailable(lines),
            HoldError::OutOfStock(lines) => Self::OutOfStock(lines),
            HoldError::Expired => Self::HoldExpired,
            HoldError::LinesMismatch => Self::HoldMismatch,
            HoldError::NotFound => Self::NotFound,
        }
    }
}
