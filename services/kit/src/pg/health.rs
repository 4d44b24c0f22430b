//! The health check of a pool: the server answers, is writable, and agrees on the time. It also keeps a minimum of
//! connections open.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use sqlx::{Connection as _, Row as _, postgres::PgConnectOptions};

use super::{CONNECT_TIMEOUT, PgPool, connect, down};
use crate::{log_throttle::LogThrottle, readiness::Down};

/// The minimum of open connections, which are opened before the process is ready. Otherwise the first requests of a new
/// replica would wait for them: each takes 40 ms of key stretching.
const MIN_CONNECTIONS: u32 = 4;
/// The maximum lifetime of connections to a read-only server: after a failover its name leads to another server.
const MAX_READ_ONLY_LIFETIME: Duration = Duration::from_secs(1);
/// The offset beyond which the machine's clock is logged. Seconds. Stored times come from the database's clock.
const MAX_CLOCK_OFFSET: f64 = 2.0;
/// The maximum round trip of an accurate clock comparison. Seconds.
const MAX_CLOCK_ROUND_TRIP: f64 = 0.5;

/// The query of a health check: whether the server is read-only, and its time.
const CHECK_QUERY: &str =
    "select current_setting('transaction_read_only') = 'on', extract(epoch from clock_timestamp())::float8";

/// Failover detection: marks the connections of a pool that may lead to a demoted server, for eviction.
#[derive(Debug, Default)]
pub(super) struct Demotion {
    read_only: AtomicBool,
    /// Connections made before this time are evicted. Milliseconds since [`START`].
    evict_before: AtomicU64,
}

/// The origin of the times above.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Returns the milliseconds from the start of the process to `at`.
pub(super) fn millis_since_start(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*START).as_millis()).unwrap_or(u64::MAX)
}

impl Demotion {
    /// Returns whether a connection of this age must be evicted.
    pub fn includes(&self, age: Duration) -> bool {
        let evict_before = self.evict_before.load(Ordering::Relaxed);
        evict_before > 0
            && Instant::now().checked_sub(age).is_none_or(|made| millis_since_start(made) < evict_before)
    }

    /// Records the state of the server at a check.
    fn record(&self, read_only: bool) {
        let was_read_only = self.read_only.swap(read_only, Ordering::Relaxed);
        let now = Instant::now();
        if read_only {
            let before = now.checked_sub(MAX_READ_ONLY_LIFETIME).unwrap_or(now);
            self.evict_before.store(millis_since_start(before), Ordering::Relaxed);
        } else if was_read_only {
            // Other connections may still lead to the demoted server.
            self.evict_before.store(millis_since_start(now), Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
pub(super) struct Health {
    pool: PgPool,
    options: PgConnectOptions,
    demotion: Arc<Demotion>,
    /// True if the last check failed.
    failing: AtomicBool,
    clock_throttle: LogThrottle,
}

impl Health {
    pub fn new(pool: PgPool, options: PgConnectOptions, demotion: Arc<Demotion>) -> Self {
        Self {
            pool,
            options,
            demotion,
            failing: AtomicBool::new(true),
            clock_throttle: LogThrottle::default(),
        }
    }

    /// Returns whether the server was writable at the last check.
    pub fn is_writable(&self) -> bool {
        !self.demotion.read_only.load(Ordering::Relaxed)
    }

    /// Opens the minimum of connections and checks the server.
    pub async fn check(self: Arc<Self>) -> Result<(), Down> {
        self.record_pool_metrics();
        let outcome = self.query_server().await;
        self.failing.store(outcome.is_err(), Ordering::Relaxed);
        outcome.map_err(|error| down(&error))
    }

    async fn query_server(&self) -> Result<(), sqlx::Error> {
        if self.failing.load(Ordering::Relaxed) {
            self.connect_directly().await?;
        }
        match self.query_through_pool().await {
            // The pool hides the reason for which the connect failed.
            Err(sqlx::Error::PoolTimedOut) => {
                self.connect_directly().await?;
                Err(sqlx::Error::PoolTimedOut)
            }
            outcome => outcome,
        }
    }

    /// Connects outside the pool, with a longer timeout and the reason of a failure.
    async fn connect_directly(&self) -> Result<(), sqlx::Error> {
        let connection = connect(&self.options, CONNECT_TIMEOUT).await?;
        let _ = connection.close().await;
        Ok(())
    }

    async fn query_through_pool(&self) -> Result<(), sqlx::Error> {
        self.open_min_connections().await?;
        let requested = Instant::now();
        let connection = self.pool.acquire().await;
        metrics::histogram!("db_pool_wait_seconds").record(requested.elapsed());
        let mut connection = connection?;
        let (before, started) = (unix_now(), Instant::now());
        let row = sqlx::query(CHECK_QUERY).fetch_one(&mut *connection).await?;
        let (read_only, server_time) = (row.try_get::<bool, _>(0)?, row.try_get::<f64, _>(1)?);
        self.demotion.record(read_only);
        self.compare_clocks(server_time, before, started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Opens the minimum of connections one after the other: if the process is starved of CPU, concurrent connects would
    /// all time out. No request waits for these.
    async fn open_min_connections(&self) -> Result<(), sqlx::Error> {
        let min = MIN_CONNECTIONS.min(self.pool.options().get_max_connections());
        let mut connections = Vec::new();
        while self.pool.size() < min && connections.len() < MIN_CONNECTIONS as usize {
            connections.push(sqlx::PgPool::acquire(&self.pool).await?);
        }
        Ok(())
    }

    /// Compares `server_time` with the machine's time: `before` the query, which took `round_trip` seconds.
    fn compare_clocks(&self, server_time: f64, before: f64, round_trip: f64) {
        if round_trip > MAX_CLOCK_ROUND_TRIP {
            return;
        }
        let offset = before + round_trip / 2.0 - server_time;
        metrics::gauge!("clock_offset_seconds").set(offset);
        if offset.abs() <= MAX_CLOCK_OFFSET {
            self.clock_throttle.reset();
        } else if self.clock_throttle.admit().is_some() {
            tracing::warn!(offset_seconds = offset, "clock offset from PostgreSQL exceeds the maximum");
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a pool has tens of connections")]
    fn record_pool_metrics(&self) {
        let (open, idle) = (f64::from(self.pool.size()), self.pool.num_idle() as f64);
        metrics::gauge!("db_pool_connections", "state" => "idle").set(idle);
        metrics::gauge!("db_pool_connections", "state" => "used").set((open - idle).max(0.0));
    }
}

/// Returns the machine's time, which is compared with the server's. Seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the real clock is what is compared")]
fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_connections_are_evicted_after_a_demotion_and_newer_ones_are_kept() {
        let demotion = Demotion::default();
        LazyLock::force(&START);
        std::thread::sleep(Duration::from_millis(20));
        let (old, new) = (Duration::from_mins(1), Duration::ZERO);
        assert!(!demotion.includes(old) && !demotion.includes(new));
        demotion.record(false);
        assert!(!demotion.includes(old), "the server is writable");
        demotion.record(true);
        assert!(!demotion.includes(new), "a new connection may lead to another server");
        demotion.record(false);
        assert!(demotion.includes(old), "one connection has found a writable server");
        std::thread::sleep(Duration::from_millis(5));
        assert!(!demotion.includes(new));
    }
}
