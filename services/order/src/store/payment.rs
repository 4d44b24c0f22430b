//! Attempts to pay, and the sandbox provider's books.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

#[derive(Clone, Debug)]
pub struct Attempt {
    pub user_id: i64,
    pub order_id: Uuid,
    pub id: Uuid,
    pub key: Option<String>,
}

/// Opens an attempt; `false` where one is open.
pub async fn open(conn: &mut PgConnection, attempt: &Attempt, now: OffsetDateTime) -> sqlx::Result<bool> {
    let opened = sqlx::query!(
        "insert into orders.payment_attempt (user_id, order_id, id, state, key, started_at)
         values ($1, $2, $3, 'charging', $4, $5)
         on conflict (user_id, order_id) where state = 'charging' do nothing",
        attempt.user_id,
        attempt.order_id,
        attempt.id,
        attempt.key,
        now
    )
    .execute(conn)
    .await?;
    Ok(opened.rows_affected() == 1)
}

/// Moves an attempt on; `false` where it is no longer in the state `from`.
pub async fn advance(conn: &mut PgConnection, attempt: &Attempt, from: &str, to: &str) -> sqlx::Result<bool> {
    let moved = sqlx::query!(
        "update orders.payment_attempt set state = $5
         where user_id = $1 and order_id = $2 and id = $3 and state = $4",
        attempt.user_id,
        attempt.order_id,
        attempt.id,
        from,
        to
    )
    .execute(conn)
    .await?;
    Ok(moved.rows_affected() == 1)
}

/// The attempt that paid an order, to be refunded now.
pub async fn begin_refund(
    conn: &mut PgConnection,
    user_id: i64,
    order_id: Uuid,
) -> sqlx::Result<Option<Attempt>> {
    sqlx::query_as!(
        Attempt,
        "update orders.payment_attempt set state = 'refunding'
         where user_id = $1 and order_id = $2 and state = 'captured'
         returning user_id, order_id, id, key",
        user_id,
        order_id
    )
    .fetch_optional(conn)
    .await
}

/// Attempts that whoever made them has left in `state`.
pub async fn left_open(
    conn: &mut PgConnection,
    state: &str,
    since: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<Vec<Attempt>> {
    sqlx::query_as!(
        Attempt,
        "select user_id, order_id, id, key from orders.payment_attempt
         where state = $1 and state in ('charging', 'refunding') and started_at < $2
         order by started_at limit $3",
        state,
        since,
        limit
    )
    .fetch_all(conn)
    .await
}

/// Writes an outcome into the sandbox's books unless the attempt has one; what the books say.
pub async fn sandbox_record(
    conn: &mut PgConnection,
    attempt_id: Uuid,
    outcome: &str,
    amount: i64,
    currency: &str,
    now: OffsetDateTime,
) -> sqlx::Result<String> {
    sqlx::query_scalar!(
        "insert into orders.sandbox_charge as charge (attempt_id, outcome, amount, currency, at)
         values ($1, $2, $3, $4, $5)
         on conflict (attempt_id) do update set outcome = charge.outcome
         returning outcome",
        attempt_id,
        outcome,
        amount,
        currency,
        now
    )
    .fetch_one(conn)
    .await
}

/// Gives an approved charge back; a second time changes nothing.
pub async fn sandbox_refund(conn: &mut PgConnection, attempt_id: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "update orders.sandbox_charge set outcome = 'refunded' where attempt_id = $1 and outcome = 'approved'",
        attempt_id
    )
    .execute(conn)
    .await?;
    Ok(())
}
