//! The report: compares the beginning of the run with its end.

use std::{collections::BTreeMap, time::Duration};

use super::{
    bounds::{MAX_MEMORY_GROWTH, REFERENCE, max_p99},
    passes::Pass,
    samples::Row,
    traffic::Latencies,
};
use crate::output::{Style, print_line, styled};

/// The rows of a run, one per minute.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<(Duration, Row)>,
    /// The latencies of each minute, by kind of request.
    latencies: Vec<Latencies>,
}

impl Report {
    /// Adds and prints a row.
    pub fn add(&mut self, at: Duration, row: Row, latencies: Latencies) {
        let requests: usize = latencies.values().map(Vec::len).sum();
        let slowest = latencies
            .iter()
            .map(|(kind, times)| (percentile(times, 0.99), *kind))
            .max_by(|one, other| one.0.total_cmp(&other.0));
        let (p99, kind) = slowest.unwrap_or_default();
        let memory: Vec<String> = row.memory.iter().map(|(name, size)| format!("{name} {size:.0}")).collect();
        print_line(&format!(
            "  {:>5} s  {requests:>6} requests, highest p99 {p99:.0} ms {kind}; MiB: database {:.0}, {}",
            at.as_secs(),
            row.database,
            memory.join(", ")
        ));
        self.rows.push((at, row));
        if !latencies.is_empty() {
            self.latencies.push(latencies);
        }
    }

    /// Prints the first and last rows side by side, and the latencies of the first and last minutes.
    pub fn print(&self, passes: &[Pass], rounds: &BTreeMap<&str, f64>) {
        if let (Some((_, first)), Some((_, last))) = (self.rows.first(), self.rows.last()) {
            heading("", "beginning", "end");
            line("database, MiB", first.database, last.database);
            for (process, size) in &first.memory {
                line(
                    &format!("{process}, MiB"),
                    *size,
                    last.memory.get(process).copied().unwrap_or_default(),
                );
            }
            // Counters at 0 are left out.
            let is_shown = |(series, value): &(&String, &f64)| !series.contains("_total") || **value > 0.0;
            for (series, value) in last.gauges.iter().filter(is_shown) {
                line(series, first.gauges.get(series).copied().unwrap_or_default(), *value);
            }
            for (worker, age) in &last.workers {
                let before = first.workers.get(worker).copied().unwrap_or_default();
                line(&format!("{worker}, s ago"), before, *age);
            }
        }
        if let (Some(first), Some(last)) = (self.latencies.first(), self.latencies.last()) {
            heading("p99 of a minute, ms", "first", "last");
            for (kind, times) in last {
                let before = first.get(kind).map(|times| percentile(times, 0.99)).unwrap_or_default();
                line(kind, before, percentile(times, 0.99));
            }
        }
        heading("audits", "s a round", "");
        for (series, duration) in rounds {
            print_line(&format!("  {series:<64} {duration:>10.1}"));
        }
        for pass in passes {
            let Pass { name, total, rate, .. } = pass;
            print_line(&format!("  {total} {name}: {rate:.0} a second, all in {:.1} h", pass.round_hours()));
        }
    }

    /// Returns the violations of memory growth, and of latencies over the whole run.
    pub fn violations(&self) -> Vec<String> {
        let mut violations = Vec::new();
        if let (Some((_, first)), Some((_, last))) = (self.rows.first(), self.rows.last()) {
            for (process, size) in &last.memory {
                let growth = size - first.memory.get(process).copied().unwrap_or_default();
                if growth > MAX_MEMORY_GROWTH {
                    violations
                        .push(format!("{process} grew by {growth:.0} MiB, of {MAX_MEMORY_GROWTH} at most"));
                }
            }
        }
        let mut all = Latencies::new();
        for (kind, times) in self.latencies.iter().flatten() {
            all.entry(kind).or_default().extend(times);
        }
        let reference = all.get(REFERENCE).map(|times| percentile(times, 0.99)).unwrap_or_default();
        for (kind, times) in &all {
            let (p99, bound) = (percentile(times, 0.99), max_p99(kind, reference));
            if p99 > bound {
                violations.push(format!("p99 of {kind}: {p99:.0} ms, of {bound:.0} at most"));
            }
        }
        violations
    }
}

fn heading(title: &str, before: &str, after: &str) {
    print_line("");
    print_line(&styled(Style::Bold, &format!("  {title:<64} {before:>10} {after:>10}")));
}

fn line(label: &str, before: f64, after: f64) {
    print_line(&format!("  {label:<64} {before:>10.1} {after:>10.1}"));
}

/// Returns the value that the given share of the values does not exceed, or 0 without values.
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index of a vector"
    )]
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert!((percentile(&values, 0.99) - 199.0).abs() < f64::EPSILON);
        assert!((percentile(&[3.0], 0.99) - 3.0).abs() < f64::EPSILON);
        assert!(percentile(&[], 0.99).abs() < f64::EPSILON);
    }
}
