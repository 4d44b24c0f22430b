//! The health of a pool: its server answers, may write, and has our time; and the connections that are kept open.

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

/// The connections kept open, and opened before the process calls itself ready. Else a replica that comes into the rush
/// would have callers wait while it opens them. Each takes forty milliseconds of key stretching, one for every call at
/// once.
const MIN_CONNECTIONS: u32 = 4;
/// The age at which connections to a server that cannot write are made anew: another server may have its name by now.
const READ_ONLY_LIFETIME: Duration = Duration::from_secs(1);
/// The offset beyond which a clock is logged. The database's clock decides the stored times.
const MAX_CLOCK_OFFSET: f64 = 2.0;
/// The longest round trip of a good answer: a slower one says little of the server's clock. Seconds.
const MAX_CLOCK_ROUND_TRIP: f64 = 0.5;

/// The query of one look at the server: its permission to write, and its time.
const LOOK: &str =
    "select current_setting('transaction_read_only') = 'on', extract(epoch from clock_timestamp())::float8";

/// Knows the connections of a pool that may lead to a server that has been demoted.
#[derive(Debug, Default)]
pub(super) struct Demotion {
    read_only: AtomicBool,
    /// The moment before which the connections were made that are to be left. Milliseconds since [`START`].
    left_before: AtomicU64,
}

/// The origin of the times.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Returns the milliseconds from the start of the process to `at`.
pub(super) fn millis_since_start(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*START).as_millis()).unwrap_or(u64::MAX)
}

impl Demotion {
    /// Reports whether a connection of this age must be left.
    pub fn includes(&self, age: Duration) -> bool {
        let left_before = self.left_before.load(Ordering::Relaxed);
        left_before > 0
            && Instant::now().checked_sub(age).is_none_or(|made| millis_since_start(made) < left_before)
    }

    /// Notes the state that a connection of `pool` found.
    fn note(&self, read_only: bool) {
        let was_read_only = self.read_only.swap(read_only, Ordering::Relaxed);
        let now = Instant::now();
        if read_only {
            let before = now.checked_sub(READ_ONLY_LIFETIME).unwrap_or(now);
            self.left_before.store(millis_since_start(before), Ordering::Relaxed);
        } else if was_read_only {
            // Others of the pool may still lead to the demoted server.
            self.left_before.store(millis_since_start(now), Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
pub(super) struct Health {
    pool: PgPool,
    options: PgConnectOptions,
    demotion: Arc<Demotion>,
    /// Records that the last check failed.
    failing: AtomicBool,
    clock: LogThrottle,
}

impl Health {
    pub fn new(pool: PgPool, options: PgConnectOptions, demotion: Arc<Demotion>) -> Self {
        Self { pool, options, demotion, failing: AtomicBool::new(true), clock: LogThrottle::default() }
    }

    /// Reports whether the server took writes at the last look.
    pub fn is_writable(&self) -> bool {
        !self.demotion.read_only.load(Ordering::Relaxed)
    }

    /// Opens the connections that are kept, and looks at the server.
    pub async fn check(self: Arc<Self>) -> Result<(), Down> {
        self.observe();
        let outcome = self.look().await;
        self.failing.store(outcome.is_err(), Ordering::Relaxed);
        outcome.map_err(|error| down(&error))
    }

    async fn look(&self) -> Result<(), sqlx::Error> {
        if self.failing.load(Ordering::Relaxed) {
            self.probe().await?;
        }
        match self.look_through_pool().await {
            // The pool hides why no connection was made.
            Err(sqlx::Error::PoolTimedOut) => {
                self.probe().await?;
                Err(sqlx::Error::PoolTimedOut)
            }
            outcome => outcome,
        }
    }

    /// Makes a connection outside the pool, which has more time for it and says why it cannot be made.
    async fn probe(&self) -> Result<(), sqlx::Error> {
        let connection = connect(&self.options, CONNECT_TIMEOUT).await?;
        let _ = connection.close().await;
        Ok(())
    }

    async fn look_through_pool(&self) -> Result<(), sqlx::Error> {
        self.fill().await?;
        let asked = Instant::now();
        let acquired = self.pool.acquire().await;
        metrics::histogram!("db_pool_wait_seconds").record(asked.elapsed());
        let mut connection = acquired?;
        let (before, started) = (unix_now(), Instant::now());
        let row = sqlx::query(LOOK).fetch_one(&mut *connection).await?;
        let (read_only, theirs) = (row.try_get::<bool, _>(0)?, row.try_get::<f64, _>(1)?);
        self.demotion.note(read_only);
        self.compare_clocks(theirs, before, started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Opens connections up to those that are kept, one after the other. Many at once would have none of them ready in
    /// time where the process is starved of CPU. No request waits for these.
    async fn fill(&self) -> Result<(), sqlx::Error> {
        let wanted = MIN_CONNECTIONS.min(self.pool.options().get_max_connections());
        let mut held = Vec::new();
        while self.pool.size() < wanted && held.len() < MIN_CONNECTIONS as usize {
            held.push(sqlx::PgPool::acquire(&self.pool).await?);
        }
        Ok(())
    }

    /// Compares `theirs`, the server's time between `before`, ours, and `round_trip` seconds later.
    fn compare_clocks(&self, theirs: f64, before: f64, round_trip: f64) {
        if round_trip > MAX_CLOCK_ROUND_TRIP {
            return;
        }
        let offset = before + round_trip / 2.0 - theirs;
        metrics::gauge!("clock_offset_seconds").set(offset);
        if offset.abs() <= MAX_CLOCK_OFFSET {
            self.clock.reset();
        } else if self.clock.admit().is_some() {
            tracing::warn!(offset_seconds = offset, "the clock is not that of PostgreSQL");
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a pool has tens of connections")]
    fn observe(&self) {
        let (open, idle) = (f64::from(self.pool.size()), self.pool.num_idle() as f64);
        metrics::gauge!("db_pool_connections", "state" => "idle").set(idle);
        metrics::gauge!("db_pool_connections", "state" => "used").set((open - idle).max(0.0));
    }
}

/// The machine's time, which is compared with the server's. Seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the real clock is what is compared")]
fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_to_a_demoted_server_are_left_and_newer_ones_are_not() {
        let demotion = Demotion::default();
        LazyLock::force(&START);
        std::thread::sleep(Duration::from_millis(20));
        let (old, new) = (Duration::from_mins(1), Duration::ZERO);
        assert!(!demotion.includes(old) && !demotion.includes(new));
        demotion.note(false);
        assert!(!demotion.includes(old), "a server that writes is kept");
        demotion.note(true);
        assert!(!demotion.includes(new), "a new one may lead elsewhere");
        demotion.note(false);
        assert!(demotion.includes(old), "the others are left when one has found a server that writes");
        std::thread::sleep(Duration::from_millis(5));
        assert!(!demotion.includes(new));
    }
}
