//! Idempotency keys of registrations. A key is scoped to the e-mail address of its account.

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::account::Email;

/// An account that was registered under a key.
#[derive(Debug)]
pub struct Registered {
    pub id: i64,
    pub username: String,
    pub email: String,
    pub password_hash: String,
    pub password_version: i64,
    pub created_at: OffsetDateTime,
}

/// Inserts the key of a registration, in its transaction.
pub async fn insert(
    conn: &mut PgConnection,
    user_id: i64,
    key: &str,
    at: OffsetDateTime,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into auth.registration_key (user_id, key, created_at) values ($1, $2, $3)",
        user_id,
        key,
        at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Finds the account of an address that was registered under this key after `since`.
pub async fn find(
    conn: &mut PgConnection,
    email: &Email,
    key: &str,
    since: OffsetDateTime,
) -> Result<Option<Registered>, sqlx::Error> {
    sqlx::query_as!(
        Registered,
        r#"select account.id, username, email, password_hash, password_version, account.created_at
           from auth.account account
           join auth.registration_key registered on registered.user_id = account.id
           where lower(email collate "C") = lower($1 collate "C")
             and registered.key = $2 and registered.created_at > $3"#,
        email.as_str(),
        key,
        since,
    )
    .fetch_optional(conn)
    .await
}

/// Deletes up to `limit` keys from before `before`, and returns their number.
pub async fn delete_expired(
    conn: &mut PgConnection,
    before: OffsetDateTime,
    limit: i64,
) -> Result<u64, sqlx::Error> {
    let result = sqlx::query!(
        "delete from auth.registration_key
         where user_id in (
             select user_id from auth.registration_key where created_at < $1
             order by created_at limit $2 for update skip locked)",
        before,
        limit,
    )
    .execute(conn)
    .await?;
    Ok(result.rows_affected())
}
