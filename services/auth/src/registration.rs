//! New accounts: those that people register, and the first admin.

use std::{sync::Arc, time::Duration};

use shoppee_kit::{
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
    store::account::{self, Account},
};

/// How often the first admin is tried again while the database is away.
const RETRY: Duration = Duration::from_millis(500);

/// Makes an account; the others learn of it, so that it gets a cart.
#[tracing::instrument(name = "auth.register", skip_all)]
pub async fn register(
    auth: &Auth,
    username: Username,
    email: Email,
    password: Password,
) -> Result<Account, Error> {
    open(auth, &username, &email, password, Role::User).await
}

async fn open(
    auth: &Auth,
    username: &Username,
    email: &Email,
    password: Password,
    role: Role,
) -> Result<Account, Error> {
    let password_hash = auth.hasher.hash(password).await?;
    let created_at = auth.clock.now();
    let mut tx = auth.pool.begin().await?;
    let new = account::New { username, email, password_hash: &password_hash, role, created_at };
    let account = account::insert(&mut tx, &new).await.map_err(taken)?;
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
    match open(auth, &admin.username, &admin.email, admin.password.clone(), Role::Admin).await {
        Ok(account) => tracing::info!(user.id = account.id, "made the first admin"),
        // Another replica was faster.
        Err(Error::UsernameTaken | Error::EmailTaken) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}
