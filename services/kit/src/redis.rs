//! Redis: clients that come back by themselves, and what a command on a request's path may cost.

use std::time::Duration;

use anyhow::Context as _;
use fred::{
    clients::Client,
    interfaces::{ClientLike as _, EventInterface as _},
    types::{
        Builder, ConnectHandle,
        config::{Config, ConnectionConfig, Options, ReconnectError, ReconnectPolicy, UnresponsiveConfig},
    },
};
use secrecy::ExposeSecret as _;

use crate::{
    readiness::{Need, Readiness},
    settings::Redis,
    tasks::Tasks,
};

/// A Redis on the same network answers in under a millisecond; a request does not wait longer than this for it.
const COMMAND: Duration = Duration::from_millis(200);
const CONNECT: Duration = Duration::from_secs(1);
/// Back within this after Redis is. Milliseconds.
const MOST_BETWEEN_TRIES: u32 = 1000;
/// A connection on which nothing came back for so long is made anew.
const UNRESPONSIVE: Duration = Duration::from_secs(3);
/// Commands that wait while the connection is made; more are refused.
const MOST_WAITING: usize = 10_000;

/// A client that connects in the background, for as long as it takes. An error only for a URL that is none.
pub fn open(settings: &Redis) -> anyhow::Result<Client> {
    let mut client = builder(settings)?;
    client
        .with_performance_config(|performance| performance.default_command_timeout = Duration::from_secs(2));
    start(&client)
}

/// A client of its own for a blocking read, which no other command must wait behind.
pub fn open_blocking(settings: &Redis) -> anyhow::Result<Client> {
    let mut client = builder(settings)?;
    client.with_connection_config(|connection| connection.unresponsive = UnresponsiveConfig::default());
    start(&client)
}

/// Makes connections that stay broken once they break, for whoever must know that nothing came in between.
#[derive(Debug)]
pub struct Connector(Builder);

impl Connector {
    /// An error only for a URL that is none.
    pub fn new(settings: &Redis) -> anyhow::Result<Self> {
        once(settings).map(Self)
    }

    /// A connection, and its end.
    pub async fn connect(&self) -> anyhow::Result<(Client, ConnectHandle)> {
        let client = self.0.build().context("Redis client")?;
        let over = client.init().await?;
        Ok((client, over))
    }
}

fn builder(settings: &Redis) -> anyhow::Result<Builder> {
    let mut builder = once(settings)?;
    builder.set_policy(ReconnectPolicy::new_exponential(0, 50, MOST_BETWEEN_TRIES, 2));
    Ok(builder)
}

fn once(settings: &Redis) -> anyhow::Result<Builder> {
    let (url, tls) = crate::tls::redis(settings, settings.redis_url.expose_secret())?;
    let mut config = Config::from_url(&url).map_err(|_| anyhow::anyhow!("REDIS_URL is not a Redis URL"))?;
    config.tls = tls;
    let mut builder = Builder::from_config(config);
    builder.with_connection_config(limits);
    Ok(builder)
}

fn limits(connection: &mut ConnectionConfig) {
    connection.connection_timeout = CONNECT;
    connection.internal_command_timeout = CONNECT;
    connection.max_command_attempts = 1;
    connection.max_command_buffer_len = MOST_WAITING;
    connection.unresponsive =
        UnresponsiveConfig { max_timeout: Some(UNRESPONSIVE), interval: Duration::from_secs(1) };
    connection.tcp.nodelay = Some(true);
    // A master that was demoted must be left for the new one.
    connection.reconnect_errors = vec![
        ReconnectError::ReadOnly,
        ReconnectError::Loading,
        ReconnectError::ClusterDown,
        ReconnectError::MasterDown,
    ];
}

fn start(builder: &Builder) -> anyhow::Result<Client> {
    let client = builder.build().context("Redis client")?;
    client.on_error(|(error, _)| async move {
        tracing::debug!(%error, "Redis");
        Ok(())
    });
    drop(client.connect());
    Ok(client)
}

/// How a command on the path of a request is sent: once, at once, and not waited for long.
pub fn on_request_path() -> Options {
    Options { timeout: Some(COMMAND), max_attempts: Some(1), fail_fast: true, ..Options::default() }
}

/// Lets `readiness` know whether Redis answers.
pub fn watch(client: &Client, tasks: &Tasks, readiness: &Readiness) {
    let client = client.clone();
    readiness.watch(tasks, "redis", Need::Useful, move || {
        let client = client.with_options(&on_request_path());
        async move { client.ping::<String>(None).await.is_ok() }
    });
}
