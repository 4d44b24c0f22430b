//! Accounts.

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::account::{Email, LoginName, Role, Username};

#[derive(Clone, Debug)]
pub struct Account {
    pub id: i64,
    pub username: String,
    pub email: String,
    pub role: Role,
    pub disabled: bool,
    pub password_version: i64,
    pub created_at: OffsetDateTime,
}

/// An account as its table has it.
struct Row {
    id: i64,
    username: String,
    email: String,
    role: String,
    disabled: bool,
    password_version: i64,
    created_at: OffsetDateTime,
}

impl TryFrom<Row> for Account {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> Result<Self, sqlx::Error> {
        let role = Role::from_word(&row.role).ok_or_else(|| sqlx::Error::Decode("unknown role".into()))?;
        Ok(Self {
            id: row.id,
            username: row.username,
            email: row.email,
            role,
            disabled: row.disabled,
            password_version: row.password_version,
            created_at: row.created_at,
        })
    }
}

/// An account with what its password is checked against.
#[derive(Debug)]
pub struct Credentials {
    pub id: i64,
    pub password_hash: String,
    pub password_version: i64,
}

/// An account to be.
#[derive(Debug)]
pub struct New<'a> {
    pub username: &'a Username,
    pub email: &'a Email,
    pub password_hash: &'a str,
    pub role: Role,
    pub created_at: OffsetDateTime,
}

/// The constraints that `insert` can run into.
pub const USERNAME_KEY: &str = "account_username_key";
pub const EMAIL_KEY: &str = "account_email_key";

pub async fn insert(conn: &mut PgConnection, new: &New<'_>) -> Result<Account, sqlx::Error> {
    sqlx::query_as!(
        Row,
        "insert into auth.account (username, email, password_hash, role, created_at)
         values ($1, $2, $3, $4, $5)
         returning id, username, email, role, disabled, password_version, created_at",
        new.username.as_str(),
        new.email.as_str(),
        new.password_hash,
        new.role.word(),
        new.created_at,
    )
    .fetch_one(conn)
    .await?
    .try_into()
}

/// Whether an account has this name or this address.
pub async fn exists(
    conn: &mut PgConnection,
    username: &Username,
    email: &Email,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select exists (
               select from auth.account
               where lower(username collate "C") = lower($1 collate "C")
                  or lower(email collate "C") = lower($2 collate "C")
           ) as "exists!""#,
        username.as_str(),
        email.as_str(),
    )
    .fetch_one(conn)
    .await
}

/// The account that somebody who calls himself `name` signs in to.
pub async fn credentials_of(
    conn: &mut PgConnection,
    name: &LoginName,
) -> Result<Option<Credentials>, sqlx::Error> {
    sqlx::query_as!(
        Credentials,
        r#"select id, password_hash, password_version from auth.account
           where lower(username collate "C") = $1 or lower(email collate "C") = $1"#,
        name.as_str(),
    )
    .fetch_optional(conn)
    .await
}

pub async fn credentials(conn: &mut PgConnection, id: i64) -> Result<Option<Credentials>, sqlx::Error> {
    sqlx::query_as!(
        Credentials,
        "select id, password_hash, password_version from auth.account where id = $1",
        id,
    )
    .fetch_optional(conn)
    .await
}

pub async fn get(conn: &mut PgConnection, id: i64) -> Result<Option<Account>, sqlx::Error> {
    sqlx::query_as!(
        Row,
        "select id, username, email, role, disabled, password_version, created_at
         from auth.account where id = $1",
        id,
    )
    .fetch_optional(conn)
    .await?
    .map(Account::try_from)
    .transpose()
}

/// The account as it will stay until the transaction ends: for one that lets it in.
pub async fn get_to_admit(conn: &mut PgConnection, id: i64) -> Result<Option<Account>, sqlx::Error> {
    sqlx::query_as!(
        Row,
        "select id, username, email, role, disabled, password_version, created_at
         from auth.account where id = $1 for share",
        id,
    )
    .fetch_optional(conn)
    .await?
    .map(Account::try_from)
    .transpose()
}

/// The same, for one that changes it: waits for those who are being let in.
pub async fn get_to_change(conn: &mut PgConnection, id: i64) -> Result<Option<Account>, sqlx::Error> {
    sqlx::query_as!(
        Row,
        "select id, username, email, role, disabled, password_version, created_at
         from auth.account where id = $1 for no key update",
        id,
    )
    .fetch_optional(conn)
    .await?
    .map(Account::try_from)
    .transpose()
}

/// The admins who can sign in, and none comes or goes until the transaction ends.
pub async fn lock_active_admins(conn: &mut PgConnection) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar!(
        "select id from auth.account where role = 'admin' and not disabled order by id for no key update"
    )
    .fetch_all(conn)
    .await
}

pub async fn set_role_and_disabled(
    conn: &mut PgConnection,
    id: i64,
    role: Role,
    disabled: bool,
) -> Result<(), sqlx::Error> {
    sqlx::query!("update auth.account set role = $2, disabled = $3 where id = $1", id, role.word(), disabled)
        .execute(conn)
        .await?;
    Ok(())
}

/// Another password.
pub async fn change_password(
    conn: &mut PgConnection,
    id: i64,
    password_hash: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update auth.account set password_hash = $2, password_version = password_version + 1 where id = $1",
        id,
        password_hash,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The same password, hashed anew; nothing where it was changed in between.
pub async fn rehash(
    conn: &mut PgConnection,
    id: i64,
    password_version: i64,
    password_hash: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update auth.account set password_hash = $3 where id = $1 and password_version = $2",
        id,
        password_version,
        password_hash,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Which accounts a list is of.
#[derive(Debug, Default)]
pub struct Filter {
    /// Part of the username or the address, in any case.
    pub part: Option<String>,
    pub role: Option<Role>,
    /// Only accounts older than this one.
    pub before: Option<i64>,
    /// Only accounts newer than this one.
    pub after: Option<i64>,
}

/// The account that has `count` newer ones below `before`; `None` where there are not so many.
pub async fn nth_before(
    conn: &mut PgConnection,
    before: Option<i64>,
    count: i64,
) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar!(
        "select id from auth.account where id < $1 order by id desc offset $2 limit 1",
        before.unwrap_or(i64::MAX),
        count,
    )
    .fetch_optional(conn)
    .await
}

/// Newest first.
pub async fn list(conn: &mut PgConnection, filter: &Filter, limit: i64) -> Result<Vec<Account>, sqlx::Error> {
    let rows = sqlx::query_as!(
        Row,
        r#"select id, username, email, role, disabled, password_version, created_at
           from auth.account
           where ($1::text is null
                  or strpos(lower(username collate "C"), lower($1 collate "C")) > 0
                  or strpos(lower(email collate "C"), lower($1 collate "C")) > 0)
             and ($2::text is null or role = $2)
             and ($3::bigint is null or id < $3)
             and ($5::bigint is null or id > $5)
           order by id desc
           limit $4"#,
        filter.part,
        filter.role.map(Role::word),
        filter.before,
        limit,
        filter.after,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Account::try_from).collect()
}
