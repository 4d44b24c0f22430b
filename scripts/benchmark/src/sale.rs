//! A flash sale: more buyers than units order one product at once, over all gateways. After it is sold out, further buyers
//! come at a fixed rate, and the latency of their refusals is measured.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use shoppee_kit::{client, lifecycle::raise_nofile_limit};
use shoppee_proto::auth::v1::{LoginRequest, auth_service_client::AuthServiceClient};
use sqlx::{Connection as _, PgConnection};
use tokio::{
    task::JoinSet,
    time::{interval_at, sleep},
};
use uuid::Uuid;

use crate::{load::percentile, orders::PASSWORD, servers::RunningSystem, table};

/// Accounts that sign in at a time. Each costs a password hash.
const SIGN_IN_CONCURRENCY: usize = 8;
/// Bounds the time until a buyer learns the outcome, repeated requests included.
const OUTCOME_TIMEOUT: Duration = Duration::from_mins(1);
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// Minor units.
const PRICE: i64 = 2500;

#[derive(Debug, Args)]
pub struct Options {
    /// The run.json of the running system
    #[arg(long)]
    run: PathBuf,
    /// The units of the product
    #[arg(long, default_value_t = 1000)]
    units: i64,
    /// The buyers that order at once
    #[arg(long, default_value_t = 3000)]
    buyers: usize,
    /// The attempts per second once the product is sold out
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// The duration of these attempts
    #[arg(long, default_value_t = 5)]
    seconds: u32,
}

/// The outcome of one buyer.
#[derive(Debug)]
struct Outcome {
    is_sold: bool,
    /// Requests without an outcome, such as a refusal under overload, which the buyer repeated under the same key.
    retries: usize,
    latency: Duration,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    raise_nofile_limit();
    let running = RunningSystem::read(&options.run)?;
    let admin = running.sign_in().await?;
    let tokens = sign_in_buyers(&running, options.buyers).await?;
    let shop = Arc::new(Shop::open(&running, &admin, options.units).await?);

    let started = Instant::now();
    let outcomes = shop.place_orders_at_once(&tokens).await?;
    let elapsed = started.elapsed();
    let sold = outcomes.iter().filter(|outcome| outcome.is_sold).count();
    let left = shop.stock().await?;

    let attempts = usize::try_from(options.rate * options.seconds)?;
    let refusals = shop.place_orders_at_rate(&tokens, attempts, options.rate).await?;
    let sold_later = refusals.iter().filter(|outcome| outcome.is_sold).count();

    let row = |phase: &str, outcomes: &[Outcome], goal: &str| {
        let mut latencies: Vec<Duration> = outcomes.iter().map(|outcome| outcome.latency).collect();
        latencies.sort_unstable();
        let mut cells = vec![phase.to_owned(), outcomes.len().to_string()];
        cells.push(outcomes.iter().filter(|outcome| outcome.is_sold).count().to_string());
        cells.push(outcomes.iter().map(|outcome| outcome.retries).sum::<usize>().to_string());
        cells.extend([50, 99, 100].map(|percent| format!("{:.1}", percentile(&latencies, percent))));
        cells.push(goal.to_owned());
        cells
    };
    let at_once = format!("all at once, over after {:.1} s", elapsed.as_secs_f64());
    let at_rate = format!("sold out, {} attempts a second", options.rate);
    table::print(
        &["flash sale", "buyers", "sold", "retries", "p50 ms", "p99 ms", "max ms", "goal"],
        &[
            row(&at_once, &outcomes, &format!("{} sold", options.units)),
            row(&at_rate, &refusals, "p99 ≤ 50, 0 sold"),
        ],
    );
    ensure!(i64::try_from(sold)? == options.units, "{sold} units were sold of {}", options.units);
    ensure!(left == 0 && sold_later == 0, "{left} units were left, and {sold_later} sold after the sale");
    Ok(())
}

/// Creates accounts with one password, and returns an access token of each. The accounts are copies of one: a hash for each
/// would take longer than the sale.
async fn sign_in_buyers(running: &RunningSystem, count: usize) -> anyhow::Result<Vec<String>> {
    let http = Client::builder().no_proxy().build()?;
    let run = std::process::id();
    let first = json!({
        "username": format!("sale-{run}-0"), "email": format!("sale-{run}-0@example.com"), "password": PASSWORD,
    });
    let register = http.post(format!("{}/api/v1/auth/register", running.gateway_url()?)).json(&first);
    register.send().await?.error_for_status()?;
    let mut database = PgConnection::connect(&running.postgres.url).await?;
    sqlx::query(
        "insert into auth.account (username, email, password_hash, created_at)
         select replace(username, '-0', '-' || number), replace(email, '-0@', '-' || number || '@'), password_hash,
                created_at
         from auth.account, generate_series(1, $2) as number where username = $1",
    )
    .bind(format!("sale-{run}-0"))
    .bind(i64::try_from(count)? - 1)
    .execute(&mut database)
    .await?;
    let auth = AuthServiceClient::new(client::channel(&running.services.auth.grpc)?);
    let mut tasks = JoinSet::new();
    for first in 0..SIGN_IN_CONCURRENCY {
        let mut auth = auth.clone();
        tasks.spawn(async move {
            let mut tokens = Vec::new();
            for number in (first..count).step_by(SIGN_IN_CONCURRENCY) {
                let login = LoginRequest {
                    username: format!("sale-{run}-{number}"),
                    password: PASSWORD.to_owned(),
                    user_agent: "scripts/bench".to_owned(),
                    ..LoginRequest::default()
                };
                tokens.push(auth.login(login).await?.into_inner().access_token);
            }
            anyhow::Ok(tokens)
        });
    }
    Ok(tasks.join_all().await.into_iter().collect::<anyhow::Result<Vec<_>>>()?.concat())
}

/// The gateways and the product of the sale.
#[derive(Debug)]
struct Shop {
    gateways: Vec<(Client, String)>,
    product: i64,
}

impl Shop {
    /// Adds the product.
    async fn open(running: &RunningSystem, admin: &str, units: i64) -> anyhow::Result<Self> {
        let client = |url: &str| anyhow::Ok((Client::builder().no_proxy().build()?, format!("{url}/api/v1")));
        let gateways =
            running.gateways.iter().map(|gateway| client(&gateway.url)).collect::<Result<_, _>>()?;
        let mut shop = Self { gateways, product: 0 };
        let (http, url) = shop.gateway(0)?;
        let sku = format!("SALE-{}", std::process::id());
        let product = json!({"sku": sku, "name": "Limited edition", "price": PRICE, "stock": units});
        let create = http.post(format!("{url}/products")).bearer_auth(admin).json(&product);
        let product: Value = create.send().await?.error_for_status()?.json().await?;
        shop.product = product["id"].as_i64().context("a product without an id")?;
        Ok(shop)
    }

    fn gateway(&self, number: usize) -> anyhow::Result<&(Client, String)> {
        self.gateways.get(number % self.gateways.len().max(1)).context("no gateway")
    }

    async fn stock(&self) -> anyhow::Result<i64> {
        let (http, url) = self.gateway(0)?;
        let product = http.get(format!("{url}/products/{}", self.product)).send().await?;
        let product: Value = product.error_for_status()?.json().await?;
        product["stock"].as_i64().context("a product without its stock")
    }

    /// Places an order for each token at once. Each latency counts from the start.
    async fn place_orders_at_once(self: &Arc<Self>, tokens: &[String]) -> anyhow::Result<Vec<Outcome>> {
        let (mut tasks, started) = (JoinSet::new(), Instant::now());
        for (number, token) in tokens.iter().enumerate() {
            let (shop, token) = (self.clone(), token.clone());
            tasks.spawn(async move { shop.place_order(number, &token, started).await });
        }
        tasks.join_all().await.into_iter().collect()
    }

    /// Places orders at a fixed rate, whether earlier ones are answered or not. Each latency counts from the time at which
    /// the attempt was due.
    async fn place_orders_at_rate(
        self: &Arc<Self>,
        tokens: &[String],
        attempts: usize,
        rate: u32,
    ) -> anyhow::Result<Vec<Outcome>> {
        let mut ticks = interval_at(tokio::time::Instant::now(), Duration::from_secs(1) / rate);
        let mut tasks = JoinSet::new();
        for (number, token) in tokens.iter().cycle().take(attempts).enumerate() {
            let due = ticks.tick().await.into_std();
            let (shop, token) = (self.clone(), token.clone());
            tasks.spawn(async move { shop.place_order(number, &token, due).await });
        }
        tasks.join_all().await.into_iter().collect()
    }

    /// Orders one unit, and repeats the request until its outcome is known.
    async fn place_order(&self, number: usize, token: &str, due: Instant) -> anyhow::Result<Outcome> {
        let key = Uuid::new_v4().to_string();
        let order = json!({"items": [{"product_id": self.product, "quantity": 1}], "shipping_address": {
            "recipient": "Ann Lee", "line1": "1 Main St", "city": "Springfield", "postal_code": "12345", "country": "US",
        }});
        let mut retries = 0;
        loop {
            let (http, url) = self.gateway(number + retries)?;
            let request =
                http.post(format!("{url}/orders")).bearer_auth(token).header("idempotency-key", &key);
            let response = request.json(&order).send().await?;
            let status = response.status();
            let body: Value = response.json().await?;
            let is_sold = match (status, body["code"].as_str()) {
                (StatusCode::CREATED, _) => true,
                (StatusCode::CONFLICT, Some("out_of_stock")) => false,
                (StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT, _)
                    if due.elapsed() < OUTCOME_TIMEOUT =>
                {
                    retries += 1;
                    sleep(RETRY_DELAY).await;
                    continue;
                }
                _ => bail!("an order: {status} {body}"),
            };
            return Ok(Outcome { is_sold, retries, latency: due.elapsed() });
        }
    }
}
