//! Orphan processes of an earlier run. An orphan has the name of one of our programs, and its working directory lies in
//! this checkout's state. Other processes are never killed.

use std::{fs, path::Path, time::Duration};

use anyhow::bail;
use rustix::process::{Pid, Signal, kill_process};

const PROGRAM_NAMES: [&str; 7] = [
    "postgres",
    "redis-server",
    "nginx",
    "shoppee-auth",
    "shoppee-product",
    "shoppee-order",
    "shoppee-gateway",
];
/// Bounds the time from SIGKILL to the exit: the kernel frees the memory of the process first.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Kills the orphans in `folder` or below it and waits for their exit. Returns their number.
pub async fn kill(folder: &Path) -> anyhow::Result<usize> {
    let Ok(folder) = folder.canonicalize() else { return Ok(0) };
    let orphans = find(&folder);
    for pid in &orphans {
        // The process may have exited meanwhile.
        let _ = kill_process(*pid, Signal::KILL);
    }
    let mut waited = Duration::ZERO;
    while !find(&folder).is_empty() {
        if waited > EXIT_TIMEOUT {
            bail!("processes of an earlier run in {} do not end", folder.display());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
        waited += POLL_INTERVAL;
    }
    Ok(orphans.len())
}

fn find(folder: &Path) -> Vec<Pid> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes
        .filter_map(|entry| {
            let process = entry.ok()?;
            let pid = Pid::from_raw(process.file_name().to_str()?.parse().ok()?)?;
            let name = fs::read_to_string(process.path().join("comm")).ok()?;
            let working_directory = fs::read_link(process.path().join("cwd")).ok()?;
            (PROGRAM_NAMES.contains(&name.trim()) && working_directory.starts_with(folder)).then_some(pid)
        })
        .collect()
}
