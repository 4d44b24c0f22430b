//! Retry budget: bounds how many calls are repeated.

use std::sync::atomic::{AtomicI64, Ordering};

/// The share of calls that may have reached the service and are repeated: a fifth of all. Retries thus cannot bury a
/// service that is short of breath.
#[derive(Debug)]
pub(super) struct Budget(AtomicI64);

impl Budget {
    /// The earnings of a call, in thousandths of a retry.
    const EARNED: i64 = 200;
    const PRICE: i64 = 1000;
    /// The most that is saved up: ten retries, for a process that has just begun, or is idle.
    const MOST: i64 = 10 * Self::PRICE;

    pub(super) fn earn(&self) {
        self.change(|saved| Some((saved + Self::EARNED).min(Self::MOST)));
    }

    pub(super) fn spend(&self) -> bool {
        self.change(|saved| (saved >= Self::PRICE).then(|| saved - Self::PRICE))
    }

    fn change(&self, change: impl Fn(i64) -> Option<i64>) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicI64::new(Self::MOST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_every_fifth_call_is_repeated() {
        let budget = Budget::default();
        while budget.spend() {}
        let repeated = (0..1000).filter(|_| {
            budget.earn();
            budget.spend()
        });
        assert_eq!(repeated.count(), 200);
    }
}
