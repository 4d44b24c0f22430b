//! The limit of a user's connections over all gateways. A connection has a lease in Redis, which its gateway renews; the
//! leases of a killed gateway expire. A new connection beyond the limit evicts the oldest of the user.
//!
//! A gateway always writes all of its connections of a user. So a repeat does no harm, a lost write is made up for by the
//! next renewal, and a Redis that lost its data is filled again. While Redis is unavailable, only the limit of the
//! [`Hub`] holds: for each gateway alone.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use fred::{
    clients::{Client, WithOptions},
    interfaces::{ClientLike as _, StreamsInterface as _},
    types::{scripts::Script, streams::XReadValue},
};
use futures_util::future::join_all;
use shoppee_kit::{
    batch_queue::{BatchQueue, Limits},
    redis,
    tasks::Tasks,
};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use uuid::Uuid;

use super::{
    close_code::CloseReason,
    hub::{self, Hub, MAX_CONNECTIONS_PER_USER},
};

const SCRIPT: &str = include_str!("connection_limit.lua");
/// The duration of a lease: the connections of a killed gateway do not count any more after this. Two renewals may fail.
const LEASE_TTL: Duration = Duration::from_secs(25);
/// The time in which all leases are renewed once.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(10);
/// The interval between reads of evictions by other gateways.
const EVICTION_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The stream of evictions. Each gateway reads all of them, and closes its own connections.
const EVICTION_STREAM: &str = "connections:evicted";
/// The minimum number of entries that the stream keeps (approximate MAXLEN): several seconds of many evictions.
const EVICTION_STREAM_MAXLEN: i64 = 1_000;
/// Bounds the entries of one read.
const EVICTION_READ_COUNT: u64 = 512;
/// The fields of an entry.
const USER_FIELD: &str = "user";
const CONNECTION_FIELD: &str = "connection";
/// Bounds a run of the script, which takes a millisecond.
const SCRIPT_TIMEOUT: Duration = Duration::from_millis(200);
/// Bounds the wait of a new connection for its lease, in the queue too. Later, the next renewal brings it.
const ADMISSION_TIMEOUT: Duration = Duration::from_millis(250);
/// A batch is one run of the script. A single worker writes the states of a user in their order.
const LIMITS: Limits = Limits { capacity: 4096, batch_size: 128, workers: 1 };

/// The limiter; cheap to clone.
#[derive(Clone, Debug)]
pub struct ConnectionLimiter(BatchQueue<i64, ()>);

/// The lease of a connection. It is dropped after the connection was unregistered, and then ends.
#[derive(Debug)]
pub struct ConnectionLease {
    limiter: ConnectionLimiter,
    user_id: i64,
}

impl Drop for ConnectionLease {
    fn drop(&mut self) {
        // If the queue is full, the lease expires.
        self.limiter.0.defer(self.user_id);
    }
}

impl ConnectionLimiter {
    /// Starts the tasks that write leases, and close the connections that other gateways evict.
    pub fn start(redis: &Client, hub: &Arc<Hub>, tasks: &Tasks) -> Self {
        let leases = Arc::new(Leases {
            redis: redis.clone(),
            script: Script::from_lua(SCRIPT),
            hub: hub.clone(),
            gateway: Uuid::new_v4().simple().to_string(),
            is_degraded: AtomicBool::new(false),
        });
        metrics::gauge!("connection_limit_degraded").set(0);
        let writer = leases.clone();
        let queue = BatchQueue::start("connection limit", LIMITS, tasks, move |users| {
            let leases = writer.clone();
            async move { leases.write(&users).await }
        });
        let limiter = Self(queue);
        let (renewing, hub, shutdown) = (limiter.clone(), hub.clone(), tasks.shutdown_token());
        tasks.spawn("connection leases", async move {
            let work = async { tokio::join!(renewing.renew_leases(&hub), leases.follow_evictions()) };
            shutdown.run_until_cancelled(work).await;
            Ok(())
        });
        limiter
    }

    /// Returns the lease of a registered connection. It counts after [`Self::admit`].
    pub fn lease(&self, user_id: i64) -> ConnectionLease {
        ConnectionLease { limiter: self.clone(), user_id }
    }

    /// Waits until the new connection of a user counts, or Redis does not answer.
    pub async fn admit(&self, user_id: i64) {
        let _ = timeout(ADMISSION_TIMEOUT, self.0.submit(user_id)).await;
    }

    /// Renews the leases of all users again and again, evenly over the interval.
    async fn renew_leases(&self, hub: &Hub) {
        let mut ticks = interval(RENEWAL_INTERVAL / u32::try_from(hub::SHARDS).unwrap_or(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for shard in (0..hub::SHARDS).cycle() {
            ticks.tick().await;
            let users = hub.users(shard).into_iter();
            join_all(users.map(|user_id| self.0.submit(user_id))).await;
        }
    }
}

struct Leases {
    redis: Client,
    script: Script,
    hub: Arc<Hub>,
    /// The id of this gateway, a new one at each start.
    gateway: String,
    /// True while Redis does not answer.
    is_degraded: AtomicBool,
}

impl Leases {
    /// Writes the present connections of these users.
    async fn write(&self, users: &[i64]) -> Vec<()> {
        let mut distinct = users.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        // In a cluster, all keys of one script run must be in one slot.
        let size = if self.redis.is_clustered() { 1 } else { LIMITS.batch_size };
        let mut result = Ok(());
        for users in distinct.chunks(size) {
            result = result.and(self.run_script(users).await);
        }
        self.record_outcome(&result);
        vec![(); users.len()]
    }

    /// Logs and exports a change of the outcome of commands.
    fn record_outcome(&self, outcome: &anyhow::Result<()>) {
        let is_degraded = outcome.is_err();
        if self.is_degraded.swap(is_degraded, Ordering::Relaxed) == is_degraded {
            return;
        }
        metrics::gauge!("connection_limit_degraded").set(if is_degraded { 1.0 } else { 0.0 });
        match outcome {
            Ok(()) => tracing::info!("Redis answers again: connections are counted over all gateways"),
            Err(error) => {
                tracing::warn!(%error, "Redis does not answer: connections are counted per gateway");
            }
        }
    }

    async fn run_script(&self, users: &[i64]) -> anyhow::Result<()> {
        // A command would wait for a connection that is being made; a client does not.
        anyhow::ensure!(self.redis.is_connected(), "not connected");
        let ttl = LEASE_TTL.as_millis().to_string();
        let mut arguments = vec![self.gateway.clone(), MAX_CONNECTIONS_PER_USER.to_string(), ttl];
        for user_id in users {
            let connections = self.hub.connection_ages(*user_id);
            arguments.push(connections.len().to_string());
            for (id, age) in connections {
                arguments.extend([id.to_string(), age.as_micros().to_string()]);
            }
        }
        let keys: Vec<String> = users.iter().map(|user_id| format!("connections:{user_id}")).collect();
        // EVALSHA; a Redis that does not know the script is sent its source.
        let run = self.script.evalsha_with_reload(&self.redis, keys, arguments);
        let result: Vec<String> = timeout(SCRIPT_TIMEOUT, run).await??;
        for evicted in result.chunks(2) {
            let [index, connection] = evicted else { anyhow::bail!("incomplete result of the script") };
            let user_id = index.parse::<usize>()?.checked_sub(1).and_then(|index| users.get(index));
            self.evict(*user_id.context("unknown index of a user")?, connection).await?;
        }
        Ok(())
    }

    /// Closes an evicted connection of this gateway, or informs the others.
    async fn evict(&self, user_id: i64, connection: &str) -> anyhow::Result<()> {
        if !self.close(user_id, connection) {
            let max_len = ("MAXLEN", "~", EVICTION_STREAM_MAXLEN);
            let fields = vec![(USER_FIELD, user_id.to_string()), (CONNECTION_FIELD, connection.to_owned())];
            let _: String = self.commands().xadd(EVICTION_STREAM, false, max_len, "*", fields).await?;
        }
        Ok(())
    }

    /// Closes a connection if it is one of this gateway.
    fn close(&self, user_id: i64, connection: &str) -> bool {
        let number = connection.strip_prefix(&self.gateway).and_then(|rest| rest.strip_prefix(':'));
        let Some(id) = number.and_then(|number| number.parse().ok()) else { return false };
        self.hub.close(user_id, id, CloseReason::TooManyConnections);
        true
    }

    /// Closes the connections that other gateways evict. A lost entry is written again at a renewal.
    async fn follow_evictions(&self) {
        let mut position = "0-0".to_owned();
        loop {
            sleep(EVICTION_POLL_INTERVAL).await;
            let outcome = self.read_evictions(&mut position).await;
            // Leases are written soon after a failure, unless there are none.
            if outcome.is_err() || self.hub.is_empty() {
                self.record_outcome(&outcome);
            }
        }
    }

    async fn read_evictions(&self, position: &mut String) -> anyhow::Result<()> {
        let (commands, after) = (self.commands(), format!("({position}"));
        let entries: Vec<XReadValue<String, String, String>> =
            commands.xrange_values(EVICTION_STREAM, after, "+", Some(EVICTION_READ_COUNT)).await?;
        for (id, fields) in entries {
            *position = id;
            if let Some((user_id, connection)) = parse_eviction(&fields) {
                self.close(user_id, connection);
            }
        }
        Ok(())
    }

    fn commands(&self) -> WithOptions<Client> {
        self.redis.with_options(&redis::fail_fast_options())
    }
}

/// Returns the user and the connection of an entry of the stream.
fn parse_eviction(fields: &HashMap<String, String>) -> Option<(i64, &str)> {
    Some((fields.get(USER_FIELD)?.parse().ok()?, fields.get(CONNECTION_FIELD)?))
}
