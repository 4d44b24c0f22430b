//! The bounds: what a metric may be in any sample, what may grow from the first row of the report to the last, and how fast
//! requests are answered. Where an alert exists, its threshold is the bound.

/// A metric, a label that its series must have, and the highest value that it may have in any sample.
pub const GAUGES: [(&str, &str, f64); 17] = [
    ("stock_invariant_violations", "", 0.0),
    ("order_stock_mismatches", "", 0.0),
    ("paid_without_hold", "", 0.0),
    ("held_without_order", "", 0.0),
    ("order_payment_mismatches", "", 0.0),
    ("audit_age_seconds", "audit=\"stock\"", 900.0),
    ("audit_age_seconds", "audit=\"holds\"", 900.0),
    ("order_audit_age_seconds", "pass=\"recent-orders\"", 1800.0),
    ("order_audit_age_seconds", "pass=\"recent-holds\"", 1800.0),
    ("worker_failures_total", "", 0.0),
    ("outbox_lag_seconds", "", 30.0),
    ("outbox_dead_letters", "", 0.0),
    ("orders_overdue_oldest_seconds", "", 120.0),
    ("payment_attempts_oldest_open_seconds", "", 180.0),
    ("refunds_oldest_pending_seconds", "", 900.0),
    ("stock_tasks_oldest_due_seconds", "", 120.0),
    ("cache_bypassed_seconds", "", 60.0),
];
/// The memory of a process at the end beyond that of the first row, which comes after the start. MiB.
pub const MAX_MEMORY_GROWTH: f64 = 64.0;
/// The orders or holds, and the rows of the ledger, that a slow pass of the audit compares in a second at least: half of
/// what its interval allows.
pub const MIN_ORDER_RATE: f64 = 50.0;
pub const MIN_LEDGER_RATE: f64 = 2_000.0;
/// The kind of request that is the measure of the machine: its answers come from memory.
pub const REFERENCE: &str = "product";
/// The time in which 99 % of the requests of a kind are answered, in milliseconds, …
const MAX_READ_P99: f64 = 250.0;
const MAX_WRITE_P99: f64 = 500.0;
/// … or, where the machine is slow, in times of the reference's.
const MAX_READ_RATIO: f64 = 2.0;
const MAX_WRITE_RATIO: f64 = 4.0;
/// The kinds that write.
const WRITES: [&str; 6] = ["create order", "pay", "cancel", "admin: cancel", "admin: ship", "complete"];
/// Of a thousand requests so many may fail.
const MAX_FAILURES_PER_THOUSAND: u64 = 1;

/// Returns a breach where too many requests failed.
pub fn failures(requests: u64, failures: &[String]) -> Option<String> {
    let count = u64::try_from(failures.len()).unwrap_or(u64::MAX);
    let shown: Vec<&str> =
        failures.iter().map(String::as_str).filter(|failure| !failure.is_empty()).collect();
    (count * 1000 > requests * MAX_FAILURES_PER_THOUSAND)
        .then(|| format!("{count} of {requests} requests failed: {}", shown.join("; ")))
}

/// Returns the highest p99 that a kind of request may have where the reference has this one, in milliseconds.
pub fn max_p99(kind: &str, reference: f64) -> f64 {
    if WRITES.contains(&kind) {
        MAX_WRITE_P99.max(MAX_WRITE_RATIO * reference)
    } else {
        MAX_READ_P99.max(MAX_READ_RATIO * reference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_slow_machine_the_reference_is_the_bound() {
        let is = |p99: f64, expected: f64| (p99 - expected).abs() < f64::EPSILON;
        assert!(is(max_p99("orders", 1.0), 250.0) && is(max_p99("pay", 1.0), 500.0));
        assert!(is(max_p99("orders", 1000.0), 2000.0) && is(max_p99("pay", 1000.0), 4000.0));
    }

    #[test]
    fn one_failure_in_a_thousand_is_within_the_bound() {
        let one = ["GET /orders: 503".to_owned()];
        assert_eq!(failures(1000, &one), None);
        assert!(failures(999, &one).is_some_and(|breach| breach.contains("1 of 999")));
    }
}
