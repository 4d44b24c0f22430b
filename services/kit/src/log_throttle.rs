//! A log throttle: logs a repeated failure at once and then once a minute.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The interval between two lines about the same lasting failure.
pub const REPEAT_INTERVAL: Duration = Duration::from_mins(1);

/// A throttle for the log lines of one kind of failure.
#[derive(Debug, Default)]
pub struct LogThrottle(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    logged_at: Option<Instant>,
    suppressed: u64,
}

impl LogThrottle {
    /// Returns the number of occurrences suppressed since the last line, or `None` if this one is suppressed too.
    pub fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.logged_at.is_some_and(|logged_at| now.duration_since(logged_at) < REPEAT_INTERVAL) {
            state.suppressed += 1;
            return None;
        }
        state.logged_at = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }

    /// Marks the failure as over, so that its next occurrence is logged at once. Returns whether it had been logged.
    pub fn reset(&self) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *state).logged_at.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lasting_failure_is_logged_once_a_minute_with_the_number_suppressed() {
        let throttle = LogThrottle::default();
        let start = Instant::now();
        assert_eq!(throttle.admit_at(start), Some(0));
        assert_eq!((throttle.admit_at(start), throttle.admit_at(start)), (None, None));
        assert_eq!(throttle.admit_at(start + REPEAT_INTERVAL), Some(2));
        assert!(throttle.reset());
        assert_eq!(throttle.admit_at(start + REPEAT_INTERVAL), Some(0), "a new failure is logged at once");
        assert!(throttle.reset() && !throttle.reset());
    }
}
