//! Payment attempts and their refunds.

use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

#[derive(Clone, Debug)]
pub struct Attempt {
    pub user_id: i64,
    pub order_id: Uuid,
    pub id: Uuid,
    pub key: Option<String>,
    /// The number of the attempt within its order, a fencing token for holds.
    pub fence: i64,
    /// The number of leases for recovery.
    pub tries: i32,
}

/// The duration of a lease: doubled with each try, up to a cap.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub first: Duration,
    pub max: Duration,
}

/// Inserts an open attempt, which recovery leases from `next_try_at` on. Returns the attempt's fence, or `None` if an
/// attempt is open. The caller holds the lock of the order's row.
pub async fn insert(
    conn: &mut PgConnection,
    attempt: &Attempt,
    now: OffsetDateTime,
    next_try_at: OffsetDateTime,
) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar!(
        "insert into orders.payment_attempt (user_id, order_id, id, state, key, started_at, next_try_at, fence)
         select $1, $2, $3, 'charging', $4, $5, $6, count(*) + 1
         from orders.payment_attempt as earlier where earlier.user_id = $1 and earlier.order_id = $2
         on conflict (user_id, order_id) where state = 'charging' do nothing
         returning fence",
        attempt.user_id,
        attempt.order_id,
        attempt.id,
        attempt.key,
        now,
        next_try_at
    )
    .fetch_optional(conn)
    .await
}

/// Changes the state of an attempt. Returns `false` if it is no longer in the state `from`.
pub async fn set_state(
    conn: &mut PgConnection,
    attempt: &Attempt,
    from: &str,
    to: &str,
) -> sqlx::Result<bool> {
    let result = sqlx::query!(
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
    Ok(result.rows_affected() == 1)
}

/// Turns the attempt of an order in the state `from` into a refund; only the attempt `id`, if given. Workers lease the
/// refund from `next_try_at` on.
pub async fn request_refund(
    conn: &mut PgConnection,
    (user_id, order_id): (i64, Uuid),
    id: Option<Uuid>,
    from: &str,
    now: OffsetDateTime,
    next_try_at: OffsetDateTime,
) -> sqlx::Result<Option<Attempt>> {
    sqlx::query_as!(
        Attempt,
        "update orders.payment_attempt
         set state = 'refunding', refund_requested_at = $4, next_try_at = $5, tries = 1
         where user_id = $1 and order_id = $2 and state = $3 and ($6::uuid is null or id = $6)
         returning user_id, order_id, id, key, fence, tries",
        user_id,
        order_id,
        from,
        now,
        next_try_at,
        id
    )
    .fetch_optional(conn)
    .await
}

/// Leases attempts that are due in `state`, the longest due first. Other workers skip them until the lease ends.
pub async fn lease_due(
    conn: &mut PgConnection,
    state: &str,
    now: OffsetDateTime,
    backoff: Backoff,
    limit: i64,
) -> sqlx::Result<Vec<Attempt>> {
    sqlx::query_as!(
        Attempt,
        "update orders.payment_attempt as attempt
         set tries = attempt.tries + 1,
             next_try_at = $2 + make_interval(secs => least($3 * power(2::float8, least(attempt.tries, 20)), $4))
         from (select user_id, order_id, id from orders.payment_attempt
               where state = $1 and state in ('charging', 'refunding') and next_try_at <= $2
               order by next_try_at limit $5 for update skip locked) as due
         where attempt.user_id = due.user_id and attempt.order_id = due.order_id and attempt.id = due.id
         returning attempt.user_id, attempt.order_id, attempt.id, attempt.key, attempt.fence, attempt.tries",
        state,
        now,
        backoff.first.as_secs_f64(),
        backoff.max.as_secs_f64(),
        limit
    )
    .fetch_all(conn)
    .await
}

/// Returns the orders with an open attempt, of orders whose rows the caller has locked.
pub async fn find_charging(conn: &mut PgConnection, orders: &[(i64, Uuid)]) -> sqlx::Result<Vec<Uuid>> {
    let (users, ids): (Vec<i64>, Vec<Uuid>) = orders.iter().copied().unzip();
    sqlx::query_scalar!(
        "select attempt.order_id
         from unnest($1::bigint[], $2::uuid[]) as wanted (user_id, order_id)
         join orders.payment_attempt as attempt
           on attempt.user_id = wanted.user_id and attempt.order_id = wanted.order_id
         where attempt.state = 'charging'",
        &users,
        &ids
    )
    .fetch_all(conn)
    .await
}
