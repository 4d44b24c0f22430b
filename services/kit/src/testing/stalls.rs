//! A detector of scheduling stalls: measures how long the machine delays a runnable thread. A test of a latency bound
//! adds the stalls to the bound.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const SAMPLE_INTERVAL: Duration = Duration::from_millis(10);
/// The minimum delay that counts; on an idle machine, a sleeping thread wakes with a smaller one.
const MIN_STALL: Duration = Duration::from_millis(5);
/// The number of stalls within one operation, which waits for the CPU in several processes and tasks in sequence.
const STALLS_PER_OPERATION: u32 = 8;

/// A thread that measures stalls until the value is dropped.
#[derive(Debug)]
pub struct Stalls {
    /// The longest stall so far, in microseconds.
    longest: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Stalls {
    /// Starts to measure.
    pub fn watch() -> Self {
        let stalls = Self { longest: Arc::default(), ended: Arc::default() };
        let (longest, ended) = (stalls.longest.clone(), stalls.ended.clone());
        thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let started = Instant::now();
                thread::sleep(SAMPLE_INTERVAL);
                let stall = started.elapsed().saturating_sub(SAMPLE_INTERVAL);
                if stall > MIN_STALL {
                    longest
                        .fetch_max(u64::try_from(stall.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
                }
            }
        });
        stalls
    }

    /// Returns the delay to add to the bound of one operation; zero on an idle machine.
    pub fn allowance(&self) -> Duration {
        STALLS_PER_OPERATION * Duration::from_micros(self.longest.load(Ordering::Relaxed))
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}
