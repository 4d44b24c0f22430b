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
pub struct Clock {
    ahead_ms: Arc<AtomicI64>,
}

impl Clock {
    /// To the microsecond, which is what PostgreSQL keeps: a time is the same before and after it was stored.
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the machine")]
    pub fn now(&self) -> OffsetDateTime {
        let now =
            OffsetDateTime::now_utc() + time::Duration::milliseconds(self.ahead_ms.load(Ordering::Relaxed));
        now - time::Duration::nanoseconds(i64::from(now.nanosecond() % 1000))
    }

    /// Seconds since the Unix epoch.
    pub fn unix(&self) -> i64 {
        self.now().unix_timestamp()
    }

    /// For tests: lets `by` pass at once, for this clock and all its clones.
    pub fn advance(&self, by: Duration) {
        let ms = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.ahead_ms.fetch_add(ms, Ordering::Relaxed);
    }
}
