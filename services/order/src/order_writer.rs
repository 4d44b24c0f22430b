//! The group commit of checkouts. All checkouts that wait when a worker is idle are prepared, or written, by one
//! statement, which is a transaction of its own. An order that is refused does not affect the others of its batch.

use std::{collections::HashSet, hash::Hash, sync::Arc, time::Duration};

use shoppee_kit::{
    batch_queue::{BatchQueue, Limits},
    database_clock::DatabaseClock,
    idempotency::KEY_TTL,
    pg::{self, PgPool},
    tasks::Tasks,
};
use sqlx::PgConnection;
use tokio::sync::{Mutex, MutexGuard};

use crate::{
    error::Error,
    store::checkout::{self as store, ClaimTimes, NewOrder, Preparation, Prepared, Written},
};

/// The lease of a key, longer than a request can take.
const IDEMPOTENCY_LEASE: Duration = Duration::from_secs(10);
/// While one batch waits for the disk, the next one is decided.
const LIMITS: Limits = Limits { capacity: 4096, batch_size: 128, workers: 2 };

/// The failure of a checkout.
#[derive(Debug)]
pub enum CheckoutError {
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

/// The number of locks. Users whose ids have the same remainder share one.
const USER_LOCKS: u64 = 4096;

/// The queues; cheap to clone.
#[derive(Clone, Debug)]
pub struct OrderWriter {
    user_locks: Arc<[Mutex<()>]>,
    preparations: BatchQueue<Preparation, Result<(Prepared, ClaimTimes), Error>>,
    orders: BatchQueue<NewOrder, Result<Written, CheckoutError>>,
}

impl OrderWriter {
    pub fn start(pool: &PgPool, clock: &DatabaseClock, tasks: &Tasks) -> Self {
        let (writing, preparing, clock) = (pool.clone(), pool.clone(), clock.clone());
        Self {
            user_locks: (0..USER_LOCKS).map(|_| Mutex::new(())).collect(),
            preparations: BatchQueue::start("checkouts", LIMITS, tasks, move |batch| {
                let (pool, clock) = (preparing.clone(), clock.clone());
                async move { prepare(&pool, &clock, batch).await }
            }),
            orders: BatchQueue::start("new orders", LIMITS, tasks, move |batch| {
                let pool = writing.clone();
                async move { insert(&pool, batch).await }
            }),
        }
    }

    /// Locks the user's orders in this process: concurrent orders of one user would invalidate each other's account.
    /// Returns true if the call had to wait: the user's account may have changed.
    pub async fn lock(&self, user_id: i64) -> (MutexGuard<'_, ()>, bool) {
        let index = user_id.rem_euclid(USER_LOCKS.cast_signed()).unsigned_abs();
        let lock = &self.user_locks[usize::try_from(index).unwrap_or_default()];
        match lock.try_lock() {
            Ok(guard) => (guard, false),
            Err(_) => (lock.lock().await, true),
        }
    }

    /// Claims the key of a checkout, and reads the account and the cart of its user.
    pub async fn prepare(&self, checkout: Preparation) -> Result<(Prepared, ClaimTimes), Error> {
        self.preparations.submit(checkout).await.unwrap_or(Err(Error::Unavailable))
    }

    /// Writes a new order, or nothing.
    pub async fn insert(&self, order: NewOrder) -> Result<Written, CheckoutError> {
        // A full queue does not take the order, but a batch that is lost may have been written.
        let lost = || Err(CheckoutError::OutcomeUnknown(Error::Unavailable));
        self.orders.submit(order).await.unwrap_or_else(lost)
    }
}

async fn prepare(
    pool: &PgPool,
    clock: &DatabaseClock,
    batch: Vec<Preparation>,
) -> Vec<Result<(Prepared, ClaimTimes), Error>> {
    let mut responses = Vec::with_capacity(batch.len());
    let claim = |checkout: &Preparation| Some((checkout.user_id, checkout.key.as_ref()?.0.clone()));
    for (indexes, round) in split(batch, claim) {
        let now = clock.now();
        let times = ClaimTimes { now, claimed_until: now + IDEMPOTENCY_LEASE, expired_before: now - KEY_TTL };
        let preparing = async {
            let mut conn = pool.acquire().await?;
            store::prepare(&mut conn, &round, times).await
        };
        let prepared = match preparing.await {
            Ok(prepared) => prepared.into_iter().map(|prepared| Ok((prepared, times))).collect(),
            Err(error) => errors(error, round.len(), |error| error),
        };
        responses.extend(indexes.into_iter().zip(prepared));
    }
    in_order(responses)
}

async fn insert(pool: &PgPool, batch: Vec<NewOrder>) -> Vec<Result<Written, CheckoutError>> {
    let mut responses = Vec::with_capacity(batch.len());
    for (indexes, round) in split(batch, |order| Some(order.row.user_id)) {
        responses.extend(indexes.into_iter().zip(insert_round(pool, &round).await));
    }
    in_order(responses)
}

async fn insert_round(pool: &PgPool, round: &[NewOrder]) -> Vec<Result<Written, CheckoutError>> {
    let mut conn = match pool.acquire().await {
        Ok(conn) => conn,
        Err(error) => return errors(error, round.len(), CheckoutError::NotCommitted),
    };
    match store::insert(&mut conn, round).await {
        Ok(written) => written.into_iter().map(Ok).collect(),
        Err(error) if pg::may_have_committed(&error) => {
            errors(error, round.len(), CheckoutError::OutcomeUnknown)
        }
        // One order that the schema refuses, or that waits for a lock, must not refuse the others.
        Err(error) if round.len() > 1 && (pg::is_lock_timeout(&error) || !pg::is_unavailable(&error)) => {
            let mut outcomes = Vec::with_capacity(round.len());
            for order in round {
                outcomes.push(insert_one(&mut conn, order).await);
            }
            outcomes
        }
        Err(error) => errors(error, round.len(), CheckoutError::NotCommitted),
    }
}

async fn insert_one(conn: &mut PgConnection, order: &NewOrder) -> Result<Written, CheckoutError> {
    match store::insert(conn, std::slice::from_ref(order)).await {
        Ok(written) => {
            written.first().copied().ok_or_else(|| Error::Internal("an order without outcome").into())
        }
        Err(error) if pg::may_have_committed(&error) => Err(CheckoutError::OutcomeUnknown(error.into())),
        Err(error) => Err(CheckoutError::NotCommitted(error.into())),
    }
}

/// Returns one error for each of `count` requests. The first names the cause, which one log line tells.
fn errors<R, E>(error: sqlx::Error, count: usize, convert: impl Fn(Error) -> E) -> Vec<Result<R, E>> {
    let others = (1..count).map(|_| Error::Unavailable);
    std::iter::once(error.into()).chain(others).map(|error| Err(convert(error))).collect()
}

/// Splits a batch into rounds, in each of which no two requests have the same identity. Returns the requests of each
/// round with their indexes in the batch.
fn split<T, I: Eq + Hash>(batch: Vec<T>, identity: impl Fn(&T) -> Option<I>) -> Vec<(Vec<usize>, Vec<T>)> {
    let mut rounds = Vec::new();
    let mut pending: Vec<(usize, T)> = batch.into_iter().enumerate().collect();
    while !pending.is_empty() {
        let mut identities = HashSet::new();
        let (round, later): (Vec<_>, Vec<_>) = pending
            .into_iter()
            .partition(|(_, request)| identity(request).is_none_or(|identity| identities.insert(identity)));
        rounds.push(round.into_iter().unzip());
        pending = later;
    }
    rounds
}

/// Returns the responses in the order of their requests.
fn in_order<R>(mut responses: Vec<(usize, R)>) -> Vec<R> {
    responses.sort_unstable_by_key(|(index, _)| *index);
    responses.into_iter().map(|(_, response)| response).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_has_no_two_requests_of_one_identity() {
        let batch =
            vec![(Some(1), 'a'), (Some(2), 'b'), (Some(1), 'c'), (None, 'd'), (Some(1), 'e'), (None, 'f')];
        let rounds = split(batch, |(identity, _)| *identity);
        let indexes: Vec<_> = rounds.iter().map(|(indexes, _)| indexes.clone()).collect();
        assert_eq!(indexes, [vec![0, 1, 3, 5], vec![2], vec![4]]);
        let responses = rounds.into_iter().flat_map(|(indexes, round)| indexes.into_iter().zip(round));
        let letters: String = in_order(responses.collect()).into_iter().map(|(_, letter)| letter).collect();
        assert_eq!(letters, "abcdef");
    }
}
