//! Things that happen to one key again and again: the first few are acted on at once, and of many that follow each
//! other some, at a steady rate; the others are left to whoever looks now and then.

use std::time::Duration;

use tokio::time::Instant;

/// Of one key, at once.
const BURST: u64 = 8;
/// Between two of one key, when there are many.
const INTERVAL: Duration = Duration::from_millis(100);
const MOST_KEYS: u64 = 50_000;

/// By key, when all that was let through will have been worked off; milliseconds since the start.
#[derive(Debug)]
pub struct Fold {
    due: moka::sync::Cache<i64, u64>,
    start: Instant,
}

impl Default for Fold {
    fn default() -> Self {
        let whole = INTERVAL * u32::try_from(BURST).unwrap_or(u32::MAX);
        let due = moka::sync::Cache::builder().max_capacity(MOST_KEYS).time_to_live(whole).build();
        Self { due, start: Instant::now() }
    }
}

impl Fold {
    /// Whether this one is acted on.
    pub fn lets_through(&self, key: i64) -> bool {
        self.lets_through_at(key, self.start.elapsed())
    }

    fn lets_through_at(&self, key: i64, now: Duration) -> bool {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let (now, interval) = (millis(now), millis(INTERVAL));
        let due = self.due.get(&key).unwrap_or_default().max(now);
        let lets_through = due - now <= interval * (BURST - 1);
        if lets_through {
            self.due.insert(key, due + interval);
        }
        lets_through
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_at_once_and_then_some() {
        let fold = Fold::default();
        let count = |now| (0..100).filter(|_| fold.lets_through_at(1, now)).count();
        assert_eq!(count(Duration::ZERO), 8);
        assert!(fold.lets_through_at(2, Duration::ZERO), "another key is not concerned");
        assert_eq!(count(INTERVAL), 1);
    }
}
