//! Answers kept under idempotency keys in the transaction of their effect.

use shoppee_kit::idempotency::{MAX_ANSWERS_PER_USER, Stored};
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::idempotency::KeyOf;

/// Claims a key, in the transaction of the effect, that has not been used since `forgotten`; else what is stored. Waits for
/// a transaction that has claimed it and is not over.
pub async fn claim(
    conn: &mut PgConnection,
    of: &KeyOf,
    fingerprint: &[u8],
    now: OffsetDateTime,
    forgotten: OffsetDateTime,
) -> sqlx::Result<Option<Stored>> {
    let claimed = sqlx::query!(
        "insert into orders.idempotent_request as stored (user_id, scope, key, fingerprint, answer, created_at)
         values ($1, $2, $3, $4, '', $5)
         on conflict (user_id, scope, key) do update
         set fingerprint = excluded.fingerprint, answer = excluded.answer, created_at = excluded.created_at
         where stored.created_at < $6",
        of.user_id,
        of.scope,
        of.key,
        fingerprint,
        now,
        forgotten
    )
    .execute(&mut *conn)
    .await?;
    if claimed.rows_affected() == 1 {
        return Ok(None);
    }
    find(conn, of, forgotten).await
}

/// Returns the request that is stored under a key since `forgotten`.
pub async fn find(
    conn: &mut PgConnection,
    of: &KeyOf,
    forgotten: OffsetDateTime,
) -> sqlx::Result<Option<Stored>> {
    sqlx::query_as!(
        Stored,
        "select fingerprint, answer from orders.idempotent_request
         where user_id = $1 and scope = $2 and key = $3 and created_at >= $4",
        of.user_id,
        of.scope,
        of.key,
        forgotten
    )
    .fetch_optional(conn)
    .await
}

/// Stores the answer of a claimed key, and forgets what is older than the newest of the user.
pub async fn answer(conn: &mut PgConnection, of: &KeyOf, answer: &[u8]) -> sqlx::Result<()> {
    sqlx::query!(
        "with surplus as (
             delete from orders.idempotent_request where (user_id, scope, key) in (
                 select user_id, scope, key from orders.idempotent_request
                 where user_id = $1 order by created_at desc offset $5 limit 10)
         )
         update orders.idempotent_request set answer = $4 where user_id = $1 and scope = $2 and key = $3",
        of.user_id,
        of.scope,
        of.key,
        answer,
        MAX_ANSWERS_PER_USER
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Forgets what is older than `before`, `limit` keys at a time; how many there were.
pub async fn sweep(conn: &mut PgConnection, before: OffsetDateTime, limit: i64) -> sqlx::Result<u64> {
    let swept = sqlx::query!(
        "delete from orders.idempotent_request where (user_id, scope, key) in (
             select user_id, scope, key from orders.idempotent_request where created_at < $1
             order by created_at limit $2 for update skip locked)",
        before,
        limit
    )
    .execute(conn)
    .await?;
    Ok(swept.rows_affected())
}
