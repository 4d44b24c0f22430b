//! The PostgreSQL connection pool, with timeouts, migrations, health checks, and retries until the server is available.
//!
//! A transaction must not be dropped half-way: sqlx would return its connection to the pool with the transaction open.
//! Handlers are safe, as [`crate::grpc`] runs each to its end in a task of its own. Never put a query into `select!` or
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
    readiness::{Criticality, Down, Readiness},
    settings::Postgres,
    tasks::Tasks,
};

mod error_class;
mod health;
mod loss;
mod options;
mod pool;

pub use error_class::ErrorClass;
use health::{Demotion, Health};
pub use pool::PgPool;

/// Bounds a request's wait for a connection, below the default deadline of a call (2 s).
const ACQUIRE_TIMEOUT: Duration = Duration::from_millis(1500);
/// Bounds a connect, which takes seconds in a process that is starved of CPU. Within it, TCP retransmits a lost packet
/// after 4 s at the latest, so that a process is ready within 5 s of its server's return.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
/// Bounds the first connect, which detects invalid settings. An unresponsive server delays the start by this.
const FIRST_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The parameters of every session. No statement takes a tenth of its timeout. The lock timeout ends before the
/// deadline of a call (1.8 s of 2 s): a request that waits for its idempotency key responds with the reason. A
/// statement sets them, as a connection pooler drops or refuses startup options.
///
/// Just-in-time compilation is off. It takes seconds for a statement on partitioned tables whose cost is overestimated,
/// and saves milliseconds at most for statements that read few rows.
const SESSION_PARAMETERS: &str = "set statement_timeout = '5s'; set lock_timeout = '1500ms'; \
    set idle_in_transaction_session_timeout = '5s'; set jit = off";
/// The session parameters of migrations: a large table takes longer than any request.
const MIGRATION_SESSION_PARAMETERS: &str =
    "set statement_timeout = 0; set lock_timeout = '2s'; set idle_in_transaction_session_timeout = '5s'";
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// The plans of prepared statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanCacheMode {
    /// PostgreSQL chooses for each statement.
    Auto,
    /// One plan per statement for all parameters. A statement over many partitions takes longer to plan than to run.
    ForceGenericPlan,
}

impl PlanCacheMode {
    fn session_parameter(self) -> &'static str {
        match self {
            Self::Auto => "set plan_cache_mode = auto",
            Self::ForceGenericPlan => "set plan_cache_mode = force_generic_plan",
        }
    }
}

/// Opens a pool for `service` and runs its `migrations`, retrying until the server answers; until then the process is not
/// ready. Returns an error at once if the settings are invalid: a refused password, a missing database.
pub async fn open(
    service: &'static str,
    settings: &Postgres,
    mut migrations: Migrator,
    plan_cache_mode: PlanCacheMode,
    tasks: &Tasks,
    readiness: &Readiness,
) -> anyhow::Result<PgPool> {
    let options = connect_options(service, settings.database_url.expose_secret()).context("DATABASE_URL")?;
    let demotion = Arc::new(Demotion::default());
    let evictions = demotion.clone();
    let pool_options = pool_options(settings.database_pool_size, plan_cache_mode).before_acquire(
        move |connection, metadata| {
            let keep = !evictions.includes(metadata.age);
            Box::pin(async move { Ok(keep && loss::is_usable(connection, metadata).await) })
        },
    );
    let pool = PgPool::new(pool_options, options.clone());
    for class in ErrorClass::ALL {
        metrics::counter!("db_errors_total", "class" => class.as_str()).increment(0);
    }
    readiness.register("postgres", Criticality::Required);
    // During a rollback the schema is newer than this version: unknown migrations are ignored.
    migrations.set_ignore_missing(true);
    let mut migrated = migrate(&options, &migrations, FIRST_CONNECT_TIMEOUT).await;
    if let Err(MigrationError::Database(error)) = &migrated {
        check_settings("DATABASE_URL", error)?;
    }
    let (tasks, readiness) = (tasks.clone(), readiness.clone());
    let health = Arc::new(Health::new(pool.clone(), options.clone(), demotion));
    let shutdown = tasks.shutdown_token();
    tasks.clone().spawn("postgres", async move {
        while let Err(failure) = migrated {
            let error = failure.transient()?;
            readiness.report("postgres", Criticality::Required, Err(down(&error)));
            tokio::select! {
                () = tokio::time::sleep(RETRY_DELAY) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
            migrated = migrate(&options, &migrations, CONNECT_TIMEOUT).await;
        }
        options::log_plain_text("DATABASE_URL", &options).await;
        let checked = health.clone();
        readiness.watch(&tasks, "postgres", Criticality::Required, move || checked.clone().check());
        readiness.watch(&tasks, "postgres writes", Criticality::Optional, move || {
            let writable = health.is_writable();
            async move { if writable { Ok(()) } else { Err(Down::new(ErrorClass::ReadOnly.description())) } }
        });
        shutdown.cancelled().await;
        Ok(())
    });
    Ok(pool)
}

/// Opens a pool for `service` on a read replica, which may be unavailable. Returns an error if the settings are invalid.
pub async fn open_replica(service: &'static str, url: &str, connections: u32) -> anyhow::Result<PgPool> {
    let options = connect_options(service, url)?;
    let pool = PgPool::new(pool_options(connections, PlanCacheMode::Auto), options.clone());
    match pool.acquire().await {
        Ok(_) => options::log_plain_text("a read replica", &options).await,
        Err(error) => check_settings("its URL", &error)?,
    }
    Ok(pool)
}

/// Returns the options of a pool of at most `max_connections`, which connects lazily.
fn pool_options(max_connections: u32, plan_cache_mode: PlanCacheMode) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(CONNECT_TIMEOUT)
        // A connection is tested when it is released, and again if other connections were lost since.
        .test_before_acquire(false)
        .before_acquire(|connection, metadata| {
            Box::pin(async move { Ok(loss::is_usable(connection, metadata).await) })
        })
        .after_connect(move |connection, _| {
            let parameters = format!("{SESSION_PARAMETERS}; {}", plan_cache_mode.session_parameter());
            Box::pin(async move { connection.execute(AssertSqlSafe(parameters)).await.map(drop) })
        })
}

/// Parses a URL and sets the application name.
fn connect_options(service: &str, url: &str) -> anyhow::Result<PgConnectOptions> {
    // PgBouncer refuses the startup parameter extra_float_digits; no column is a float.
    Ok(options::parse(url)?.application_name(service).extra_float_digits(None))
}

/// Returns an error if `error` is caused by an invalid value of `setting`.
fn check_settings(setting: &str, error: &sqlx::Error) -> anyhow::Result<()> {
    let class = ErrorClass::from_error(error);
    if class == ErrorClass::Tls {
        // A wrong certificate or name is permanent; a handshake also fails while the server restarts.
        if let Some(reason) = options::permanent_tls_failure(error) {
            bail!("PostgreSQL at {setting}: {reason}");
        }
    } else if class.is_config_error() {
        bail!("PostgreSQL refuses {setting}: {error}");
    }
    Ok(())
}

/// Connects outside the pool, within `timeout`.
async fn connect(options: &PgConnectOptions, timeout: Duration) -> Result<PgConnection, sqlx::Error> {
    let timed_out = |_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()));
    tokio::time::timeout(timeout, options.connect()).await.unwrap_or_else(timed_out)
}

/// The reasons for which the migrations failed.
#[derive(Debug)]
enum MigrationError {
    Database(sqlx::Error),
    /// The migrations themselves are invalid.
    Migrations(MigrateError),
}

impl MigrationError {
    /// Returns a transient failure, which is worth a retry, or an error that ends the process.
    fn transient(self) -> anyhow::Result<sqlx::Error> {
        match self {
            Self::Database(error) if ErrorClass::from_error(&error).is_transient() => Ok(error),
            Self::Database(error) => Err(anyhow::Error::new(error).context("migrations")),
            Self::Migrations(error) => Err(anyhow::Error::new(error).context("migrations")),
        }
    }
}

/// Runs the migrations on a connection of its own, so that a failure leaves no lock behind. The lock timeout is that of
/// requests, which queue behind a migration that waits for a lock.
async fn migrate(
    options: &PgConnectOptions,
    migrations: &Migrator,
    timeout: Duration,
) -> Result<(), MigrationError> {
    let migration = async {
        let mut connection = connect(options, timeout).await?;
        connection.execute(AssertSqlSafe(MIGRATION_SESSION_PARAMETERS)).await?;
        // `run` cannot borrow a connection in a task: its lifetime bound is too strict.
        migrations.run_direct(None, &mut connection, false).await?;
        let _ = connection.close().await;
        Ok(())
    };
    migration.await.map_err(|error| {
        if let MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) = error {
            MigrationError::Database(error)
        } else {
            MigrationError::Migrations(error)
        }
    })
}

/// Returns the time of the server's clock.
pub(crate) async fn clock_timestamp(conn: &mut PgConnection) -> sqlx::Result<OffsetDateTime> {
    sqlx::query_scalar("select clock_timestamp()").fetch_one(conn).await
}

/// Returns whether a statement outside a transaction that failed by `error` may have been committed.
pub fn may_have_committed(error: &sqlx::Error) -> bool {
    ErrorClass::from_error(error).may_have_committed()
}

/// Returns whether a lock was not acquired in time.
pub fn is_lock_timeout(error: &sqlx::Error) -> bool {
    ErrorClass::from_error(error) == ErrorClass::LockNotAvailable
}

/// Returns whether `error` is transient, so that the same request may succeed later. Counts the error by its class. Logs
/// a transient error, at once and then once a minute for each class.
pub fn is_unavailable(error: &sqlx::Error) -> bool {
    static THROTTLES: LazyLock<Mutex<std::collections::BTreeMap<ErrorClass, LogThrottle>>> =
        LazyLock::new(Mutex::default);
    let class = count(error);
    let transient = class.is_transient();
    if transient {
        let mut throttles = THROTTLES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(suppressed) = throttles.entry(class).or_default().admit() {
            tracing::warn!(class = class.description(), %error, suppressed, "PostgreSQL is temporarily unavailable");
        }
    }
    transient
}

/// Counts an error by its class.
fn count(error: &sqlx::Error) -> ErrorClass {
    let class = ErrorClass::from_error(error);
    metrics::counter!("db_errors_total", "class" => class.as_str()).increment(1);
    if class.ends_connections() {
        loss::record();
    }
    class
}

/// Returns the reason of a process that is not ready because of `error`.
fn down(error: &sqlx::Error) -> Down {
    let class = count(error);
    Down {
        class: class.description(),
        reason: class.description().to_owned(),
        detail: options::describe(error),
    }
}

#[cfg(all(test, feature = "testing"))]
mod server_tests;
