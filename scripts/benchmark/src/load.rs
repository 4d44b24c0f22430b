//! Load by wrk, and what it costs the process that answers it.

use std::{fs, path::Path, time::Duration};

use anyhow::Context as _;
use tokio::process::Command;

/// Enough to keep two cores busy, and few enough that nobody waits in a queue.
const CONNECTIONS: u32 = 32;
/// Of `/proc/<pid>/stat`: what the kernel counts times in, on every Linux that Rust runs on. Hertz.
const TICKS: f64 = 100.0;

const IN_TURN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/in_turn.lua");

/// A server under load.
#[derive(Clone, Debug)]
pub struct Target {
    pub url: String,
    pub pid: u32,
    pub header: Option<String>,
    /// Where the URL ends with a slash: from 1 up to this, the numbers that are asked for behind it, in turn.
    pub numbers: Option<u32>,
}

/// What one look saw.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub requests: u64,
    /// Requests a second.
    pub rate: f64,
    /// Processor time that the server spent on each. Microseconds.
    pub cost: f64,
    /// The time that 99 % of the answers took at most. Milliseconds.
    pub p99: f64,
}

/// Asks as fast as it can for as long as `time`.
pub async fn look(target: &Target, time: Duration) -> anyhow::Result<Seen> {
    let before = processor_seconds(target.pid)?;
    let mut wrk = Command::new("wrk");
    wrk.args(["--threads", "1", "--latency", "--connections", &CONNECTIONS.to_string()]);
    wrk.args(["--duration", &format!("{}s", time.as_secs())]);
    if let Some(header) = &target.header {
        wrk.args(["--header", header]);
    }
    if let Some(numbers) = target.numbers {
        wrk.args(["--script", IN_TURN, &target.url, "--", &numbers.to_string()]);
    } else {
        wrk.arg(&target.url);
    }
    let output = wrk.output().await.context("wrk")?;
    let spent = processor_seconds(target.pid)? - before;
    let text = String::from_utf8_lossy(&output.stdout);
    anyhow::ensure!(!text.contains("Non-2xx"), "not all was answered with 2xx:\n{text}");
    let word = |after: &str| text.lines().find_map(|line| line.trim().strip_prefix(after)).map(str::trim);
    let rate: f64 = word("Requests/sec:").context("wrk said no rate")?.parse()?;
    let requests: u64 = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .context("wrk said no number")?
        .0
        .parse()?;
    let p99 = milliseconds(word("99%").context("wrk said no latency")?).context("wrk's latency")?;
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
    let cost = spent * 1e6 / requests as f64;
    Ok(Seen { requests, rate, cost, p99 })
}

/// What the process has used so far, of all cores.
pub fn processor_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))?;
    // The name, which may hold anything, ends with the last parenthesis; user and system time are the 12th and 13th
    // field after it.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks =
        |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).context("/proc/pid/stat");
    Ok((ticks(11)? + ticks(12)?) / TICKS)
}

/// `1.23ms`, `250.00us`, `1.02s`.
fn milliseconds(text: &str) -> Option<f64> {
    let (number, factor) = if let Some(number) = text.strip_suffix("us") {
        (number, 0.001)
    } else if let Some(number) = text.strip_suffix("ms") {
        (number, 1.0)
    } else {
        (text.strip_suffix('s')?, 1000.0)
    };
    number.parse::<f64>().ok().map(|number| number * factor)
}

/// The middle one by rate of several looks.
pub fn median(mut seen: Vec<Seen>) -> Option<Seen> {
    seen.sort_by(|one, other| one.rate.total_cmp(&other.rate));
    seen.get(seen.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_wrk_are_understood() {
        assert_eq!(milliseconds("250.00us"), Some(0.25));
        assert_eq!(milliseconds("1.50ms"), Some(1.5));
        assert_eq!(milliseconds("2.00s"), Some(2000.0));
        assert_eq!(milliseconds("soon"), None);
    }

    #[test]
    fn this_process_has_used_some_time() {
        assert!(processor_seconds(std::process::id()).unwrap() >= 0.0);
    }
}
