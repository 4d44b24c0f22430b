//! Time as an argument, so that tests can move it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use time::OffsetDateTime;

/// Tells the time of the machine, moved by what a test has added to it.
#[derive(Clone, Debug, Default)]
pub struct Clock(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    advanced_ms: AtomicI64,
    error_ms: AtomicI64,
}

impl Clock {
    /// To the microsecond, which is what PostgreSQL keeps: a time is the same before and after it was stored.
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the machine")]
    pub fn now(&self) -> OffsetDateTime {
        let error = time::Duration::milliseconds(self.0.error_ms.load(Ordering::Relaxed));
        truncate(OffsetDateTime::now_utc() + error + self.advanced())
    }

    /// Seconds since the Unix epoch.
    pub fn unix(&self) -> i64 {
        self.now().unix_timestamp()
    }

    /// For tests: lets `by` pass at once, for this clock and all its clones.
    pub fn advance(&self, by: Duration) {
        self.0.advanced_ms.fetch_add(milliseconds(by), Ordering::Relaxed);
    }

    /// The time that a test has added.
    pub fn advanced(&self) -> time::Duration {
        time::Duration::milliseconds(self.0.advanced_ms.load(Ordering::Relaxed))
    }

    /// Sets the machine's clock ahead of the right time, for tests. No time passes.
    pub fn set_ahead(&self, by: Duration) {
        self.0.error_ms.store(milliseconds(by), Ordering::Relaxed);
    }
}

/// The time without what PostgreSQL does not keep.
pub(crate) fn truncate(time: OffsetDateTime) -> OffsetDateTime {
    time - time::Duration::nanoseconds(i64::from(time.nanosecond() % 1000))
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
