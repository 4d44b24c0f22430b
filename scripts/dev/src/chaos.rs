//! `scripts/chaos`: a Shoppee of its own behind a real nginx, as it is deployed, is used and hurt at the same time; then
//! what became of it is audited. To add a fault, add a [`Fault`] and a module.

pub mod audit;
mod buyers;
mod clingers;
pub mod customers;
mod nginx;
mod proxy;
mod random;
mod rolling;
mod starts;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use shoppee_kit::settings::duration;
use tokio::time::timeout;

use crate::{
    down,
    parts::{self, local},
    ports::Ports,
    ready,
    screen::{Ink, done, ink, say},
    state::State,
    up::{self, system::System},
};

/// The longest run.
const MAX_RUN_TIME: Duration = Duration::from_hours(1);
/// An nginx that was started answers within this.
const PROXY_TIMEOUT: Duration = Duration::from_secs(20);

/// Starts a system of its own, hurts it while customers use it, and fails where one of them would have noticed
#[derive(Debug, Args)]
pub struct Options {
    /// What is done to it; everything where nothing is named
    #[arg(value_enum)]
    fault: Vec<Fault>,
    /// A short form, a minute or two: fewer replicas, each kind of process once, shorter troubles
    #[arg(long)]
    quick: bool,
    /// What the customers' choices follow from; a run prints its own
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How many customers, each with a socket
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=500))]
    customers: u16,
    /// The time for which random faults go on; at most an hour
    #[arg(long, value_name = "TIME", default_value = "20m", value_parser = run_time)]
    time: Duration,
    /// The processes' SHUTDOWN_LAG; 5s, as in production, or 2s with --quick
    #[arg(long, value_name = "TIME", value_parser = duration)]
    lag: Option<Duration>,
    /// Where the binaries are
    #[arg(long, hide = true)]
    binaries: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Fault {
    /// Every gateway and every replica of every service is stopped with SIGTERM and started again, one after the other
    Rolling,
    /// Processes, PostgreSQL and Redis are killed, frozen and cut off from their connections in turn, as a seed has it
    Random,
    /// Every process is started while one of its dependencies is absent, frozen, slow or refuses its password
    Starts,
}

/// Parses the length of a run, which is bounded.
fn run_time(value: &str) -> Result<Duration, String> {
    let time = duration(value)?;
    if time <= MAX_RUN_TIME { Ok(time) } else { Err("longer than 1h".to_owned()) }
}

pub async fn run(state: State, options: &Options) -> anyhow::Result<()> {
    if let Some(missing) = parts::missing(&options.binaries) {
        bail!("{} is not built", missing.display());
    }
    let (state, _lock) = down::reset(&state).await?;

    let faults = if options.fault.is_empty() { Fault::value_variants() } else { &options.fault };
    for fault in faults {
        let seed = options.seed.unwrap_or_else(rand::random);
        let name = format!("{fault:?}").to_lowercase();
        say(&format!("{}  {name}, seed {seed}", ink(Ink::Bold, "chaos")));
        let mut system = System::plan(state.clone(), system(options, *fault))?;
        let outcome = tokio::select! {
            outcome = async {
                system.boot().await?;
                match fault {
                    Fault::Rolling => rolling::run(&mut system, options, seed).await,
                    Fault::Random => random::run(&mut system, options, seed).await,
                    Fault::Starts => starts::run(&system, options).await,
                }
            } => outcome,
            _ = tokio::signal::ctrl_c() => bail!("stopped"),
        };
        system.stop().await;
        // The logs of one that failed stay.
        outcome?;
        done(&name, "passed");
    }
    down::wipe(&state)
}

/// Starts an nginx in front of the gateways and returns its URL.
async fn behind_nginx(system: &mut System, client: &reqwest::Client) -> anyhow::Result<String> {
    let port = Ports::default().free()?;
    let url = local(port);
    system.keep(vec![nginx::program(&system.state, port, &system.plan.gateways)?]);
    let answers = ready::until(|| async { client.get(format!("{url}/healthz")).send().await.is_ok() });
    timeout(PROXY_TIMEOUT, answers).await.context("nginx does not answer")?;
    Ok(url)
}

/// The system that is hurt: as in production, but for the limits, which so few customers would meet.
fn system(options: &Options, fault: Fault) -> up::Options {
    let lag = options.lag.unwrap_or(Duration::from_secs(if options.quick { 2 } else { 5 }));
    let (gateways, replicas) = match fault {
        Fault::Rolling | Fault::Random => (if options.quick { 2 } else { 3 }, 2),
        // The processes that are looked at are started beside it.
        Fault::Starts => (1, 1),
    };
    up::Options {
        detach: false,
        gateways,
        replicas,
        port: None,
        grpc_port_base: None,
        products: 40,
        no_seed: fault == Fault::Starts,
        profile: "dev".to_owned(),
        binaries: options.binaries.clone(),
        background: false,
        settings: up::Settings {
            shoppee_env: "production".to_owned(),
            log_format: "json".to_owned(),
            also: vec![
                ("RATE_LIMITS", "off".to_owned()),
                ("SHUTDOWN_LAG", format!("{}ms", lag.as_millis())),
                ("TRUSTED_PROXIES", "127.0.0.1/32".to_owned()),
                ("MAX_UNPAID_ORDERS", "1000".to_owned()),
            ],
            ..up::Settings::default()
        },
    }
}
