//! The growth of a gateway's memory from a few requests to many. Nothing scrapes it meanwhile, so that samples that wait for
//! a scrape show up as growth.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use crate::{
    load,
    servers::{Gateway, HIGH_LIMITS, RunningSystem, resident_mib},
    table,
};

/// A route that passes every layer and calls no service.
const ROUTE: &str = "/.well-known/jwks.json";
/// Bounds the growth: the allocator keeps some freed memory. MiB.
const MAX_GROWTH_MIB: f64 = 2.0;
/// The duration of one run of wrk.
const LOAD_DURATION: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub struct Options {
    /// The gateway's binary
    #[arg(long)]
    gateway: PathBuf,
    /// The run.json of the running system
    #[arg(long)]
    run: PathBuf,
    /// The number of requests before the first measurement
    #[arg(long, default_value_t = 200_000)]
    first: u64,
    /// The number of requests before the last measurement
    #[arg(long, default_value_t = 2_000_000)]
    last: u64,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    let running = RunningSystem::read(&options.run)?;
    let gateway = Gateway { binary: &options.gateway, limits: HIGH_LIMITS, log: "info", settings: &[] };
    let gateway = gateway.start(&running, "the gateway", ROUTE, None).await?;
    let mut requests = 0;
    let mut rows = Vec::new();
    let mut sizes = Vec::new();
    for count in [options.first, options.last] {
        while requests < count {
            requests += load::run_wrk(&gateway.target, LOAD_DURATION).await?.requests;
        }
        let size = resident_mib(gateway.target.pid)?;
        rows.push(vec![requests.to_string(), format!("{size:.1}")]);
        sizes.push(size);
    }
    table::print(&["requests, no scrape", "MiB"], &rows);
    let growth = sizes[1] - sizes[0];
    anyhow::ensure!(growth <= MAX_GROWTH_MIB, "{growth:.1} MiB more, of {MAX_GROWTH_MIB} at most");
    Ok(())
}
