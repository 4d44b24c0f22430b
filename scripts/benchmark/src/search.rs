//! What a search costs: processor time of all processes, and how slow the slowest are, of a mix that people type; and
//! what the index takes.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use reqwest::{Client, Url};
use serde_json::{Value, json};

use crate::{
    load::{Target, processor_seconds},
    system::{Running, resident},
};

/// The interval between searches while times are taken: far below what the shop can do.
const INTERVAL: Duration = Duration::from_millis(10);
/// Searches of each kind, whose times are taken.
const TIMED: usize = 100;
/// Searches of each kind, whose processor time is taken.
const COUNTED: usize = 300;
/// Searches at a time, while processor time is taken: both cores are busy.
const PARALLEL: usize = 32;
/// Until the index has what was added.
const SHOWS: Duration = Duration::from_secs(30);

/// What a shop was seen to need.
#[derive(Debug, Default)]
pub struct Seen {
    /// Products in the index.
    pub products: f64,
    /// The time of the pass that built the index, or of the last one. Seconds.
    pub pass: f64,
    /// Memory of the product service. MiB.
    pub memory: f64,
    /// Processor time of all processes for one search. Milliseconds.
    pub cost: f64,
    /// The time that 99 % of all searches took at most, and those of each kind. Milliseconds.
    pub p99: f64,
    pub kinds: Vec<(&'static str, f64)>,
}

/// The queries of each kind.
type Mix = Vec<(&'static str, Vec<String>)>;

/// Searches in a shop that runs, through a gateway that caches nothing.
pub async fn look(running: &Running, gateway: &Target) -> anyhow::Result<Seen> {
    let http = Client::new();
    let url = format!("{}/api/v1/products/search", gateway.url);
    let memory = resident(running.services.product.pid)?;
    let metrics = reqwest::get(format!("{}/metrics", running.services.product.metrics)).await?.text().await?;
    add_chinese(&http, running, &url).await?;
    let mix = mix(&http, &gateway.url).await?;
    // Every query once: what follows finds what it needs in memory, as most searches do.
    for query in mix.iter().flat_map(|(_, queries)| queries) {
        search(&http, &url, query).await?;
    }
    let mut seen = Seen {
        products: gauge(&metrics, "search_index_documents"),
        pass: gauge(&metrics, "search_index_pass_seconds"),
        memory,
        cost: cost(&http, running, gateway.pid, &url, &mix).await?,
        ..Seen::default()
    };
    let mut all = Vec::new();
    let mut times = vec![Vec::new(); mix.len()];
    for turn in 0..TIMED {
        for ((_, queries), times) in mix.iter().zip(&mut times) {
            let began = Instant::now();
            search(&http, &url, &queries[turn % queries.len()]).await?;
            let took = began.elapsed();
            times.push(took.as_secs_f64() * 1e3);
            all.push(took.as_secs_f64() * 1e3);
            tokio::time::sleep(INTERVAL.saturating_sub(took)).await;
        }
    }
    seen.p99 = p99(all);
    seen.kinds = mix.iter().map(|(kind, _)| *kind).zip(times.into_iter().map(p99)).collect();
    Ok(seen)
}

/// The processor time of one search, of the gateway, the services, PostgreSQL and Redis. Milliseconds.
async fn cost(http: &Client, running: &Running, gateway: u32, url: &str, mix: &Mix) -> anyhow::Result<f64> {
    let services = &running.services;
    let mut pids = vec![gateway, services.auth.pid, services.product.pid, services.order.pid];
    pids.extend(running.redis.pid);
    if let Some(postmaster) = running.postgres.pid {
        pids.push(postmaster);
        pids.extend(children(postmaster)?);
    }
    let spent = || -> f64 { pids.iter().filter_map(|pid| processor_seconds(*pid).ok()).sum() };
    let before = spent();
    let mut searches = tokio::task::JoinSet::new();
    for part in 0..PARALLEL {
        let (http, url) = (http.clone(), url.to_owned());
        let queries: Vec<String> = (0..COUNTED)
            .flat_map(|turn| mix.iter().map(move |(_, queries)| queries[turn % queries.len()].clone()))
            .skip(part)
            .step_by(PARALLEL)
            .collect();
        searches.spawn(async move {
            for query in queries {
                search(&http, &url, &query).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = searches.join_next().await {
        done??;
    }
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let number = (COUNTED * mix.len()) as f64;
    Ok((spent() - before) * 1e3 / number)
}

async fn search(http: &Client, url: &str, query: &str) -> anyhow::Result<()> {
    let url = Url::parse_with_params(url, &[("q", query)])?;
    http.get(url).send().await?.error_for_status()?.bytes().await?;
    Ok(())
}

/// Adds a few products with Chinese names, where there are none, and waits until they are found.
async fn add_chinese(http: &Client, running: &Running, url: &str) -> anyhow::Result<()> {
    let token = running.sign_in().await?;
    for number in 1..=20 {
        let product = json!({
            "sku": format!("ZH-{number}"), "name": format!("红色陶瓷茶杯 {number}00毫升"), "price": 1900, "stock": 10,
        });
        let products = format!("{}/api/v1/products", running.gateway()?);
        // 409 where it is there.
        http.post(products).bearer_auth(&token).json(&product).send().await?;
    }
    let give_up = Instant::now() + SHOWS;
    loop {
        let url = Url::parse_with_params(url, &[("q", "茶杯")])?;
        let found: Value = http.get(url).send().await?.error_for_status()?.json().await?;
        if found["total"] == 20 {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < give_up, "new products are not found");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What people type, of words that this shop has.
async fn mix(http: &Client, shop: &str) -> anyhow::Result<Mix> {
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
    let slip = |word: &String| format!("{}{}", &word[..2], &word[3..]);
    let skus: Vec<String> = text("sku").map(str::to_lowercase).collect();
    let three = text("name").map(|name| name.split_whitespace().take(3).collect::<Vec<_>>().join(" "));
    // The words of the descriptions that most of them have.
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
        ("a slip", names.iter().map(slip).collect()),
        ("two letters", names.iter().map(|word| word[..2].to_owned()).collect()),
        ("two Chinese characters", ["茶杯", "陶瓷", "红色", "毫升"].map(str::to_owned).to_vec()),
        ("five common words", five.collect()),
    ])
}

/// The processes that one has started.
fn children(parent: u32) -> anyhow::Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        // It may have ended meanwhile.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let above = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        if above.and_then(|above| above.parse().ok()) == Some(parent) {
            children.push(pid);
        }
    }
    Ok(children)
}

fn gauge(metrics: &str, name: &str) -> f64 {
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).unwrap_or_default()
}

fn p99(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() * 99 / 100).copied().unwrap_or_default()
}
