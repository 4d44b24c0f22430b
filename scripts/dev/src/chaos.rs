//! `scripts/chaos`: fault injection into a Shoppee of its own behind nginx, as in a deployment, under load, with an audit
//! afterwards. To add a fault, add a [`Fault`] and a module.

pub mod audit;
mod buyers;
pub mod customers;
mod model;
mod nginx;
mod proxy;
mod random;
mod rolling;
mod stalled_clients;
mod starts;
mod warehouse;

use std::{ffi::OsString, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use shoppee_kit::settings::duration;
use tokio::time::timeout;

use self::proxy::{Mode, Proxy};
use crate::{
    down,
    output::{Style, print_line, print_step, styled},
    ports::Ports,
    readiness,
    state::State,
    up::{
        self,
        processes::{self, Topology, loopback_url},
        system::System,
    },
};

/// Bounds the `--time` option.
const MAX_RUN_TIME: Duration = Duration::from_hours(1);
/// The number of customers of a full run.
const FULL_CUSTOMERS: u16 = 24;
/// The limit of unpaid orders, above the orders of a run.
const MAX_UNPAID_ORDERS: usize = 1_000;
/// Bounds the start of nginx.
const PROXY_START_TIMEOUT: Duration = Duration::from_secs(20);

/// Starts a system of its own, injects faults while customers use it, and fails if a customer would have noticed
#[derive(Debug, Args)]
pub struct Options {
    /// The kinds of faults; all by default
    #[arg(value_enum)]
    fault: Vec<Fault>,
    /// A short form, a minute or two each: fewer replicas, fewer and shorter faults
    #[arg(long)]
    quick: bool,
    /// The form before a release, about an hour: 50 minutes of random faults, with 24 customers
    #[arg(long, conflicts_with_all = ["quick", "time", "customers"])]
    full: bool,
    /// The seed of the customers' choices; random and printed by default
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// The number of customers, each with a socket
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=500))]
    customers: u16,
    /// The duration of the random faults; at most an hour; 20m, or 1m with --quick
    #[arg(long, value_name = "TIME", value_parser = run_time)]
    time: Option<Duration>,
    /// The processes' SHUTDOWN_LAG; 5s, as in production, or 2s with --quick
    #[arg(long, value_name = "TIME", value_parser = duration)]
    lag: Option<Duration>,
    /// The folder of the binaries
    #[arg(long, hide = true)]
    binaries: PathBuf,
    /// The command of another consumer for `warehouse`, with its arguments
    #[arg(long, value_name = "COMMAND", num_args = 1.., hide = true)]
    consumer: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Fault {
    /// Every gateway and every replica of every service is stopped with SIGTERM and started again, one after the other
    Rolling,
    /// Processes, PostgreSQL and Redis are killed, frozen and disconnected, in an order that follows from the seed
    Random,
    /// Random sequences of requests are compared with a model of carts, orders, stock and idempotency keys; no faults
    Model,
    /// Every process is started while one of its dependencies is absent, frozen, slow or refuses its password
    Starts,
    /// The consumer of paid orders of examples/warehouse is killed while customers pay; each order is shipped once
    Warehouse,
}

impl Options {
    /// Returns the duration of the random faults.
    fn random_time(&self) -> Duration {
        self.time.unwrap_or(match (self.quick, self.full) {
            (true, _) => Duration::from_mins(1),
            (_, true) => Duration::from_mins(50),
            _ => Duration::from_mins(20),
        })
    }

    fn customers(&self) -> u16 {
        if self.full { FULL_CUSTOMERS } else { self.customers }
    }
}

/// Parses the duration of a run.
fn run_time(value: &str) -> Result<Duration, String> {
    let time = duration(value)?;
    if time <= MAX_RUN_TIME { Ok(time) } else { Err("longer than 1h".to_owned()) }
}

pub async fn run(state: State, options: &Options) -> anyhow::Result<()> {
    if let Some(missing) = processes::missing_binary(&options.binaries) {
        bail!("{} is not built", missing.display());
    }
    let (state, _lock) = down::reset(&state).await?;

    let faults = if options.fault.is_empty() { Fault::value_variants() } else { &options.fault };
    for fault in faults {
        let seed = options.seed.unwrap_or_else(rand::random);
        let name = format!("{fault:?}").to_lowercase();
        print_line(&format!("{}  {name}, seed {seed}", styled(Style::Bold, "chaos")));
        let mut system = System::new(state.clone(), system_options(options, *fault))?;
        let Topology { postgres, postgres_proxy, .. } = system.topology;
        // A proxy between the services and PostgreSQL injects the faults of a network.
        let postgres = postgres_proxy.map(|port| Proxy::start(port, postgres, Mode::Pass, Duration::ZERO));
        let outcome = tokio::select! {
            outcome = async {
                system.boot().await?;
                match fault {
                    Fault::Rolling => rolling::run(&mut system, options, seed).await,
                    Fault::Random => {
                        let postgres = postgres.as_ref().context("a proxy")?;
                        random::run(&mut system, postgres, options, seed).await
                    }
                    Fault::Model => model::run(&system, options, seed).await,
                    Fault::Starts => starts::run(&system, options).await,
                    Fault::Warehouse => warehouse::run(&mut system, options, seed).await,
                }
            } => outcome,
            _ = tokio::signal::ctrl_c() => bail!("stopped"),
        };
        system.stop().await;
        // The logs of a failed run are kept.
        outcome?;
        print_step(&name, "passed");
    }
    down::wipe(&state)
}

/// Starts an nginx in front of the gateways and returns its URL.
async fn behind_nginx(system: &mut System, client: &reqwest::Client) -> anyhow::Result<String> {
    let port = Ports::default().free()?;
    let url = loopback_url(port);
    system.start_programs(vec![nginx::program(&system.state, port, &system.topology.gateways)?]);
    let answering =
        readiness::wait_until(|| async { client.get(format!("{url}/healthz")).send().await.is_ok() });
    timeout(PROXY_START_TIMEOUT, answering).await.context("nginx does not answer")?;
    Ok(url)
}

/// Returns the options of the system: as in production, but without rate limits, which so few customers would exceed.
fn system_options(options: &Options, fault: Fault) -> up::Options {
    let lag = options.lag.unwrap_or(Duration::from_secs(if options.quick { 2 } else { 5 }));
    let (gateways, replicas) = match fault {
        Fault::Rolling | Fault::Random => (if options.quick { 2 } else { 3 }, 2),
        // The processes under test run beside the system.
        Fault::Starts | Fault::Warehouse | Fault::Model => (1, 1),
    };
    let postgres_access = match fault {
        Fault::Random => up::PostgresAccess::Proxied,
        Fault::Rolling | Fault::Model | Fault::Starts | Fault::Warehouse => up::PostgresAccess::Direct,
    };
    let max_unpaid_orders = if fault == Fault::Model { model::MAX_UNPAID_ORDERS } else { MAX_UNPAID_ORDERS };
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
        postgres_access,
        settings: up::Settings {
            shoppee_env: "production".to_owned(),
            log_format: "json".to_owned(),
            extra: vec![
                ("RATE_LIMITS", "off".to_owned()),
                ("SHUTDOWN_LAG", format!("{}ms", lag.as_millis())),
                ("TRUSTED_PROXIES", "127.0.0.1/32".to_owned()),
                ("MAX_UNPAID_ORDERS", max_unpaid_orders.to_string()),
            ],
            ..up::Settings::default()
        },
    }
}
