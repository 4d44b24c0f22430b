//! Idempotency keys, their answers, and the progress of a batch.

use std::collections::BTreeMap;

use shoppee_kit::idempotency::{KEY_TTL, MAX_RESPONSES_PER_USER, StoredResponse};
use sqlx::{PgConnection, postgres::types::PgInterval};
use uuid::Uuid;

/// An idempotency key.
#[derive(Clone, Debug)]
pub struct Key {
    pub user_id: i64,
    /// The operation.
    pub scope: &'static str,
    pub value: String,
    /// The fingerprint of what the request means.
    pub fingerprint: Vec<u8>,
}

/// The user, the scope and the value of a key.
pub type KeyId<'a> = (i64, &'a str, &'a str);

impl Key {
    pub fn id(&self) -> KeyId<'_> {
        (self.user_id, self.scope, &self.value)
    }
}

fn interval(duration: std::time::Duration) -> PgInterval {
    let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    PgInterval { months: 0, days: 0, microseconds }
}

/// Claims a key that is free or has expired; waits for a transaction that holds it. Returns `false` if it was
/// used before.
pub async fn claim(conn: &mut PgConnection, key: &Key) -> sqlx::Result<bool> {
    let claimed = sqlx::query!(
        "insert into product.idempotency as held (user_id, scope, key, fingerprint)
         values ($1, $2, $3, $4)
         on conflict (user_id, scope, key) do update
         set fingerprint = excluded.fingerprint, answer = '', claim = null, claimed_until = null,
             created_at = excluded.created_at
         where held.created_at < clock_timestamp() - $5::interval",
        key.user_id,
        key.scope,
        key.value,
        key.fingerprint,
        interval(KEY_TTL),
    )
    .execute(conn)
    .await?
    .rows_affected();
    Ok(claimed > 0)
}

/// Returns the stored record of a key.
pub async fn fetch(conn: &mut PgConnection, key: &Key) -> sqlx::Result<Option<StoredResponse>> {
    sqlx::query_as!(
        StoredResponse,
        "select fingerprint, answer from product.idempotency where user_id = $1 and scope = $2 and key = $3",
        key.user_id,
        key.scope,
        key.value,
    )
    .fetch_optional(conn)
    .await
}

/// Returns those of the keys that are stored and have not expired.
pub async fn fetch_many<'a>(
    conn: &mut PgConnection,
    keys: &[&'a Key],
) -> sqlx::Result<BTreeMap<KeyId<'a>, StoredResponse>> {
    if keys.is_empty() {
        return Ok(BTreeMap::new());
    }
    let KeyColumns { users, scopes, values } = KeyColumns::new(keys);
    let rows = sqlx::query!(
        r#"select k.index as "index!", stored.fingerprint, stored.answer
           from unnest($1::bigint[], $2::text[], $3::text[]) with ordinality as k (user_id, scope, key, index)
           join product.idempotency stored
               on (stored.user_id, stored.scope, stored.key) = (k.user_id, k.scope, k.key)
           where stored.created_at >= clock_timestamp() - $4::interval"#,
        &users,
        &scopes,
        &values,
        interval(KEY_TTL),
    )
    .fetch_all(conn)
    .await?;
    let stored = rows.into_iter().filter_map(|row| {
        let key = usize::try_from(row.index - 1).ok().and_then(|index| keys.get(index))?;
        Some((key.id(), StoredResponse { fingerprint: row.fingerprint, answer: row.answer }))
    });
    Ok(stored.collect())
}

/// Inserts answers under keys that are free or have expired; waits for a transaction that holds one of them. Returns the
/// number of inserted answers.
pub async fn insert_answers(
    conn: &mut PgConnection,
    keys: &[&Key],
    answers: &[Vec<u8>],
) -> sqlx::Result<u64> {
    let KeyColumns { users, scopes, values } = KeyColumns::new(keys);
    let fingerprints: Vec<Vec<u8>> = keys.iter().map(|key| key.fingerprint.clone()).collect();
    let inserted = sqlx::query!(
        "insert into product.idempotency as held (user_id, scope, key, fingerprint, answer)
         select user_id, scope, key, fingerprint, answer
         from unnest($1::bigint[], $2::text[], $3::text[], $4::bytea[], $5::bytea[])
              as a (user_id, scope, key, fingerprint, answer)
         order by user_id, scope, key
         on conflict (user_id, scope, key) do update
         set fingerprint = excluded.fingerprint, answer = excluded.answer, claim = null, claimed_until = null,
             created_at = excluded.created_at
         where held.created_at < clock_timestamp() - $6::interval",
        &users,
        &scopes,
        &values,
        &fingerprints,
        answers,
        interval(KEY_TTL),
    )
    .execute(conn)
    .await?;
    Ok(inserted.rows_affected())
}

/// The columns of some keys.
struct KeyColumns {
    users: Vec<i64>,
    scopes: Vec<String>,
    values: Vec<String>,
}

impl KeyColumns {
    fn new(keys: &[&Key]) -> Self {
        Self {
            users: keys.iter().map(|key| key.user_id).collect(),
            scopes: keys.iter().map(|key| key.scope.to_owned()).collect(),
            values: keys.iter().map(|key| key.value.clone()).collect(),
        }
    }
}

/// Saves the answer of a claimed key.
pub async fn save_answer(conn: &mut PgConnection, key: &Key, answer: &[u8]) -> sqlx::Result<()> {
    sqlx::query!(
        "update product.idempotency set answer = $4 where user_id = $1 and scope = $2 and key = $3",
        key.user_id,
        key.scope,
        key.value,
        answer,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Deletes the oldest answers of a user above [`MAX_RESPONSES_PER_USER`].
pub async fn delete_excess(conn: &mut PgConnection, user_id: i64) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from product.idempotency
         where (user_id, scope, key) in (
             select user_id, scope, key
             from product.idempotency
             where user_id = $1
             order by created_at desc
             offset $2
             for update skip locked
         )",
        user_id,
        MAX_RESPONSES_PER_USER,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Deletes up to `limit` keys that are older than a day. Returns the number of deleted keys.
pub async fn delete_expired(conn: &mut PgConnection, limit: i64) -> sqlx::Result<u64> {
    let deleted = sqlx::query!(
        "delete from product.idempotency
         where (user_id, scope, key) in (
             select user_id, scope, key
             from product.idempotency
             where created_at < clock_timestamp() - $1::interval
             order by created_at
             limit $2
             for update skip locked
         )",
        interval(KEY_TTL),
        limit,
    )
    .execute(conn)
    .await?;
    Ok(deleted.rows_affected())
}

/// Acquires the lease of a batch. Returns `false` if another process has it or the batch is completed.
pub async fn acquire_lease(
    conn: &mut PgConnection,
    key: &Key,
    claim: Uuid,
    lease: std::time::Duration,
) -> sqlx::Result<bool> {
    let updated = sqlx::query!(
        "update product.idempotency
         set claim = $4, claimed_until = clock_timestamp() + $5::interval
         where user_id = $1 and scope = $2 and key = $3 and answer = ''
           and (claimed_until is null or claimed_until < clock_timestamp())",
        key.user_id,
        key.scope,
        key.value,
        claim,
        interval(lease),
    )
    .execute(conn)
    .await?
    .rows_affected();
    Ok(updated > 0)
}

/// Releases the lease, so that the next request with the key can continue at once.
pub async fn release_lease(conn: &mut PgConnection, key: &Key, claim: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "update product.idempotency set claimed_until = null
         where user_id = $1 and scope = $2 and key = $3 and claim = $4",
        key.user_id,
        key.scope,
        key.value,
        claim,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Locks the lease until the transaction ends. Returns `false` if another process has taken it.
pub async fn lock_lease(conn: &mut PgConnection, key: &Key, claim: Uuid) -> sqlx::Result<bool> {
    let owned = sqlx::query_scalar!(
        r#"select true as "held!" from product.idempotency
           where user_id = $1 and scope = $2 and key = $3 and claim = $4
           for share"#,
        key.user_id,
        key.scope,
        key.value,
        claim,
    )
    .fetch_optional(conn)
    .await?;
    Ok(owned.is_some())
}

/// A row of a batch that changed its product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoneRow {
    pub row_index: i32,
    pub product_id: i64,
    pub version: i64,
    pub revision: i64,
}

/// Returns the rows of a batch that are done.
pub async fn fetch_progress(conn: &mut PgConnection, key: &Key) -> sqlx::Result<Vec<DoneRow>> {
    sqlx::query_as!(
        DoneRow,
        "select row_index, product_id, version, revision
         from product.batch_progress
         where user_id = $1 and scope = $2 and key = $3",
        key.user_id,
        key.scope,
        key.value,
    )
    .fetch_all(conn)
    .await
}

/// Records rows as done, in the transaction that applies them.
pub async fn insert_progress(conn: &mut PgConnection, key: &Key, rows: &[DoneRow]) -> sqlx::Result<()> {
    let indices: Vec<i32> = rows.iter().map(|row| row.row_index).collect();
    let products: Vec<i64> = rows.iter().map(|row| row.product_id).collect();
    let versions: Vec<i64> = rows.iter().map(|row| row.version).collect();
    let revisions: Vec<i64> = rows.iter().map(|row| row.revision).collect();
    sqlx::query!(
        "insert into product.batch_progress (user_id, scope, key, row_index, product_id, version, revision)
         select $1, $2, $3, row_index, product_id, version, revision
         from unnest($4::integer[], $5::bigint[], $6::bigint[], $7::bigint[])
              as r (row_index, product_id, version, revision)",
        key.user_id,
        key.scope,
        key.value,
        &indices,
        &products,
        &versions,
        &revisions,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Saves the answer of a batch and deletes its progress. Returns `false` if another process has the lease.
pub async fn finish(conn: &mut PgConnection, key: &Key, claim: Uuid, answer: &[u8]) -> sqlx::Result<bool> {
    let finished = sqlx::query!(
        "with finished as (
             update product.idempotency set answer = $5, claim = null, claimed_until = null
             where user_id = $1 and scope = $2 and key = $3 and claim = $4
             returning user_id, scope, key
         )
         delete from product.batch_progress progress
         using finished
         where (progress.user_id, progress.scope, progress.key) = (finished.user_id, finished.scope, finished.key)",
        key.user_id,
        key.scope,
        key.value,
        claim,
        answer,
    )
    .execute(conn)
    .await?;
    Ok(finished.rows_affected() > 0)
}
