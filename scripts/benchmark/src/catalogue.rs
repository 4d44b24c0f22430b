//! How fast the catalogue answers, and what ten thousand changes at once take, each beside the limit in the same run; how
//! lists and searches ([`search`]) grow from a small shop to a large one; what the caches hit, and what all of it takes at rest.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use crate::{
    load::{self, Seen},
    search,
    system::{self, FAR_LIMITS, Gateway, Running, Started, resident},
    table,
};

/// Looks at each server, in turns.
const ROUNDS: usize = 3;
/// Products that are asked for where the gateway keeps none: it asks once for what many want at the same moment.
const DIFFERENT: u32 = 1000;
/// Rows of a batch.
const ROWS: i64 = 10_000;
/// Batches, and bare statements, in turns.
const BATCHES: i64 = 5;
/// Far above what anything costs, so that every row is a change.
const NEW_PRICES: i64 = 1_000_000_000;
/// After a start, until the memory that it took is given back.
const AT_REST: Duration = Duration::from_secs(20);
/// Lists, in each shop.
const QUESTIONS: usize = 600;

#[derive(Debug, Args)]
pub struct Options {
    /// The gateway's binary
    #[arg(long)]
    gateway: PathBuf,
    /// The run.json of a large shop that runs, of ten thousand products at least, with RATE_LIMITS=off
    #[arg(long)]
    run: PathBuf,
    /// The run.json of a small one
    #[arg(long)]
    small: PathBuf,
    /// Measures searches alone
    #[arg(long)]
    search: bool,
    /// Envoy's binary
    #[arg(long)]
    envoy: PathBuf,
    /// How long each look lasts
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
}

/// A figure, its limit, and what their ratio has to be.
struct Row {
    what: &'static str,
    ours: String,
    limit: String,
    ratio: f64,
    goal: &'static str,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    let (large, small) = (Running::read(&options.run)?, Running::read(&options.small)?);
    tokio::time::sleep(AT_REST).await;
    let memory = memory(&small)?;
    // Gateways that cache nothing, so that each list and search is a cold one.
    let cold_large = cold_gateway(&options, &large).await?;
    let cold_small = cold_gateway(&options, &small).await?;
    let look = async || {
        let small = search::look(&small, &cold_small.target).await?;
        anyhow::Ok(searches(&small, &search::look(&large, &cold_large.target).await?))
    };
    if options.search {
        let searches = look().await?;
        table::print(&["searches", "small", "large", "goal"], &searches);
        table::say("");
        table::print(&["memory at rest", "MiB"], &memory);
        return Ok(());
    }
    let (mut rows, mut hit) = detail(&options, &large).await?;
    rows.extend(hot_pages(&options, &large).await?);
    let service = metrics(&large.services.product.metrics).await?;
    hit.push(hits("product service, memory", "memory", &service));
    hit.push(hits("product service, redis", "redis", &service));
    rows.push(growth(&cold_large.target.url, &cold_small.target.url).await?);
    let searches = look().await?;
    // Last: PostgreSQL is busy for some time with what it leaves behind.
    rows.push(batch(&large).await?);
    let cells = rows.into_iter().map(|row| {
        vec![row.what.to_owned(), row.ours, row.limit, format!("{:.2}", row.ratio), row.goal.to_owned()]
    });
    table::print(&["", "ours", "limit", "ratio", "goal"], &cells.collect::<Vec<_>>());
    table::say("");
    table::print(&["searches", "small", "large", "goal"], &searches);
    table::say("");
    table::print(&["asked of the caches", "hit", "miss", "else"], &hit);
    table::say("");
    table::print(&["memory at rest", "MiB"], &memory);
    Ok(())
}

/// Returns the row of two rates in requests a second.
fn row(what: &'static str, limit: f64, ours: f64, goal: &'static str) -> Row {
    Row { what, ours: format!("{ours:.0}/s"), limit: format!("{limit:.0}/s"), ratio: ours / limit, goal }
}

/// Products that everybody looks at: from the gateway's memory, and from the service's. Also what the former had.
async fn detail(options: &Options, running: &Running) -> anyhow::Result<(Vec<Row>, Vec<Vec<String>>)> {
    let route = "/api/v1/products/1";
    let gateway = Gateway { binary: &options.gateway, limits: FAR_LIMITS, log: "info", settings: &[] };
    let hot = gateway.start(running, "hot", route, None).await?;
    let forgetful = Gateway { settings: &[("CACHE_L1_TTL", "0s")], ..gateway };
    let through = forgetful.start(running, "through", route, None).await?.in_turn(DIFFERENT);
    let bare = Started::bare(&hot.target.url).await?;
    let service = &running.services.product.grpc;
    let (_bare_service, bare_service) = system::bare_service(service, 1)?;
    let hop = Started::bare_hop("a bare axum → tonic hop", &bare_service).await?;
    let to_ours = Started::bare_hop("a bare hop to the service", service).await?;
    let envoy = Started::envoy(&options.envoy, service, route).await?.in_turn(DIFFERENT);
    let servers = [&bare, &hot, &hop, &to_ours, &through, &envoy];
    let mut seen: [Vec<Seen>; 6] = Default::default();
    for _ in 0..ROUNDS {
        for (server, seen) in servers.iter().zip(&mut seen) {
            seen.push(load::look(&server.target, Duration::from_secs(options.seconds)).await?);
        }
    }
    let rates: Vec<f64> = seen
        .into_iter()
        .map(|seen| load::median(seen).map(|seen| seen.rate))
        .collect::<Option<_>>()
        .context("no looks")?;
    let gateway = hot.target.url.strip_suffix(route).unwrap_or_default();
    let hit = hits("gateway, memory", "gateway", &metrics(gateway).await?);
    let rows = vec![
        row("product, hot: a bare axum handler", rates[0], rates[1], "≥ 0.6"),
        row("product, the service in a bare axum → tonic hop", rates[2], rates[3], "≥ 0.85"),
        row("product, the gateway and the service: the bare hop", rates[2], rates[4], "≥ 0.85"),
        row("product, the gateway and the service: Envoy and the service", rates[5], rates[4], "≥ 2"),
    ];
    Ok((rows, vec![hit]))
}

/// A gateway that caches nothing, without limits, as the shop runs here; its target is the address alone.
async fn cold_gateway(options: &Options, running: &Running) -> anyhow::Result<Started> {
    let settings = &[("CACHE_L1_TTL", "0s")];
    let gateway = Gateway { binary: &options.gateway, limits: "off", log: "info", settings };
    let mut started = gateway.start(running, "cold", "/readyz", None).await?;
    started.target.url.truncate(started.target.url.len() - "/readyz".len());
    Ok(started)
}

/// A list and a search that all clients request, each beside a bare handler with the same bytes and headers.
async fn hot_pages(options: &Options, running: &Running) -> anyhow::Result<Vec<Row>> {
    let pages = [
        ("list, hot: a bare axum handler", "/api/v1/products"),
        ("search, hot: a bare axum handler", "/api/v1/products/search?q=a"),
    ];
    let mut rows = Vec::new();
    for (what, route) in pages {
        let gateway = Gateway { binary: &options.gateway, limits: FAR_LIMITS, log: "info", settings: &[] };
        let hot = gateway.start(running, "hot", route, None).await?;
        let bare = Started::bare(&hot.target.url).await?;
        let (mut ours, mut limit) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(load::look(&hot.target, Duration::from_secs(options.seconds)).await?);
            limit.push(load::look(&bare.target, Duration::from_secs(options.seconds)).await?);
        }
        let rate = |seen| load::median(seen).map(|seen| seen.rate).context("no looks");
        let (ours, limit) = (rate(ours)?, rate(limit)?);
        rows.push(row(what, limit, ours, "≥ 0.5"));
    }
    Ok(rows)
}

/// Ten thousand prices: by the API, and by one statement.
async fn batch(running: &Running) -> anyhow::Result<Row> {
    let (token, http) = (running.sign_in().await?, reqwest::Client::new());
    let url = format!("{}/api/v1/products/batch", running.gateway()?);
    let mut conn = PgConnection::connect(&database(&running.postgres.url)).await?;
    let ids: Vec<i64> = (1..=ROWS).collect();
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 0..BATCHES {
        let items: Vec<Value> =
            ids.iter().map(|id| json!({"id": id, "price": NEW_PRICES + id + round})).collect();
        let body = json!({"on_error": "continue", "items": items});
        let began = Instant::now();
        let answer = http.post(&url).bearer_auth(&token).json(&body).send().await?.error_for_status()?;
        let answer: Value = answer.json().await?;
        ours.push(began.elapsed().as_secs_f64());
        anyhow::ensure!(answer["updated"] == ROWS, "not all were updated: {}", answer["updated"]);

        let prices: Vec<i64> = ids.iter().map(|id| 2 * NEW_PRICES + id + round).collect();
        let began = Instant::now();
        sqlx::query(
            "update product.product p set price = c.price, version = p.version + 1, updated_at = now()
             from unnest($1::bigint[], $2::bigint[]) as c (id, price) where p.id = c.id",
        )
        .bind(&ids)
        .bind(&prices)
        .execute(&mut conn)
        .await?;
        bare.push(began.elapsed().as_secs_f64());
    }
    let (ours, bare) = (middle(ours), middle(bare));
    Ok(Row {
        what: "batch of 10 000: one bare update … from unnest",
        ours: format!("{:.0} ms", ours * 1e3),
        limit: format!("{:.0} ms", bare * 1e3),
        ratio: bare / ours,
        goal: "≥ 0.5",
    })
}

/// The shop's database, by the superuser's URL.
fn database(url: &str) -> String {
    let (server, _) = url.rsplit_once('/').unwrap_or((url, ""));
    format!("{server}/shoppee")
}

/// The slowest of lists in a large shop against a small one, by the URLs of their gateways.
async fn growth(large: &str, small: &str) -> anyhow::Result<Row> {
    let http = reqwest::Client::new();
    let shops = [small, large];
    let mut times = [Vec::new(), Vec::new()];
    let lists = [lists(&http, shops[0]).await?, lists(&http, shops[1]).await?];
    for turn in 0..QUESTIONS {
        for (shop, url) in shops.iter().enumerate() {
            let url = format!("{url}/api/v1/products{}", lists[shop][turn % lists[shop].len()]);
            let began = Instant::now();
            http.get(url).send().await?.error_for_status()?.bytes().await?;
            times[shop].push(began.elapsed().as_secs_f64());
        }
    }
    let [small, large] = times.map(p99);
    Ok(Row {
        what: "list, p99: the same in a small shop",
        ours: format!("{:.1} ms", large * 1e3),
        limit: format!("{:.1} ms", small * 1e3),
        ratio: large / small,
        goal: "≤ 2",
    })
}

/// Lists of every order.
async fn lists(http: &reqwest::Client, shop: &str) -> anyhow::Result<Vec<String>> {
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

/// What searches cost in each shop: the rows of a table of their own.
fn searches(small: &search::Seen, large: &search::Seen) -> Vec<Vec<String>> {
    let row = |what: String, value: &dyn Fn(&search::Seen) -> f64, digits: usize, goal: &str| {
        let cell = |seen| format!("{:.digits$}", value(seen));
        vec![what, cell(small), cell(large), goal.to_owned()]
    };
    let mut rows = vec![
        row("products in the index".to_owned(), &|seen| seen.products, 0, ""),
        row(
            "pass through all of them, s".to_owned(),
            &|seen| seen.pass,
            2,
            "≤ 0.5 of 1 000, ≤ 90 of 1 000 000",
        ),
        row("memory of the product service, MiB".to_owned(), &|seen| seen.memory, 0, ""),
        row("processor time of a search, ms".to_owned(), &|seen| seen.cost, 2, "≤ 0.4 of 1 000"),
        row("p99, ms".to_owned(), &|seen| seen.p99, 1, "≤ 3 × that of 1 000"),
    ];
    for (at, (kind, _)) in small.kinds.iter().enumerate() {
        rows.push(row(
            format!("p99 of {kind}, ms"),
            &|seen| seen.kinds.get(at).map_or(0.0, |kind| kind.1),
            1,
            "",
        ));
    }
    rows
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn p99(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() * 99 / 100).copied().unwrap_or_default()
}

/// What is told of a process at `/metrics` below `url`.
async fn metrics(url: &str) -> anyhow::Result<String> {
    Ok(reqwest::get(format!("{url}/metrics")).await?.error_for_status()?.text().await?)
}

/// What a level has answered so far: `who`, how often it had what was asked for, had it not, and was not believed or
/// failed.
fn hits(who: &str, level: &str, metrics: &str) -> Vec<String> {
    let mut counted = [0.0; 3];
    for line in metrics.lines() {
        let Some((labels, value)) =
            line.strip_prefix("cache_requests_total{").and_then(|line| line.split_once("} "))
        else {
            continue;
        };
        if labels.contains(&format!("level=\"{level}\"")) {
            let kind = if labels.contains("result=\"hit\"") {
                0
            } else if labels.contains("result=\"miss\"") {
                1
            } else {
                2
            };
            counted[kind] += value.parse::<f64>().unwrap_or_default();
        }
    }
    std::iter::once(who.to_owned()).chain(counted.map(|number| format!("{number:.0}"))).collect()
}

/// What each process holds of the machine's memory.
fn memory(running: &Running) -> anyhow::Result<Vec<Vec<String>>> {
    let services = &running.services;
    let gateway = running.gateways.first().and_then(|gateway| gateway.pid).context("no gateway")?;
    let processes = [
        ("auth", services.auth.pid),
        ("product", services.product.pid),
        ("order", services.order.pid),
        ("gateway", gateway),
    ];
    let mut rows = Vec::new();
    let mut all = 0.0;
    for (name, pid) in processes {
        let held = resident(pid)?;
        all += held;
        rows.push(vec![name.to_owned(), format!("{held:.0}")]);
    }
    rows.push(vec!["all four (at most 120)".to_owned(), format!("{all:.0}")]);
    Ok(rows)
}
