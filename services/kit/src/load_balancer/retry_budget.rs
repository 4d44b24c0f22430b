//! A retry budget: limits retries to a share of all calls (as in Finagle and `tower::retry::budget`).

use std::sync::atomic::{AtomicI64, Ordering};

/// A budget of one retry for every five calls, so that retries cannot overload a service that is slow or failing. It
/// limits retries of calls that may have been processed; failover of unprocessed calls is free.
#[derive(Debug)]
pub(super) struct RetryBudget(AtomicI64);

impl RetryBudget {
    /// The deposit of each call, in thousandths of a retry.
    const DEPOSIT: i64 = 200;
    const RETRY_COST: i64 = 1000;
    /// The maximum balance, which a new process starts with: ten retries.
    const MAX_BALANCE: i64 = 10 * Self::RETRY_COST;

    /// Deposits the share of one call.
    pub(super) fn deposit(&self) {
        self.update(|balance| Some((balance + Self::DEPOSIT).min(Self::MAX_BALANCE)));
    }

    /// Withdraws the cost of one retry. Returns false if the balance is too low.
    pub(super) fn withdraw(&self) -> bool {
        self.update(|balance| (balance >= Self::RETRY_COST).then(|| balance - Self::RETRY_COST))
    }

    fn update(&self, update: impl Fn(i64) -> Option<i64>) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update).is_ok()
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self(AtomicI64::new(Self::MAX_BALANCE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spent_budget_allows_one_retry_for_every_five_calls() {
        let budget = RetryBudget::default();
        while budget.withdraw() {}
        let retries = (0..1000).filter(|_| {
            budget.deposit();
            budget.withdraw()
        });
        assert_eq!(retries.count(), 200);
    }
}
