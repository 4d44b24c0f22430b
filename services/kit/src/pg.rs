//! PostgreSQL: the pool with its bounds, the wait for a server that is not there yet, the migrations.
//!
//! A transaction must not be dropped half-way: sqlx would give its connection back with the transaction open. Handlers
//! are safe, as [`crate::grpc`] runs each to its end in a task of its own; never put a query into `select!` or
//! `timeout`.

use std::{
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};
use secrecy::ExposeSecret as _;
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection,
    migrate::{MigrateError, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions},
};
use time::OffsetDateTime;

use crate::{
    log_throttle::LogThrottle,
    readiness::{Down, Need, Readiness},
    settings::Postgres,
    tasks::Tasks,
};

mod class;
mod health;
mod loss;
mod options;
mod pool;

pub use class::{Class, Consequence};
use health::{Demotion, Health};
pub use pool::PgPool;

/// Bounds a request's wait for a connection: acquiring must fail before the caller's deadline of 2 s does.
const ACQUIRE: Duration = Duration::from_millis(1500);
/// Bounds the making of a connection, which a process that is starved of CPU takes seconds for. Until then TCP sends a
/// lost packet again after 4 s at the latest: a process is ready within 5 s of its server's return.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
/// Bounds the connection whose refusal ends the start. A server that answers nothing delays the start by this.
const FIRST_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Bounds of every session. No statement of ours takes a tenth of its bound; a lock is waited for as long as an answer
/// may take. A statement sets them: a pooler in between drops or refuses options sent with the start of a session.
///
/// Just-in-time compilation is off: it takes seconds for a statement on partitioned tables whose cost is overestimated,
/// and saves milliseconds at most of statements that read as few rows as ours.
const GUARDS: &str = "set statement_timeout = '5s'; set lock_timeout = '2s'; \
    set idle_in_transaction_session_timeout = '5s'; set jit = off";
/// The same bounds for migrations: a large table takes longer than any request.
const MIGRATION_GUARDS: &str =
    "set statement_timeout = 0; set lock_timeout = '2s'; set idle_in_transaction_session_timeout = '5s'";
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
    let options = connect_options(service, settings.database_url.expose_secret()).context("DATABASE_URL")?;
    let demotion = Arc::new(Demotion::default());
    let leaves = demotion.clone();
    let pool_options =
        pool_options(settings.database_pool_size).before_acquire(move |connection, metadata| {
            let stays = !leaves.includes(metadata.age);
            Box::pin(async move { Ok(stays && loss::is_usable(connection, metadata).await) })
        });
    let pool = PgPool::new(pool_options, options.clone());
    for class in Class::ALL {
        metrics::counter!("db_errors_total", "class" => class.name()).increment(0);
    }
    readiness.expect("postgres", Need::Vital);
    // A newer version may have been here, and be here again: what it added is expected to be none of our business.
    migrations.set_ignore_missing(true);
    let mut migrated = migrate(&options, &migrations, FIRST_CONNECT_TIMEOUT).await;
    if let Err(NotMigrated::Database(error)) = &migrated {
        check_refusal("DATABASE_URL", error)?;
    }
    let (tasks, readiness) = (tasks.clone(), readiness.clone());
    let health = Arc::new(Health::new(pool.clone(), options.clone(), demotion));
    let stop = tasks.stopping();
    tasks.clone().spawn("postgres", async move {
        while let Err(failure) = migrated {
            let error = failure.temporary()?;
            readiness.report("postgres", Need::Vital, Err(down(&error)));
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = stop.cancelled() => return Ok(()),
            }
            migrated = migrate(&options, &migrations, CONNECT_TIMEOUT).await;
        }
        options::log_plain_text("DATABASE_URL", &options).await;
        let asked = health.clone();
        readiness.watch(&tasks, "postgres", Need::Vital, move || asked.clone().check());
        readiness.watch(&tasks, "postgres writes", Need::Useful, move || {
            let writable = health.is_writable();
            async move { if writable { Ok(()) } else { Err(Down::because(Class::ReadOnly.words())) } }
        });
        stop.cancelled().await;
        Ok(())
    });
    Ok(pool)
}

/// A pool for `service` on a read replica, which may be away. An error where its settings cannot be right.
pub async fn replica(service: &'static str, url: &str, connections: u32) -> anyhow::Result<PgPool> {
    let options = connect_options(service, url)?;
    let pool = PgPool::new(pool_options(connections), options.clone());
    match pool.acquire().await {
        Ok(_) => options::log_plain_text("a read replica", &options).await,
        Err(error) => check_refusal("its URL", &error)?,
    }
    Ok(pool)
}

/// Options of a pool of up to so many connections, the first of which is made when it is used.
fn pool_options(connections: u32) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(CONNECT_TIMEOUT)
        // A connection is tested when it is given back, and again where others were lost since.
        .test_before_acquire(false)
        .before_acquire(|connection, metadata| {
            Box::pin(async move { Ok(loss::is_usable(connection, metadata).await) })
        })
        .after_connect(|connection, _| {
            Box::pin(async move { connection.execute(AssertSqlSafe(GUARDS)).await.map(drop) })
        })
}

/// Parses a URL and names the process in it.
fn connect_options(service: &str, url: &str) -> anyhow::Result<PgConnectOptions> {
    // PgBouncer refuses a session that starts with extra_float_digits; no column of ours is a float.
    Ok(options::parse(url)?.application_name(service).extra_float_digits(None))
}

/// Returns an error where the settings for the server at `setting` cannot be right and that is the cause.
fn check_refusal(setting: &str, error: &sqlx::Error) -> anyhow::Result<()> {
    let class = Class::of(error);
    if class == Class::Tls {
        // It lasts where certificate or name is wrong; a server that restarts ends a handshake, too.
        if let Some(why) = options::tls_refusal(error) {
            bail!("PostgreSQL at {setting}: {why}");
        }
    } else if class.is_refusal() {
        bail!("PostgreSQL refuses {setting}: {error}");
    }
    Ok(())
}

/// Makes a connection outside the pool, within `timeout`.
async fn connect(options: &PgConnectOptions, timeout: Duration) -> Result<PgConnection, sqlx::Error> {
    let late = |_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()));
    tokio::time::timeout(timeout, options.connect()).await.unwrap_or_else(late)
}

/// The reasons for a schema that is not up to date.
#[derive(Debug)]
enum NotMigrated {
    Database(sqlx::Error),
    /// The migrations themselves are wrong.
    Migrations(MigrateError),
}

impl NotMigrated {
    /// Returns the failure where trying again may help, and an error of the process where not.
    fn temporary(self) -> anyhow::Result<sqlx::Error> {
        match self {
            Self::Database(error) if Class::of(&error).consequence() == Consequence::Temporary => Ok(error),
            Self::Database(error) => Err(anyhow::Error::new(error).context("migrations")),
            Self::Migrations(error) => Err(anyhow::Error::new(error).context("migrations")),
        }
    }
}

/// Brings the schema up to date, on a connection of its own: a failure leaves no lock behind. A lock is waited for no
/// longer than otherwise, as requests wait behind it.
async fn migrate(
    options: &PgConnectOptions,
    migrations: &Migrator,
    timeout: Duration,
) -> Result<(), NotMigrated> {
    let migrating = async {
        let mut connection = connect(options, timeout).await?;
        connection.execute(AssertSqlSafe(MIGRATION_GUARDS)).await?;
        // `run` cannot borrow a connection in a task: its bound on lifetimes is too narrow.
        migrations.run_direct(None, &mut connection, false).await?;
        let _ = connection.close().await;
        Ok(())
    };
    migrating.await.map_err(|error| {
        if let MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) = error {
            NotMigrated::Database(error)
        } else {
            NotMigrated::Migrations(error)
        }
    })
}

/// Returns the time by the server's clock.
pub(crate) async fn clock_timestamp(conn: &mut PgConnection) -> sqlx::Result<OffsetDateTime> {
    sqlx::query_scalar("select clock_timestamp()").fetch_one(conn).await
}

/// Reports whether a lock was not had in time.
pub fn is_lock_timeout(error: &sqlx::Error) -> bool {
    Class::of(error) == Class::LockNotAvailable
}

/// Reports whether a request that failed by `error` may succeed later. Counts the error by its class. Logs one that
/// passes, once and then once a minute for each class.
pub fn is_unavailable(error: &sqlx::Error) -> bool {
    static THROTTLES: LazyLock<Mutex<std::collections::BTreeMap<Class, LogThrottle>>> =
        LazyLock::new(Mutex::default);
    let class = count(error);
    let temporary = class.consequence() == Consequence::Temporary;
    if temporary {
        let mut throttles = THROTTLES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(suppressed) = throttles.entry(class).or_default().admit() {
            tracing::warn!(class = class.words(), %error, suppressed, "PostgreSQL cannot do it now");
        }
    }
    temporary
}

/// Counts an error by its class.
fn count(error: &sqlx::Error) -> Class {
    let class = Class::of(error);
    metrics::counter!("db_errors_total", "class" => class.name()).increment(1);
    if class.loses_connection() {
        loss::record();
    }
    class
}

/// Returns the reason for which a process that met `error` is not ready.
fn down(error: &sqlx::Error) -> Down {
    let class = count(error);
    Down { class: class.words(), reason: class.words().to_owned(), detail: options::text(error) }
}

#[cfg(all(test, feature = "testing"))]
mod server_tests;
