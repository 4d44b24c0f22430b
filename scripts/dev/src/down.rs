//! `scripts/down`: stops the system that `scripts/up` started in this checkout, from any shell.

use std::{fs, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    orphans,
    output::{print_line, print_step},
    postgres,
    run_file::RunFile,
    state::{Lock, State},
};

/// Bounds the stop of the system: longer than gateways, services, PostgreSQL and Redis may take one after the other.
const STOP_TIMEOUT: Duration = Duration::from_secs(75);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Stops the system of this checkout
#[derive(Debug, Args)]
pub struct Options {
    /// Removes its data too: orders, products, users, passwords, logs
    #[arg(long)]
    wipe: bool,
}

pub async fn run(state: &State, options: &Options) -> anyhow::Result<()> {
    let supervisor = state.supervisor()?;
    if let Some(pid) = supervisor {
        kill_process(Pid::from_raw(pid).context("the lock names no process")?, Signal::TERM)?;
    }
    let mut waited = Duration::ZERO;
    // The lock becomes free when the supervisor exits.
    let _lock = loop {
        if let Some(lock) = state.lock()? {
            break lock;
        }
        if waited > STOP_TIMEOUT {
            bail!("the system does not stop; see {}", state.log("supervisor").display());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
        waited += POLL_INTERVAL;
    };
    let orphans = kill_orphans(state).await?;
    match (supervisor, orphans) {
        (Some(_), _) => print_step("stopped", ""),
        (None, 0) => print_line("nothing runs"),
        (None, orphans) => {
            print_step("stopped", &format!("{orphans} processes that a killed run left behind"));
        }
    }
    if options.wipe {
        wipe(state)?;
        print_step("removed its data", &state.folder().display().to_string());
    }
    Ok(())
}

/// Kills the processes that a killed supervisor left behind. Returns their number.
pub async fn kill_orphans(state: &State) -> anyhow::Result<usize> {
    RunFile::remove(state);
    // PostgreSQL's folder may be a link to another place.
    let postgres = orphans::kill(&state.process_folder(postgres::NAME)).await?;
    Ok(postgres + orphans::kill(state.folder()).await?)
}

/// Removes all data of a system.
pub fn wipe(state: &State) -> anyhow::Result<()> {
    let postgres = state.process_folder(postgres::NAME);
    if postgres.is_symlink()
        && let Ok(target) = postgres.canonicalize()
    {
        fs::remove_dir_all(target)?;
    }
    fs::remove_dir_all(state.folder()).with_context(|| state.folder().display().to_string())
}

/// Removes the processes and data of an earlier run in this folder, and locks it for a new run.
///
/// # Errors
/// If another run holds the lock.
pub async fn reset(state: &State) -> anyhow::Result<(State, Lock)> {
    let Some(lock) = state.lock()? else { bail!("another run goes on in {}", state.folder().display()) };
    kill_orphans(state).await?;
    wipe(state)?;
    drop(lock);
    let state = State::open(state.folder())?;
    let lock = state.lock()?.context("another run has just begun")?;
    Ok((state, lock))
}
