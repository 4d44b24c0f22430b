//! A keyed throttle: limits the rate of events per key and drops the others (a GCRA: a burst of 8, then one event per
//! 100 ms). A caller must tolerate dropped events; its periodic poll covers them.

use std::time::Duration;

use tokio::time::Instant;

/// The burst of one key.
const BURST: u64 = 8;
/// The interval between two events of one key after a burst.
const INTERVAL: Duration = Duration::from_millis(100);
const MAX_KEYS: u64 = 50_000;

/// A throttle with one bucket per key.
#[derive(Debug)]
pub struct KeyedThrottle {
    /// The theoretical arrival time of each key's next event, in milliseconds since the start.
    arrivals: moka::sync::Cache<i64, u64>,
    start: Instant,
}

impl Default for KeyedThrottle {
    fn default() -> Self {
        let refill = INTERVAL * u32::try_from(BURST).unwrap_or(u32::MAX);
        let arrivals = moka::sync::Cache::builder().max_capacity(MAX_KEYS).time_to_live(refill).build();
        Self { arrivals, start: Instant::now() }
    }
}

impl KeyedThrottle {
    /// Returns whether an event of this key is allowed now, and counts it.
    pub fn allow(&self, key: i64) -> bool {
        self.allow_at(key, self.start.elapsed())
    }

    fn allow_at(&self, key: i64, now: Duration) -> bool {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let (now, interval) = (millis(now), millis(INTERVAL));
        let arrival = self.arrivals.get(&key).unwrap_or_default().max(now);
        let allowed = arrival - now <= interval * (BURST - 1);
        if allowed {
            self.arrivals.insert(key, arrival + interval);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_a_burst_and_then_a_steady_rate() {
        let throttle = KeyedThrottle::default();
        let count = |now| (0..100).filter(|_| throttle.allow_at(1, now)).count();
        assert_eq!(count(Duration::ZERO), 8);
        assert!(throttle.allow_at(2, Duration::ZERO), "another key has a bucket of its own");
        assert_eq!(count(INTERVAL), 1);
    }
}
