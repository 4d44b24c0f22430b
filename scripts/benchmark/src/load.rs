//! A load generator: runs wrk against a server, and measures the server's processor time.

use std::{fs, path::Path, time::Duration};

use anyhow::Context as _;
use tokio::process::Command;

/// Enough connections to keep two cores busy, and few enough that requests do not queue.
const CONNECTIONS: u32 = 32;
/// The unit of times in `/proc/<pid>/stat` (USER_HZ), the same on every Linux that Rust supports. Hertz.
const TICKS_PER_SECOND: f64 = 100.0;

const ROUND_ROBIN_SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/round_robin.lua");

/// A server under load.
#[derive(Clone, Debug)]
pub struct Target {
    pub url: String,
    pub pid: u32,
    pub header: Option<String>,
    /// The highest id to request. If set, the load appends the ids from 1 to this to the URL, in turn.
    pub max_id: Option<u32>,
}

/// The result of one run of wrk.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub requests: u64,
    /// Requests per second.
    pub rate: f64,
    /// The server's processor time per request. Microseconds.
    pub cost: f64,
    /// The 99th percentile of the latency. Milliseconds.
    pub p99: f64,
}

/// Runs wrk at full speed for `duration`.
pub async fn run_wrk(target: &Target, duration: Duration) -> anyhow::Result<Sample> {
    let before = processor_seconds(target.pid)?;
    let mut wrk = Command::new("wrk");
    wrk.args(["--threads", "1", "--latency", "--connections", &CONNECTIONS.to_string()]);
    wrk.args(["--duration", &format!("{}s", duration.as_secs())]);
    if let Some(header) = &target.header {
        wrk.args(["--header", header]);
    }
    if let Some(max_id) = target.max_id {
        wrk.args(["--script", ROUND_ROBIN_SCRIPT, &target.url, "--", &max_id.to_string()]);
    } else {
        wrk.arg(&target.url);
    }
    let output = wrk.output().await.context("wrk")?;
    let spent = processor_seconds(target.pid)? - before;
    let text = String::from_utf8_lossy(&output.stdout);
    anyhow::ensure!(!text.contains("Non-2xx"), "not all responses are 2xx:\n{text}");
    let value_of = |label: &str| text.lines().find_map(|line| line.trim().strip_prefix(label)).map(str::trim);
    let rate: f64 = value_of("Requests/sec:").context("wrk printed no rate")?.parse()?;
    let requests: u64 = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .context("wrk printed no number of requests")?
        .0
        .parse()?;
    let p99 =
        parse_milliseconds(value_of("99%").context("wrk printed no latency")?).context("wrk's latency")?;
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
    let cost = spent * 1e6 / requests as f64;
    Ok(Sample { requests, rate, cost, p99 })
}

/// Returns the processor time that a process has used so far, summed over all cores.
pub fn processor_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))?;
    // The name may contain any character and ends at the last parenthesis. User and system time are the 12th and 13th
    // fields after it.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| {
        fields.get(index).and_then(|field| field.parse::<f64>().ok()).context("/proc/pid/stat")
    };
    Ok((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}

/// Parses a duration of wrk, as `1.23ms`, `250.00us` or `1.02s`.
fn parse_milliseconds(text: &str) -> Option<f64> {
    let (number, factor) = if let Some(number) = text.strip_suffix("us") {
        (number, 0.001)
    } else if let Some(number) = text.strip_suffix("ms") {
        (number, 1.0)
    } else {
        (text.strip_suffix('s')?, 1000.0)
    };
    number.parse::<f64>().ok().map(|number| number * factor)
}

/// Returns a percentile of sorted latencies in milliseconds; 0 without latencies.
pub fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
}

/// Returns the sample of the median rate.
pub fn median(mut samples: Vec<Sample>) -> Option<Sample> {
    samples.sort_by(|one, other| one.rate.total_cmp(&other.rate));
    samples.get(samples.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_wrk_are_parsed() {
        assert_eq!(parse_milliseconds("250.00us"), Some(0.25));
        assert_eq!(parse_milliseconds("1.50ms"), Some(1.5));
        assert_eq!(parse_milliseconds("2.00s"), Some(2000.0));
        assert_eq!(parse_milliseconds("soon"), None);
    }

    #[test]
    fn a_process_has_a_processor_time() {
        assert!(processor_seconds(std::process::id()).unwrap() >= 0.0);
    }
}
