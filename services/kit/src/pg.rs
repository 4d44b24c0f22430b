//! PostgreSQL: the pool with its bounds, the wait for a server that is not there yet, the migrations.
//!
//! A transaction must not be dropped half-way: sqlx would give its connection back with the transaction open. Handlers
//! are safe, as [`crate::grpc`] runs each to its end in a task of its own; never put a query into `select!` or
//! `timeout`.

use std::{
    str::FromStr as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use futures_util::future::join_all;
use secrecy::ExposeSecret as _;
use sqlx::{
    PgConnection, PgPool,
    migrate::{MigrateError, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions},
};
use time::OffsetDateTime;

use crate::{
    readiness::{Need, Readiness},
    settings::Postgres,
    tasks::Tasks,
};

/// Acquiring must fail before the caller's deadline of 2 s does.
const ACQUIRE: Duration = Duration::from_millis(1500);
/// Set on each connection. No statement of ours takes a tenth of it; a lock is waited for as long as an answer may take.
const GUARDS: [(&str, &str); 3] =
    [("statement_timeout", "5s"), ("lock_timeout", "2s"), ("idle_in_transaction_session_timeout", "5s")];
/// Opened before the process calls itself ready: a replica that comes into the rush would have callers wait while it opens
/// them, and forty milliseconds of key stretching each, one for every call at once.
const WARM: u32 = 4;
const RETRY: Duration = Duration::from_millis(500);

/// A pool for `service`, whose schema `migrations` brings up to date as soon as the server answers; until then the
/// process is not ready. An error, at once, where the settings cannot be right: a refused password, no such database.
pub async fn open(
    service: &'static str,
    settings: &Postgres,
    mut migrations: Migrator,
    tasks: &Tasks,
    readiness: &Readiness,
) -> anyhow::Result<PgPool> {
    let pool = pool(service, settings.database_url.expose_secret(), settings.database_pool_size)
        .context("DATABASE_URL")?;
    readiness.set("postgres", Need::Vital, false);
    // A newer version may have been here, and be here again: what it added is expected to be none of our business.
    migrations.set_ignore_missing(true);
    if !migrate(&pool, &migrations).await? {
        tracing::info!("waiting for PostgreSQL");
    }
    let (tasks, readiness, waiting) = (tasks.clone(), readiness.clone(), pool.clone());
    let gauges = pool.clone();
    let stop = tasks.stopping();
    tasks.clone().spawn("postgres", async move {
        while !stop.is_cancelled() && !migrate(&waiting, &migrations).await? {
            tokio::time::sleep(RETRY).await;
        }
        warm_up(&waiting).await;
        let asked = waiting.clone();
        readiness.watch(&tasks, "postgres", Need::Vital, move || {
            let pool = asked.clone();
            observe(&gauges);
            async move { ping(&pool).await }
        });
        stop.cancelled().await;
        Ok(())
    });
    Ok(pool)
}

/// A pool for `service` on a read replica, which may be away. An error where its settings cannot be right.
pub async fn replica(service: &'static str, url: &str, connections: u32) -> anyhow::Result<PgPool> {
    let pool = pool(service, url, connections)?;
    match pool.acquire().await {
        Err(error) if is_refusal(&error) => bail!("PostgreSQL refuses it: {}", refusal(&error)),
        Ok(_) | Err(_) => Ok(pool),
    }
}

/// A pool of up to so many connections, the first of which is made when it is used.
fn pool(service: &'static str, url: &str, connections: u32) -> anyhow::Result<PgPool> {
    let options = connect_options(url)?;
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE)
        // A connection is tested when it is given back; once is enough.
        .test_before_acquire(false);
    Ok(pool.connect_lazy_with(options.application_name(service).options(GUARDS)))
}

/// sqlx takes the address of any server for one of PostgreSQL's.
fn connect_options(url: &str) -> anyhow::Result<PgConnectOptions> {
    let ours = url.split_once("://").is_some_and(|(scheme, _)| {
        ["postgres", "postgresql"].iter().any(|ours| scheme.eq_ignore_ascii_case(ours))
    });
    match PgConnectOptions::from_str(url) {
        Ok(options) if ours => Ok(options),
        Ok(_) | Err(_) => {
            bail!("not a PostgreSQL URL (postgres://user:password@host:port/database)")
        }
    }
}

/// Whether the schema is up to date now; `false` while the server does not answer, or a lock cannot be had.
async fn migrate(pool: &PgPool, migrations: &Migrator) -> anyhow::Result<bool> {
    // A connection of its own: a large table takes longer than any request, and what fails must leave no lock behind. A
    // lock is waited for no longer than otherwise, as requests wait behind it.
    let unhurried = pool.connect_options().as_ref().clone().options([("statement_timeout", "0")]);
    let own = PgPoolOptions::new().max_connections(1).acquire_timeout(ACQUIRE).connect_lazy_with(unhurried);
    let migrated = migrations.run(&own).await;
    own.close().await;
    match migrated {
        Ok(()) => Ok(true),
        Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) if is_away(&error) => {
            tracing::debug!(%error, "not migrated yet");
            Ok(false)
        }
        Err(MigrateError::Execute(error)) if is_refusal(&error) => {
            bail!("PostgreSQL refuses DATABASE_URL: {}", refusal(&error))
        }
        Err(error) => Err(anyhow::Error::new(error).context("migrations")),
    }
}

/// Opens some connections, as far as that works.
async fn warm_up(pool: &PgPool) {
    let wanted = WARM.min(pool.options().get_max_connections());
    let held = join_all((0..wanted).map(|_| pool.acquire())).await;
    drop(held);
}

/// Asks the server for nothing; a sample of how long whoever needs a connection waits for one.
async fn ping(pool: &PgPool) -> bool {
    let asked = Instant::now();
    let acquired = pool.acquire().await;
    metrics::histogram!("db_pool_wait_seconds").record(asked.elapsed());
    let Ok(mut connection) = acquired else { return false };
    sqlx::query("select 1").execute(&mut *connection).await.is_ok()
}

/// What the server's clock says.
pub(crate) async fn clock_timestamp(conn: &mut PgConnection) -> sqlx::Result<OffsetDateTime> {
    sqlx::query_scalar("select clock_timestamp()").fetch_one(conn).await
}

#[expect(clippy::cast_precision_loss, reason = "a pool has tens of connections")]
fn observe(pool: &PgPool) {
    let (open, idle) = (f64::from(pool.size()), pool.num_idle() as f64);
    metrics::gauge!("db_pool_connections", "state" => "idle").set(idle);
    metrics::gauge!("db_pool_connections", "state" => "used").set((open - idle).max(0.0));
}

/// The server is not there, or not in a state to answer; trying again will help.
pub fn is_away(error: &sqlx::Error) -> bool {
    // Class 08 connection, 53 resources, 57 shutdown, start-up or a cancelled statement, 40 serialisation and deadlock;
    // 55P03 lock not available, 25P03 idle in transaction for too long.
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    let passing = code.is_some_and(|code| {
        ["08", "53", "57", "40"].iter().any(|class| code.starts_with(class))
            || code == "55P03"
            || code == "25P03"
    });
    passing
        || matches!(
            error,
            sqlx::Error::Io(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed
                | sqlx::Error::Protocol(_)
                | sqlx::Error::Tls(_)
        )
}

/// A lock was not had in time: 55P03.
pub fn is_lock_timeout(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| code == "55P03")
}

/// The server answers and does not let us in: class 28 (role, password), 3D000 (no such database).
fn is_refusal(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .is_some_and(|code| code.starts_with("28") || code == "3D000")
}

fn refusal(error: &sqlx::Error) -> String {
    error.as_database_error().map(|error| error.message().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_of_another_database_is_refused() {
        for url in ["postgres://user:secret@host:5432/shop", "postgresql://host/shop"] {
            assert!(connect_options(url).is_ok(), "{url}");
        }
        for url in [
            "mysql://user:secret@host/shop",
            "http://host",
            "host:5432",
            "postgres",
            "",
            "postgres://host:x/",
        ] {
            let error = connect_options(url).unwrap_err().to_string();
            assert!(error.contains("not a PostgreSQL URL") && !error.contains("secret@"), "{error}");
        }
    }
}
