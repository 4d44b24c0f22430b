//! `scripts/bench history`: a Shoppee of its own gets years of orders by SQL, runs under a steady load, and is compared with
//! itself. To add a bound, add a row to [`bounds::GAUGES`] or a constant there.

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
    chaos::{audit, customers::stock_up},
    down,
    parts::{self, local},
    rest::Rest,
    screen::{Ink, done, ink, say},
    state::State,
    up::{self, system::System},
};
use report::Report;
use samples::Sampler;
use traffic::Traffic;

/// Products of the shop: enough that lists and searches have many pages.
const PRODUCTS: u32 = 10_000;
/// Units added to each product that the customers buy.
const SUPPLY: i64 = 1_000_000;
/// The interval between two samples of the metrics.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
/// The interval of the rows in the report.
const ROW_INTERVAL: Duration = Duration::from_mins(1);
/// The time before the first row counts: caches and connection pools fill.
const WARM_UP: Duration = Duration::from_secs(30);
/// The time for workers to finish what the customers left open, before the audit of all tables.
const SETTLE_TIME: Duration = Duration::from_secs(10);

/// Writes a history of orders by SQL, puts a steady load on the shop, and fails where age costs something
#[derive(Debug, Args)]
pub struct Options {
    /// Orders that are written, with 3 rows of the stock's ledger each
    #[arg(long, value_name = "N", default_value_t = 2_000_000, value_parser = clap::value_parser!(u32).range(10_000..=20_000_000))]
    orders: u32,
    /// The time of the load
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=1200))]
    minutes: u64,
    /// Customers who shop at the same time
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u16).range(6..=200))]
    customers: u16,
    /// Where the binaries are
    #[arg(long, hide = true)]
    binaries: PathBuf,
}

pub async fn run(state: State, options: &Options) -> anyhow::Result<()> {
    if let Some(missing) = parts::missing(&options.binaries) {
        bail!("{} is not built", missing.display());
    }
    let (state, _lock) = down::reset(&state).await?;
    let mut system = System::plan(state.clone(), system(options))?;
    let outcome = tokio::select! {
        outcome = measure(&mut system, options) => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("stopped")),
    };
    system.stop().await;
    // The logs and the data of one that failed stay.
    outcome?;
    down::wipe(&state)
}

async fn measure(system: &mut System, options: &Options) -> anyhow::Result<()> {
    system.boot().await?;
    let gateway = local(system.plan.gateways[0]);
    let rest = Rest::new(&gateway)?;
    let goods = stock_up(&rest, &system.secrets.admin, SUPPLY).await?;
    let shoppers = traffic::sign_up(&rest, options.customers).await?;
    let ids: Vec<i64> = shoppers.iter().map(|shopper| shopper.id).collect();

    system.stop_processes().await;
    load::run(system.postgres_url(), options.orders, &ids).await?;
    system.boot_processes().await?;

    let began = Instant::now();
    let traffic = Traffic::start(&gateway, &system.secrets.admin, shoppers, goods).await?;
    let mut sampler = Sampler::new(system)?;
    let mut report = Report::default();
    let first = began + WARM_UP;
    let end = first + Duration::from_secs(60 * options.minutes);
    sampler.watch_until(system, first).await?;
    traffic.latencies();
    report.add(began.elapsed(), sampler.sample().await?, BTreeMap::new());
    let mut next = first;
    while next < end {
        next += ROW_INTERVAL;
        sampler.watch_until(system, next).await?;
        report.add(began.elapsed(), sampler.sample().await?, traffic.latencies());
    }
    let (requests, failures) = traffic.stop().await?;
    let passes = passes::measure(system.postgres_url(), began.elapsed()).await?;
    sleep_until(Instant::now() + SETTLE_TIME).await;

    say(&ink(Ink::Dim, "  the audit of all tables"));
    let mut breaches = audit::run(system.postgres_url(), &[], &BTreeMap::new()).await?;
    report.print(&passes, &sampler.rounds());
    breaches.extend(sampler.breaches());
    breaches.extend(report.breaches());
    breaches.extend(passes.iter().filter_map(passes::Pass::breach));
    breaches.extend(bounds::failures(requests, &failures));
    if !breaches.is_empty() {
        bail!("{} bounds are broken:\n  {}", breaches.len(), breaches.join("\n  "));
    }
    done("history", &format!("{} orders, {requests} requests, all within their bounds", options.orders));
    Ok(())
}

/// The system that is measured: as in production, but for the limits, which so few customers would meet.
fn system(options: &Options) -> up::Options {
    up::Options {
        detach: false,
        gateways: 1,
        replicas: 1,
        port: None,
        grpc_port_base: None,
        products: PRODUCTS,
        no_seed: false,
        profile: "release".to_owned(),
        binaries: options.binaries.clone(),
        background: false,
        settings: up::Settings {
            shoppee_env: "production".to_owned(),
            log_format: "json".to_owned(),
            also: vec![
                ("RATE_LIMITS", "off".to_owned()),
                ("MAX_UNPAID_ORDERS", "100000".to_owned()),
                // So that orders run out also in a short run.
                ("ORDER_TTL", "1m".to_owned()),
            ],
            ..up::Settings::default()
        },
    }
}
