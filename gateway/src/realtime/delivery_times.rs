//! A histogram of the times from the commit of an event to its frame, for the status of the shop. Prometheus has the same
//! samples as `event_delivery_seconds`.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Upper bounds of the buckets. Seconds.
const BOUNDS: [f64; 24] = [
    0.001, 0.0015, 0.002, 0.003, 0.004, 0.006, 0.008, 0.012, 0.016, 0.025, 0.035, 0.05, 0.07, 0.1, 0.15,
    0.25, 0.4, 0.6, 1.0, 1.5, 2.5, 5.0, 10.0, 60.0,
];

/// The times since the start of the gateway.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct EventDelivery {
    pub count: u64,
    /// Null without events, as the next one.
    pub p50_seconds: Option<f64>,
    pub p99_seconds: Option<f64>,
}

#[derive(Debug, Default)]
pub struct DeliveryTimes {
    /// The samples of each bucket; the last one is above all bounds.
    buckets: [AtomicU64; BOUNDS.len() + 1],
}

impl DeliveryTimes {
    pub fn record(&self, seconds: f64) {
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
    }

    pub fn summarize(&self) -> EventDelivery {
        EventDelivery {
            count: self.count(),
            p50_seconds: self.quantile(0.5),
            p99_seconds: self.quantile(0.99),
        }
    }

    /// Returns the number of samples.
    fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// Returns the time that `share` of the samples do not exceed, interpolated in its bucket; `None` without samples.
    #[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
    fn quantile(&self, share: f64) -> Option<f64> {
        let counts = self.buckets.each_ref().map(|bucket| bucket.load(Ordering::Relaxed));
        let total: u64 = counts.iter().sum();
        let rank = share * total as f64;
        let mut below = 0.0;
        for (bucket, count) in counts.into_iter().enumerate().filter(|(_, count)| *count > 0) {
            let count = count as f64;
            if below + count >= rank {
                let lower = bucket.checked_sub(1).map_or(0.0, |index| BOUNDS[index]);
                let upper = BOUNDS.get(bucket).copied().unwrap_or(lower);
                return Some(lower + (upper - lower) * ((rank - below) / count));
            }
            below += count;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_in_the_bucket_of_their_rank() {
        let times = DeliveryTimes::default();
        assert_eq!((times.count(), times.quantile(0.5)), (0, None));
        for _ in 0..98 {
            times.record(0.0025);
        }
        times.record(0.2);
        times.record(600.0);
        assert_eq!(times.count(), 100);
        let median = times.quantile(0.5).unwrap();
        assert!((0.002..=0.003).contains(&median), "{median}");
        let p99 = times.quantile(0.99).unwrap();
        assert!((0.15..=0.25).contains(&p99), "{p99}");
        assert_eq!(times.quantile(1.0), Some(60.0), "the last bound stands for all above it");
    }
}
