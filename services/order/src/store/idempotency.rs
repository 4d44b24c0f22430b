//! Idempotency keys: who runs under one, and what was answered.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

/// What a key belongs to.
#[derive(Clone, Debug)]
pub struct KeyOf {
    pub user_id: i64,
    /// The operation, and what it is done to.
    pub scope: String,
    pub key: String,
}

#[derive(Clone, Debug)]
pub struct Claim {
    pub fingerprint: Vec<u8>,
    pub order_id: Uuid,
    pub claimed_until: OffsetDateTime,
    pub answer: Option<Vec<u8>>,
}

/// Claims a key that nobody has, or only somebody before `forgotten`; `false` where somebody has.
pub async fn claim(
    conn: &mut PgConnection,
    of: &KeyOf,
    claim: &Claim,
    now: OffsetDateTime,
    forgotten: OffsetDateTime,
) -> sqlx::Result<bool> {
    let claimed = sqlx::query!(
        "insert into orders.idempotency as held (user_id, scope, key, fingerprint, order_id, claimed_until, created_at)
         values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (user_id, scope, key) do update
         set fingerprint = excluded.fingerprint, order_id = excluded.order_id, answer = null,
             claimed_until = excluded.claimed_until, created_at = excluded.created_at
         where held.created_at < $8",
        of.user_id,
        of.scope,
        of.key,
        claim.fingerprint,
        claim.order_id,
        claim.claimed_until,
        now,
        forgotten
    )
    .execute(conn)
    .await?;
    Ok(claimed.rows_affected() == 1)
}

pub async fn find(conn: &mut PgConnection, of: &KeyOf) -> sqlx::Result<Option<Claim>> {
    sqlx::query_as!(
        Claim,
        "select fingerprint, order_id, claimed_until, answer from orders.idempotency
         where user_id = $1 and scope = $2 and key = $3",
        of.user_id,
        of.scope,
        of.key
    )
    .fetch_optional(conn)
    .await
}

/// Takes over a claim whose time ended at `ended` without an answer; `false` where another was quicker.
pub async fn take_over(
    conn: &mut PgConnection,
    of: &KeyOf,
    ended: OffsetDateTime,
    claimed_until: OffsetDateTime,
) -> sqlx::Result<bool> {
    let taken = sqlx::query!(
        "update orders.idempotency set claimed_until = $5
         where user_id = $1 and scope = $2 and key = $3 and claimed_until = $4 and answer is null",
        of.user_id,
        of.scope,
        of.key,
        ended,
        claimed_until
    )
    .execute(conn)
    .await?;
    Ok(taken.rows_affected() == 1)
}

/// A key that a request holds. A request that takes it over holds it until another time, so that this one changes
/// nothing more.
#[derive(Clone, Debug)]
pub struct Lease {
    pub of: KeyOf,
    /// The order that the key names.
    pub order_id: Uuid,
    pub until: OffsetDateTime,
}

/// Puts another order id under a key that is still held, until `until`. `true`: from now on no transaction can commit an
/// order under the first id, as [`answer`] asks for the id in the same row. `false`: another holds the key, or an order
/// was committed.
pub async fn replace_order(
    conn: &mut PgConnection,
    lease: &Lease,
    order_id: Uuid,
    until: OffsetDateTime,
) -> sqlx::Result<bool> {
    let replaced = sqlx::query!(
        "update orders.idempotency set order_id = $6, claimed_until = $7
         where user_id = $1 and scope = $2 and key = $3 and order_id = $4 and claimed_until = $5 and answer is null",
        lease.of.user_id,
        lease.of.scope,
        lease.of.key,
        lease.order_id,
        lease.until,
        order_id,
        until
    )
    .execute(conn)
    .await?;
    Ok(replaced.rows_affected() == 1)
}

/// Keeps the answer, unless somebody else has given one: `false`, and the transaction must not be committed.
pub async fn answer(
    conn: &mut PgConnection,
    of: &KeyOf,
    order_id: Uuid,
    answer: &[u8],
) -> sqlx::Result<bool> {
    let kept = sqlx::query!(
        "update orders.idempotency set answer = $5
         where user_id = $1 and scope = $2 and key = $3 and order_id = $4 and answer is null",
        of.user_id,
        of.scope,
        of.key,
        order_id,
        answer
    )
    .execute(conn)
    .await?;
    Ok(kept.rows_affected() == 1)
}

/// Forgets a claim that had no effect. `true`: no transaction can commit under it any more, as for [`replace_order`].
pub async fn forget(conn: &mut PgConnection, lease: &Lease) -> sqlx::Result<bool> {
    let forgotten = sqlx::query!(
        "delete from orders.idempotency
         where user_id = $1 and scope = $2 and key = $3 and order_id = $4 and claimed_until = $5 and answer is null",
        lease.of.user_id,
        lease.of.scope,
        lease.of.key,
        lease.order_id,
        lease.until
    )
    .execute(conn)
    .await?;
    Ok(forgotten.rows_affected() == 1)
}

/// Forgets a key without an answer, in the transaction that refuses what was done under it, whichever request holds it.
pub async fn forget_unanswered(conn: &mut PgConnection, of: &KeyOf, order_id: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from orders.idempotency
         where user_id = $1 and scope = $2 and key = $3 and order_id = $4 and answer is null",
        of.user_id,
        of.scope,
        of.key,
        order_id
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Forgets what is older than `before`, `limit` keys at a time; how many there were.
pub async fn sweep(conn: &mut PgConnection, before: OffsetDateTime, limit: i64) -> sqlx::Result<u64> {
    let swept = sqlx::query!(
        "delete from orders.idempotency where (user_id, scope, key) in (
             select user_id, scope, key from orders.idempotency where created_at < $1
             order by created_at limit $2 for update skip locked)",
        before,
        limit
    )
    .execute(conn)
    .await?;
    Ok(swept.rows_affected())
}
