//! The developer CLI behind `scripts/up`, `scripts/down`, `scripts/demo`, `scripts/watch`, `scripts/chaos` and
//! `scripts/bench history`. It supervises a whole Shoppee on one machine, seeds demo data, runs the demo, shows events,
//! injects faults, and measures a shop with a long history.

mod chaos;
mod control;
mod demo;
mod demo_data;
mod down;
mod event_stream;
mod history;
mod orphans;
mod output;
mod ports;
mod postgres;
mod program;
mod readiness;
mod redis;
mod rest;
mod run_file;
mod secrets;
mod seed;
mod session;
mod sse;
mod state;
mod supervisor;
mod transport;
mod up;
mod watch;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// A Shoppee on this machine.
#[derive(Debug, Parser)]
#[command(name = "scripts", bin_name = "scripts")]
struct Command {
    /// The state directory of the running system
    #[arg(long, env = "SHOPPEE_STATE", default_value = ".shoppee", hide = true)]
    state: PathBuf,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    #[command(override_usage = "scripts/up [OPTIONS]", after_help = up::AFTER_HELP)]
    Up(Box<up::Options>),
    #[command(override_usage = "scripts/down [OPTIONS]")]
    Down(down::Options),
    #[command(override_usage = "scripts/demo [OPTIONS]", after_help = demo::AFTER_HELP)]
    Demo(demo::Options),
    #[command(override_usage = "scripts/watch [OPTIONS]", after_help = watch::AFTER_HELP)]
    Watch(watch::Options),
    #[command(override_usage = "scripts/chaos [OPTIONS] [FAULT]...")]
    Chaos(chaos::Options),
    #[command(override_usage = "scripts/bench history [OPTIONS]")]
    History(history::Options),
}

pub fn main() -> ExitCode {
    let command = Command::parse();
    // One thread, which lives as long as the process: PR_SET_PDEATHSIG reports the exit of the parent's thread.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    match runtime.block_on(run(command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    let state = || state::State::open(&command.state);
    match command.action {
        Action::Up(options) => up::run(state()?, *options).await,
        Action::Down(options) => down::run(&state()?, &options).await,
        Action::Demo(options) => demo::run(&command.state, &options).await,
        Action::Watch(options) => watch::run(&command.state, &options).await,
        Action::Chaos(options) => chaos::run(state()?, &options).await,
        Action::History(options) => history::run(state()?, &options).await,
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    output::print_error(&format!("{error:#}"));
    ExitCode::FAILURE
}
