//! A factory of Redis clients that reconnect forever, with a health check for readiness, and fail-fast options for
//! commands on the request path.
//!
//! The client library retries a first connect only if `Config::fail_fast` is off, and ends its task for good on some
//! errors. [`Clients`] therefore turns it off and restarts ended tasks.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex, Once, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};
use fred::{
    clients::Client,
    interfaces::ClientLike as _,
    types::{
        Builder, ConnectHandle,
        config::{Config, ConnectionConfig, Options, ReconnectError, ReconnectPolicy, UnresponsiveConfig},
    },
};
use secrecy::ExposeSecret as _;

use crate::{
    process::Process,
    readiness::{Criticality, Down},
    settings::Redis,
    tls,
};

mod connection;
mod error_class;

use connection::{Check, Connection};
pub use error_class::{ErrorClass, redact};

/// The name in `/readyz`.
const DEPENDENCY: &str = "redis";
/// Bounds a command on the request path. Redis on the same network answers in under a millisecond.
const COMMAND_TIMEOUT: Duration = Duration::from_millis(200);
/// Bounds the TCP connect and the TLS handshake, which are slow in a process that is starved of CPU. Together with
/// [`MAX_RECONNECT_DELAY_MS`], a client connects within 5 s of the return of an unresponsive Redis.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Bounds the commands that set up a connection; it tolerates a Redis that is slow by 2 s.
const SETUP_TIMEOUT: Duration = Duration::from_secs(4);
/// The delay before the first reconnect; it doubles with each attempt.
const MIN_RECONNECT_DELAY_MS: u32 = 10;
/// Bounds the delay before a reconnect.
const MAX_RECONNECT_DELAY_MS: u32 = 1000;
/// The jitter of reconnects, which spreads those of all processes.
const RECONNECT_JITTER_MS: u32 = 50;
/// The time without a response after which a connection is replaced.
const UNRESPONSIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Bounds the commands that are queued during a connect; further ones fail.
const MAX_COMMAND_QUEUE: usize = 10_000;
/// Bounds the first connect of a process, which detects invalid settings. An unresponsive Redis delays the start by this.
const FIRST_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

/// The factory of the Redis clients of a process. `/readyz` reports each client by its name.
#[derive(Clone, Debug)]
pub struct Clients {
    config: Config,
    connections: Arc<Mutex<Vec<Arc<Connection>>>>,
    /// Starts the readiness check with the first client. Until then Redis is starting.
    check_started: Arc<Once>,
    process: Process,
}

impl Clients {
    /// Connects once to validate the settings. Returns an error if they are invalid: a malformed URL, credentials that Redis
    /// refuses, a wrong certificate. A Redis that does not answer is no error.
    pub async fn open(settings: &Redis, process: &Process) -> anyhow::Result<Self> {
        let clients = Self {
            config: config(settings)?,
            connections: Arc::default(),
            check_started: Arc::new(Once::new()),
            process: process.clone(),
        };
        for class in ErrorClass::ALL {
            metrics::counter!("redis_errors_total", "class" => class.as_str()).increment(0);
        }
        clients.validate().await?;
        process.readiness.register(DEPENDENCY, Criticality::Optional);
        Ok(clients)
    }

    /// Creates a client that connects and reconnects in the background.
    pub fn client(&self, name: impl Into<String>) -> anyhow::Result<Client> {
        let mut builder = self.reconnecting_builder();
        builder.with_performance_config(|performance| {
            performance.default_command_timeout = Duration::from_secs(2);
        });
        self.start(&builder, name.into(), Check::Ping)
    }

    /// Creates a client for blocking reads. Other commands must not use it, as they would wait behind the reads.
    pub fn blocking_client(&self, name: impl Into<String>) -> anyhow::Result<Client> {
        let mut builder = self.reconnecting_builder();
        builder.with_connection_config(|connection| connection.unresponsive = UnresponsiveConfig::default());
        self.start(&builder, name.into(), Check::State)
    }

    /// Creates a connector, for a caller that must notice every reconnect.
    pub fn connector(&self, name: impl Into<String>) -> Connector {
        let connection = self.register(name.into(), Check::Ping);
        Connector { builder: builder(self.config.clone()), connection }
    }

    /// Connects once. Returns an error only if the settings are invalid.
    async fn validate(&self) -> anyhow::Result<()> {
        let client = builder(self.config.clone()).build().context("Redis client")?;
        match tokio::time::timeout(FIRST_ATTEMPT_TIMEOUT, client.init()).await {
            Ok(Err(error)) if let Some(failure) = ErrorClass::tls_failure(&error) => {
                if failure.is_permanent() {
                    bail!("Redis at REDIS_URL: TLS: {failure}");
                }
            }
            Ok(Err(error)) if ErrorClass::from_error(&error).is_config_error() => {
                bail!("Redis refuses REDIS_URL: {}", redact(&error));
            }
            Ok(Ok(_)) => {
                let _ = client.quit().await;
            }
            // The readiness check logs it.
            Ok(Err(_)) | Err(_) => {}
        }
        Ok(())
    }

    fn reconnecting_builder(&self) -> Builder {
        let mut builder = builder(Config { fail_fast: false, ..self.config.clone() });
        let mut policy =
            ReconnectPolicy::new_exponential(0, MIN_RECONNECT_DELAY_MS, MAX_RECONNECT_DELAY_MS, 2);
        policy.set_jitter(RECONNECT_JITTER_MS);
        builder.set_policy(policy);
        builder
    }

    fn register(&self, name: String, check: Check) -> Arc<Connection> {
        let connection = Arc::new(Connection::new(name, check));
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).push(connection.clone());
        self.check_started.call_once(|| {
            let (readiness, checked) = (&self.process.readiness, self.clone());
            let check = move || checked.clone().check();
            readiness.watch(&self.process.tasks, DEPENDENCY, Criticality::Optional, check);
        });
        connection
    }

    fn start(&self, builder: &Builder, name: String, check: Check) -> anyhow::Result<Client> {
        let client = builder.build().context("Redis client")?;
        let connection = self.register(name, check);
        connection.observe(&client);
        let (supervised, shutdown) = (client.clone(), self.process.tasks.shutdown_token());
        tokio::spawn(async move {
            // The library ends its task on a few errors, such as a full command queue.
            while !shutdown.is_cancelled() {
                let _ = supervised.connect().await;
                tokio::time::sleep(Duration::from_millis(u64::from(MAX_RECONNECT_DELAY_MS))).await;
            }
        });
        Ok(client)
    }

    /// Checks every client. Returns the names of those that are down, with the first reason.
    async fn check(self) -> Result<(), Down> {
        let connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let checks = connections.iter().map(|connection| connection.check());
        let failures: Vec<(&str, Down)> =
            std::iter::zip(&connections, futures_util::future::join_all(checks).await)
                .filter_map(|(connection, outcome)| Some((connection.name(), outcome.err()?)))
                .collect();
        match &failures[..] {
            [] => Ok(()),
            [(_, first), ..] => {
                let names: Vec<&str> = failures.iter().map(|(name, _)| *name).collect();
                let reason = format!("{}: {}", names.join(", "), first.class);
                Err(Down { reason, ..first.clone() })
            }
        }
    }
}

/// A factory of connections that do not reconnect.
#[derive(Debug)]
pub struct Connector {
    builder: Builder,
    connection: Arc<Connection>,
}

impl Connector {
    /// Connects. Returns the client, and a handle that completes when the connection ends.
    pub async fn connect(&self) -> anyhow::Result<(Client, ConnectHandle)> {
        let client = self.builder.build().context("Redis client")?;
        self.connection.observe(&client);
        let handle = client.init().await?;
        Ok((client, handle))
    }
}

/// Creates the configuration from the settings.
fn config(settings: &Redis) -> anyhow::Result<Config> {
    let (url, tls) = tls::redis(settings, settings.redis_url.expose_secret())?;
    let mut config = Config::from_url(&url).map_err(|_| anyhow::anyhow!("REDIS_URL is not a Redis URL"))?;
    config.tls = tls;
    Ok(config)
}

fn builder(config: Config) -> Builder {
    let mut builder = Builder::from_config(config);
    builder.with_connection_config(set_limits);
    builder
}

fn set_limits(connection: &mut ConnectionConfig) {
    connection.connection_timeout = CONNECT_TIMEOUT;
    connection.internal_command_timeout = SETUP_TIMEOUT;
    connection.max_command_attempts = 1;
    connection.max_command_buffer_len = MAX_COMMAND_QUEUE;
    connection.unresponsive =
        UnresponsiveConfig { max_timeout: Some(UNRESPONSIVE_TIMEOUT), interval: Duration::from_secs(1) };
    connection.tcp.nodelay = Some(true);
    // Authenticates again after an authentication error.
    connection.reconnect_on_auth_error = true;
    // Reconnects to the new master after a failover.
    connection.reconnect_errors = vec![
        ReconnectError::ReadOnly,
        ReconnectError::Loading,
        ReconnectError::ClusterDown,
        ReconnectError::MasterDown,
    ];
}

/// Returns the options of a command on the request path: one attempt, no queueing during a connect, a short timeout.
pub fn fail_fast_options() -> Options {
    Options { timeout: Some(COMMAND_TIMEOUT), max_attempts: Some(1), fail_fast: true, ..Options::default() }
}

#[cfg(all(test, feature = "testing"))]
mod tests;
