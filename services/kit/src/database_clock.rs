//! The database's clock: the time that everything stored and compared goes by. Replicas share one database and not one
//! clock, so a process whose own clock is wrong expires nothing early and leases nothing for too long.
//!
//! The clock is read in intervals and carried on by the machine's monotonic clock in between. Asking for the time thus
//! costs no query, and a step of the machine's clock changes nothing. The offset of the machine's clock is a matter of
//! readiness (`clock_offset_seconds`).

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use time::OffsetDateTime;

use crate::{
    clock::{Clock, truncate},
    pg::{self, PgPool},
    process::Process,
    readiness::Need,
    worker::{self, Round},
};

/// The interval between two readings. Two monotonic clocks differ by well below a millisecond in this time.
const READ_INTERVAL: Duration = Duration::from_secs(10);
/// The interval before the first reading succeeds; until then the process is not ready.
const FIRST_READ_INTERVAL: Duration = Duration::from_millis(250);
/// The longest round trip of a good reading: a longer one says too little about the moment of the server's look.
const MAX_ROUND_TRIP: Duration = Duration::from_millis(500);
/// The age of the last reading beyond which a worse one replaces it.
const MAX_AGE: Duration = Duration::from_mins(1);
const NAME: &str = "clock";

/// One reading of the server's clock.
#[derive(Clone, Copy, Debug)]
struct Reading {
    time: OffsetDateTime,
    at: Instant,
}

/// Tells the time of the database's server, moved by what a test has added to the process's clock. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DatabaseClock {
    machine: Clock,
    reading: Arc<RwLock<Option<Reading>>>,
}

impl DatabaseClock {
    /// Starts to follow the clock of the server behind `pool`; the process is not ready until it was read.
    pub fn start(pool: &PgPool, process: &Process) -> Self {
        let clock = Self { machine: process.clock.clone(), reading: Arc::default() };
        process.readiness.set(NAME, Need::Vital, false);
        let (first, pool, readiness) = (clock.clone(), pool.clone(), process.readiness.clone());
        let (stop, process) = (process.tasks.stopping(), process.clone());
        process.tasks.clone().spawn(NAME, async move {
            while !stop.is_cancelled() && first.read(&pool).await.is_err() {
                tokio::time::sleep(FIRST_READ_INTERVAL).await;
            }
            readiness.set(NAME, Need::Vital, true);
            worker::spawn(&process, "database_clock", READ_INTERVAL, readiness.serving(), move || {
                let (clock, pool) = (first.clone(), pool.clone());
                async move { clock.read(&pool).await.map(|()| Round::Done) }
            });
            stop.cancelled().await;
            Ok(())
        });
        clock
    }

    /// Returns the server's time, to the microsecond. Before the first reading, returns the machine's.
    pub fn now(&self) -> OffsetDateTime {
        let reading = *self.reading.read().unwrap_or_else(PoisonError::into_inner);
        reading.map_or_else(
            || self.machine.now(),
            |reading| truncate(reading.time + reading.at.elapsed() + self.machine.advanced()),
        )
    }

    async fn read(&self, pool: &PgPool) -> sqlx::Result<()> {
        let mut conn = pool.acquire().await?;
        let began = Instant::now();
        let time = pg::clock_timestamp(&mut conn).await?;
        let round_trip = began.elapsed();
        let reading = Reading { time, at: began + round_trip / 2 };
        let mut last = self.reading.write().unwrap_or_else(PoisonError::into_inner);
        if round_trip <= MAX_ROUND_TRIP || last.is_none_or(|last| last.at.elapsed() > MAX_AGE) {
            *last = Some(reading);
        }
        Ok(())
    }
}
