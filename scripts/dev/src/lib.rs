//! The program behind `scripts/up`, `scripts/down`, `scripts/demo`, `scripts/chaos` and `scripts/bench history`: keeps a
//! whole Shoppee running on one machine, fills it with a demo shop, shows an order's way through it, and tries what it
//! withstands: faults, and a long history.

mod catalogue;
mod chaos;
mod demo;
mod down;
mod history;
mod keeper;
mod leftovers;
mod parts;
mod ports;
mod postgres;
mod program;
mod ready;
mod redis;
mod rest;
mod run_file;
mod screen;
mod secrets;
mod seed;
mod socket;
mod state;
mod up;
mod wire;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// A Shoppee on this machine.
#[derive(Debug, Parser)]
#[command(name = "scripts", bin_name = "scripts")]
struct Command {
    /// Where everything of a running system is kept
    #[arg(long, env = "SHOPPEE_STATE", default_value = ".shoppee", hide = true)]
    state: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    #[command(override_usage = "scripts/up [OPTIONS]", after_help = up::AFTER_HELP)]
    Up(Box<up::Options>),
    #[command(override_usage = "scripts/down [OPTIONS]")]
    Down(down::Options),
    #[command(override_usage = "scripts/demo [OPTIONS]", after_help = demo::AFTER_HELP)]
    Demo(demo::Options),
    #[command(override_usage = "scripts/chaos [OPTIONS] [FAULT]...")]
    Chaos(chaos::Options),
    #[command(override_usage = "scripts/bench history [OPTIONS]")]
    History(history::Options),
}

pub fn main() -> ExitCode {
    let command = Command::parse();
    // One thread, which lives as long as the process: a child is told of the end of the thread that started it.
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
    match command.what {
        What::Up(options) => up::run(state()?, *options).await,
        What::Down(options) => down::run(&state()?, &options).await,
        What::Demo(options) => demo::run(&command.state, &options).await,
        What::Chaos(options) => chaos::run(state()?, &options).await,
        What::History(options) => history::run(state()?, &options).await,
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    screen::complain(&format!("{error:#}"));
    ExitCode::FAILURE
}
