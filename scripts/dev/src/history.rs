//! `scripts/bench history`: writes years of orders by SQL and runs the shop under a steady load. The report compares the
//! beginning of the run with the end. To add a bound, add a row to [`bounds::GAUGES`] or a constant there.

mod bounds;
mod load;
mod passes;
mod report;
mod samples;
mod traffic;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::bail;
use clap::Args;
use tokio::time::{Instant, sleep_until};

use crate::{
    chaos::{audit, customers::restock},
    down,
    output::{Style, print_line, print_step, styled},
    rest::Rest,
    state::State,
    up::{
        self,
        processes::{self, loopback_url},
        system::System,
    },
};
use report::Report;
use samples::Sampler;
use traffic::Traffic;

/// The number of products: lists and searches have many pages.
const PRODUCT_COUNT: u32 = 10_000;
/// The units added to the stock of each product that customers buy.
const STOCK: i64 = 1_000_000;
/// The interval between two samples of the metrics.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
/// The interval between two rows of the report.
const ROW_INTERVAL: Duration = Duration::from_mins(1);
/// The time before the first row, in which caches and connection pools fill.
const WARM_UP_TIME: Duration = Duration::from_secs(30);
/// The time for workers to finish open orders before the audit of all tables.
const SETTLE_TIME: Duration = Duration::from_secs(10);

/// Writes a history of orders by SQL, puts a steady load on the shop, and fails if a long history costs too much
#[derive(Debug, Args)]
pub struct Options {
    /// The number of orders to write, with 3 rows of the stock ledger each
    #[arg(long, value_name = "N", default_value_t = 2_000_000, value_parser = clap::value_parser!(u32).range(10_000..=20_000_000))]
    orders: u32,
    /// The duration of the load
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=1200))]
    minutes: u64,
    /// The number of concurrent customers
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u16).range(6..=200))]
    customers: u16,
    /// The folder of the binaries
    #[arg(long, hide = true)]
    binaries: PathBuf,
}

pub async fn run(state: State, options: &Options) -> anyhow::Result<()> {
    if let Some(missing) = processes::missing_binary(&options.binaries) {
        bail!("{} is not built", missing.display());
    }
    let (state, _lock) = down::reset(&state).await?;
    let mut system = System::new(state.clone(), system_options(options))?;
    let outcome = tokio::select! {
        outcome = measure(&mut system, options) => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("stopped")),
    };
    system.stop().await;
    // The logs and the data of a failed run are kept.
    outcome?;
    down::wipe(&state)
}

async fn measure(system: &mut System, options: &Options) -> anyhow::Result<()> {
    system.boot().await?;
    let gateway = loopback_url(system.topology.gateways[0]);
    let rest = Rest::new(&gateway)?;
    let goods = restock(&rest, &system.secrets.admin, STOCK).await?;
    let shoppers = traffic::sign_up(&rest, options.customers).await?;
    let ids: Vec<i64> = shoppers.iter().map(|shopper| shopper.id).collect();

    system.stop_processes().await;
    load::run(system.postgres_url(), options.orders, &ids).await?;
    system.boot_processes().await?;

    let began = Instant::now();
    let traffic = Traffic::start(&gateway, &system.secrets.admin, shoppers, goods).await?;
    let mut sampler = Sampler::new(system)?;
    let mut report = Report::default();
    let first = began + WARM_UP_TIME;
    let end = first + Duration::from_secs(60 * options.minutes);
    sampler.watch_until(system, first).await?;
    traffic.take_latencies();
    report.add(began.elapsed(), sampler.sample().await?, BTreeMap::new());
    let mut next = first;
    while next < end {
        next += ROW_INTERVAL;
        sampler.watch_until(system, next).await?;
        report.add(began.elapsed(), sampler.sample().await?, traffic.take_latencies());
    }
    let (requests, failures) = traffic.stop().await?;
    let passes = passes::measure(system.postgres_url(), began.elapsed()).await?;
    sleep_until(Instant::now() + SETTLE_TIME).await;

    print_line(&styled(Style::Dim, "  the audit of all tables"));
    let mut violations = audit::run(system.postgres_url(), &[], &BTreeMap::new()).await?;
    report.print(&passes, &sampler.rounds());
    violations.extend(sampler.violations());
    violations.extend(report.violations());
    violations.extend(passes.iter().filter_map(passes::Pass::violation));
    violations.extend(bounds::failures(requests, &failures));
    if !violations.is_empty() {
        bail!("{} bounds are broken:\n  {}", violations.len(), violations.join("\n  "));
    }
    print_step(
        "history",
        &format!("{} orders, {requests} requests, all within their bounds", options.orders),
    );
    Ok(())
}

/// Returns the options of the system: as in production, but without rate limits, which so few customers would exceed.
fn system_options(options: &Options) -> up::Options {
    up::Options {
        detach: false,
        gateways: 1,
        replicas: 1,
        port: None,
        grpc_port_base: None,
        products: PRODUCT_COUNT,
        no_seed: false,
        profile: "release".to_owned(),
        binaries: options.binaries.clone(),
        background: false,
        postgres_access: up::PostgresAccess::Direct,
        settings: up::Settings {
            shoppee_env: "production".to_owned(),
            log_format: "json".to_owned(),
            extra: vec![
                ("RATE_LIMITS", "off".to_owned()),
                ("MAX_UNPAID_ORDERS", "100000".to_owned()),
                // Orders expire also in a short run.
                ("ORDER_TTL", "1m".to_owned()),
            ],
            ..up::Settings::default()
        },
    }
}
