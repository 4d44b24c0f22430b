//! A clock synchronised with the database server: the source of all times that are stored or compared. Replicas share one
//! database, so that clock skew of a machine neither expires an entity early nor extends a lease.
//!
//! The server's clock is read periodically; in between, the machine's monotonic clock advances it. A call thus costs no
//! query, and a step of the machine's clock has no effect. The offset of the machine's clock is exported as
//! `clock_offset_seconds`.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use time::OffsetDateTime;

use crate::{
    clock::{Clock, truncate_to_micros},
    pg::{self, PgPool},
    process::Process,
    readiness::Criticality,
    worker::{self, Round},
};

/// The interval between two readings. Two monotonic clocks drift apart by well below a millisecond in this time.
const READ_INTERVAL: Duration = Duration::from_secs(10);
/// The delay between attempts of the first reading; until it succeeds, the process is not ready.
const FIRST_READ_RETRY_DELAY: Duration = Duration::from_millis(250);
/// The maximum round trip of an accurate reading. Half the round trip bounds its error.
const MAX_ROUND_TRIP: Duration = Duration::from_millis(500);
/// The age of the last reading beyond which a less accurate one replaces it.
const MAX_READING_AGE: Duration = Duration::from_mins(1);
const NAME: &str = "clock";

/// One reading of the server's clock.
#[derive(Clone, Copy, Debug)]
struct Reading {
    time: OffsetDateTime,
    at: Instant,
}

/// The clock of the database server, plus the time that a test has added to the process's clock.
#[derive(Clone, Debug)]
pub struct DatabaseClock {
    machine: Clock,
    reading: Arc<RwLock<Option<Reading>>>,
}

impl DatabaseClock {
    /// Starts to synchronise with the server behind `pool`. The process is not ready until the first reading.
    pub fn start(pool: &PgPool, process: &Process) -> Self {
        let clock = Self { machine: process.clock.clone(), reading: Arc::default() };
        process.readiness.set(NAME, Criticality::Required, false);
        let (reader, pool, readiness) = (clock.clone(), pool.clone(), process.readiness.clone());
        let (shutdown, process) = (process.tasks.shutdown_token(), process.clone());
        process.tasks.clone().spawn(NAME, async move {
            while !shutdown.is_cancelled() && reader.read(&pool).await.is_err() {
                tokio::time::sleep(FIRST_READ_RETRY_DELAY).await;
            }
            readiness.set(NAME, Criticality::Required, true);
            worker::spawn(&process, "database_clock", READ_INTERVAL, readiness.serving(), move || {
                let (clock, pool) = (reader.clone(), pool.clone());
                async move { clock.read(&pool).await.map(|()| Round::Done) }
            });
            shutdown.cancelled().await;
            Ok(())
        });
        clock
    }

    /// Returns the server's time, truncated to microseconds. Before the first reading, returns the machine's.
    pub fn now(&self) -> OffsetDateTime {
        let reading = *self.reading.read().unwrap_or_else(PoisonError::into_inner);
        reading.map_or_else(
            || self.machine.now(),
            |reading| truncate_to_micros(reading.time + reading.at.elapsed() + self.machine.advanced()),
        )
    }

    async fn read(&self, pool: &PgPool) -> sqlx::Result<()> {
        let mut conn = pool.acquire().await?;
        let started = Instant::now();
        let time = pg::clock_timestamp(&mut conn).await?;
        let round_trip = started.elapsed();
        let reading = Reading { time, at: started + round_trip / 2 };
        let mut last = self.reading.write().unwrap_or_else(PoisonError::into_inner);
        if round_trip <= MAX_ROUND_TRIP || last.is_none_or(|last| last.at.elapsed() > MAX_READING_AGE) {
            *last = Some(reading);
        }
        Ok(())
    }
}
