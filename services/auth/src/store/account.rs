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

/// The columns of an account, before their conversion to [`Account`].
struct AccountRow {
    id: i64,
    username: String,
    email: String,
    role: String,
    disabled: bool,
    password_version: i64,
    created_at: OffsetDateTime,
}

impl TryFrom<AccountRow> for Account {
    type Error = sqlx::Error;

    fn try_from(row: AccountRow) -> Result<Self, sqlx::Error> {
        let role = row.role.parse().map_err(|_| sqlx::Error::Decode("unknown role".into()))?;
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

/// The credentials of an account.
#[derive(Debug)]
pub struct Credentials {
    pub id: i64,
    pub password_hash: String,
    pub password_version: i64,
}

/// An account to insert.
#[derive(Debug)]
pub struct NewAccount<'a> {
    pub username: &'a Username,
    pub email: &'a Email,
    pub password_hash: &'a str,
    pub role: Role,
    pub created_at: OffsetDateTime,
}

/// The unique constraints that [`insert`] can violate.
pub const USERNAME_KEY: &str = "account_username_key";
pub const EMAIL_KEY: &str = "account_email_key";

pub async fn insert(conn: &mut PgConnection, new: &NewAccount<'_>) -> Result<Account, sqlx::Error> {
    sqlx::query_as!(
        AccountRow,
        "insert into auth.account (username, email, password_hash, role, created_at)
         values ($1, $2, $3, $4, $5)
         returning id, username, email, role, disabled, password_version, created_at",
        new.username.as_str(),
        new.email.as_str(),
        new.password_hash,
        new.role.as_str(),
        new.created_at,
    )
    .fetch_one(conn)
    .await?
    .try_into()
}

/// Reports whether an account has this name or this address.
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

/// Returns the credentials of the account with this username or address.
pub async fn find_credentials_by_name(
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

pub async fn find_credentials(conn: &mut PgConnection, id: i64) -> Result<Option<Credentials>, sqlx::Error> {
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
        AccountRow,
        "select id, username, email, role, disabled, password_version, created_at
         from auth.account where id = $1",
        id,
    )
    .fetch_optional(conn)
    .await?
    .map(Account::try_from)
    .transpose()
}

/// Returns an account, and locks it against changes until the transaction ends.
pub async fn get_for_share(conn: &mut PgConnection, id: i64) -> Result<Option<Account>, sqlx::Error> {
    sqlx::query_as!(
        AccountRow,
        "select id, username, email, role, disabled, password_version, created_at
         from auth.account where id = $1 for share",
        id,
    )
    .fetch_optional(conn)
    .await?
    .map(Account::try_from)
    .transpose()
}

/// Returns an account, and locks it for a change. Waits for transactions that hold [`get_for_share`]'s lock.
pub async fn get_for_update(conn: &mut PgConnection, id: i64) -> Result<Option<Account>, sqlx::Error> {
    sqlx::query_as!(
        AccountRow,
        "select id, username, email, role, disabled, password_version, created_at
         from auth.account where id = $1 for no key update",
        id,
    )
    .fetch_optional(conn)
    .await?
    .map(Account::try_from)
    .transpose()
}

/// Returns the admins whose accounts are enabled, and locks them until the transaction ends.
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
    sqlx::query!(
        "update auth.account set role = $2, disabled = $3 where id = $1",
        id,
        role.as_str(),
        disabled
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Changes the password.
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

/// Stores a new hash of the same password, unless the password was changed since.
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

/// The filter of a list of accounts.
#[derive(Debug, Default)]
pub struct Filter {
    /// A part of the username or the address, ignoring case.
    pub query: Option<String>,
    pub role: Option<Role>,
    /// Selects accounts older than this one.
    pub before: Option<i64>,
    /// Selects accounts newer than this one.
    pub after: Option<i64>,
}

/// Returns the id of the account `count` places after `before` in the list; `None` if the list is shorter.
pub async fn find_nth_before(
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

/// Lists accounts, newest first.
pub async fn list(conn: &mut PgConnection, filter: &Filter, limit: i64) -> Result<Vec<Account>, sqlx::Error> {
    let rows = sqlx::query_as!(
        AccountRow,
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
        filter.query,
        filter.role.map(Role::as_str),
        filter.before,
        limit,
        filter.after,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Account::try_from).collect()
}
