//! Stock for orders: hold, commit, release, and what becomes of a hold that nobody ended.
//!
//! Holds are taken together (group commit): all that wait when a worker comes free are decided in memory,
//! under the locks of all the products they name, and written by a few statements in one transaction. So a
//! product that everybody wants costs one row lock and one flush for hundreds of orders.

use std::{collections::BTreeSet, sync::Arc};

use shoppee_kit::{database_clock::DatabaseClock, pg::PgPool, tasks::Tasks};
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::sync::{Mutex, mpsc, oneshot};
use uuid::Uuid;

use crate::{
    cache::Cache,
    error::Error,
    stock::{Basket, HeldLine, Hold, Kind, Refused, ReleaseReason, Round, State, Want},
    store::{self, stock::Movement},
};

/// Holds decided in one transaction: their rows stay below what one statement takes well, and the first of
/// them does not wait long for the last.
const ROUND: usize = 256;
/// Holds that may wait; one more is told to come back. At the slowest round seen they are worked off within 2
/// s.
const WAITING: usize = 4096;
/// While one waits for the disk, another decides. More would only wait for each other's rows.
const WORKERS: usize = 2;
/// A round is decided anew when an order that it holds for was released, or held elsewhere, in the same
/// moment.
const TRIES: usize = 3;
/// Of a smaller stock one customer may well hold all.
const MIN_MEASURED_STOCK: i64 = 100;
/// Overdue holds put back in one transaction.
const OVERDUE: i64 = 256;

type Answer = oneshot::Sender<Result<Hold, Error>>;

/// Takes, sells and gives back; cheap to clone.
#[derive(Clone, Debug)]
pub struct Holds {
    pool: PgPool,
    clock: DatabaseClock,
    queue: mpsc::Sender<(Want, Answer)>,
    cache: Cache,
}

impl Holds {
    /// Starts the workers, which end when the last clone of the result is gone.
    pub fn start(pool: PgPool, clock: DatabaseClock, cache: Cache, tasks: &Tasks) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..WORKERS {
            tasks.spawn("holds", work(pool.clone(), clock.clone(), cache.clone(), waiting.clone()));
        }
        Self { pool, clock, queue, cache }
    }

    /// Gives an order all it wants or nothing; the same order again gets the same.
    #[tracing::instrument(name = "stock.hold", skip_all)]
    pub async fn hold(&self, want: Want) -> Result<Hold, Error> {
        let (answer, decided) = oneshot::channel();
        self.queue.try_send((want, answer)).map_err(|_| Error::Unavailable)?;
        decided.await.unwrap_or(Err(Error::Unavailable))
    }

    /// Sells what an order holds; selling it twice changes nothing.
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
        match store::hold::state(&mut conn, order_id).await? {
            Some(State::Committed) => Ok(()),
            Some(State::Held | State::Released | State::Expired) => Err(Error::OrderExpired),
            None => Err(Error::NotFound),
        }
    }

    /// Gives back what an order holds, or was sold where `reason` allows it; giving it back twice changes
    /// nothing. An order that holds nothing yet never will.
    #[tracing::instrument(
        name = "stock.release",
        skip_all,
        fields(otel.kind = "client", db.system.name = "postgresql")
    )]
    pub async fn release(&self, order_id: Uuid, reason: ReleaseReason) -> Result<(), Error> {
        let now = self.clock.now();
        let mut tx = self.pool.begin().await?;
        let mut lines = store::hold::lines(&mut tx, &[order_id]).await?;
        if lines.is_empty() {
            if store::hold::bury(&mut tx, order_id, now).await? {
                return Ok(tx.commit().await?);
            }
            // It was released before, or held in this very moment.
            lines = store::hold::lines(&mut tx, &[order_id]).await?;
        }
        store::stock::lock(&mut tx, &products(&lines)).await?;
        let held = store::hold::lock(&mut tx, &[order_id]).await?;
        let kind = match held.get(&order_id).map(|hold| hold.state) {
            Some(State::Held) => Kind::Release,
            Some(State::Committed) => match reason {
                ReleaseReason::OrderCancelled => Kind::Return,
                ReleaseReason::CheckoutAbandoned => return Err(Error::HoldCommitted),
            },
            Some(State::Released | State::Expired) | None => return Ok(()),
        };
        store::hold::end(&mut tx, &[order_id], State::Released, now).await?;
        store::stock::apply(&mut tx, &movements(&lines, kind, 1), now).await?;
        let before = self.cache.before_move(products(&lines)).await;
        tx.commit().await?;
        self.cache.moved(before).await;
        Ok(())
    }

    /// Puts the stock of overdue holds back; how many there were, as far as one transaction goes.
    pub async fn expire(&self) -> sqlx::Result<usize> {
        let now = self.clock.now();
        let mut tx = self.pool.begin().await?;
        let overdue = store::hold::overdue(&mut tx, now, OVERDUE).await?;
        if overdue.is_empty() {
            return Ok(0);
        }
        let mut lines = store::hold::lines(&mut tx, &overdue).await?;
        store::stock::lock(&mut tx, &products(&lines)).await?;
        let ended = store::hold::lock_overdue(&mut tx, &overdue, now).await?;
        lines.retain(|(order_id, _)| ended.binary_search(order_id).is_ok());
        store::hold::end(&mut tx, &ended, State::Expired, now).await?;
        store::stock::apply(&mut tx, &movements(&lines, Kind::Release, 1), now).await?;
        let before = self.cache.before_move(products(&lines)).await;
        tx.commit().await?;
        self.cache.moved(before).await;
        Ok(ended.len())
    }

    /// Says how much of a product unpaid orders hold, at most: what an account that orders and does not pay does to
    /// the shop.
    pub async fn measure_unpaid(&self) -> Result<(), Error> {
        let mut conn = self.pool.acquire().await?;
        let share = store::hold::largest_share(&mut conn, MIN_MEASURED_STOCK).await?;
        metrics::gauge!("stock_held_unpaid_share").set(share);
        Ok(())
    }

    /// Until when a hold lives that is asked for now.
    pub fn until(&self, ttl: time::Duration) -> OffsetDateTime {
        self.clock.now() + ttl
    }
}

async fn work(
    pool: PgPool,
    clock: DatabaseClock,
    cache: Cache,
    waiting: Arc<Mutex<mpsc::Receiver<(Want, Answer)>>>,
) -> anyhow::Result<()> {
    let mut round = Vec::with_capacity(ROUND);
    loop {
        if waiting.lock().await.recv_many(&mut round, ROUND).await == 0 {
            return Ok(());
        }
        let (wants, answers): (Vec<Want>, Vec<Answer>) = round.drain(..).unzip();
        let before = cache.before_move(wanted(&wants)).await;
        match decide(&pool, &wants, clock.now()).await {
            Ok(Decided { holds, moved }) => {
                if !moved.is_empty() {
                    cache.moved(before.into_iter().filter(|(id, _)| moved.contains(id))).await;
                }
                for (answer, decided) in answers.into_iter().zip(holds) {
                    // Nobody listens where the caller hung up; the hold stands, or runs out.
                    let _ = answer.send(decided.map_err(refusal));
                }
            }
            Err(error) => {
                for answer in answers {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }
}

/// What became of a round.
struct Decided {
    /// One for each who wanted something.
    holds: Vec<Result<Hold, Refused>>,
    /// Products of which something was taken.
    moved: BTreeSet<i64>,
}

/// Decides a round, and writes it down.
#[tracing::instrument(
    name = "stock.round",
    skip_all,
    fields(otel.kind = "client", db.system.name = "postgresql", orders = wants.len())
)]
async fn decide(pool: &PgPool, wants: &[Want], now: OffsetDateTime) -> Result<Decided, Error> {
    for _ in 0..TRIES {
        let mut tx = pool.begin().await?;
        if let Some(decided) = attempt(&mut tx, wants, now).await? {
            tx.commit().await?;
            return Ok(decided);
        }
        tx.rollback().await?;
    }
    Err(Error::Unavailable)
}

/// `None` where one of the orders got a hold, or a tombstone, while this was going on.
async fn attempt(
    conn: &mut PgConnection,
    wants: &[Want],
    now: OffsetDateTime,
) -> Result<Option<Decided>, Error> {
    let shelves = store::stock::lock(conn, &wanted(wants).into_iter().collect::<Vec<_>>()).await?;
    let orders: BTreeSet<Uuid> = wants.iter().map(|want| want.order_id).collect();
    let holds = store::hold::lock(conn, &orders.into_iter().collect::<Vec<_>>()).await?;

    let mut round = Round::new(now, shelves, holds);
    let holds = wants.iter().map(|want| round.decide(want)).collect();

    let of = |ids: &[Uuid]| -> Vec<(Uuid, Hold)> {
        ids.iter().filter_map(|id| Some((*id, round.hold(id)?.clone()))).collect()
    };
    let (taken, prolonged) = (of(&round.taken), of(&round.prolonged));
    let moved = taken.iter().flat_map(|(_, hold)| &hold.lines).map(|line| line.product_id).collect();
    if !taken.is_empty() {
        if store::hold::insert(conn, &taken, now).await? < taken.len() as u64 {
            return Ok(None);
        }
        let lines: Vec<(Uuid, HeldLine)> = taken
            .into_iter()
            .flat_map(|(order_id, hold)| hold.lines.into_iter().map(move |line| (order_id, line)))
            .collect();
        store::stock::apply(conn, &movements(&lines, Kind::Hold, -1), now).await?;
    }
    if !prolonged.is_empty() {
        store::hold::prolong(conn, &prolonged, now).await?;
    }
    Ok(Some(Decided { holds, moved }))
}

/// The products that somebody wants, in the order of their ids.
fn wanted(wants: &[Want]) -> BTreeSet<i64> {
    let baskets = wants.iter().filter_map(|want| want.basket.as_ref());
    baskets.flat_map(Basket::lines).map(|line| line.product_id).collect()
}

/// The products of some lines.
fn products(lines: &[(Uuid, HeldLine)]) -> Vec<i64> {
    let ids: BTreeSet<i64> = lines.iter().map(|(_, line)| line.product_id).collect();
    ids.into_iter().collect()
}

fn movements(lines: &[(Uuid, HeldLine)], kind: Kind, sign: i64) -> Vec<Movement<'static>> {
    let movements = lines.iter().map(|(order_id, line)| Movement {
        product_id: line.product_id,
        kind,
        quantity: sign * line.quantity,
        order_id: Some(*order_id),
        reason: None,
    });
    movements.collect()
}

fn refusal(refused: Refused) -> Error {
    match refused {
        Refused::Unavailable(lines) => Error::ProductUnavailable(lines),
        Refused::OutOfStock(lines) => Error::OutOfStock(lines),
        Refused::Over => Error::OrderExpired,
        Refused::Different => Error::OtherLines,
        Refused::Unknown => Error::NotFound,
    }
}
