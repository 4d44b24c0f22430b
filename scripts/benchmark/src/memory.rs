//! The memory that a gateway holds after many requests and not after a few. Nothing scrapes it meanwhile: a sample that
//! waits for a scrape, an entry that waits for a reader, shows here.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use crate::{
    load,
    system::{FAR_LIMITS, Gateway, Running, resident},
    table,
};

/// Passes every layer, and calls no service.
const ROUTE: &str = "/.well-known/jwks.json";
/// The memory that the allocator keeps, beside what is held. MiB.
const MAX_GROWTH: f64 = 2.0;
/// The time of one load.
const LOOK: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub struct Options {
    /// The gateway's binary
    #[arg(long)]
    gateway: PathBuf,
    /// The run.json of the system that runs
    #[arg(long)]
    run: PathBuf,
    /// Requests after which memory is looked at first
    #[arg(long, default_value_t = 200_000)]
    first: u64,
    /// And last
    #[arg(long, default_value_t = 2_000_000)]
    last: u64,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    let running = Running::read(&options.run)?;
    let gateway = Gateway { binary: &options.gateway, limits: FAR_LIMITS, log: "info", settings: &[] };
    let gateway = gateway.start(&running, "the gateway", ROUTE, None).await?;
    let mut requests = 0;
    let mut rows = Vec::new();
    let mut looks = Vec::new();
    for count in [options.first, options.last] {
        while requests < count {
            requests += load::look(&gateway.target, LOOK).await?.requests;
        }
        let held = resident(gateway.target.pid)?;
        rows.push(vec![requests.to_string(), format!("{held:.1}")]);
        looks.push(held);
    }
    table::print(&["requests, no scrape", "MiB"], &rows);
    let growth = looks[1] - looks[0];
    anyhow::ensure!(growth <= MAX_GROWTH, "{growth:.1} MiB more, of {MAX_GROWTH} at most");
    Ok(())
}
