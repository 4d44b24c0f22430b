//! Process metrics with the standard names of Prometheus client libraries: CPU time, memory, file descriptors, start
//! time; and the memory limit.

use std::{fs, io, time::Duration};

use rustix::process::{Resource, getrlimit};
use tokio::sync::watch;

use crate::{process::Process, worker};

/// The interval between two updates, of the order of a scrape interval.
const UPDATE_INTERVAL: Duration = Duration::from_secs(10);
/// The files with the memory limit of the container, in cgroup v2 and v1; absent outside of a container.
const CGROUP_LIMIT_PATHS: [&str; 2] =
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
const STATUS_PATH: &str = "/proc/self/status";
const STAT_PATH: &str = "/proc/self/stat";
const FD_PATH: &str = "/proc/self/fd";
const MEMINFO_PATH: &str = "/proc/meminfo";

/// Exports the metrics until the process stops.
pub fn export(process: &Process) {
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 fit 53 bits")]
    metrics::gauge!("process_start_time_seconds").set(process.clock.unix() as f64);
    let always = watch::channel(true).1;
    worker::spawn(process, "process-metrics", UPDATE_INTERVAL, always, || async { measure() });
}

#[expect(clippy::cast_precision_loss, reason = "no machine has 2^53 bytes")]
fn measure() -> io::Result<worker::Round> {
    let resident = field(&fs::read_to_string(STATUS_PATH)?, "VmRSS:")?;
    metrics::gauge!("process_resident_memory_bytes").set(resident as f64);
    // Without a limit, the file contains `max` (v2) or a number beyond the memory of any machine (v1).
    let limits =
        CGROUP_LIMIT_PATHS.iter().filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
    let machine = field(&fs::read_to_string(MEMINFO_PATH)?, "MemTotal:")?;
    let limit = limits.chain([machine]).min().unwrap_or(machine);
    metrics::gauge!("process_memory_limit_bytes").set(limit as f64);
    let ticks = cpu_ticks(&fs::read_to_string(STAT_PATH)?)?;
    // The metrics crate has integer counters only.
    metrics::counter!("process_cpu_seconds_total").absolute(ticks / rustix::param::clock_ticks_per_second());
    metrics::gauge!("process_open_fds").set(fs::read_dir(FD_PATH)?.count() as f64);
    if let Some(max) = getrlimit(Resource::Nofile).current {
        metrics::gauge!("process_max_fds").set(max as f64);
    }
    Ok(worker::Round::Done)
}

/// Returns the bytes of a line such as `VmRSS:   1234 kB`.
fn field(text: &str, name: &str) -> io::Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kibibytes.map(|kibibytes| kibibytes * 1024).ok_or_else(|| io::Error::other(format!("no {name}")))
}

/// Returns the clock ticks of `/proc/self/stat` in user and system mode (fields 14 and 15). The program name, in
/// parentheses, may have spaces.
fn cpu_ticks(stat: &str) -> io::Result<u64> {
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields.split_whitespace().skip(11));
    let ticks = fields.and_then(|mut fields| {
        Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
    });
    ticks.ok_or_else(|| io::Error::other("no processor time in /proc/self/stat"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_read_in_bytes_and_a_missing_one_is_an_error() {
        let text = "Name:\tshoppee\nVmHWM:\t  2048 kB\nVmRSS:\t   1234 kB\n";
        assert_eq!(field(text, "VmRSS:").unwrap(), 1234 * 1024);
        assert_eq!(field(text, "VmSwap:").unwrap_err().to_string(), "no VmSwap:");
    }

    #[test]
    fn cpu_time_is_read_for_any_program_name() {
        let stat = "7 (a) (b c) S 1 7 7 0 -1 4194304 120 0 0 0 250 50 3 4 20 0";
        assert_eq!(cpu_ticks(stat).unwrap(), 300);
        cpu_ticks("7 (a) S 1").unwrap_err();
    }

    #[test]
    fn this_process_is_measured() {
        let resident = field(&fs::read_to_string(STATUS_PATH).unwrap(), "VmRSS:").unwrap();
        let machine = field(&fs::read_to_string(MEMINFO_PATH).unwrap(), "MemTotal:").unwrap();
        assert!(resident > 0 && resident < machine, "{resident} of {machine}");
        assert_eq!(measure().unwrap(), worker::Round::Done);
    }
}
