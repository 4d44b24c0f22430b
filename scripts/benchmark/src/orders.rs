//! Orders over the whole path, from the gateway to the commit, compared with `pgbench` that writes the rows of an order as
//! one bare statement.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args;
use reqwest::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use shoppee_kit::client;
use shoppee_proto::auth::v1::{LoginRequest, RegisterRequest, auth_service_client::AuthServiceClient};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::{process::Command, task::JoinSet};
use uuid::Uuid;

use crate::{
    load::{percentile, processor_seconds},
    servers::{RunningSystem, child_pids},
    table,
};

/// Customers; an order is placed by each in turn, so that none has many unpaid orders.
const CUSTOMERS: usize = 128;
pub const PASSWORD: &str = "correct horse battery staple";
/// More than all orders of a run.
const STOCK: i64 = 100_000_000;
/// PostgreSQL of `scripts/up` takes about 100 connections, some of which the services have.
pub const MAX_PGBENCH_CLIENTS: usize = 90;
/// The first user id of pgbench, beyond all real ones.
const FIRST_PGBENCH_USER: i64 = 1_000_000_000;
const PGBENCH_SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/orders/pgbench.sql");

#[derive(Debug, Args)]
pub struct Options {
    /// The run.json of the running system
    #[arg(long)]
    run: PathBuf,
    /// The duration of each sample
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// The numbers of concurrent clients
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32, 128])]
    clients: Vec<usize>,
}

/// The products that orders are spread over, and the kind of orders.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    one_product: bool,
    with_key: bool,
    from_cart: bool,
}

const CASES: [Case; 4] = [
    Case { name: "spread", one_product: false, with_key: false, from_cart: false },
    Case { name: "spread, keys", one_product: false, with_key: true, from_cart: false },
    Case { name: "spread, keys, carts", one_product: false, with_key: true, from_cart: true },
    Case { name: "one product", one_product: true, with_key: false, from_cart: false },
];

/// The result of one load.
#[derive(Debug)]
struct Sample {
    /// Orders per second.
    rate: f64,
    /// The 50th and 99th percentile and the maximum of the latency. Milliseconds.
    latency: [f64; 3],
    /// Processor time per order by process. Milliseconds.
    cost: Vec<(&'static str, f64)>,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    let running = RunningSystem::read(&options.run)?;
    let duration = Duration::from_secs(options.seconds);
    let http = Client::builder().no_proxy().build()?;
    let url = running.gateway_url()?.to_owned();
    let products = stock_up(&http, &running, &url).await?;
    let tokens: Arc<[String]> = sign_in_customers(&running).await?.into();
    let mut database = PgConnection::connect(&running.postgres.url).await?;
    let mut rows = Vec::new();
    for case in CASES {
        let products = if case.one_product { &products[..1] } else { &products[..] };
        for &clients in &options.clients {
            // Carts are filled before each order: measured once, at the load of the target figures.
            if case.from_cart && clients != 32 {
                continue;
            }
            let sample = place_orders(&running, &url, &tokens, products, case, clients, duration).await?;
            finish_orders(&mut database).await?;
            let baseline = run_pgbench(&running, &mut database, products, clients, duration).await?;
            rows.push(row(case, clients, &sample, baseline));
        }
    }
    let pgbench = format!("pgbench/s (at most {MAX_PGBENCH_CLIENTS} clients)");
    let head = [
        "orders, by number of clients",
        "orders/s",
        &pgbench,
        "ratio",
        "p50 ms",
        "p99 ms",
        "max ms",
        "CPU ms",
        "gateway",
        "product",
        "order",
        "postgres",
        "redis",
        "auth",
        "(client)",
    ];
    table::print(&head, &rows);
    Ok(())
}

fn row(case: Case, clients: usize, sample: &Sample, baseline: f64) -> Vec<String> {
    let mut cells = vec![
        format!("{}, {clients}", case.name),
        format!("{:.0}", sample.rate),
        format!("{baseline:.0}"),
        format!("{:.2}", sample.rate / baseline),
    ];
    cells.extend(sample.latency.iter().map(|milliseconds| format!("{milliseconds:.1}")));
    let server_cost: f64 =
        sample.cost.iter().filter(|(process, _)| *process != "client").map(|(_, cost)| cost).sum();
    cells.push(format!("{server_cost:.2}"));
    cells.extend(sample.cost.iter().map(|(_, cost)| format!("{cost:.2}")));
    cells
}

/// Gives each product enough stock, and returns the ids.
pub async fn stock_up(http: &Client, running: &RunningSystem, url: &str) -> anyhow::Result<Vec<i64>> {
    let token = running.sign_in().await?;
    let (mut ids, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let cursor_query = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        let page = format!("{url}/api/v1/products?limit=100{cursor_query}");
        let page: Value = http.get(page).send().await?.error_for_status()?.json().await?;
        ids.extend(
            page["items"].as_array().context("no items")?.iter().filter_map(|item| item["id"].as_i64()),
        );
        cursor = page["next_cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            break;
        }
    }
    let rows: Vec<Value> = ids.iter().map(|id| json!({"id": id, "stock": STOCK})).collect();
    let batch = http.post(format!("{url}/api/v1/products/batch")).bearer_auth(token);
    let result = batch.json(&json!({"on_error": "abort", "items": rows})).send().await?.error_for_status()?;
    let result: Value = result.json().await?;
    anyhow::ensure!(result["failed"] == 0, "{result}");
    Ok(ids)
}

/// Registers the customers of this run, and returns their access tokens.
async fn sign_in_customers(running: &RunningSystem) -> anyhow::Result<Vec<String>> {
    let auth = AuthServiceClient::new(client::channel(&running.services.auth.grpc)?);
    let mut tokens = Vec::with_capacity(CUSTOMERS);
    let run = std::process::id();
    for number in 0..CUSTOMERS {
        let username = format!("buyer-{run}-{number}");
        let mut auth = auth.clone();
        auth.register(RegisterRequest {
            username: username.clone(),
            email: format!("{username}@example.com"),
            password: PASSWORD.to_owned(),
            ..RegisterRequest::default()
        })
        .await?;
        let login = LoginRequest {
            username,
            password: PASSWORD.to_owned(),
            user_agent: "scripts/bench".to_owned(),
            ..LoginRequest::default()
        };
        tokens.push(auth.login(login).await?.into_inner().access_token);
    }
    Ok(tokens)
}

/// Places orders with `clients` at a time for `duration`.
async fn place_orders(
    running: &RunningSystem,
    url: &str,
    tokens: &Arc<[String]>,
    products: &[i64],
    case: Case,
    clients: usize,
    duration: Duration,
) -> anyhow::Result<Sample> {
    let processes = processes(running)?;
    let before: Vec<f64> = processes.iter().map(|(_, pids)| process_seconds(pids)).collect();
    let (started, deadline) = (Instant::now(), Instant::now() + duration);
    let next_order = Arc::new(AtomicU64::new(0));
    let products: Arc<[i64]> = products.into();
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let (url, tokens, products) = (url.to_owned(), tokens.clone(), products.clone());
        let next_order = next_order.clone();
        tasks.spawn(async move {
            // A connection of its own, as each customer's device has.
            let http = Client::builder().no_proxy().build()?;
            let mut latencies = Vec::new();
            // The customers of this client, in turn.
            let mut customers = (client..tokens.len()).step_by(clients).cycle();
            while Instant::now() < deadline {
                let token = &tokens[customers.next().context("no customer")?];
                let number = next_order.fetch_add(1, Ordering::Relaxed);
                let product = products[usize::try_from(number)? % products.len()];
                latencies.push(place_order(&http, &url, token, product, case).await?);
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = Vec::new();
    while let Some(placed) = tasks.join_next().await {
        latencies.extend(placed??);
    }
    let elapsed = started.elapsed();
    if latencies.is_empty() {
        bail!("no order was placed");
    }
    latencies.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
    let orders = latencies.len() as f64;
    let cost = processes
        .iter()
        .zip(before)
        .map(|((name, pids), before)| (*name, (process_seconds(pids) - before) * 1e3 / orders));
    Ok(Sample {
        rate: orders / elapsed.as_secs_f64(),
        latency: [50, 99, 100].map(|percent| percentile(&latencies, percent)),
        cost: cost.collect(),
    })
}

/// Places one order, and returns its latency. The cart is filled before the time is taken.
async fn place_order(
    http: &Client,
    url: &str,
    token: &str,
    product: i64,
    case: Case,
) -> anyhow::Result<Duration> {
    let line = json!({"product_id": product, "quantity": 1});
    let mut order = json!({"shipping_address": {
        "recipient": "Ann Lee", "line1": "1 Main St", "city": "Springfield", "postal_code": "12345", "country": "US",
    }});
    if case.from_cart {
        let add = http.post(format!("{url}/api/v1/cart/items")).bearer_auth(token).json(&line);
        add.send().await?.error_for_status()?.bytes().await?;
    } else {
        order["items"] = json!([line]);
    }
    let mut request = http.post(format!("{url}/api/v1/orders")).bearer_auth(token).json(&order);
    if case.with_key {
        request = request.header("idempotency-key", Uuid::new_v4().to_string());
    }
    let started = Instant::now();
    let response = request.send().await?;
    let status = response.status();
    let body = response.text().await?;
    anyhow::ensure!(status == 201, "{status}: {body}");
    Ok(started.elapsed())
}

/// Returns the processes that an order passes, this one last.
pub fn processes(running: &RunningSystem) -> anyhow::Result<Vec<(&'static str, Vec<u32>)>> {
    let services = &running.services;
    let postmaster = running.postgres.pid.context("PostgreSQL is not on this machine")?;
    let mut postgres = child_pids(postmaster)?;
    postgres.push(postmaster);
    Ok(vec![
        ("gateway", running.gateways.iter().filter_map(|gateway| gateway.pid).collect()),
        ("product", vec![services.product.pid]),
        ("order", vec![services.order.pid]),
        ("postgres", postgres),
        ("redis", running.redis.pid.into_iter().collect()),
        ("auth", vec![services.auth.pid]),
        ("client", vec![std::process::id()]),
    ])
}

/// Returns the processor time of some processes together.
pub fn process_seconds(pids: &[u32]) -> f64 {
    pids.iter().filter_map(|pid| processor_seconds(*pid).ok()).sum()
}

/// Completes the orders of a sample, so that the next one begins without unpaid orders.
async fn finish_orders(database: &mut PgConnection) -> anyhow::Result<()> {
    for statement in [
        "update orders.orders set status = 'completed' where status = 'pending'",
        "vacuum analyze orders.orders",
    ] {
        sqlx::raw_sql(statement).execute(&mut *database).await?;
    }
    Ok(())
}

/// Runs pgbench with the rows of an order, and returns its transactions per second. The order service is stopped
/// meanwhile, as its relay would publish the events.
async fn run_pgbench(
    running: &RunningSystem,
    database: &mut PgConnection,
    products: &[i64],
    clients: usize,
    duration: Duration,
) -> anyhow::Result<f64> {
    let order = Pid::from_raw(i32::try_from(running.services.order.pid)?).context("a process id")?;
    kill_process(order, Signal::STOP)?;
    let clients = clients.min(MAX_PGBENCH_CLIENTS).to_string();
    let (first, last) = (products.first().context("no products")?, products.last().context("no products")?);
    let output = Command::new(find_pgbench()?)
        .args(["--no-vacuum", "--protocol=prepared", "--jobs=2", "--client", &clients])
        .args(["--time", &duration.as_secs().to_string(), "--file", PGBENCH_SCRIPT])
        .args([
            "--define",
            &format!("first={}", first.min(last)),
            "--define",
            &format!("last={}", first.max(last)),
        ])
        .arg(&running.postgres.url)
        .output()
        .await;
    let clean_up = ["outbox", "event_queue"]
        .map(|table| format!("delete from orders.{table} where user_id > {FIRST_PGBENCH_USER};"))
        .concat();
    let cleaned = sqlx::raw_sql(AssertSqlSafe(clean_up)).execute(&mut *database).await;
    kill_process(order, Signal::CONT)?;
    cleaned?;
    finish_orders(database).await?;
    let output = output.context("pgbench")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let rate = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split_whitespace().next());
    let rate = rate.with_context(|| format!("pgbench: {text}{}", String::from_utf8_lossy(&output.stderr)))?;
    Ok(rate.parse()?)
}

/// Finds pgbench among the installed versions of PostgreSQL.
pub fn find_pgbench() -> anyhow::Result<PathBuf> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .context("PostgreSQL is not installed")?
        .filter_map(|version| Some(version.ok()?.path().join("bin/pgbench")))
        .filter(|path| path.exists())
        .collect();
    versions.sort();
    versions.pop().context("pgbench is not installed")
}
