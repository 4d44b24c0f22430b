//! Payment attempts and their refunds.

use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::idempotency::IdempotencyKey;

#[derive(Clone, Debug)]
pub struct Attempt {
    pub user_id: i64,
    pub order_id: Uuid,
    pub id: Uuid,
    pub key: Option<String>,
    /// The number of the attempt within its order, a fencing token for holds.
    pub fence: i64,
    /// The number of failed calls to the provider, without outages.
    pub tries: i32,
}

/// The delay before work that failed is repeated.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub first: Duration,
    pub max: Duration,
}

/// Inserts an open attempt, which recovery leases when its lease ends. Returns the attempt's fence. Returns `None` if an
/// attempt is open, or if an attempt under the same key has saved its response. The caller holds the lock of the order's
/// row, under which responses are saved.
pub async fn insert(
    conn: &mut PgConnection,
    attempt: &Attempt,
    key: Option<&IdempotencyKey>,
    now: OffsetDateTime,
    leased_until: OffsetDateTime,
) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar!(
        "insert into orders.payment_attempt (user_id, order_id, id, state, key, started_at, next_try_at, fence)
         select $1, $2, $3, 'charging', $4, $5, $6, count(*) + 1
         from orders.payment_attempt as earlier where earlier.user_id = $1 and earlier.order_id = $2
         having not exists (select from orders.idempotency as stored
                            where stored.user_id = $1 and stored.scope = $7 and stored.key = $4
                              and stored.answer is not null)
         on conflict (user_id, order_id) where state = 'charging' do nothing
         returning fence",
        attempt.user_id,
        attempt.order_id,
        attempt.id,
        attempt.key,
        now,
        leased_until,
        key.map(|key| key.scope.as_str())
    )
    .fetch_optional(conn)
    .await
}

/// Renews the leases of an open attempt and of its key.
pub async fn renew_lease(
    conn: &mut PgConnection,
    attempt: &Attempt,
    key: Option<&IdempotencyKey>,
    leased_until: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "with renewed as (
             update orders.payment_attempt set next_try_at = $4
             where user_id = $1 and order_id = $2 and id = $3 and state = 'charging'
             returning key
         )
         update orders.idempotency as claim set claimed_until = $4
         from renewed
         where claim.user_id = $1 and claim.scope = $5 and claim.key = renewed.key and claim.answer is null",
        attempt.user_id,
        attempt.order_id,
        attempt.id,
        leased_until,
        key.map(|key| key.scope.as_str())
    )
    .execute(conn)
    .await?;
    Ok(())
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
         set state = 'refunding', refund_requested_at = $4, next_try_at = $5, tries = 0
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

/// Leases attempts that are due in `state`, the longest due first. They are due again when the lease ends.
pub async fn lease_due(
    conn: &mut PgConnection,
    state: &str,
    now: OffsetDateTime,
    leased_until: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<Vec<Attempt>> {
    sqlx::query_as!(
        Attempt,
        "update orders.payment_attempt as attempt
         set next_try_at = $3
         from (select user_id, order_id, id from orders.payment_attempt
               where state = $1 and state in ('charging', 'refunding') and next_try_at <= $2
               order by next_try_at limit $4 for update skip locked) as due
         where attempt.user_id = due.user_id and attempt.order_id = due.order_id and attempt.id = due.id
         returning attempt.user_id, attempt.order_id, attempt.id, attempt.key, attempt.fence, attempt.tries",
        state,
        now,
        leased_until,
        limit
    )
    .fetch_all(conn)
    .await
}

/// Postpones an attempt whose call to the provider failed, and counts the failure if `is_counted`. The delay is the age
/// of the work, within the bounds of `backoff`: it doubles with each failure.
pub async fn postpone(
    conn: &mut PgConnection,
    attempt: &Attempt,
    now: OffsetDateTime,
    backoff: Backoff,
    is_counted: bool,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update orders.payment_attempt
         set tries = tries + $5::boolean::integer,
             next_try_at = $4::timestamptz
                 + least(greatest($4 - coalesce(refund_requested_at, started_at), make_interval(secs => $6)),
                         make_interval(secs => $7))
         where user_id = $1 and order_id = $2 and id = $3 and state in ('charging', 'refunding')",
        attempt.user_id,
        attempt.order_id,
        attempt.id,
        now,
        is_counted,
        backoff.first.as_secs_f64(),
        backoff.max.as_secs_f64()
    )
    .execute(conn)
    .await?;
    Ok(())
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
