//! The catalogue benchmark: rates of products, lists and searches, and the duration of a batch of 10 000 changes. Each has
//! a baseline of the same run. It compares lists and searches ([`search`]) of a small and a large shop, and prints cache hits
//! and the memory at rest.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use crate::{
    load::{self, Sample},
    search,
    servers::{self, BenchServer, Gateway, HIGH_LIMITS, RunningSystem, resident_mib},
    table,
};

/// Samples of each server, taken in turns.
const SAMPLES: usize = 3;
/// The number of distinct products requested from a gateway without a cache, as it coalesces requests for one product.
const DISTINCT_PRODUCTS: u32 = 1000;
const BATCH_ROWS: i64 = 10_000;
/// The number of batches and of bare statements, in turns.
const BATCHES: i64 = 5;
/// The lowest new price: above all existing prices, so that every row is a change.
const MIN_NEW_PRICE: i64 = 1_000_000_000;
/// The time after a start in which the processes release memory.
const SETTLE_TIME: Duration = Duration::from_secs(20);
/// List requests to each shop.
const LIST_REQUESTS: usize = 600;

#[derive(Debug, Args)]
pub struct Options {
    /// The gateway's binary
    #[arg(long)]
    gateway: PathBuf,
    /// The run.json of a large running shop with at least ten thousand products and RATE_LIMITS=off
    #[arg(long)]
    run: PathBuf,
    /// The run.json of a small running shop
    #[arg(long)]
    small: PathBuf,
    /// Measures searches alone
    #[arg(long)]
    search: bool,
    /// Envoy's binary
    #[arg(long)]
    envoy: PathBuf,
    /// The duration of each sample
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
}

/// A measurement with its baseline and the goal of their ratio.
struct Row {
    label: &'static str,
    measured: String,
    baseline: String,
    ratio: f64,
    goal: &'static str,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    let (large, small) = (RunningSystem::read(&options.run)?, RunningSystem::read(&options.small)?);
    tokio::time::sleep(SETTLE_TIME).await;
    let memory = memory_rows(&small)?;
    // The gateways cache nothing, so that no list or search comes from a cache.
    let uncached_large = start_uncached_gateway(&options, &large).await?;
    let uncached_small = start_uncached_gateway(&options, &small).await?;
    let measure_searches = async || {
        let small = search::measure(&small, &uncached_small.target).await?;
        anyhow::Ok(search_rows(&small, &search::measure(&large, &uncached_large.target).await?))
    };
    if options.search {
        let searches = measure_searches().await?;
        table::print(&["searches", "small", "large", "goal"], &searches);
        table::print_line("");
        table::print(&["memory at rest", "MiB"], &memory);
        return Ok(());
    }
    let (mut rows, mut cache_rows) = measure_products(&options, &large).await?;
    rows.extend(measure_cached_pages(&options, &large).await?);
    let metrics = fetch_metrics(&large.services.product.metrics).await?;
    cache_rows.push(cache_row("product service, memory", "memory", &metrics));
    cache_rows.push(cache_row("product service, redis", "redis", &metrics));
    rows.push(compare_lists(&uncached_large.target.url, &uncached_small.target.url).await?);
    let searches = measure_searches().await?;
    // The batch is last, as PostgreSQL vacuums its dead rows afterwards.
    rows.push(measure_batch(&large).await?);
    let cells = rows.into_iter().map(|row| {
        vec![
            row.label.to_owned(),
            row.measured,
            row.baseline,
            format!("{:.2}", row.ratio),
            row.goal.to_owned(),
        ]
    });
    table::print(&["", "measured", "baseline", "ratio", "goal"], &cells.collect::<Vec<_>>());
    table::print_line("");
    table::print(&["searches", "small", "large", "goal"], &searches);
    table::print_line("");
    table::print(&["cache requests", "hit", "miss", "other"], &cache_rows);
    table::print_line("");
    table::print(&["memory at rest", "MiB"], &memory);
    Ok(())
}

/// Returns the row of two rates in requests per second.
fn rate_row(label: &'static str, baseline: f64, measured: f64, goal: &'static str) -> Row {
    Row {
        label,
        measured: format!("{measured:.0}/s"),
        baseline: format!("{baseline:.0}/s"),
        ratio: measured / baseline,
        goal,
    }
}

/// Measures single products from the gateway's cache and from the service. Returns the rows, and the cache requests of the
/// gateway.
async fn measure_products(
    options: &Options,
    running: &RunningSystem,
) -> anyhow::Result<(Vec<Row>, Vec<Vec<String>>)> {
    let route = "/api/v1/products/1";
    let gateway = Gateway { binary: &options.gateway, limits: HIGH_LIMITS, log: "info", settings: &[] };
    let cached = gateway.start(running, "cached", route, None).await?;
    let without_cache = Gateway { settings: &[("CACHE_L1_TTL", "0s")], ..gateway };
    let uncached = without_cache.start(running, "uncached", route, None).await?.with_ids(DISTINCT_PRODUCTS);
    let http = BenchServer::baseline_http(&cached.target.url).await?;
    let service = &running.services.product.grpc;
    let (_baseline_process, baseline_service) = servers::baseline_service(service, 1)?;
    let grpc = BenchServer::baseline_gateway("a bare axum → tonic hop", &baseline_service).await?;
    let service_only = BenchServer::baseline_gateway("a bare hop to the service", service).await?;
    let envoy = BenchServer::envoy(&options.envoy, service, route).await?.with_ids(DISTINCT_PRODUCTS);
    let servers = [&http, &cached, &grpc, &service_only, &uncached, &envoy];
    let mut samples: [Vec<Sample>; 6] = Default::default();
    for _ in 0..SAMPLES {
        for (server, samples) in servers.iter().zip(&mut samples) {
            samples.push(load::run_wrk(&server.target, Duration::from_secs(options.seconds)).await?);
        }
    }
    let rates: Vec<f64> = samples
        .into_iter()
        .map(|samples| load::median(samples).map(|sample| sample.rate))
        .collect::<Option<_>>()
        .context("no samples")?;
    let gateway_url = cached.target.url.strip_suffix(route).unwrap_or_default();
    let cache_row = cache_row("gateway, memory", "gateway", &fetch_metrics(gateway_url).await?);
    let rows = vec![
        rate_row("product, cached: a bare axum handler", rates[0], rates[1], "≥ 0.6"),
        rate_row("product, the service in a bare axum → tonic hop", rates[2], rates[3], "≥ 0.85"),
        rate_row("product, the gateway and the service: the bare hop", rates[2], rates[4], "≥ 0.85"),
        rate_row("product, the gateway and the service: Envoy and the service", rates[5], rates[4], "≥ 2"),
    ];
    Ok((rows, vec![cache_row]))
}

/// Starts a gateway without cache and rate limits. The URL of its target has no path.
async fn start_uncached_gateway(options: &Options, running: &RunningSystem) -> anyhow::Result<BenchServer> {
    let settings = &[("CACHE_L1_TTL", "0s")];
    let gateway = Gateway { binary: &options.gateway, limits: "off", log: "info", settings };
    let mut server = gateway.start(running, "uncached", "/readyz", None).await?;
    server.target.url.truncate(server.target.url.len() - "/readyz".len());
    Ok(server)
}

/// Measures a cached list and a cached search, each with a baseline handler that sends the same bytes and headers.
async fn measure_cached_pages(options: &Options, running: &RunningSystem) -> anyhow::Result<Vec<Row>> {
    let pages = [
        ("list, cached: a bare axum handler", "/api/v1/products"),
        ("search, cached: a bare axum handler", "/api/v1/products/search?q=a"),
    ];
    let mut rows = Vec::new();
    for (label, route) in pages {
        let gateway = Gateway { binary: &options.gateway, limits: HIGH_LIMITS, log: "info", settings: &[] };
        let cached = gateway.start(running, "cached", route, None).await?;
        let http = BenchServer::baseline_http(&cached.target.url).await?;
        let (mut measured, mut baseline) = (Vec::new(), Vec::new());
        for _ in 0..SAMPLES {
            measured.push(load::run_wrk(&cached.target, Duration::from_secs(options.seconds)).await?);
            baseline.push(load::run_wrk(&http.target, Duration::from_secs(options.seconds)).await?);
        }
        let rate = |samples| load::median(samples).map(|sample| sample.rate).context("no samples");
        let (measured, baseline) = (rate(measured)?, rate(baseline)?);
        rows.push(rate_row(label, baseline, measured, "≥ 0.5"));
    }
    Ok(rows)
}

/// Measures 10 000 price changes by the API, with one SQL statement as the baseline.
async fn measure_batch(running: &RunningSystem) -> anyhow::Result<Row> {
    let (token, http) = (running.sign_in().await?, reqwest::Client::new());
    let url = format!("{}/api/v1/products/batch", running.gateway_url()?);
    let mut conn = PgConnection::connect(&database_url(&running.postgres.url)).await?;
    let ids: Vec<i64> = (1..=BATCH_ROWS).collect();
    let (mut measured, mut baseline) = (Vec::new(), Vec::new());
    for batch in 0..BATCHES {
        let items: Vec<Value> =
            ids.iter().map(|id| json!({"id": id, "price": MIN_NEW_PRICE + id + batch})).collect();
        let body = json!({"on_error": "continue", "items": items});
        let began = Instant::now();
        let response = http.post(&url).bearer_auth(&token).json(&body).send().await?.error_for_status()?;
        let report: Value = response.json().await?;
        measured.push(began.elapsed().as_secs_f64());
        anyhow::ensure!(report["updated"] == BATCH_ROWS, "not all were updated: {}", report["updated"]);

        let prices: Vec<i64> = ids.iter().map(|id| 2 * MIN_NEW_PRICE + id + batch).collect();
        let began = Instant::now();
        sqlx::query(
            "update product.product p set price = c.price, version = p.version + 1, updated_at = now()
             from unnest($1::bigint[], $2::bigint[]) as c (id, price) where p.id = c.id",
        )
        .bind(&ids)
        .bind(&prices)
        .execute(&mut conn)
        .await?;
        baseline.push(began.elapsed().as_secs_f64());
    }
    let (measured, baseline) = (median(measured), median(baseline));
    Ok(Row {
        label: "batch of 10 000: one bare update … from unnest",
        measured: format!("{:.0} ms", measured * 1e3),
        baseline: format!("{:.0} ms", baseline * 1e3),
        ratio: baseline / measured,
        goal: "≥ 0.5",
    })
}

/// Returns the URL of the shop's database, from the superuser's URL.
fn database_url(url: &str) -> String {
    let (server, _) = url.rsplit_once('/').unwrap_or((url, ""));
    format!("{server}/shoppee")
}

/// Compares the p99 of lists in a large shop with that in a small one. The URLs are those of the gateways.
async fn compare_lists(large: &str, small: &str) -> anyhow::Result<Row> {
    let http = reqwest::Client::new();
    let shops = [small, large];
    let mut times = [Vec::new(), Vec::new()];
    let lists = [list_queries(&http, shops[0]).await?, list_queries(&http, shops[1]).await?];
    for request in 0..LIST_REQUESTS {
        for (shop, url) in shops.iter().enumerate() {
            let url = format!("{url}/api/v1/products{}", lists[shop][request % lists[shop].len()]);
            let began = Instant::now();
            http.get(url).send().await?.error_for_status()?.bytes().await?;
            times[shop].push(began.elapsed().as_secs_f64());
        }
    }
    let [small, large] = times.map(p99);
    Ok(Row {
        label: "list, p99: the same in a small shop",
        measured: format!("{:.1} ms", large * 1e3),
        baseline: format!("{:.1} ms", small * 1e3),
        ratio: large / small,
        goal: "≤ 2",
    })
}

/// Returns the queries of lists in every sort order.
async fn list_queries(http: &reqwest::Client, shop: &str) -> anyhow::Result<Vec<String>> {
    let page: Value = http
        .get(format!("{shop}/api/v1/products?limit=100"))
        .send()
        .await?
        .error_for_status()?
        .json()
        .await?;
    let items = page["items"].as_array().context("no products")?;
    let category = items.iter().find_map(|item| item["category"]["slug"].as_str()).context("no category")?;
    let mut lists =
        vec![String::new(), "?in_stock=true".to_owned(), "?min_price=500&max_price=3000".to_owned()];
    for sort in ["newest", "price_asc", "price_desc", "name"] {
        lists.push(format!("?sort={sort}"));
        lists.push(format!("?sort={sort}&category={category}&in_stock=true&limit=50"));
    }
    Ok(lists)
}

/// Returns the rows of the table of searches.
fn search_rows(small: &search::Measurement, large: &search::Measurement) -> Vec<Vec<String>> {
    let row = |label: String, value: &dyn Fn(&search::Measurement) -> f64, digits: usize, goal: &str| {
        let cell = |shop| format!("{:.digits$}", value(shop));
        vec![label, cell(small), cell(large), goal.to_owned()]
    };
    let mut rows = vec![
        row("products in the index".to_owned(), &|shop| shop.products, 0, ""),
        row(
            "pass through all of them, s".to_owned(),
            &|shop| shop.pass_seconds,
            2,
            "≤ 0.5 of 1 000, ≤ 90 of 1 000 000",
        ),
        row("memory of the product service, MiB".to_owned(), &|shop| shop.memory, 0, ""),
        row("processor time of a search, ms".to_owned(), &|shop| shop.cost, 2, "≤ 0.4 of 1 000"),
        row("p99, ms".to_owned(), &|shop| shop.p99, 1, "≤ 3 × that of 1 000"),
    ];
    for (index, (kind, _)) in small.kinds.iter().enumerate() {
        rows.push(row(
            format!("p99 of {kind}, ms"),
            &|shop| shop.kinds.get(index).map_or(0.0, |kind| kind.1),
            1,
            "",
        ));
    }
    rows
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn p99(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() * 99 / 100).copied().unwrap_or_default()
}

/// Fetches the metrics of a process.
async fn fetch_metrics(url: &str) -> anyhow::Result<String> {
    Ok(reqwest::get(format!("{url}/metrics")).await?.error_for_status()?.text().await?)
}

/// Returns the row of a cache level: `label`, hits, misses, and bypasses with failures.
fn cache_row(label: &str, level: &str, metrics: &str) -> Vec<String> {
    let mut counts = [0.0; 3];
    for line in metrics.lines() {
        let Some((labels, value)) =
            line.strip_prefix("cache_requests_total{").and_then(|line| line.split_once("} "))
        else {
            continue;
        };
        if labels.contains(&format!("level=\"{level}\"")) {
            let index = if labels.contains("result=\"hit\"") {
                0
            } else if labels.contains("result=\"miss\"") {
                1
            } else {
                2
            };
            counts[index] += value.parse::<f64>().unwrap_or_default();
        }
    }
    std::iter::once(label.to_owned()).chain(counts.map(|number| format!("{number:.0}"))).collect()
}

/// Returns the rows of the resident memory of each process.
fn memory_rows(running: &RunningSystem) -> anyhow::Result<Vec<Vec<String>>> {
    let services = &running.services;
    let gateway = running.gateways.first().and_then(|gateway| gateway.pid).context("no gateway")?;
    let processes = [
        ("auth", services.auth.pid),
        ("product", services.product.pid),
        ("order", services.order.pid),
        ("gateway", gateway),
    ];
    let mut rows = Vec::new();
    let mut total = 0.0;
    for (name, pid) in processes {
        let size = resident_mib(pid)?;
        total += size;
        rows.push(vec![name.to_owned(), format!("{size:.0}")]);
    }
    rows.push(vec!["all four (at most 120)".to_owned(), format!("{total:.0}")]);
    Ok(rows)
}
