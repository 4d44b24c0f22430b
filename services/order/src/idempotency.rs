//! One key, one effect, one answer. A request with a key claims it, does its work, and keeps its answer in the same
//! transaction as the effect; whoever comes later with the same key gets that answer. A claim whose holder died is
//! taken over when its time ends, with the same order id, so that what the dead one had begun is adopted.

use std::time::Duration;

use prost::Message as _;
use shoppee_kit::idempotency::KEY_TTL;
use shoppee_proto::order::v1::Order;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    Orders,
    error::Error,
    provider::Decline,
    store::{
        idempotency::{self as store, Claim, KeyOf, Lease},
        idempotent_request,
    },
};

/// How long a second request waits for the first before it is told to come again.
const WAIT: Duration = Duration::from_millis(1500);
const LOOK: Duration = Duration::from_millis(25);

/// What was answered, as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Order(Box<Order>),
    Declined(Decline),
}

impl Answer {
    /// One byte for the kind, then the content.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Order(order) => [b"o", order.encode_to_vec().as_slice()].concat(),
            Self::Declined(decline) => [b"d", decline.text().as_bytes()].concat(),
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, Error> {
        match bytes.split_first() {
            Some((b'o', order)) => Order::decode(order).ok().map(|order| Self::Order(Box::new(order))),
            Some((b'd', why)) => {
                Decline::ALL.into_iter().find(|known| known.text().as_bytes() == why).map(Self::Declined)
            }
            _ => None,
        }
        .ok_or(Error::Broken("a kept answer"))
    }
}

/// How a request with a key may go on.
#[derive(Debug)]
pub enum Turn {
    /// The request does the work, for the order that the lease names. It was begun before where `adopted`.
    Ours { lease: Lease, adopted: bool },
    /// It was done.
    Done(Answer),
}

/// Claims a key for `lease`, or waits for whoever holds it.
#[tracing::instrument(
    name = "idempotency.claim",
    skip_all,
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn claim(
    orders: &Orders,
    of: &KeyOf,
    fingerprint: Vec<u8>,
    order_id: Uuid,
    lease: Duration,
) -> Result<Turn, Error> {
    let give_up = tokio::time::Instant::now() + WAIT;
    loop {
        let now = orders.clock.now();
        let mut conn = orders.pool.acquire().await?;
        let ours =
            Claim { fingerprint: fingerprint.clone(), order_id, claimed_until: now + lease, answer: None };
        let until = ours.claimed_until;
        let lease_on = |order_id| Lease { of: of.clone(), order_id, until };
        if store::claim(&mut conn, of, &ours, now, now - KEY_TTL).await? {
            return Ok(Turn::Ours { lease: lease_on(order_id), adopted: false });
        }
        if let Some(theirs) = store::find(&mut conn, of).await? {
            if theirs.fingerprint != fingerprint {
                return Err(Error::KeyReused);
            }
            if let Some(answer) = theirs.answer {
                return Answer::decode(&answer).map(Turn::Done);
            }
            if theirs.claimed_until <= now
                && store::take_over(&mut conn, of, theirs.claimed_until, until).await?
            {
                return Ok(Turn::Ours { lease: lease_on(theirs.order_id), adopted: true });
            }
        }
        drop(conn);
        if tokio::time::Instant::now() >= give_up {
            return Err(Error::InProgress);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Keeps the answer in the transaction of the effect; `false` where the claim is not ours any more, and a second effect
/// must not be committed.
pub async fn keep(
    conn: &mut PgConnection,
    of: &KeyOf,
    order_id: Uuid,
    answer: &Answer,
) -> Result<bool, Error> {
    Ok(store::answer(conn, of, order_id, &answer.encode()).await?)
}

/// Ends a claim after a failure: a refusal is forgotten, so that the key may try again. Where the outcome is not known,
/// the claim stays, and the next try goes on with it at once.
pub async fn give_up(orders: &Orders, lease: &Lease, error: &Error) {
    if is_known(error) {
        end(orders, lease, None).await;
    } else {
        end(orders, lease, Some(lease.order_id)).await;
    }
}

/// Ends a claim under which nothing was committed, so that its order id is never adopted again. Only where this returns
/// `true` may the order's stock be released: another request may have adopted, or committed, the order.
pub async fn retire(orders: &Orders, lease: &Lease, error: &Error) -> bool {
    // A refusal is forgotten; after a failure the next try goes on at once, with another order.
    end(orders, lease, (!is_known(error)).then(Uuid::now_v7)).await
}

/// Goes on with another order under the key; `false` where another request has taken the key over.
pub async fn renew(orders: &Orders, lease: &mut Lease, order_id: Uuid) -> Result<bool, Error> {
    let mut conn = orders.pool.acquire().await?;
    let renewed = store::replace_order(&mut conn, lease, order_id, lease.until).await?;
    if renewed {
        lease.order_id = order_id;
    }
    Ok(renewed)
}

/// Gives a key up: to the next request, with the order `next`, or for good. `false` where that is not certain.
async fn end(orders: &Orders, lease: &Lease, next: Option<Uuid>) -> bool {
    let ended = async {
        let mut conn = orders.pool.acquire().await?;
        match next {
            Some(order_id) => {
                store::replace_order(&mut conn, lease, order_id, orders.clock.now().min(lease.until)).await
            }
            None => store::forget(&mut conn, lease).await,
        }
    };
    ended.await.unwrap_or_else(|error| {
        // The claim's time ends by itself.
        tracing::debug!(%error, "claim not given up");
        false
    })
}

/// Whether an error says for certain that nothing was done.
fn is_known(error: &Error) -> bool {
    match error {
        Error::Unavailable | Error::Database(_) | Error::Broken(_) | Error::InProgress => false,
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
        | Error::KeyReused => true,
    }
}

/// Forgets keys older than a day; how many of the kind of which there were more.
pub async fn sweep(orders: &Orders, now: OffsetDateTime, limit: i64) -> Result<u64, Error> {
    let mut conn = orders.pool.acquire().await?;
    let swept = store::sweep(&mut conn, now - KEY_TTL, limit).await?;
    Ok(swept.max(idempotent_request::sweep(&mut conn, now - KEY_TTL, limit).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_comes_back_as_it_was() {
        let order = Answer::Order(Box::new(Order { id: "x".to_owned(), total: 7, ..Order::default() }));
        for answer in Decline::ALL.map(Answer::Declined).into_iter().chain([order]) {
            assert_eq!(Answer::decode(&answer.encode()).unwrap(), answer);
        }
        assert!(Answer::decode(b"").is_err() && Answer::decode(b"dother").is_err());
    }
}
