//! New accounts: registrations, and the initial admin.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use shoppee_kit::{
    audit_log::{Actor, Change, Record, store::Store as _},
    idempotency::{KEY_TTL, KeyReused},
    pg,
    process::Process,
    readiness::{Criticality, Readiness},
};

use crate::{
    AuthContext,
    account::{Email, Password, Role, Username},
    error::Error,
    outbox,
    settings::InitialAdmin,
    sign_in,
    store::{
        account::{self, Account},
        audit_log::AuditLog,
        registration_key::{self, Registered},
    },
};

/// The delay before the creation of the initial admin is retried while the database is unavailable.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Creates an account, and publishes it to the other services. Under a key, a repeat gets the same response: the
/// account as it was created. Also returns whether the request is a repeat.
#[tracing::instrument(name = "auth.register", skip_all)]
pub async fn register(
    context: &AuthContext,
    username: Username,
    email: Email,
    password: Password,
    key: Option<&str>,
) -> Result<(Account, bool), Error> {
    let Some(key) = key else {
        return Ok((create_account(context, &username, &email, password, Role::User, None).await?, false));
    };
    if let Some(registered) = find_registration(context, &email, key).await? {
        return Ok((replay(context, registered, &username, &email, password).await?, true));
    }
    match create_account(context, &username, &email, password.clone(), Role::User, Some(key)).await {
        Ok(account) => Ok((account, false)),
        // A concurrent request with the same key may have been faster.
        Err(error @ (Error::UsernameTaken | Error::EmailTaken)) => {
            match find_registration(context, &email, key).await? {
                Some(registered) => {
                    Ok((replay(context, registered, &username, &email, password).await?, true))
                }
                None => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

async fn find_registration(
    context: &AuthContext,
    email: &Email,
    key: &str,
) -> Result<Option<Registered>, Error> {
    let since = context.clock.now() - KEY_TTL;
    Ok(registration_key::find(context.pool.acquire().await?.as_mut(), email, key, since).await?)
}

/// Returns the stored response to a repeat with the same key and content.
async fn replay(
    context: &AuthContext,
    registered: Registered,
    username: &Username,
    email: &Email,
    password: Password,
) -> Result<Account, Error> {
    let Registered { id, password_hash, .. } = registered;
    let is_same = registered.username == username.as_str() && registered.email == email.as_str();
    // A key is no secret: a repeat verifies the password, and counts as a login attempt.
    if !is_same || !sign_in::verify_password_of(context, id, password, password_hash).await? {
        return Err(KeyReused.into());
    }
    Ok(Account {
        id,
        username: registered.username,
        email: registered.email,
        // The role of a new account.
        role: Role::User,
        disabled: false,
        password_version: registered.password_version,
        created_at: registered.created_at,
    })
}

async fn create_account(
    context: &AuthContext,
    username: &Username,
    email: &Email,
    password: Password,
    role: Role,
    key: Option<&str>,
) -> Result<Account, Error> {
    let password_hash = context.hasher.hash(password).await?;
    let created_at = context.clock.now();
    let mut tx = context.pool.begin().await?;
    let new = account::NewAccount { username, email, password_hash: &password_hash, role, created_at };
    let account = account::insert(&mut tx, &new).await.map_err(uniqueness_error)?;
    if let Some(key) = key {
        registration_key::insert(&mut tx, account.id, key, created_at).await?;
    }
    outbox::insert(&mut tx, account.id, created_at).await?;
    if role == Role::Admin {
        // Only the settings create admins.
        let (actor, target) = (Actor::from_setting("ADMIN_USERNAME"), format!("user:{}", account.id));
        let change = Change::creation(json!({"username": account.username, "role": role.as_str()}));
        let record = Record::new(&actor, "user.create", target, change);
        AuditLog::insert(&mut tx, &[record], created_at).await?;
    }
    tx.commit().await?;
    context.outbox_wakeup.notify_one();
    Ok(account)
}

/// Maps violations of unique constraints: the database decides on uniqueness.
fn uniqueness_error(error: sqlx::Error) -> Error {
    match error.as_database_error().and_then(|error| error.constraint()) {
        Some(account::USERNAME_KEY) => Error::UsernameTaken,
        Some(account::EMAIL_KEY) => Error::EmailTaken,
        _ => error.into(),
    }
}

/// Creates the initial admin when the database is available; the service is not ready before. An existing account with
/// the name or the address is not changed.
pub fn spawn_initial_admin(context: Arc<AuthContext>, admin: InitialAdmin, process: &Process) {
    const NAME: &str = "first-admin";
    let (readiness, stop): (Readiness, _) = (process.readiness.clone(), process.tasks.shutdown_token());
    readiness.set(NAME, Criticality::Required, false);
    let ready = crate::wait_for_database(process);
    process.tasks.spawn(NAME, async move {
        ready.await;
        while !stop.is_cancelled() {
            match create_admin_if_missing(&context, &admin).await {
                Ok(()) => {
                    readiness.set(NAME, Criticality::Required, true);
                    stop.cancelled().await;
                }
                Err(Error::Store(error)) if pg::is_unavailable(&error) => {
                    tokio::time::sleep(RETRY_DELAY).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    });
}

async fn create_admin_if_missing(context: &AuthContext, admin: &InitialAdmin) -> Result<(), Error> {
    let exists =
        account::exists(context.pool.acquire().await?.as_mut(), &admin.username, &admin.email).await?;
    if exists {
        return Ok(());
    }
    match create_account(context, &admin.username, &admin.email, admin.password.clone(), Role::Admin, None)
        .await
    {
        Ok(account) => tracing::info!(user.id = account.id, "initial admin created"),
        // Another replica has created the account.
        Err(Error::UsernameTaken | Error::EmailTaken) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}
