//! One key, one effect, one answer. A request with a key claims it, does its work, and keeps its answer in the same
//! transaction as the effect; whoever comes later with the same key gets that answer. A claim whose holder died is
//! taken over when its time ends, with the same order id, so that what the dead one had begun is adopted.

use std::time::Duration;

use prost::Message as _;
use sha2::{Digest as _, Sha256};
use shoppee_proto::order::v1::Order;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    Orders,
    error::Error,
    store::idempotency::{self as store, Claim, KeyOf},
};

/// How long an answer is kept.
pub const KEPT: Duration = Duration::from_hours(24);
/// How long a second request waits for the first before it is told to come again.
const WAIT: Duration = Duration::from_millis(1500);
const LOOK: Duration = Duration::from_millis(25);

/// What was answered, as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Order(Box<Order>),
    Declined(&'static str),
}

/// What the provider can say; the answer's text must come back as it was.
const DECLINED: [&str; 2] = [crate::payment::DECLINED, crate::payment::INSUFFICIENT_FUNDS];

impl Answer {
    /// One byte for the kind, then the content.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Order(order) => [b"o", order.encode_to_vec().as_slice()].concat(),
            Self::Declined(why) => [b"d", why.as_bytes()].concat(),
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, Error> {
        match bytes.split_first() {
            Some((b'o', order)) => Order::decode(order).ok().map(|order| Self::Order(Box::new(order))),
            Some((b'd', why)) => {
                DECLINED.into_iter().find(|known| known.as_bytes() == why).map(Self::Declined)
            }
            _ => None,
        }
        .ok_or(Error::Broken("a kept answer"))
    }
}

/// How a request with a key may go on.
#[derive(Debug)]
pub enum Turn {
    /// It is ours to do, for this order id.
    Ours(Uuid),
    /// It was done.
    Done(Answer),
}

/// What a body means, whatever the order of its keys or its white space.
pub fn fingerprint(meaning: &impl serde::Serialize) -> Vec<u8> {
    // Strings and numbers always serialise.
    Sha256::digest(serde_json::to_vec(meaning).unwrap_or_default()).to_vec()
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
        if store::claim(&mut conn, of, &ours, now, now - KEPT).await? {
            return Ok(Turn::Ours(order_id));
        }
        if let Some(theirs) = store::find(&mut conn, of).await? {
            if theirs.fingerprint != fingerprint {
                return Err(Error::KeyReused);
            }
            if let Some(answer) = theirs.answer {
                return Answer::decode(&answer).map(Turn::Done);
            }
            if theirs.claimed_until <= now
                && store::take_over(&mut conn, of, theirs.claimed_until, now + lease).await?
            {
                return Ok(Turn::Ours(theirs.order_id));
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

/// After a failure: a refusal is forgotten, so that the key may try again; where it is not known what happened, the
/// claim stays and the next try goes on with it at once.
pub async fn give_up(orders: &Orders, of: &KeyOf, error: &Error) {
    let given_up = async {
        let mut conn = orders.pool.acquire().await?;
        if is_known(error) {
            store::forget(&mut conn, of).await
        } else {
            store::let_go(&mut conn, of, orders.clock.now()).await
        }
    };
    if let Err(error) = given_up.await {
        // The claim's time ends by itself.
        tracing::debug!(%error, "claim not given up");
    }
}

/// Whether an error says for certain that nothing was done.
fn is_known(error: &Error) -> bool {
    match error {
        Error::Unavailable | Error::Database(_) | Error::Broken(_) | Error::InProgress => false,
        Error::Invalid(_)
        | Error::Malformed(_)
        | Error::NotFound
        | Error::Forbidden
        | Error::InvalidTransition
        | Error::OrderExpired
        | Error::CartEmpty
        | Error::ProductUnavailable(_)
        | Error::OutOfStock(_)
        | Error::PriceChanged(_)
        | Error::TooManyUnpaid
        | Error::PaymentDeclined { .. }
        | Error::KeyReused => true,
    }
}

/// Forgets keys older than a day; how many.
pub async fn sweep(orders: &Orders, now: OffsetDateTime, limit: i64) -> Result<u64, Error> {
    let mut conn = orders.pool.acquire().await?;
    Ok(store::sweep(&mut conn, now - KEPT, limit).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_comes_back_as_it_was() {
        let order = Answer::Order(Box::new(Order { id: "x".to_owned(), total: 7, ..Order::default() }));
        for answer in [order, Answer::Declined(DECLINED[0]), Answer::Declined(DECLINED[1])] {
            assert_eq!(Answer::decode(&answer.encode()).unwrap(), answer);
        }
        assert!(Answer::decode(b"").is_err() && Answer::decode(b"dother").is_err());
    }
}
