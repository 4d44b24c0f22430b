//! Stock holds at the product service alone, compared with `pgbench` that writes the rows of a hold as one bare statement.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use reqwest::Client;
use shoppee_kit::client;
use shoppee_proto::{
    auth::v1::{IssueServiceTokenRequest, auth_service_client::AuthServiceClient},
    product::v1::{HoldRequest, StockLine, stock_service_client::StockServiceClient},
};
use tokio::{process::Command, task::JoinSet};
use uuid::Uuid;

use crate::{
    load::percentile,
    orders::{MAX_PGBENCH_CLIENTS, find_pgbench, process_seconds, processes, stock_up},
    servers::RunningSystem,
    table,
};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const PGBENCH_SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/holds/pgbench.sql");

#[derive(Debug, Args)]
pub struct Options {
    /// The run.json of the running system
    #[arg(long)]
    run: PathBuf,
    /// The duration of each sample
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// The numbers of concurrent callers
    #[arg(long, value_delimiter = ',', default_values_t = [1, 32, 128])]
    clients: Vec<usize>,
    /// The service client that holds, as in SERVICE_CLIENTS
    #[arg(long)]
    service_client: String,
    /// The secret of that client
    #[arg(long)]
    service_secret: String,
}

/// The result of one load.
#[derive(Debug)]
struct Sample {
    /// Holds per second.
    rate: f64,
    /// The 50th and 99th percentile of the latency. Milliseconds.
    latency: [f64; 2],
    /// Processor time per hold by process. Microseconds.
    cost: Vec<(&'static str, f64)>,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    let running = RunningSystem::read(&options.run)?;
    let duration = Duration::from_secs(options.seconds);
    let http = Client::builder().no_proxy().build()?;
    let products = stock_up(&http, &running, running.gateway_url()?).await?;
    let request = IssueServiceTokenRequest {
        client_id: options.service_client,
        client_secret: options.service_secret,
        ..IssueServiceTokenRequest::default()
    };
    let mut auth = AuthServiceClient::new(client::channel(&running.services.auth.grpc)?);
    let token = auth.issue_service_token(request).await?.into_inner().access_token;
    let mut rows = Vec::new();
    for (name, products) in [("1 product", &products[..1]), ("all products", &products[..])] {
        for &clients in &options.clients {
            let sample = hold(&running, &token, products, clients, duration).await?;
            let baseline = run_pgbench(&running, products, clients, duration).await?;
            let mut row = vec![
                format!("{name}, {clients}"),
                format!("{:.0}", sample.rate),
                format!("{baseline:.0}"),
                format!("{:.2}", sample.rate / baseline),
            ];
            row.extend(sample.latency.iter().map(|milliseconds| format!("{milliseconds:.2}")));
            row.extend(sample.cost.iter().map(|(_, cost)| format!("{cost:.0}")));
            rows.push(row);
        }
    }
    let pgbench = format!("pgbench/s (at most {MAX_PGBENCH_CLIENTS} clients)");
    let head = [
        "holds, by number of callers",
        "holds/s",
        &pgbench,
        "ratio",
        "p50 ms",
        "p99 ms",
        "product µs",
        "postgres µs",
        "(client) µs",
    ];
    table::print(&head, &rows);
    Ok(())
}

/// Holds one unit at a time with `clients` callers for `duration`.
async fn hold(
    running: &RunningSystem,
    token: &str,
    products: &[i64],
    clients: usize,
    duration: Duration,
) -> anyhow::Result<Sample> {
    let processes: Vec<(&'static str, Vec<u32>)> = processes(running)?
        .into_iter()
        .filter(|(name, _)| ["product", "postgres", "client"].contains(name))
        .collect();
    let channel = client::channel(&running.services.product.grpc)?;
    let before: Vec<f64> = processes.iter().map(|(_, pids)| process_seconds(pids)).collect();
    let (started, deadline) = (Instant::now(), Instant::now() + duration);
    let (next_hold, products): (Arc<AtomicU64>, Arc<[i64]>) = (Arc::default(), products.into());
    let token = Arc::new(token.to_owned().into());
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let (mut stock, token) = (StockServiceClient::new(channel.clone()), Arc::clone(&token));
        let (next_hold, products) = (next_hold.clone(), products.clone());
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            while Instant::now() < deadline {
                let number = usize::try_from(next_hold.fetch_add(1, Ordering::Relaxed))?;
                let line = StockLine { product_id: products[number % products.len()], quantity: 1 };
                let request = HoldRequest {
                    order_id: Uuid::now_v7().to_string(),
                    lines: vec![line],
                    ttl_seconds: 900,
                    ..HoldRequest::default()
                };
                let sent = Instant::now();
                stock.hold(client::request(request, Some(&token), REQUEST_TIMEOUT)).await?;
                latencies.push(sent.elapsed());
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = Vec::new();
    while let Some(held) = tasks.join_next().await {
        latencies.extend(held??);
    }
    let elapsed = started.elapsed();
    latencies.sort_unstable();
    anyhow::ensure!(!latencies.is_empty(), "nothing was held");
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
    let holds = latencies.len() as f64;
    let cost = processes
        .iter()
        .zip(before)
        .map(|((name, pids), before)| (*name, (process_seconds(pids) - before) * 1e6 / holds));
    Ok(Sample {
        rate: holds / elapsed.as_secs_f64(),
        latency: [50, 99].map(|percent| percentile(&latencies, percent)),
        cost: cost.collect(),
    })
}

/// Runs pgbench with the rows of a hold, and returns its transactions per second.
async fn run_pgbench(
    running: &RunningSystem,
    products: &[i64],
    clients: usize,
    duration: Duration,
) -> anyhow::Result<f64> {
    let (first, last) =
        (products.iter().min().context("no products")?, products.iter().max().context("no products")?);
    let output = Command::new(find_pgbench()?)
        .args(["--no-vacuum", "--protocol=prepared", "--jobs=2"])
        .args(["--client", &clients.min(MAX_PGBENCH_CLIENTS).to_string()])
        .args(["--time", &duration.as_secs().to_string(), "--file", PGBENCH_SCRIPT])
        .args(["--define", &format!("first={first}"), "--define", &format!("last={last}")])
        .arg(&running.postgres.url)
        .output()
        .await
        .context("pgbench")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let rate = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split_whitespace().next());
    let rate = rate.with_context(|| format!("pgbench: {text}{}", String::from_utf8_lossy(&output.stderr)))?;
    Ok(rate.parse()?)
}
