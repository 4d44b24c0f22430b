//! A clock that is passed as an argument, so that tests can set it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use time::OffsetDateTime;

/// The clock of the machine, plus the time that a test has added.
#[derive(Clone, Debug, Default)]
pub struct Clock(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    advanced_ms: AtomicI64,
    /// The error of the machine's clock.
    offset_ms: AtomicI64,
}

impl Clock {
    /// Returns the time, truncated to the microseconds that PostgreSQL stores.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    pub fn now(&self) -> OffsetDateTime {
        let offset = time::Duration::milliseconds(self.0.offset_ms.load(Ordering::Relaxed));
        truncate_to_micros(OffsetDateTime::now_utc() + offset + self.advanced())
    }

    /// Returns the seconds since the Unix epoch.
    pub fn unix(&self) -> i64 {
        self.now().unix_timestamp()
    }

    /// Advances this clock and its clones, for tests.
    pub fn advance(&self, by: Duration) {
        self.0.advanced_ms.fetch_add(milliseconds(by), Ordering::Relaxed);
    }

    /// Returns the time that a test has added.
    pub fn advanced(&self) -> time::Duration {
        time::Duration::milliseconds(self.0.advanced_ms.load(Ordering::Relaxed))
    }

    /// Sets the offset by which the machine's clock is ahead of the correct time, for tests.
    pub fn set_offset(&self, offset: Duration) {
        self.0.offset_ms.store(milliseconds(offset), Ordering::Relaxed);
    }
}

/// Truncates a time to microseconds, the resolution of PostgreSQL.
pub(crate) fn truncate_to_micros(time: OffsetDateTime) -> OffsetDateTime {
    time - time::Duration::nanoseconds(i64::from(time.nanosecond() % 1000))
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
