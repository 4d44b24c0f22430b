//! An age gauge: the time since the last success of some work. A task of its own exports it, so that the gauge also grows
//! while the work fails or hangs.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::process::Process;

/// The interval between two updates of the gauge, shorter than any scrape interval.
const UPDATE_INTERVAL: Duration = Duration::from_secs(1);

/// The time since the last call of [`Age::reset`].
#[derive(Clone, Debug)]
pub struct Age(Arc<Mutex<Instant>>);

impl Default for Age {
    /// An age that counts from now, so that work that never succeeds ages too.
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Age {
    /// Exports the age in seconds as `gauge` until the process stops.
    pub fn export(&self, process: &Process, gauge: metrics::Gauge) {
        let (age, shutdown) = (self.clone(), process.tasks.shutdown_token());
        gauge.set(0.0);
        process.tasks.spawn("age", async move {
            while !shutdown.is_cancelled() {
                gauge.set(age.get().as_secs_f64());
                shutdown.run_until_cancelled(tokio::time::sleep(UPDATE_INTERVAL)).await;
            }
            Ok(())
        });
    }

    /// Records a success at `at`. A time before the last recorded one is ignored.
    pub fn reset(&self, at: Instant) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *since = at.max(*since);
    }

    /// Returns the time since the last success.
    pub fn get(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_counts_from_the_latest_success() {
        let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
        let age = Age(Arc::new(Mutex::new(ago(10))));
        assert!(age.get() >= Duration::from_secs(10));
        age.reset(ago(5));
        assert!((5..8).contains(&age.get().as_secs()));
        age.reset(ago(8));
        assert!(age.get() < Duration::from_secs(8), "an earlier success does not count");
    }
}
