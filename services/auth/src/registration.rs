//! New accounts: those that people register, and the first admin.

use std::{sync::Arc, time::Duration};

use shoppee_kit::{
    idempotency::{KEY_TTL, KeyReused},
    pg,
    process::Process,
    readiness::{Need, Readiness},
};

use crate::{
    Auth,
    account::{Email, Password, Role, Username},
    error::Error,
    outbox,
    settings::FirstAdmin,
    sign_in,
    store::{
        account::{self, Account},
        registration_key::{self, Registered},
    },
};

/// How often the first admin is tried again while the database is away.
const RETRY: Duration = Duration::from_millis(500);

/// Makes an account; the others learn of it, so that it gets a cart. With a key, a repeat of a registration gets its
/// answer again: the account as it was made, and whether it is a repeat.
#[tracing::instrument(name = "auth.register", skip_all)]
pub async fn register(
    auth: &Auth,
    username: Username,
    email: Email,
    password: Password,
    key: Option<&str>,
) -> Result<(Account, bool), Error> {
    let Some(key) = key else {
        return Ok((open(auth, &username, &email, password, Role::User, None).await?, false));
    };
    if let Some(registered) = find(auth, &email, key).await? {
        return Ok((repeat(auth, registered, &username, &email, password).await?, true));
    }
    match open(auth, &username, &email, password.clone(), Role::User, Some(key)).await {
        Ok(account) => Ok((account, false)),
        // Another with the same key may have been faster by a moment.
        Err(error @ (Error::UsernameTaken | Error::EmailTaken)) => match find(auth, &email, key).await? {
            Some(registered) => Ok((repeat(auth, registered, &username, &email, password).await?, true)),
            None => Err(error),
        },
        Err(error) => Err(error),
    }
}

async fn find(auth: &Auth, email: &Email, key: &str) -> Result<Option<Registered>, Error> {
    let since = auth.clock.now() - KEY_TTL;
    Ok(registration_key::find(auth.pool.acquire().await?.as_mut(), email, key, since).await?)
}

/// The answer of a registration, for one with the same key and the same content.
async fn repeat(
    auth: &Auth,
    registered: Registered,
    username: &Username,
    email: &Email,
    password: Password,
) -> Result<Account, Error> {
    let Registered { id, password_hash, .. } = registered;
    let is_same = registered.username == username.as_str() && registered.email == email.as_str();
    // A key is no secret: a caller that repeats it tries a password, and each try counts.
    if !is_same || !sign_in::is_password_of(auth, id, password, password_hash).await? {
        return Err(KeyReused.into());
    }
    Ok(Account {
        id,
        username: registered.username,
        email: registered.email,
        // As it was.
        role: Role::User,
        disabled: false,
        password_version: registered.password_version,
        created_at: registered.created_at,
    })
}

async fn open(
    auth: &Auth,
    username: &Username,
    email: &Email,
    password: Password,
    role: Role,
    key: Option<&str>,
) -> Result<Account, Error> {
    let password_hash = auth.hasher.hash(password).await?;
    let created_at = auth.clock.now();
    let mut tx = auth.pool.begin().await?;
    let new = account::New { username, email, password_hash: &password_hash, role, created_at };
    let account = account::insert(&mut tx, &new).await.map_err(taken)?;
    if let Some(key) = key {
        registration_key::insert(&mut tx, account.id, key, created_at).await?;
    }
    outbox::insert(&mut tx, account.id, created_at).await?;
    tx.commit().await?;
    auth.registered.notify_one();
    Ok(account)
}

/// The database is the judge of uniqueness.
fn taken(error: sqlx::Error) -> Error {
    match error.as_database_error().and_then(|error| error.constraint()) {
        Some(account::USERNAME_KEY) => Error::UsernameTaken,
        Some(account::EMAIL_KEY) => Error::EmailTaken,
        _ => error.into(),
    }
}

/// Makes the first admin once the database answers; the service is not ready before. An account that has the
/// name or the address is left as it is, whatever it is.
pub fn make_first_admin(auth: Arc<Auth>, admin: FirstAdmin, process: &Process) {
    const NAME: &str = "first-admin";
    let (readiness, stop): (Readiness, _) = (process.readiness.clone(), process.tasks.stopping());
    readiness.set(NAME, Need::Vital, false);
    let ready = crate::database_ready(process);
    process.tasks.spawn(NAME, async move {
        ready.await;
        while !stop.is_cancelled() {
            match make_admin_where_missing(&auth, &admin).await {
                Ok(()) => {
                    readiness.set(NAME, Need::Vital, true);
                    stop.cancelled().await;
                }
                Err(Error::Store(error)) if pg::is_unavailable(&error) => tokio::time::sleep(RETRY).await,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    });
}

async fn make_admin_where_missing(auth: &Auth, admin: &FirstAdmin) -> Result<(), Error> {
    let there = account::exists(auth.pool.acquire().await?.as_mut(), &admin.username, &admin.email).await?;
    if there {
        return Ok(());
    }
    match open(auth, &admin.username, &admin.email, admin.password.clone(), Role::Admin, None).await {
        Ok(account) => tracing::info!(user.id = account.id, "made the first admin"),
        // Another replica was faster.
        Err(Error::UsernameTaken | Error::EmailTaken) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}
