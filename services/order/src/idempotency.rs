//! Idempotency keys of operations with more than one transaction. A request claims its key, does its work, and saves
//! its response in the transaction of the effect. A later request with the key gets that response. When
//! the lease of a dead process ends, the next request takes the claim over. It keeps the order id, and so adopts the
//! unfinished work.

use std::time::Duration;

use prost::Message as _;
use shoppee_kit::{
    batch_queue::{BatchQueue, Limits},
    idempotency::KEY_TTL,
    pg::{self, PgPool},
    tasks::Tasks,
};
use shoppee_proto::order::v1::Order;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    OrderContext,
    decline::Decline,
    error::Error,
    order_id,
    store::{
        checkout::ClaimTimes,
        idempotency::{self as store, ClaimRow, IdempotencyKey, Lease},
        idempotent_request,
    },
};

/// Bounds the wait for an earlier request with the same key.
pub const MAX_CLAIM_WAIT: Duration = Duration::from_millis(1500);
pub const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// A response as it is stored under a key.
#[derive(Clone, Debug, PartialEq)]
pub enum StoredResponse {
    Order(Box<Order>),
    Declined(Decline),
}

impl StoredResponse {
    /// Encodes one byte for the kind, then the content.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Order(order) => [b"o", order.encode_to_vec().as_slice()].concat(),
            Self::Declined(decline) => [b"d", decline.message().as_bytes()].concat(),
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, Error> {
        match bytes.split_first() {
            Some((b'o', order)) => Order::decode(order).ok().map(|order| Self::Order(Box::new(order))),
            Some((b'd', message)) => Decline::ALL
                .into_iter()
                .find(|decline| decline.message().as_bytes() == message)
                .map(Self::Declined),
            _ => None,
        }
        .ok_or(Error::Internal("an undecodable stored response"))
    }
}

/// The result of a claim.
#[derive(Debug)]
pub enum Claim {
    /// The request has to do the work, for the order that the lease names.
    Acquired(Lease),
    Completed(StoredResponse),
}

/// Claims a key for `ttl`, or waits for the request that holds it. The loop reads the key without a lock, as the
/// transaction of that request may have locked it.
#[tracing::instrument(
    name = "idempotency.claim",
    skip_all,
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn claim(
    context: &OrderContext,
    key: &IdempotencyKey,
    fingerprint: Vec<u8>,
    order_id: Uuid,
    ttl: Duration,
) -> Result<Claim, Error> {
    let deadline = tokio::time::Instant::now() + MAX_CLAIM_WAIT;
    let mut may_be_free = true;
    loop {
        let now = context.clock.now();
        let mut conn = context.pool.acquire().await?;
        let claimed_until = now + ttl;
        let expired_before = now - KEY_TTL;
        let row = ClaimRow { fingerprint: fingerprint.clone(), order_id, claimed_until, answer: None };
        if may_be_free
            && store::claim(&mut conn, key, &row, now, expired_before)
                .await
                .map_err(in_progress_or_database)?
        {
            let lease = Lease { key: key.clone(), order_id, until: claimed_until };
            return Ok(Claim::Acquired(lease));
        }
        let times = ClaimTimes { now, claimed_until, expired_before };
        let current = store::find(&mut conn, key).await?;
        may_be_free = current.is_none();
        if let Some(current) = current
            && let Some(claim) = resume(&mut conn, key, &fingerprint, current, times).await?
        {
            return Ok(claim);
        }
        drop(conn);
        if tokio::time::Instant::now() >= deadline {
            return Err(Error::InProgress);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Returns the response of the request that has claimed a key, or its claim if the lease has ended. Returns `None` while
/// that request runs.
pub async fn resume(
    conn: &mut PgConnection,
    key: &IdempotencyKey,
    fingerprint: &[u8],
    current: ClaimRow,
    times: ClaimTimes,
) -> Result<Option<Claim>, Error> {
    if current.fingerprint != fingerprint {
        return Err(Error::KeyReused);
    }
    if let Some(response) = current.answer {
        return StoredResponse::decode(&response).map(|response| Some(Claim::Completed(response)));
    }
    let is_taken_over = current.claimed_until <= times.now
        && store::take_over(conn, key, current.claimed_until, times.claimed_until)
            .await
            .map_err(in_progress_or_database)?;
    Ok(is_taken_over.then(|| {
        let (order_id, until) = (current.order_id, times.claimed_until);
        Claim::Acquired(Lease { key: key.clone(), order_id, until })
    }))
}

/// Maps a lock timeout: the transaction of an earlier request has locked the key.
pub fn in_progress_or_database(error: sqlx::Error) -> Error {
    if pg::is_lock_timeout(&error) { Error::InProgress } else { error.into() }
}

/// Saves the response in the transaction of the effect. Returns `false` if the claim was lost; then the transaction
/// must not be committed.
pub async fn save_response(
    conn: &mut PgConnection,
    key: &IdempotencyKey,
    order_id: Uuid,
    response: &StoredResponse,
) -> Result<bool, Error> {
    Ok(store::save_response(conn, key, order_id, &response.encode()).await?)
}

/// Returns the response that another process has saved under the key of a lost claim: a recovery, or the former holder
/// of the lease. The error of the request is then not its response. Returns `None` if that is not certain.
pub async fn find_response(
    context: &OrderContext,
    lease: &Lease,
    fingerprint: &[u8],
) -> Option<StoredResponse> {
    let reading = async {
        let mut conn = context.pool.acquire().await?;
        let row = store::find(&mut conn, &lease.key).await?.filter(|row| row.fingerprint == fingerprint);
        row.and_then(|row| row.answer).map(|answer| StoredResponse::decode(&answer)).transpose()
    };
    reading.await.unwrap_or_else(|error: Error| {
        tracing::debug!(%error, "stored response not read");
        None
    })
}

/// Releases a claim after an error. A definitive error deletes the key, so that it can be used again. Otherwise the
/// claim stays, and the next request adopts it at once. Returns `false` if the claim was lost, or if that is not
/// certain: see [`find_response`].
pub async fn release(context: &OrderContext, lease: &Lease, error: &Error) -> bool {
    end_claim(context, lease, (!is_definitive(error)).then_some(lease.order_id)).await
}

/// Ends a claim under which nothing was committed, so that its order id is never adopted again. The order's stock may
/// be released only if this returns `true`: otherwise another request may have adopted or committed the order.
pub async fn retire(context: &OrderContext, lease: &Lease, error: &Error) -> bool {
    // A definitive error deletes the key. Otherwise the next request continues at once, with another order id.
    let next = || order_id::new(context.clock.now());
    end_claim(context, lease, (!is_definitive(error)).then(next)).await
}

/// Replaces the order id of a claim. Returns `false` if another request has taken the key over.
pub async fn replace_order(context: &OrderContext, lease: &mut Lease, order_id: Uuid) -> Result<bool, Error> {
    let mut conn = context.pool.acquire().await?;
    let is_replaced = store::replace_order(&mut conn, lease, order_id, lease.until).await?;
    if is_replaced {
        lease.order_id = order_id;
    }
    Ok(is_replaced)
}

/// Ends a claim: passes it to the next request with the order id `next`, or deletes the key. Returns `false` if that is
/// not certain.
async fn end_claim(context: &OrderContext, lease: &Lease, next: Option<Uuid>) -> bool {
    let Some(order_id) = next else {
        return context.released_keys.submit(lease.clone()).await.unwrap_or_default();
    };
    let replacing = async {
        let mut conn = context.pool.acquire().await?;
        store::replace_order(&mut conn, lease, order_id, context.clock.now().min(lease.until)).await
    };
    replacing.await.unwrap_or_else(|error| {
        // The lease ends by itself.
        tracing::debug!(%error, "idempotency claim not released");
        false
    })
}

/// The queue of claims to delete, in batches: in a flash sale each refused checkout has one.
pub type ReleasedKeys = BatchQueue<Lease, bool>;

/// Starts the queue. One batch at a time, so that no two batches wait for each other's rows.
pub fn start_releases(pool: &PgPool, tasks: &Tasks) -> ReleasedKeys {
    let limits = Limits { capacity: 4096, batch_size: 128, workers: 1 };
    let pool = pool.clone();
    BatchQueue::start("released keys", limits, tasks, move |leases: Vec<Lease>| {
        let pool = pool.clone();
        async move {
            let deleting = async {
                let mut conn = pool.acquire().await?;
                store::release(&mut conn, &leases).await
            };
            deleting.await.unwrap_or_else(|error| {
                // The leases end by themselves.
                tracing::debug!(%error, "idempotency claims not released");
                vec![false; leases.len()]
            })
        }
    })
}

/// Reports whether an error means for certain that nothing was committed.
pub fn is_definitive(error: &Error) -> bool {
    match error {
        Error::Unavailable | Error::Database(_) | Error::Internal(_) | Error::InProgress => false,
        Error::Invalid(_)
        | Error::Malformed(_)
        | Error::NotFound
        | Error::Forbidden
        | Error::InvalidTransition { .. }
        | Error::OrderExpired
        | Error::CartEmpty
        | Error::ProductUnavailable(_)
        | Error::OutOfStock(_)
        | Error::PriceChanged { .. }
        | Error::TooManyUnpaid
        | Error::TooManyUnpaidUnits
        | Error::PaymentDeclined { .. }
        | Error::KeyReused
        | Error::CursorOutOfRange => true,
    }
}

/// Deletes expired keys of both kinds, and returns the larger of the two numbers.
pub async fn delete_expired(context: &OrderContext, now: OffsetDateTime) -> Result<u64, Error> {
    let mut conn = context.pool.acquire().await?;
    let deleted = store::delete_expired(&mut conn, now - KEY_TTL).await?;
    Ok(deleted.max(idempotent_request::delete_expired(&mut conn, now - KEY_TTL).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_response_survives_encoding() {
        let order =
            StoredResponse::Order(Box::new(Order { id: "x".to_owned(), total: 7, ..Order::default() }));
        for response in Decline::ALL.map(StoredResponse::Declined).into_iter().chain([order]) {
            assert_eq!(StoredResponse::decode(&response.encode()).unwrap(), response);
        }
        assert!(StoredResponse::decode(b"").is_err() && StoredResponse::decode(b"dother").is_err());
    }
}
