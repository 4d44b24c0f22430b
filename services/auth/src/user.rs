//! Users as they see themselves and as an admin sees them.

use shoppee_kit::{caller::Caller, cursor, status::Violations};

use crate::{
    Auth,
    account::{Password, Role},
    error::Error,
    sign_in,
    store::{
        account::{self, Account, Filter},
        session,
    },
};

pub async fn get(auth: &Auth, id: i64) -> Result<Account, Error> {
    let mut conn = auth.pool.acquire().await?;
    account::get(&mut conn, id).await?.ok_or(Error::NotFound("user"))
}

/// Sets another password for who knows the current one, and ends all other sessions.
#[tracing::instrument(name = "auth.change_password", skip_all)]
pub async fn change_password(
    auth: &Auth,
    caller: &Caller,
    current: Password,
    new: Password,
) -> Result<(), Error> {
    let (known, tried) = sign_in::try_own(auth, caller.user_id(), current).await?;
    let password_hash = auth.hasher.hash(new).await?;
    let mut tx = auth.pool.begin().await?;
    let account = account::get_to_change(&mut tx, known.id).await?.ok_or(Error::NotFound("user"))?;
    // Changed by another device meanwhile: what was checked is the current one no more.
    if account.password_version != known.password_version {
        return Err(Error::InvalidCredentials);
    }
    account::change_password(&mut tx, known.id, &password_hash).await?;
    let ended = session::end_all(&mut tx, known.id, Some(caller.claims.sid)).await?;
    tried.give_back(&mut tx).await?;
    tx.commit().await?;
    auth.revocations.note(&ended);
    Ok(())
}

/// Accounts that one page looks at for a part of their names: no index helps, and each takes about 0.5 µs.
pub const MAX_LOOKED_AT: i64 = 20_000;

/// One page of users, newest first, and the cursor of the next. A page that looks for a part of a name may have fewer than
/// `limit` users, or none, and still be followed by another.
#[tracing::instrument(name = "auth.list_users", skip_all)]
pub async fn list(
    auth: &Auth,
    part: Option<String>,
    role: Option<Role>,
    limit: i64,
    cursor: Option<&str>,
) -> Result<(Vec<Account>, Option<String>), Error> {
    let before = cursor.map(cursor::decode::<i64>).transpose().map_err(Error::Malformed)?;
    let mut conn = auth.pool.acquire().await?;
    let after = match part {
        Some(_) => account::nth_before(&mut conn, before, MAX_LOOKED_AT).await?,
        None => None,
    };
    // One more than asked for tells whether there is a next page.
    let mut users = account::list(&mut conn, &Filter { part, role, before, after }, limit + 1).await?;
    let asked_for = usize::try_from(limit).unwrap_or_default();
    let is_full = users.len() > asked_for;
    users.truncate(asked_for);
    let next = if is_full { users.last().map(|last| last.id) } else { after.map(|after| after + 1) };
    Ok((users, next.map(|next| cursor::encode(&next))))
}

/// What an admin changes.
#[derive(Debug, Default)]
pub struct Change {
    pub role: Option<Role>,
    pub disabled: Option<bool>,
}

/// Changes a user's role, or whether the account can be used; ends all sessions of one who was changed.
#[tracing::instrument(name = "auth.update_user", skip_all, fields(user.id = id))]
pub async fn update(auth: &Auth, id: i64, change: &Change) -> Result<Account, Error> {
    let mut tx = auth.pool.begin().await?;
    let takes_an_admin = change.role == Some(Role::User) || change.disabled == Some(true);
    // All admins are locked before the user is, so that two who take each other's role come one after the
    // other.
    let admins = if takes_an_admin { account::lock_active_admins(&mut tx).await? } else { Vec::new() };
    let mut account = account::get_to_change(&mut tx, id).await?.ok_or(Error::NotFound("user"))?;
    if takes_an_admin && admins == [id] {
        let field = if change.disabled == Some(true) { "disabled" } else { "role" };
        return Err(Error::Invalid(Violations::from((field, "this is the last admin who can sign in"))));
    }
    let (role, disabled) = (change.role.unwrap_or(account.role), change.disabled.unwrap_or(account.disabled));
    if (role, disabled) == (account.role, account.disabled) {
        return Ok(account);
    }
    account::set_role_and_disabled(&mut tx, id, role, disabled).await?;
    let ended = session::end_all(&mut tx, id, None).await?;
    tx.commit().await?;
    auth.revocations.note(&ended);
    (account.role, account.disabled) = (role, disabled);
    Ok(account)
}
