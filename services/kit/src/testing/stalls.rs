//! The time for which this machine keeps a process waiting for a processor. A test that holds the shop to a promised
//! time allows for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const INTERVAL: Duration = Duration::from_millis(10);
/// On an idle machine a thread that sleeps wakes later by less than this.
const MIN_STALL: Duration = Duration::from_millis(5);
/// One step of the shop waits for a processor in several processes and tasks, one after the other.
const STALLS_OF_A_STEP: u32 = 8;

/// A thread that measures stalls until this is dropped.
#[derive(Debug)]
pub struct Stalls {
    /// The longest stall so far, in microseconds.
    longest: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Stalls {
    /// Begins to measure.
    pub fn watch() -> Self {
        let stalls = Self { longest: Arc::default(), ended: Arc::default() };
        let (longest, ended) = (stalls.longest.clone(), stalls.ended.clone());
        thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let began = Instant::now();
                thread::sleep(INTERVAL);
                let stall = began.elapsed().saturating_sub(INTERVAL);
                if stall > MIN_STALL {
                    longest
                        .fetch_max(u64::try_from(stall.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
                }
            }
        });
        stalls
    }

    /// Returns the time by which this machine may delay one step of the shop: zero where it is idle.
    pub fn allowance(&self) -> Duration {
        STALLS_OF_A_STEP * Duration::from_micros(self.longest.load(Ordering::Relaxed))
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}
