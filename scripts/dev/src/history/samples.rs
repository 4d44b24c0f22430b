//! A scraper: samples the metrics of every process every few seconds, and keeps the worst value of each bounded metric.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail};
use shoppee_kit::clock::Clock;
use sqlx::{Connection as _, PgConnection};
use tokio::time::{Instant, sleep_until};

use super::{SAMPLE_INTERVAL, bounds::GAUGES};
use crate::{supervisor::EventKind, up::system::System};

const MIB: f64 = 1024.0 * 1024.0;
/// The ages of audits. At the end of a round, an age drops to the duration of the round.
const AUDIT_AGE_METRICS: [&str; 2] = ["audit_age_seconds", "order_audit_age_seconds"];

/// The state of the system at one moment.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// The size of PostgreSQL's database. MiB.
    pub database: f64,
    /// The resident memory of each process. MiB.
    pub memory: BTreeMap<String, f64>,
    /// The values of the bounded metrics. Counters count from the first sample.
    pub gauges: BTreeMap<String, f64>,
    /// The seconds since the last success of each worker.
    pub workers: BTreeMap<String, f64>,
    /// The seconds after which each worker counts as late.
    max_ages: BTreeMap<String, f64>,
}

/// The maximum of a bounded series.
#[derive(Clone, Copy, Debug)]
struct Maximum {
    value: f64,
    bound: f64,
}

/// The rounds of an audit.
#[derive(Clone, Copy, Debug)]
struct Rounds {
    last_age: f64,
    /// Seconds, too high by up to one sample interval.
    duration: Option<f64>,
}

#[derive(Debug)]
pub struct Sampler {
    client: reqwest::Client,
    urls: Vec<(String, String)>,
    postgres_url: String,
    maximum: BTreeMap<String, Maximum>,
    /// The indexes in [`GAUGES`] of the metrics that a process exports.
    exported: BTreeSet<usize>,
    /// The values of counters at the first sample.
    base: BTreeMap<String, f64>,
    /// The maximum lateness of each worker in seconds; negative if it was never late.
    lateness: BTreeMap<String, f64>,
    rounds: BTreeMap<String, Rounds>,
}

impl Sampler {
    pub fn new(system: &System) -> anyhow::Result<Self> {
        Ok(Self {
            client: reqwest::Client::builder().no_proxy().build()?,
            urls: system.topology.urls(),
            postgres_url: system.postgres_url().to_owned(),
            maximum: BTreeMap::new(),
            exported: BTreeSet::new(),
            base: BTreeMap::new(),
            lateness: BTreeMap::new(),
            rounds: BTreeMap::new(),
        })
    }

    /// Takes samples until `end`.
    ///
    /// # Errors
    /// If a process exits or does not answer.
    pub async fn watch_until(&mut self, system: &mut System, end: Instant) -> anyhow::Result<()> {
        let mut next = Instant::now();
        while next < end {
            next = end.min(next + SAMPLE_INTERVAL);
            tokio::select! {
                exit = wait_for_exit(system) => return exit,
                () = sleep_until(next) => {}
            }
            self.sample().await?;
        }
        Ok(())
    }

    /// Takes one sample.
    pub async fn sample(&mut self) -> anyhow::Result<Row> {
        let mut row = Row { database: database_size(&self.postgres_url).await?, ..Row::default() };
        #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 fit 53 bits")]
        let now = Clock::default().unix() as f64;
        for (process, url) in self.urls.clone() {
            let response = self.client.get(format!("{url}/metrics")).send().await?.error_for_status()?;
            for (name, labels, value) in response.text().await?.lines().filter_map(parse_line) {
                let worker = || format!("{process} {}", labels.trim_matches(['{', '}']));
                match name {
                    "process_resident_memory_bytes" => {
                        row.memory.insert(process.clone(), value / MIB);
                    }
                    "worker_last_success_seconds" => {
                        row.workers.insert(worker(), now - value);
                    }
                    "worker_max_age_seconds" => {
                        row.max_ages.insert(worker(), value);
                    }
                    _ => self.record(&mut row, format!("{process} {name}{labels}"), (name, labels), value),
                }
            }
        }
        for (worker, age) in &row.workers {
            let late = age - row.max_ages.get(worker).copied().unwrap_or_default();
            let latest = self.lateness.entry(worker.clone()).or_insert(late);
            *latest = latest.max(late);
        }
        Ok(row)
    }

    /// Updates the maximum and the audit rounds of a series.
    fn record(&mut self, row: &mut Row, series: String, (name, labels): (&str, &str), value: f64) {
        if AUDIT_AGE_METRICS.contains(&name) {
            let rounds =
                self.rounds.entry(series.clone()).or_insert(Rounds { last_age: value, duration: None });
            if value < rounds.last_age {
                rounds.duration = Some(value);
            }
            rounds.last_age = value;
        }
        let bound = GAUGES.iter().position(|(of, label, _)| *of == name && labels.contains(label));
        let Some(index) = bound else { return };
        self.exported.insert(index);
        let is_counter = name.ends_with("_total");
        let base = if is_counter { *self.base.entry(series.clone()).or_insert(value) } else { 0.0 };
        let (value, bound) = (value - base, GAUGES[index].2);
        let maximum = self.maximum.entry(series.clone()).or_insert(Maximum { value, bound });
        maximum.value = maximum.value.max(value);
        row.gauges.insert(series, value);
    }

    /// Returns the duration of the last completed round of each audit, in seconds.
    pub fn rounds(&self) -> BTreeMap<&str, f64> {
        self.rounds.iter().filter_map(|(series, rounds)| Some((series.as_str(), rounds.duration?))).collect()
    }

    /// Returns the metrics that exceeded their bounds in any sample, and those that no process exports.
    pub fn violations(&self) -> Vec<String> {
        let beyond = self.maximum.iter().filter(|(_, maximum)| maximum.value > maximum.bound);
        let mut violations: Vec<String> = beyond
            .map(|(series, Maximum { value, bound })| format!("{series} was {value:.1}, of {bound} at most"))
            .collect();
        let late = self.lateness.iter().filter(|(_, late)| **late > 0.0);
        violations.extend(late.map(|(worker, late)| format!("{worker} was late by {late:.0} s")));
        let absent = GAUGES.iter().enumerate().filter(|(index, _)| !self.exported.contains(index));
        violations
            .extend(absent.map(|(_, (name, label, _))| format!("no process exports {name}{{{label}}}")));
        if self.lateness.is_empty() {
            violations.push("no process has workers".to_owned());
        }
        violations
    }
}

/// Waits until a process exits, which is an error.
async fn wait_for_exit(system: &mut System) -> anyhow::Result<()> {
    loop {
        let event = system.next_event().await?;
        if let EventKind::Exited { reason } = &event.kind {
            bail!("{} ended ({reason})", event.process);
        }
    }
}

async fn database_size(postgres_url: &str) -> anyhow::Result<f64> {
    let mut connection = PgConnection::connect(postgres_url).await.context("PostgreSQL")?;
    let bytes: i64 =
        sqlx::query_scalar("select pg_database_size(current_database())").fetch_one(&mut connection).await?;
    connection.close().await?;
    #[expect(clippy::cast_precision_loss, reason = "no database has 2^53 bytes")]
    Ok(bytes as f64 / MIB)
}

/// Parses a line of the text format into name, labels with their braces, and value. Returns `None` for comments.
fn parse_line(line: &str) -> Option<(&str, &str, f64)> {
    let (series, value) = line.rsplit_once(' ').filter(|_| !line.starts_with('#'))?;
    let at = series.find('{').unwrap_or(series.len());
    let (name, labels) = series.split_at(at);
    Some((name, labels, value.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_parsed_into_name_labels_and_value() {
        assert_eq!(parse_line("outbox_lag_seconds 0.25"), Some(("outbox_lag_seconds", "", 0.25)));
        assert_eq!(
            parse_line("worker_max_age_seconds{worker=\"expiry\"} 45"),
            Some(("worker_max_age_seconds", "{worker=\"expiry\"}", 45.0))
        );
        assert_eq!(parse_line("# TYPE outbox_lag_seconds gauge"), None);
        assert_eq!(parse_line(""), None);
    }
}
