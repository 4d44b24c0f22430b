//! Redis: the clients of a process, which connect and reconnect for ever, and the cost of a command on a request's
//! path.
//!
//! The client library retries a first connection only where `Config::fail_fast` is off, and ends its task for good on
//! some errors. [`Clients`] therefore turns it off and starts each ended task anew.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
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

use tokio_util::sync::CancellationToken;

use crate::{
    process::Process,
    readiness::{Down, Need},
    settings::Redis,
    tls,
};

mod class;
mod connection;

pub use class::{Class, text};
use connection::{Check, Connection};

/// A Redis on the same network answers in under a millisecond; a request does not wait longer than this for it.
const COMMAND: Duration = Duration::from_millis(200);
/// Bounds TCP and TLS, which a process that is starved of CPU takes a while for. With [`MAX_RETRY_DELAY`] it lets a
/// client connect within 5 s of the return of a Redis that had answered nothing.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Bounds the commands that prepare a connection. One that is slow by 2 s is still made.
const SETUP_TIMEOUT: Duration = Duration::from_secs(4);
/// The delay before the first retry. Milliseconds.
const MIN_RETRY_DELAY: u32 = 10;
/// The longest delay before a retry. Milliseconds.
const MAX_RETRY_DELAY: u32 = 1000;
/// Keeps the clients of all processes from connecting in step. Milliseconds.
const RETRY_JITTER: u32 = 50;
/// A connection on which nothing came back for so long is made anew.
const UNRESPONSIVE: Duration = Duration::from_secs(3);
/// Commands that wait while the connection is made; more are refused.
const MOST_WAITING: usize = 10_000;
/// Bounds the first attempt of a process, whose refusal ends the start. A Redis that answers nothing delays the start
/// by this.
const FIRST_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

/// The Redis clients of a process. `/readyz` speaks of each by its name; cheap to clone.
#[derive(Clone, Debug)]
pub struct Clients {
    config: Config,
    connections: Arc<Mutex<Vec<Arc<Connection>>>>,
    stop: CancellationToken,
}

impl Clients {
    /// Tries once to connect, and watches the clients that are made later. Returns an error, before any client exists,
    /// where the settings cannot be right. Such are a URL that is none, credentials that Redis refuses, and a
    /// certificate that is wrong. A Redis that does not answer is no error.
    pub async fn open(settings: &Redis, process: &Process) -> anyhow::Result<Self> {
        let clients =
            Self { config: config(settings)?, connections: Arc::default(), stop: process.tasks.stopping() };
        for class in Class::ALL {
            metrics::counter!("redis_errors_total", "class" => class.name()).increment(0);
        }
        clients.attempt().await?;
        let watched = clients.clone();
        process.readiness.watch(&process.tasks, "redis", Need::Useful, move || watched.clone().check());
        Ok(clients)
    }

    /// A client that connects in the background, for as long as it takes.
    pub fn client(&self, name: impl Into<String>) -> anyhow::Result<Client> {
        let mut builder = self.reconnecting();
        builder.with_performance_config(|performance| {
            performance.default_command_timeout = Duration::from_secs(2);
        });
        self.start(&builder, name.into(), Check::Ping)
    }

    /// A client of its own for a blocking read, which no other command must wait behind.
    pub fn blocking_client(&self, name: impl Into<String>) -> anyhow::Result<Client> {
        let mut builder = self.reconnecting();
        builder.with_connection_config(|connection| connection.unresponsive = UnresponsiveConfig::default());
        self.start(&builder, name.into(), Check::State)
    }

    /// Makes connections that stay broken once they break, for a caller that must know that nothing came in between.
    pub fn connector(&self, name: impl Into<String>) -> Connector {
        let connection = self.register(name.into(), Check::Ping);
        Connector { builder: builder(self.config.clone()), connection }
    }

    /// Connects once. Only a refusal is an error.
    async fn attempt(&self) -> anyhow::Result<()> {
        let client = builder(self.config.clone()).build().context("Redis client")?;
        match tokio::time::timeout(FIRST_ATTEMPT_TIMEOUT, client.init()).await {
            Ok(Err(error)) if let Some(failure) = Class::tls_failure(&error) => {
                if failure.is_lasting() {
                    bail!("Redis at REDIS_URL: TLS: {failure}");
                }
            }
            Ok(Err(error)) if Class::of(&error).is_refusal() => {
                bail!("Redis refuses REDIS_URL: {}", text(&error));
            }
            Ok(Ok(_)) => {
                let _ = client.quit().await;
            }
            // The check of readiness logs it.
            Ok(Err(_)) | Err(_) => {}
        }
        Ok(())
    }

    fn reconnecting(&self) -> Builder {
        let mut builder = builder(Config { fail_fast: false, ..self.config.clone() });
        let mut policy = ReconnectPolicy::new_exponential(0, MIN_RETRY_DELAY, MAX_RETRY_DELAY, 2);
        policy.set_jitter(RETRY_JITTER);
        builder.set_policy(policy);
        builder
    }

    fn register(&self, name: String, check: Check) -> Arc<Connection> {
        let connection = Arc::new(Connection::new(name, check));
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).push(connection.clone());
        connection
    }

    fn start(&self, builder: &Builder, name: String, check: Check) -> anyhow::Result<Client> {
        let client = builder.build().context("Redis client")?;
        let connection = self.register(name, check);
        connection.follow(&client);
        let (supervised, stop) = (client.clone(), self.stop.clone());
        tokio::spawn(async move {
            // The library ends its task on a few errors, such as a full queue of commands.
            while !stop.is_cancelled() {
                let _ = supervised.connect().await;
                tokio::time::sleep(Duration::from_millis(u64::from(MAX_RETRY_DELAY))).await;
            }
        });
        Ok(client)
    }

    /// Asks every connection for its health.
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

/// Makes connections that stay broken once they break.
#[derive(Debug)]
pub struct Connector {
    builder: Builder,
    connection: Arc<Connection>,
}

impl Connector {
    /// A connection, and its end.
    pub async fn connect(&self) -> anyhow::Result<(Client, ConnectHandle)> {
        let client = self.builder.build().context("Redis client")?;
        self.connection.follow(&client);
        let over = client.init().await?;
        Ok((client, over))
    }
}

/// The configuration that `settings` ask for.
fn config(settings: &Redis) -> anyhow::Result<Config> {
    let (url, tls) = tls::redis(settings, settings.redis_url.expose_secret())?;
    let mut config = Config::from_url(&url).map_err(|_| anyhow::anyhow!("REDIS_URL is not a Redis URL"))?;
    config.tls = tls;
    Ok(config)
}

fn builder(config: Config) -> Builder {
    let mut builder = Builder::from_config(config);
    builder.with_connection_config(limits);
    builder
}

fn limits(connection: &mut ConnectionConfig) {
    connection.connection_timeout = CONNECT_TIMEOUT;
    connection.internal_command_timeout = SETUP_TIMEOUT;
    connection.max_command_attempts = 1;
    connection.max_command_buffer_len = MOST_WAITING;
    connection.unresponsive =
        UnresponsiveConfig { max_timeout: Some(UNRESPONSIVE), interval: Duration::from_secs(1) };
    connection.tcp.nodelay = Some(true);
    // A connection that lost its user authenticates anew.
    connection.reconnect_on_auth_error = true;
    // A master that was demoted must be left for the new one.
    connection.reconnect_errors = vec![
        ReconnectError::ReadOnly,
        ReconnectError::Loading,
        ReconnectError::ClusterDown,
        ReconnectError::MasterDown,
    ];
}

/// How a command on the path of a request is sent: once, at once, and not waited for long.
pub fn on_request_path() -> Options {
    Options { timeout: Some(COMMAND), max_attempts: Some(1), fail_fast: true, ..Options::default() }
}

#[cfg(all(test, feature = "testing"))]
mod tests;
