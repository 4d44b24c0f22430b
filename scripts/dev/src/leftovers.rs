//! Processes that an earlier run left behind. They are known by two marks, so that no stranger is ever killed: they
//! bear the name of one of our programs, and their working directory is a folder of this checkout's state.

use std::{fs, path::Path, time::Duration};

use anyhow::bail;
use rustix::process::{Pid, Signal, kill_process};

const OURS: [&str; 7] = [
    "postgres",
    "redis-server",
    "nginx",
    "shoppee-auth",
    "shoppee-product",
    "shoppee-order",
    "shoppee-gateway",
];
/// A killed process is gone as soon as the kernel has freed its memory.
const GOING: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

/// Kills what runs in `folder` or below it and waits for its end; returns how many those were.
pub async fn clear(folder: &Path) -> anyhow::Result<usize> {
    let Ok(folder) = folder.canonicalize() else { return Ok(0) };
    let found = running_in(&folder);
    for pid in &found {
        // It may have ended by itself meanwhile.
        let _ = kill_process(*pid, Signal::KILL);
    }
    let mut waited = Duration::ZERO;
    while !running_in(&folder).is_empty() {
        if waited > GOING {
            bail!("processes of an earlier run in {} do not end", folder.display());
        }
        tokio::time::sleep(LOOK).await;
        waited += LOOK;
    }
    Ok(found.len())
}

fn running_in(folder: &Path) -> Vec<Pid> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes
        .filter_map(|entry| {
            let process = entry.ok()?;
            let pid = Pid::from_raw(process.file_name().to_str()?.parse().ok()?)?;
            let name = fs::read_to_string(process.path().join("comm")).ok()?;
            let home = fs::read_link(process.path().join("cwd")).ok()?;
            (OURS.contains(&name.trim()) && home.starts_with(folder)).then_some(pid)
        })
        .collect()
}
