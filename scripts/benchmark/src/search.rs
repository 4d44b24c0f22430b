//! The search benchmark: processor time of all processes per search, the p99 of a mix of typical queries, and the size of
//! the index.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use reqwest::{Client, Url};
use serde_json::{Value, json};

use crate::{
    load::{Target, processor_seconds},
    servers::{RunningSystem, child_pids, resident_mib},
};

/// The interval between searches of the latency measurement: far below the capacity of the shop.
const SEARCH_INTERVAL: Duration = Duration::from_millis(10);
/// Searches of each kind in the latency measurement.
const LATENCY_SEARCHES: usize = 100;
/// Searches of each kind in the processor time measurement.
const COST_SEARCHES: usize = 300;
/// Concurrent searches of the processor time measurement: both cores are busy.
const CONCURRENCY: usize = 32;
/// Bounds the time until the index has new products.
const INDEX_TIMEOUT: Duration = Duration::from_secs(30);

/// The measurement of one shop.
#[derive(Debug, Default)]
pub struct Measurement {
    /// Products in the index.
    pub products: f64,
    /// The duration of the last pass that built or checked the index. Seconds.
    pub pass_seconds: f64,
    /// The resident memory of the product service. MiB.
    pub memory: f64,
    /// The processor time of all processes per search. Milliseconds.
    pub cost: f64,
    /// The 99th percentile of the latency of all searches, and of each kind. Milliseconds.
    pub p99: f64,
    pub kinds: Vec<(&'static str, f64)>,
}

/// The queries of each kind.
type Mix = Vec<(&'static str, Vec<String>)>;

/// Measures the searches of a running shop, through a gateway without cache.
pub async fn measure(running: &RunningSystem, gateway: &Target) -> anyhow::Result<Measurement> {
    let http = Client::new();
    let url = format!("{}/api/v1/products/search", gateway.url);
    let memory = resident_mib(running.services.product.pid)?;
    let metrics = reqwest::get(format!("{}/metrics", running.services.product.metrics)).await?.text().await?;
    add_chinese_products(&http, running, &url).await?;
    let mix = build_mix(&http, &gateway.url).await?;
    // Runs every query once to warm the caches up.
    for query in mix.iter().flat_map(|(_, queries)| queries) {
        search(&http, &url, query).await?;
    }
    let mut measurement = Measurement {
        products: gauge(&metrics, "search_index_documents"),
        pass_seconds: gauge(&metrics, "search_index_pass_seconds"),
        memory,
        cost: measure_cost(&http, running, gateway.pid, &url, &mix).await?,
        ..Measurement::default()
    };
    let mut all = Vec::new();
    let mut times = vec![Vec::new(); mix.len()];
    for number in 0..LATENCY_SEARCHES {
        for ((_, queries), times) in mix.iter().zip(&mut times) {
            let began = Instant::now();
            search(&http, &url, &queries[number % queries.len()]).await?;
            let latency = began.elapsed();
            times.push(latency.as_secs_f64() * 1e3);
            all.push(latency.as_secs_f64() * 1e3);
            tokio::time::sleep(SEARCH_INTERVAL.saturating_sub(latency)).await;
        }
    }
    measurement.p99 = p99(all);
    measurement.kinds = mix.iter().map(|(kind, _)| *kind).zip(times.into_iter().map(p99)).collect();
    Ok(measurement)
}

/// Measures the processor time per search of the gateway, the services, PostgreSQL and Redis. Milliseconds.
async fn measure_cost(
    http: &Client,
    running: &RunningSystem,
    gateway: u32,
    url: &str,
    mix: &Mix,
) -> anyhow::Result<f64> {
    let services = &running.services;
    let mut pids = vec![gateway, services.auth.pid, services.product.pid, services.order.pid];
    pids.extend(running.redis.pid);
    if let Some(postmaster) = running.postgres.pid {
        pids.push(postmaster);
        pids.extend(child_pids(postmaster)?);
    }
    let total_seconds = || -> f64 { pids.iter().filter_map(|pid| processor_seconds(*pid).ok()).sum() };
    let before = total_seconds();
    let mut searches = tokio::task::JoinSet::new();
    for worker in 0..CONCURRENCY {
        let (http, url) = (http.clone(), url.to_owned());
        let queries: Vec<String> = (0..COST_SEARCHES)
            .flat_map(|number| mix.iter().map(move |(_, queries)| queries[number % queries.len()].clone()))
            .skip(worker)
            .step_by(CONCURRENCY)
            .collect();
        searches.spawn(async move {
            for query in queries {
                search(&http, &url, &query).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(result) = searches.join_next().await {
        result??;
    }
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let number = (COST_SEARCHES * mix.len()) as f64;
    Ok((total_seconds() - before) * 1e3 / number)
}

async fn search(http: &Client, url: &str, query: &str) -> anyhow::Result<()> {
    let url = Url::parse_with_params(url, &[("q", query)])?;
    http.get(url).send().await?.error_for_status()?.bytes().await?;
    Ok(())
}

/// Adds products with Chinese names if there are none, and waits until searches find them.
async fn add_chinese_products(http: &Client, running: &RunningSystem, url: &str) -> anyhow::Result<()> {
    let token = running.sign_in().await?;
    for number in 1..=20 {
        let product = json!({
            "sku": format!("ZH-{number}"), "name": format!("红色陶瓷茶杯 {number}00毫升"), "price": 1900, "stock": 10,
        });
        let products = format!("{}/api/v1/products", running.gateway_url()?);
        // The response is 409 if the product exists.
        http.post(products).bearer_auth(&token).json(&product).send().await?;
    }
    let deadline = Instant::now() + INDEX_TIMEOUT;
    loop {
        let url = Url::parse_with_params(url, &[("q", "茶杯")])?;
        let page: Value = http.get(url).send().await?.error_for_status()?.json().await?;
        if page["total"] == 20 {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "new products are not found");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Builds the queries from words of the shop's products.
async fn build_mix(http: &Client, shop: &str) -> anyhow::Result<Mix> {
    let page: Value = http
        .get(format!("{shop}/api/v1/products?limit=100&sort=price_asc"))
        .send()
        .await?
        .error_for_status()?
        .json()
        .await?;
    let items = page["items"].as_array().context("no products")?;
    let text = |field: &'static str| items.iter().filter_map(move |item| item[field].as_str());
    let words = |name: &str| -> Vec<String> {
        let words = name.split(|char: char| !char.is_ascii_alphabetic()).filter(|word| word.len() > 4);
        words.map(str::to_lowercase).collect()
    };
    let mut names: Vec<String> = text("name").flat_map(words).collect();
    names.sort_unstable();
    names.dedup();
    let typo = |word: &String| format!("{}{}", &word[..2], &word[3..]);
    let skus: Vec<String> = text("sku").map(str::to_lowercase).collect();
    let three = text("name").map(|name| name.split_whitespace().take(3).collect::<Vec<_>>().join(" "));
    // The most frequent words of the descriptions.
    let mut common = std::collections::HashMap::<String, usize>::new();
    for word in text("description").flat_map(words) {
        *common.entry(word).or_default() += 1;
    }
    let mut common: Vec<(usize, String)> = common.into_iter().map(|(word, count)| (count, word)).collect();
    common.sort_unstable_by(|one, other| other.cmp(one));
    let common: Vec<String> = common.into_iter().take(8).map(|(_, word)| word).collect();
    anyhow::ensure!(common.len() == 8 && names.len() > 10, "too few words");
    let five =
        (0..8).map(|first| (0..5).map(|at| common[(first + at) % 8].as_str()).collect::<Vec<_>>().join(" "));
    Ok(vec![
        ("a SKU", skus),
        ("one word", names.clone()),
        ("three words", three.collect()),
        ("a typo", names.iter().map(typo).collect()),
        ("two letters", names.iter().map(|word| word[..2].to_owned()).collect()),
        ("two Chinese characters", ["茶杯", "陶瓷", "红色", "毫升"].map(str::to_owned).to_vec()),
        ("five common words", five.collect()),
    ])
}

fn gauge(metrics: &str, name: &str) -> f64 {
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).unwrap_or_default()
}

fn p99(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() * 99 / 100).copied().unwrap_or_default()
}
