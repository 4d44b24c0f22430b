//! Users: their own account, and their administration.

use serde_json::json;
use shoppee_kit::{
    audit_log::{self, Actor, Record, store::Store as _},
    caller::Caller,
    cursor,
    status::Violations,
};

use crate::{
    AuthContext,
    account::{Password, Role},
    error::Error,
    sign_in,
    store::{
        account::{self, Account, Filter},
        audit_log::AuditLog,
        session,
    },
};

pub async fn get(context: &AuthContext, id: i64) -> Result<Account, Error> {
    let mut conn = context.pool.acquire().await?;
    account::get(&mut conn, id).await?.ok_or(Error::NotFound("user"))
}

/// Changes the caller's password if the current one is correct, and revokes all other sessions.
#[tracing::instrument(name = "auth.change_password", skip_all)]
pub async fn change_password(
    context: &AuthContext,
    caller: &Caller,
    current: Password,
    new: Password,
) -> Result<(), Error> {
    let (credentials, attempt) = sign_in::verify_own_password(context, caller.user_id(), current).await?;
    let password_hash = context.hasher.hash(new).await?;
    let mut tx = context.pool.begin().await?;
    let account = account::get_for_update(&mut tx, credentials.id).await?.ok_or(Error::NotFound("user"))?;
    // The password was changed concurrently: the verified one is no longer current.
    if account.password_version != credentials.password_version {
        return Err(Error::InvalidCredentials);
    }
    account::change_password(&mut tx, credentials.id, &password_hash).await?;
    let revoked = session::revoke_all(&mut tx, credentials.id, Some(caller.claims.sid)).await?;
    attempt.refund(&mut tx).await?;
    tx.commit().await?;
    context.revocations.apply(&revoked);
    Ok(())
}

/// Bounds the accounts that a page of a search scans. No index supports the search, and each account takes about 0.5
/// µs.
pub const MAX_SCANNED_ACCOUNTS: i64 = 20_000;

/// Returns a page of users, newest first, and the cursor of the next page. A page of a search may have fewer than
/// `limit` users, or none, and still be followed by another page.
#[tracing::instrument(name = "auth.list_users", skip_all)]
pub async fn list(
    context: &AuthContext,
    query: Option<String>,
    role: Option<Role>,
    limit: i64,
    cursor: Option<&str>,
) -> Result<(Vec<Account>, Option<String>), Error> {
    let list = cursor::List::new(&("users", &query, role.map(Role::as_str)));
    let before = cursor.map(|cursor| list.decode::<i64>(cursor)).transpose().map_err(Error::Malformed)?;
    let mut conn = context.pool.acquire().await?;
    let after = match query {
        Some(_) => account::find_nth_before(&mut conn, before, MAX_SCANNED_ACCOUNTS).await?,
        None => None,
    };
    // One more row than requested shows whether there is another page.
    let mut users = account::list(&mut conn, &Filter { query, role, before, after }, limit + 1).await?;
    let size = usize::try_from(limit).unwrap_or_default();
    let is_full = users.len() > size;
    users.truncate(size);
    let next = if is_full { users.last().map(|last| last.id) } else { after.map(|after| after + 1) };
    Ok((users, next.map(|next| list.encode(&next))))
}

/// The changes that an admin makes to an account.
#[derive(Debug, Default)]
pub struct Change {
    pub role: Option<Role>,
    pub disabled: Option<bool>,
}

/// Changes the role of a user, or disables or enables the account. A change revokes all sessions of the user.
#[tracing::instrument(name = "auth.update_user", skip_all, fields(user.id = id))]
pub async fn update(
    context: &AuthContext,
    admin: &Caller,
    id: i64,
    change: &Change,
) -> Result<Account, Error> {
    let mut tx = context.pool.begin().await?;
    let removes_admin = change.role == Some(Role::User) || change.disabled == Some(true);
    // All admins are locked before the user, so that two concurrent changes of admins run one after the other.
    let admins = if removes_admin { account::lock_active_admins(&mut tx).await? } else { Vec::new() };
    let mut account = account::get_for_update(&mut tx, id).await?.ok_or(Error::NotFound("user"))?;
    if removes_admin && admins == [id] {
        let field = if change.disabled == Some(true) { "disabled" } else { "role" };
        return Err(Error::Invalid(Violations::from((field, "this is the last admin who can sign in"))));
    }
    let (role, disabled) = (change.role.unwrap_or(account.role), change.disabled.unwrap_or(account.disabled));
    if (role, disabled) == (account.role, account.disabled) {
        return Ok(account);
    }
    account::set_role_and_disabled(&mut tx, id, role, disabled).await?;
    let revoked = session::revoke_all(&mut tx, id, None).await?;
    let fields = |role: Role, disabled: bool| json!({"role": role.as_str(), "disabled": disabled});
    let change = audit_log::Change::between(fields(account.role, account.disabled), fields(role, disabled));
    let actor = Actor::from_caller(admin);
    let record = Record::new(&actor, "user.update", format!("user:{id}"), change);
    AuditLog::insert(&mut tx, &[record], context.clock.now()).await?;
    tx.commit().await?;
    context.revocations.apply(&revoked);
    (account.role, account.disabled) = (role, disabled);
    Ok(account)
}
