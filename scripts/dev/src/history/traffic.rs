//! A steady load: customers browse, read their order history, and move orders to every final state.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use http::StatusCode;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use super::bounds::REFERENCE;
use crate::{
    chaos::customers::{self, text_field},
    demo::address,
    rest::{Request, Rest},
    secrets::SignIn,
};

/// Bounds the random delay between two requests of a customer. The average of half of it gives some seven requests per
/// second. Milliseconds.
const MAX_THINK_TIME_MS: u64 = 250;
/// The status filters of lists.
const STATUSES: [&str; 5] = ["pending", "paid", "shipped", "completed", "cancelled"];
const SORTS: [&str; 4] = ["newest", "price_asc", "price_desc", "name"];
/// The number of failures whose messages are kept.
const MAX_SHOWN_FAILURES: usize = 20;

/// The latencies of each kind of request, in milliseconds.
pub type Latencies = BTreeMap<&'static str, Vec<f64>>;

/// A customer with an account.
#[derive(Debug)]
pub struct Shopper {
    pub id: i64,
    token: String,
}

/// Registers customers.
pub async fn sign_up(rest: &Rest, count: u16) -> anyhow::Result<Vec<Shopper>> {
    let mut shoppers = Vec::new();
    for number in 1..=count {
        let tokens = customers::sign_up(rest, &format!("regular-{number}")).await?;
        let id = tokens["user"]["id"].as_i64().context("a user without an id")?;
        shoppers.push(Shopper { id, token: text_field(&tokens, "access_token")? });
    }
    Ok(shoppers)
}

/// The outcomes of all requests.
#[derive(Debug, Default)]
struct Record {
    latencies: Mutex<Latencies>,
    requests: Mutex<u64>,
    failures: Mutex<Vec<String>>,
}

/// A group of running customers.
#[derive(Debug)]
pub struct Traffic {
    record: Arc<Record>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Starts a customer for each shopper. Customers buy `goods`, which the admin ships.
    pub async fn start(
        url: &str,
        admin: &SignIn,
        shoppers: Vec<Shopper>,
        goods: Vec<i64>,
    ) -> anyhow::Result<Self> {
        let rest = Arc::new(Rest::new(url)?);
        let sign_in = json!({"username": admin.username, "password": admin.password});
        let response = rest.post("/auth/login").body(sign_in).send().await?;
        let admin = text_field(response.expect_success("signing in")?, "access_token")?;
        let response = rest.get("/products?limit=100").send().await?;
        let page = response.expect_success("the products")?;
        let names = page["items"].as_array().into_iter().flatten().filter_map(|item| item["name"].as_str());
        let mut words: Vec<String> = names
            .flat_map(str::split_whitespace)
            .filter(|word| word.len() > 4 && word.bytes().all(|byte| byte.is_ascii_alphabetic()))
            .map(str::to_owned)
            .collect();
        words.sort_unstable();
        words.dedup();
        let (record, stop) = (Arc::<Record>::default(), CancellationToken::new());
        let mut tasks = Vec::new();
        for shopper in shoppers {
            let customer = Customer {
                rest: rest.clone(),
                record: record.clone(),
                random: StdRng::seed_from_u64(shopper.id.cast_unsigned()),
                goods: goods.clone(),
                words: words.clone(),
                token: shopper.token,
                admin: admin.clone(),
            };
            tasks.push(tokio::spawn(customer.shop(stop.clone())));
        }
        Ok(Self { record, stop, tasks })
    }

    /// Takes the latencies since the last call.
    pub fn take_latencies(&self) -> Latencies {
        std::mem::take(&mut *lock(&self.record.latencies))
    }

    /// Stops each customer after its visit. Returns the number of requests and the failures.
    pub async fn stop(self) -> anyhow::Result<(u64, Vec<String>)> {
        self.stop.cancel();
        for task in self.tasks {
            task.await?;
        }
        let (requests, failures) = (*lock(&self.record.requests), lock(&self.record.failures).clone());
        Ok((requests, failures))
    }
}

struct Customer {
    rest: Arc<Rest>,
    record: Arc<Record>,
    random: StdRng,
    goods: Vec<i64>,
    words: Vec<String>,
    token: String,
    admin: String,
}

impl Customer {
    async fn shop(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            // A failed request is recorded and ends the visit.
            let _ = self.visit().await;
        }
    }

    /// Makes one visit. Returns `None` if a request fails.
    async fn visit(&mut self) -> Option<()> {
        self.browse().await?;
        self.read_history().await?;
        let order = self.order().await?;
        self.finish(&order).await?;
        let (rest, token) = (self.rest.clone(), self.token.clone());
        self.send("order", rest.get(&format!("/orders/{order}")).bearer(&token)).await?;
        self.send("order's events", rest.get(&format!("/orders/{order}/events")).bearer(&token)).await?;
        if self.random.random_bool(0.2) {
            let status = self.any(&STATUSES)?;
            let admin = self.admin.clone();
            self.send("admin: orders", rest.get("/admin/orders?limit=50").bearer(&admin)).await?;
            let path = format!("/admin/orders?status={status}&limit=50");
            self.send("admin: orders by status", rest.get(&path).bearer(&admin)).await?;
        }
        Some(())
    }

    async fn browse(&mut self) -> Option<()> {
        let rest = self.rest.clone();
        let sort = self.any(&SORTS)?;
        self.send("products", rest.get(&format!("/products?in_stock=true&sort={sort}&limit=20"))).await?;
        let word = self.words.choose(&mut self.random)?.clone();
        self.send("search", rest.get(&format!("/products/search?q={word}"))).await?;
        for _ in 0..3 {
            let product = self.random.random_range(1..=5_000);
            self.send(REFERENCE, rest.get(&format!("/products/{product}"))).await?;
        }
        Some(())
    }

    async fn read_history(&mut self) -> Option<()> {
        let (rest, token) = (self.rest.clone(), self.token.clone());
        let page = self.send("orders", rest.get("/orders?limit=20").bearer(&token)).await?;
        if let Some(cursor) = page["next_cursor"].as_str() {
            let path = format!("/orders?limit=20&cursor={cursor}");
            self.send("orders, next page", rest.get(&path).bearer(&token)).await?;
        }
        let status = self.any(&STATUSES)?;
        let path = format!("/orders?status={status}&limit=20");
        self.send("orders by status", rest.get(&path).bearer(&token)).await?;
        Some(())
    }

    async fn order(&mut self) -> Option<String> {
        let (rest, token) = (self.rest.clone(), self.token.clone());
        let lines = self.random.random_range(1..=3);
        let goods: Vec<i64> = self.goods.choose_multiple(&mut self.random, lines).copied().collect();
        let items: Vec<Value> =
            goods.iter().map(|product| json!({"product_id": product, "quantity": 1})).collect();
        let key = self.new_idempotency_key();
        let request = rest.post("/orders").bearer(&token).idempotency_key(&key);
        let order = self
            .send("create order", request.body(json!({"items": items, "shipping_address": address()})))
            .await?;
        order["id"].as_str().map(str::to_owned)
    }

    /// Completes most orders; others stay paid, are cancelled before or after the payment, or expire.
    async fn finish(&mut self, order: &str) -> Option<()> {
        let (rest, token, admin) = (self.rest.clone(), self.token.clone(), self.admin.clone());
        let end = self.random.random_range(0..100);
        if end < 15 {
            return Some(());
        }
        let cancel = rest.post(&format!("/orders/{order}/cancel"));
        if end < 25 {
            let key = self.new_idempotency_key();
            self.send(
                "cancel",
                cancel.bearer(&token).idempotency_key(&key).body(json!({"reason": "changed my mind"})),
            )
            .await?;
            return Some(());
        }
        let key = self.new_idempotency_key();
        let pay = rest.post(&format!("/orders/{order}/pay")).bearer(&token).idempotency_key(&key);
        self.send("pay", pay.body(json!({"payment_token": "tok_ok"}))).await?;
        if end < 35 {
            self.send("admin: cancel", cancel.bearer(&admin).body(json!({"reason": "damaged"}))).await?;
        } else if end < 85 {
            let ship = rest.post(&format!("/orders/{order}/ship")).bearer(&admin);
            let parcel = json!({"carrier": "Slow Mail", "tracking_number": &order[..8]});
            self.send("admin: ship", ship.body(parcel)).await?;
            self.send("complete", rest.post(&format!("/orders/{order}/complete")).bearer(&token)).await?;
        }
        Some(())
    }

    /// Sends a request after a random delay, and records its latency or its failure.
    async fn send(&mut self, kind: &'static str, request: Request<'_>) -> Option<Value> {
        tokio::time::sleep(Duration::from_millis(self.random.random_range(0..MAX_THINK_TIME_MS))).await;
        let sent = Instant::now();
        let outcome = request.send_once().await;
        *lock(&self.record.requests) += 1;
        let failure = match outcome {
            Ok((status, body)) if status.is_success() => {
                let milliseconds = sent.elapsed().as_secs_f64() * 1e3;
                lock(&self.record.latencies).entry(kind).or_default().push(milliseconds);
                return Some(body);
            }
            Ok((status, body)) => describe(status, &body),
            Err(error) => format!("{error:#}"),
        };
        let mut failures = lock(&self.record.failures);
        // All failures are counted; only the first ones keep their message.
        let is_shown = failures.len() < MAX_SHOWN_FAILURES;
        failures.push(if is_shown { format!("{}: {failure}", request.label()) } else { String::new() });
        None
    }

    fn any(&mut self, of: &[&'static str]) -> Option<&'static str> {
        of.choose(&mut self.random).copied()
    }

    fn new_idempotency_key(&mut self) -> String {
        format!("{:032x}", self.random.random::<u128>())
    }
}

fn describe(status: StatusCode, body: &Value) -> String {
    format!("{} {}", status.as_u16(), body["code"].as_str().unwrap_or_default())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
