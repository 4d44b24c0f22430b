//! Idempotency keys of operations with more than one transaction: claims and stored responses.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

/// An idempotency key with its scope.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    pub user_id: i64,
    /// The operation and its object.
    pub scope: String,
    pub key: String,
}

/// The claim of a key, as it is stored.
#[derive(Clone, Debug)]
pub struct ClaimRow {
    pub fingerprint: Vec<u8>,
    pub order_id: Uuid,
    pub claimed_until: OffsetDateTime,
    pub answer: Option<Vec<u8>>,
}

/// Claims a key that has no claim, or one from before `expired_before`. Returns `false` if the key has a claim.
pub async fn claim(
    conn: &mut PgConnection,
    key: &IdempotencyKey,
    claim: &ClaimRow,
    now: OffsetDateTime,
    expired_before: OffsetDateTime,
) -> sqlx::Result<bool> {
    let result = sqlx::query!(
        "insert into orders.idempotency as held (user_id, scope, key, fingerprint, order_id, claimed_until, created_at)
         values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (user_id, scope, key) do update
         set fingerprint = excluded.fingerprint, order_id = excluded.order_id, answer = null,
             claimed_until = excluded.claimed_until, created_at = excluded.created_at
         where held.created_at < $8",
        key.user_id,
        key.scope,
        key.key,
        claim.fingerprint,
        claim.order_id,
        claim.claimed_until,
        now,
        expired_before
    )
    .execute(conn)
    .await?;
    Ok(result.rows_affected() == 1)
}

pub async fn find(conn: &mut PgConnection, key: &IdempotencyKey) -> sqlx::Result<Option<ClaimRow>> {
    sqlx::query_as!(
        ClaimRow,
        "select fingerprint, order_id, claimed_until, answer from orders.idempotency
         where user_id = $1 and scope = $2 and key = $3",
        key.user_id,
        key.scope,
        key.key
    )
    .fetch_optional(conn)
    .await
}

/// Takes over a claim without a response whose lease ended at `ended_at`. Returns `false` if another request was
/// faster.
pub async fn take_over(
    conn: &mut PgConnection,
    key: &IdempotencyKey,
    ended_at: OffsetDateTime,
    claimed_until: OffsetDateTime,
) -> sqlx::Result<bool> {
    let result = sqlx::query!(
        "update orders.idempotency set claimed_until = $5
         where user_id = $1 and scope = $2 and key = $3 and claimed_until = $4 and answer is null",
        key.user_id,
        key.scope,
        key.key,
        ended_at,
        claimed_until
    )
    .execute(conn)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// The lease of a key. A request that takes the key over gets another `until`, so that statements of the former holder
/// have no effect.
#[derive(Clone, Debug)]
pub struct Lease {
    pub key: IdempotencyKey,
    /// The order of the key.
    pub order_id: Uuid,
    pub until: OffsetDateTime,
}

/// Replaces the order id of a lease that still holds, and extends the lease to `until`. After `true` no transaction can
/// commit an order under the former id, as [`save_response`] checks the id in the same row. Returns `false` if another
/// request holds the key, or if an order was committed.
pub async fn replace_order(
    conn: &mut PgConnection,
    lease: &Lease,
    order_id: Uuid,
    until: OffsetDateTime,
) -> sqlx::Result<bool> {
    let result = sqlx::query!(
        "update orders.idempotency set order_id = $6, claimed_until = $7
         where user_id = $1 and scope = $2 and key = $3 and order_id = $4 and claimed_until = $5 and answer is null",
        lease.key.user_id,
        lease.key.scope,
        lease.key.key,
        lease.order_id,
        lease.until,
        order_id,
        until
    )
    .execute(conn)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Saves the response. Returns `false` if another request has saved one; then the transaction must not be committed.
pub async fn save_response(
    conn: &mut PgConnection,
    key: &IdempotencyKey,
    order_id: Uuid,
    response: &[u8],
) -> sqlx::Result<bool> {
    let result = sqlx::query!(
        "update orders.idempotency set answer = $5
         where user_id = $1 and scope = $2 and key = $3 and order_id = $4 and answer is null",
        key.user_id,
        key.scope,
        key.key,
        order_id,
        response
    )
    .execute(conn)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Deletes claims that had no effect, and reports for each, in order, whether it was deleted. After `true` no transaction
/// can commit under it, as for [`replace_order`].
pub async fn release(conn: &mut PgConnection, leases: &[Lease]) -> sqlx::Result<Vec<bool>> {
    let column =
        |get: fn(&Lease) -> &str| leases.iter().map(|lease| get(lease).to_owned()).collect::<Vec<_>>();
    sqlx::query_scalar!(
        r#"with lease as (
            select * from unnest($1::bigint[], $2::text[], $3::text[], $4::uuid[], $5::timestamptz[])
                with ordinality as l (user_id, scope, key, order_id, until, index)
        ), deleted as (
            delete from orders.idempotency as claim using lease
            where claim.user_id = lease.user_id and claim.scope = lease.scope and claim.key = lease.key
              and claim.order_id = lease.order_id and claim.claimed_until = lease.until and claim.answer is null
            returning lease.index
        )
        select exists (select from deleted where deleted.index = lease.index) as "is_deleted!"
        from lease order by index"#,
        &leases.iter().map(|lease| lease.key.user_id).collect::<Vec<_>>(),
        &column(|lease| &lease.key.scope),
        &column(|lease| &lease.key.key),
        &leases.iter().map(|lease| lease.order_id).collect::<Vec<_>>(),
        &leases.iter().map(|lease| lease.until).collect::<Vec<_>>()
    )
    .fetch_all(conn)
    .await
}

/// Ends the claim of a key without a response, whichever request holds it, so that the next request adopts it at once.
pub async fn end_unanswered(
    conn: &mut PgConnection,
    key: &IdempotencyKey,
    order_id: Uuid,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update orders.idempotency set claimed_until = least(claimed_until, $5)
         where user_id = $1 and scope = $2 and key = $3 and order_id = $4 and answer is null",
        key.user_id,
        key.scope,
        key.key,
        order_id,
        now
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Deletes a key without a response, whichever request holds it, in the transaction that rejects its operation.
pub async fn delete_unanswered(
    conn: &mut PgConnection,
    key: &IdempotencyKey,
    order_id: Uuid,
) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from orders.idempotency
         where user_id = $1 and scope = $2 and key = $3 and order_id = $4 and answer is null",
        key.user_id,
        key.scope,
        key.key,
        order_id
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The maximum number of keys that [`delete_expired`] deletes at once. Its statement repeats the number: for a parameter, a
/// generic plan assumes a tenth of the table.
pub const DELETE_BATCH: i64 = 1000;

/// Deletes up to [`DELETE_BATCH`] keys from before `before`, and returns their number.
pub async fn delete_expired(conn: &mut PgConnection, before: OffsetDateTime) -> sqlx::Result<u64> {
    let result = sqlx::query!(
        "delete from orders.idempotency where ctid = any(array(
             select ctid from orders.idempotency where created_at < $1
             order by created_at limit 1000 for update skip locked))",
        before
    )
    .execute(conn)
    .await?;
    Ok(result.rows_affected())
}
