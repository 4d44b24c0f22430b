//! `scripts/down`: stops what `scripts/up` started in this checkout, wherever it was started from.

use std::{fs, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    leftovers, postgres,
    run_file::RunFile,
    screen::{done, say},
    state::{Lock, State},
};

/// Longer than the gateways, then the services, then PostgreSQL and Redis may take.
const PATIENCE: Duration = Duration::from_secs(75);
const LOOK: Duration = Duration::from_millis(50);

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
    // Its lock is free when it has ended.
    let _lock = loop {
        if let Some(lock) = state.lock()? {
            break lock;
        }
        if waited > PATIENCE {
            bail!("the system does not stop; see {}", state.log("shop").display());
        }
        tokio::time::sleep(LOOK).await;
        waited += LOOK;
    };
    let left = clear(state).await?;
    match (supervisor, left) {
        (Some(_), _) => done("stopped", ""),
        (None, 0) => say("nothing runs"),
        (None, left) => done("stopped", &format!("{left} processes that a killed run left behind")),
    }
    if options.wipe {
        wipe(state)?;
        done("removed its data", &state.folder().display().to_string());
    }
    Ok(())
}

/// Ends what a supervisor that was killed left behind; returns how many processes that were.
pub async fn clear(state: &State) -> anyhow::Result<usize> {
    RunFile::remove(state);
    // PostgreSQL may live elsewhere.
    let postgres = leftovers::clear(&state.of(postgres::NAME)).await?;
    Ok(postgres + leftovers::clear(state.folder()).await?)
}

/// Removes everything that is kept of a system.
pub fn wipe(state: &State) -> anyhow::Result<()> {
    let postgres = state.of(postgres::NAME);
    if postgres.is_symlink()
        && let Ok(elsewhere) = postgres.canonicalize()
    {
        fs::remove_dir_all(elsewhere)?;
    }
    fs::remove_dir_all(state.folder()).with_context(|| state.folder().display().to_string())
}

/// Removes what an earlier run left in this folder, and locks it for a new one.
///
/// # Errors
/// Where another run goes on.
pub async fn reset(state: &State) -> anyhow::Result<(State, Lock)> {
    let Some(lock) = state.lock()? else { bail!("another run goes on in {}", state.folder().display()) };
    clear(state).await?;
    wipe(state)?;
    drop(lock);
    let state = State::open(state.folder())?;
    let lock = state.lock()?.context("another run has just begun")?;
    Ok((state, lock))
}
