//! Idempotency keys of operations with one transaction: responses stored in the transaction of their effect.

use shoppee_kit::idempotency::{MAX_RESPONSES_PER_USER, StoredResponse};
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::idempotency::IdempotencyKey;

/// Claims a key in the transaction of the effect, or returns the row that is stored under it since `expired_before`.
/// Waits for an open transaction that has claimed the key.
pub async fn claim(
    conn: &mut PgConnection,
    key: &IdempotencyKey,
    fingerprint: &[u8],
    now: OffsetDateTime,
    expired_before: OffsetDateTime,
) -> sqlx::Result<Option<StoredResponse>> {
    let result = sqlx::query!(
        "insert into orders.idempotent_request as stored (user_id, scope, key, fingerprint, answer, created_at)
         values ($1, $2, $3, $4, '', $5)
         on conflict (user_id, scope, key) do update
         set fingerprint = excluded.fingerprint, answer = excluded.answer, created_at = excluded.created_at
         where stored.created_at < $6",
        key.user_id,
        key.scope,
        key.key,
        fingerprint,
        now,
        expired_before
    )
    .execute(&mut *conn)
    .await?;
    if result.rows_affected() == 1 {
        return Ok(None);
    }
    find(conn, key, expired_before).await
}

/// Returns the request that is stored under a key since `expired_before`.
pub async fn find(
    conn: &mut PgConnection,
    key: &IdempotencyKey,
    expired_before: OffsetDateTime,
) -> sqlx::Result<Option<StoredResponse>> {
    sqlx::query_as!(
        StoredResponse,
        "select fingerprint, answer from orders.idempotent_request
         where user_id = $1 and scope = $2 and key = $3 and created_at >= $4",
        key.user_id,
        key.scope,
        key.key,
        expired_before
    )
    .fetch_optional(conn)
    .await
}

/// Saves the response of a claimed key, and deletes the user's oldest beyond [`MAX_RESPONSES_PER_USER`].
pub async fn save_response(
    conn: &mut PgConnection,
    key: &IdempotencyKey,
    response: &[u8],
) -> sqlx::Result<()> {
    sqlx::query!(
        "with surplus as (
             delete from orders.idempotent_request where (user_id, scope, key) in (
                 select user_id, scope, key from orders.idempotent_request
                 where user_id = $1 order by created_at desc offset $5 limit 10)
         )
         update orders.idempotent_request set answer = $4 where user_id = $1 and scope = $2 and key = $3",
        key.user_id,
        key.scope,
        key.key,
        response,
        MAX_RESPONSES_PER_USER
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Deletes up to [`DELETE_BATCH`](super::idempotency::DELETE_BATCH) keys from before `before`, and returns their number.
pub async fn delete_expired(conn: &mut PgConnection, before: OffsetDateTime) -> sqlx::Result<u64> {
    let result = sqlx::query!(
        "delete from orders.idempotent_request where ctid = any(array(
             select ctid from orders.idempotent_request where created_at < $1
             order by created_at limit 1000 for update skip locked))",
        before
    )
    .execute(conn)
    .await?;
    Ok(result.rows_affected())
}
