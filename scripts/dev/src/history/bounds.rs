//! The bounds of metrics in any sample, of growth from the first row of the report to the last, and of latencies. If an
//! alert exists, its threshold is the bound.

/// The bounded metrics: name, a label that the series must have, and the maximum in any sample.
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
/// Bounds the growth of a process's memory from the first row to the last. MiB.
pub const MAX_MEMORY_GROWTH: f64 = 64.0;
/// The minimum rates of the slow audit passes, in orders, holds or ledger rows per second: half of the rate that their
/// interval requires.
pub const MIN_ORDER_RATE: f64 = 50.0;
pub const MIN_LEDGER_RATE: f64 = 2_000.0;
/// The kind of request that indicates the machine's speed: its responses come from memory.
pub const REFERENCE: &str = "product";
/// The bounds of the 99th percentile of the latency. Milliseconds.
const MAX_READ_P99_MS: f64 = 250.0;
const MAX_WRITE_P99_MS: f64 = 500.0;
/// The bounds on a slow machine, as multiples of the reference's percentile.
const MAX_READ_RATIO: f64 = 2.0;
const MAX_WRITE_RATIO: f64 = 4.0;
/// The kinds of requests that write.
const WRITE_KINDS: [&str; 6] = ["create order", "pay", "cancel", "admin: cancel", "admin: ship", "complete"];
/// Bounds the failures per thousand requests.
const MAX_FAILURES_PER_THOUSAND: u64 = 1;

/// Returns a violation if too many requests failed.
pub fn failures(requests: u64, failures: &[String]) -> Option<String> {
    let count = u64::try_from(failures.len()).unwrap_or(u64::MAX);
    let shown: Vec<&str> =
        failures.iter().map(String::as_str).filter(|failure| !failure.is_empty()).collect();
    (count * 1000 > requests * MAX_FAILURES_PER_THOUSAND)
        .then(|| format!("{count} of {requests} requests failed: {}", shown.join("; ")))
}

/// Returns the bound of the p99 of a kind of request, for the reference's p99. Both are in milliseconds.
pub fn max_p99(kind: &str, reference: f64) -> f64 {
    if WRITE_KINDS.contains(&kind) {
        MAX_WRITE_P99_MS.max(MAX_WRITE_RATIO * reference)
    } else {
        MAX_READ_P99_MS.max(MAX_READ_RATIO * reference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_machine_is_bounded_by_its_reference() {
        let is = |p99: f64, expected: f64| (p99 - expected).abs() < f64::EPSILON;
        assert!(is(max_p99("orders", 1.0), 250.0) && is(max_p99("pay", 1.0), 500.0));
        assert!(is(max_p99("orders", 1000.0), 2000.0) && is(max_p99("pay", 1000.0), 4000.0));
    }

    #[test]
    fn one_failure_per_thousand_requests_is_allowed() {
        let one = ["GET /orders: 503".to_owned()];
        assert_eq!(failures(1000, &one), None);
        assert!(failures(999, &one).is_some_and(|violation| violation.contains("1 of 999")));
    }
}
