//! Service accounts, and the idempotency keys of the requests that give them secrets.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::session::RevokedSession;

#[derive(Debug)]
pub struct ServiceAccount {
    pub id: Uuid,
    pub name: String,
    pub scopes: Vec<String>,
    pub created_at: OffsetDateTime,
    pub expires_at: Option<OffsetDateTime>,
    pub last_used_at: Option<OffsetDateTime>,
    pub previous_secret_expires_at: Option<OffsetDateTime>,
    pub revoked_at: Option<OffsetDateTime>,
}

/// A service account to insert.
#[derive(Debug)]
pub struct NewServiceAccount<'a> {
    pub id: Uuid,
    pub name: &'a str,
    pub scopes: &'a [String],
    pub secret_hash: &'a [u8],
    pub created_at: OffsetDateTime,
    pub expires_at: Option<OffsetDateTime>,
}

pub async fn insert(
    conn: &mut PgConnection,
    new: &NewServiceAccount<'_>,
) -> Result<ServiceAccount, sqlx::Error> {
    sqlx::query_as!(
        ServiceAccount,
        "insert into auth.service_account (id, name, scopes, secret_hash, created_at, expires_at)
         values ($1, $2, $3, $4, $5, $6)
         returning id, name, scopes, created_at, expires_at, last_used_at, previous_secret_expires_at, revoked_at",
        new.id,
        new.name,
        new.scopes,
        new.secret_hash,
        new.created_at,
        new.expires_at,
    )
    .fetch_one(conn)
    .await
}

pub async fn get(conn: &mut PgConnection, id: Uuid) -> Result<Option<ServiceAccount>, sqlx::Error> {
    sqlx::query_as!(
        ServiceAccount,
        "select id, name, scopes, created_at, expires_at, last_used_at, previous_secret_expires_at, revoked_at
         from auth.service_account where id = $1",
        id,
    )
    .fetch_optional(conn)
    .await
}

/// Returns an account, and locks it for a change.
pub async fn get_for_update(
    conn: &mut PgConnection,
    id: Uuid,
) -> Result<Option<ServiceAccount>, sqlx::Error> {
    sqlx::query_as!(
        ServiceAccount,
        "select id, name, scopes, created_at, expires_at, last_used_at, previous_secret_expires_at, revoked_at
         from auth.service_account where id = $1 for no key update",
        id,
    )
    .fetch_optional(conn)
    .await
}

/// Lists accounts, newest first, that are older than `before`.
pub async fn list(
    conn: &mut PgConnection,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<ServiceAccount>, sqlx::Error> {
    sqlx::query_as!(
        ServiceAccount,
        "select id, name, scopes, created_at, expires_at, last_used_at, previous_secret_expires_at, revoked_at
         from auth.service_account
         where $1::uuid is null or id < $1
         order by id desc
         limit $2",
        before,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// Replaces the secret of an account that is not revoked. The secret until now stays valid until `previous_expires_at`.
pub async fn rotate(
    conn: &mut PgConnection,
    id: Uuid,
    secret_hash: &[u8],
    previous_expires_at: OffsetDateTime,
) -> Result<Option<ServiceAccount>, sqlx::Error> {
    sqlx::query_as!(
        ServiceAccount,
        "update auth.service_account
         set secret_hash = $2, previous_secret_hash = secret_hash, previous_secret_expires_at = $3
         where id = $1 and revoked_at is null
         returning id, name, scopes, created_at, expires_at, last_used_at, previous_secret_expires_at, revoked_at",
        id,
        secret_hash,
        previous_expires_at,
    )
    .fetch_optional(conn)
    .await
}

/// Revokes an account; `None` if it is revoked already, or does not exist.
pub async fn revoke(
    conn: &mut PgConnection,
    id: Uuid,
    now: OffsetDateTime,
    tokens_expire_at: OffsetDateTime,
) -> Result<Option<RevokedSession>, sqlx::Error> {
    sqlx::query_as!(
        RevokedSession,
        r#"update auth.service_account
           set revoked_at = $2, revoked_tx = pg_current_xact_id()::text::bigint, tokens_expire_at = $3
           where id = $1 and revoked_at is null
           returning id, tokens_expire_at as "access_expires_at!""#,
        id,
        now,
        tokens_expire_at,
    )
    .fetch_optional(conn)
    .await
}

/// The credentials of an account that is not revoked.
#[derive(Debug)]
pub struct ServiceCredentials {
    pub name: String,
    pub scopes: Vec<String>,
    pub expires_at: Option<OffsetDateTime>,
    pub secret_hash: Vec<u8>,
    pub previous_secret_hash: Option<Vec<u8>>,
    pub previous_secret_expires_at: Option<OffsetDateTime>,
}

pub async fn find_credentials(
    conn: &mut PgConnection,
    id: Uuid,
) -> Result<Option<ServiceCredentials>, sqlx::Error> {
    sqlx::query_as!(
        ServiceCredentials,
        "select name, scopes, expires_at, secret_hash, previous_secret_hash, previous_secret_expires_at
         from auth.service_account where id = $1 and revoked_at is null",
        id,
    )
    .fetch_optional(conn)
    .await
}

/// Records the issue of a token. Returns `false` if the account got `burst` tokens at once, and less than
/// `interval_seconds` for each have passed since.
pub async fn record_token(
    conn: &mut PgConnection,
    id: Uuid,
    now: OffsetDateTime,
    burst: i32,
    interval_seconds: f64,
) -> Result<bool, sqlx::Error> {
    let result = sqlx::query!(
        "update auth.service_account
         set last_used_at = $2, next_token_at = greatest(next_token_at, $2::timestamptz) + make_interval(secs => $4::float8)
         where id = $1
           and (next_token_at is null or next_token_at <= $2::timestamptz + make_interval(secs => $4::float8 * ($3::int - 1)))",
        id,
        now,
        burst,
        interval_seconds,
    )
    .execute(conn)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// The key of an admin's request.
#[derive(Clone, Copy, Debug)]
pub struct RequestKey<'a> {
    pub admin_id: i64,
    pub scope: &'a str,
    pub key: &'a str,
}

/// The stored row of a key.
#[derive(Debug)]
pub struct StoredRequest {
    pub fingerprint: Vec<u8>,
    /// The response without the secret.
    pub answer: Vec<u8>,
    pub secret_salt: Vec<u8>,
    pub secret_hash: Vec<u8>,
}

/// Claims a key for the transaction of its effect. Returns `false` if it was used after `since`. Waits for a transaction
/// that uses the key.
pub async fn claim_key(
    conn: &mut PgConnection,
    key: RequestKey<'_>,
    request: &StoredRequest,
    now: OffsetDateTime,
    since: OffsetDateTime,
) -> Result<bool, sqlx::Error> {
    let result = sqlx::query!(
        "insert into auth.service_account_key as used
             (admin_id, scope, key, fingerprint, answer, secret_salt, secret_hash, created_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8)
         on conflict (admin_id, scope, key) do update
             set fingerprint = excluded.fingerprint, answer = excluded.answer, secret_salt = excluded.secret_salt,
                 secret_hash = excluded.secret_hash, created_at = excluded.created_at
             where used.created_at <= $9",
        key.admin_id,
        key.scope,
        key.key,
        request.fingerprint,
        request.answer,
        request.secret_salt,
        request.secret_hash,
        now,
        since,
    )
    .execute(conn)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Saves the response to the request that claimed the key.
pub async fn save_answer(
    conn: &mut PgConnection,
    key: RequestKey<'_>,
    answer: &[u8],
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update auth.service_account_key set answer = $4 where admin_id = $1 and scope = $2 and key = $3",
        key.admin_id,
        key.scope,
        key.key,
        answer,
    )
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn find_key(
    conn: &mut PgConnection,
    key: RequestKey<'_>,
) -> Result<Option<StoredRequest>, sqlx::Error> {
    sqlx::query_as!(
        StoredRequest,
        "select fingerprint, answer, secret_salt, secret_hash from auth.service_account_key
         where admin_id = $1 and scope = $2 and key = $3",
        key.admin_id,
        key.scope,
        key.key,
    )
    .fetch_optional(conn)
    .await
}

/// Deletes up to `limit` keys from before `before`, and returns their number.
pub async fn delete_expired_keys(
    conn: &mut PgConnection,
    before: OffsetDateTime,
    limit: i64,
) -> Result<u64, sqlx::Error> {
    let result = sqlx::query!(
        "delete from auth.service_account_key
         where (admin_id, scope, key) in (
             select admin_id, scope, key from auth.service_account_key where created_at < $1
             order by created_at limit $2 for update skip locked)",
        before,
        limit,
    )
    .execute(conn)
    .await?;
    Ok(result.rows_affected())
}
