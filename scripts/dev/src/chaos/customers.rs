//! Customers who look around, order, pay and watch, and a ledger of what they were answered. They try nothing twice: what
//! one of them would notice is a failure.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    demo::address,
    rest::{Request, Rest},
    secrets::{SignIn, password},
    socket::Watch,
};

/// What customers ask for.
const KINDS: [&str; 8] = ["browse", "look", "account", "cart", "order", "pay", "orders", "refresh"];
/// Products that are bought, and how many of each there are.
const GOODS: usize = 20;
const STOCK: i64 = 1_000_000;
/// Between two requests of a customer, at most. Milliseconds.
const PAUSE: u64 = 60;
/// For the last events to reach their sockets.
const ARRIVE_WITHIN: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

/// What was asked for how often, and what went wrong.
#[derive(Debug, Default)]
pub struct Ledger {
    answered: Mutex<BTreeMap<&'static str, u64>>,
    failed: Mutex<Vec<String>>,
}

impl Ledger {
    /// How many requests of each kind succeeded so far.
    pub fn answered(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.answered).clone()
    }

    /// How many succeeded since then, of the kind with the fewest.
    pub fn least_since(&self, before: &BTreeMap<&'static str, u64>) -> u64 {
        let now = self.answered();
        let count = |of: &BTreeMap<&'static str, u64>, kind| of.get(kind).copied().unwrap_or(0);
        KINDS.iter().map(|kind| count(&now, kind) - count(before, kind)).min().unwrap_or(0)
    }

    pub fn failed(&self) -> Vec<String> {
        lock(&self.failed).clone()
    }
}

#[derive(Debug)]
pub struct Customers {
    pub ledger: Arc<Ledger>,
    began: Instant,
    stop: CancellationToken,
    shopping: Vec<JoinHandle<i64>>,
    sockets: Vec<Socket>,
    url: String,
}

/// A customer's socket.
#[derive(Debug)]
struct Socket {
    token: String,
    heard: Arc<Mutex<Heard>>,
    listening: JoinHandle<()>,
}

#[derive(Clone, Debug, Default)]
struct Heard {
    last: i64,
    reconnects: u32,
    problems: Vec<String>,
    losses: Vec<String>,
}

/// What the sockets heard.
#[derive(Debug, Default)]
pub struct Audit {
    pub events: i64,
    pub reconnects: u32,
    pub problems: Vec<String>,
}

impl Customers {
    /// They sign up and begin.
    pub async fn begin(url: &str, admin: &SignIn, count: u16, seed: u64) -> anyhow::Result<Self> {
        let rest = Arc::new(Rest::new(url)?);
        let goods = stock_up(&rest, admin, STOCK).await?;
        let mut customers = Self {
            ledger: Arc::default(),
            began: Instant::now(),
            stop: CancellationToken::new(),
            shopping: Vec::new(),
            sockets: Vec::new(),
            url: url.to_owned(),
        };
        for number in 0..count {
            let tokens = sign_up(&rest, &format!("chaos-{number}")).await?;
            let token = text(&tokens, "access_token")?;
            let watch = Watch::open_quietly(url, &token).await?;
            let heard = Arc::new(Mutex::new(Heard::default()));
            let listening = tokio::spawn(listen(watch, heard.clone()));
            customers.sockets.push(Socket { token: token.clone(), heard, listening });
            let customer = Customer {
                rest: rest.clone(),
                ledger: customers.ledger.clone(),
                began: customers.began,
                random: StdRng::seed_from_u64(seed.wrapping_add(number.into())),
                goods: goods.clone(),
                token,
                refresh: text(&tokens, "refresh_token")?,
                steps: 0,
            };
            customers.shopping.push(tokio::spawn(customer.shop(customers.stop.clone())));
        }
        Ok(customers)
    }

    /// A token of one of them.
    pub fn token(&self) -> &str {
        &self.sockets[0].token
    }

    /// They stop; then every event must have reached its socket.
    pub async fn end(self) -> anyhow::Result<Audit> {
        self.stop.cancel();
        let mut audit = Audit::default();
        for (shopping, socket) in self.shopping.into_iter().zip(self.sockets) {
            // What was answered with success, and so what the shop must have told.
            let steps = shopping.await?;
            let until = Instant::now() + ARRIVE_WITHIN;
            while lock(&socket.heard).last < steps && Instant::now() < until {
                tokio::time::sleep(LOOK).await;
            }
            socket.listening.abort();
            let heard = lock(&socket.heard).clone();
            let truth = Watch::open_quietly(&self.url, &socket.token).await?.last();
            if (heard.last, truth) != (steps, steps) {
                audit.problems.push(format!(
                    "{steps} steps were taken, the shop counts {truth}, the socket heard {}",
                    heard.last
                ));
            }
            audit.problems.extend(heard.problems);
            audit.problems.extend(heard.losses.into_iter().filter(|why| why != "closed with 1001"));
            audit.events += heard.last;
            audit.reconnects += heard.reconnects;
        }
        Ok(audit)
    }
}

async fn listen(mut watch: Watch, heard: Arc<Mutex<Heard>>) {
    loop {
        let event = watch.next().await;
        {
            let mut heard = lock(&heard);
            heard.last = watch.last();
            heard.reconnects = watch.reconnects;
            heard.problems.clone_from(&watch.problems);
            heard.losses.clone_from(&watch.losses);
        }
        if event.is_err() {
            return;
        }
    }
}

struct Customer {
    rest: Arc<Rest>,
    ledger: Arc<Ledger>,
    began: Instant,
    random: StdRng,
    goods: Vec<i64>,
    token: String,
    refresh: String,
    /// Steps of orders that were acknowledged, an event each.
    steps: i64,
}

impl Customer {
    async fn shop(mut self, stop: CancellationToken) -> i64 {
        while !stop.is_cancelled() {
            // What failed stands in the ledger.
            let _ = self.visit().await;
        }
        self.steps
    }

    /// One visit to the shop; `None` where a request failed.
    async fn visit(&mut self) -> Option<()> {
        let rest = self.rest.clone();
        let token = self.token.clone();
        self.ask("browse", rest.get("/products?in_stock=true&limit=20")).await?;
        let product = *self.goods.choose(&mut self.random)?;
        self.ask("look", rest.get(&format!("/products/{product}"))).await?;
        self.ask("account", rest.get("/auth/me").by(&token)).await?;
        let quantity = json!({"quantity": self.random.random_range(1..=3)});
        self.ask("cart", rest.put(&format!("/cart/items/{product}")).by(&token).body(quantity)).await?;
        // Every second one without a key: it may be sent once only.
        let key = self.random.random_bool(0.5).then(|| format!("{:032x}", self.random.random::<u128>()));
        let order = rest.post("/orders").by(&token).body(json!({"shipping_address": address()}));
        let order = self.ask("order", keyed(order, key.as_deref())).await?;
        self.steps += 1;
        let id = order["id"].as_str()?;
        let pay = rest.post(&format!("/orders/{id}/pay")).by(&token).body(json!({"payment_token": "tok_ok"}));
        self.ask("pay", keyed(pay, key.as_deref())).await?;
        self.steps += 1;
        self.ask("orders", rest.get(&format!("/orders/{id}")).by(&token)).await?;
        let refresh = json!({"refresh_token": self.refresh});
        let tokens = self.ask("refresh", rest.post("/auth/refresh").body(refresh)).await?;
        tokens["access_token"].as_str()?.clone_into(&mut self.token);
        tokens["refresh_token"].as_str()?.clone_into(&mut self.refresh);
        Some(())
    }

    async fn ask(&mut self, kind: &'static str, request: Request<'_>) -> Option<Value> {
        let pause = Duration::from_millis(self.random.random_range(0..PAUSE));
        tokio::time::sleep(pause).await;
        let sent = self.began.elapsed().as_secs_f64();
        let why = match request.once().await {
            Ok((status, body)) if status.is_success() => {
                *lock(&self.ledger.answered).entry(kind).or_default() += 1;
                return Some(body);
            }
            Ok((status, body)) => format!("{status} {body}"),
            Err(error) => format!("{error:#}"),
        };
        let label = request.label();
        lock(&self.ledger.failed).push(format!("{sent:.3} s: {label}: {why}"));
        None
    }
}

fn keyed<'a>(request: Request<'a>, key: Option<&str>) -> Request<'a> {
    match key {
        Some(key) => request.key(key),
        None => request,
    }
}

/// Adds `supply` to the stock of [`GOODS`] products and returns their ids.
pub async fn stock_up(rest: &Rest, admin: &SignIn, supply: i64) -> anyhow::Result<Vec<i64>> {
    let sign_in = json!({"username": admin.username, "password": admin.password});
    let tokens = success(rest.post("/auth/login").body(sign_in)).await?;
    let token = text(&tokens, "access_token")?;
    let found = success(rest.get(&format!("/products?limit={GOODS}"))).await?;
    let mut goods = Vec::new();
    for product in found["items"].as_array().context("no products")? {
        let id = product["id"].as_i64().context("a product without an id")?;
        let supply = json!({"delta": supply, "reason": "chaos"});
        success(rest.post(&format!("/products/{id}/stock")).by(&token).body(supply)).await?;
        goods.push(id);
    }
    if goods.is_empty() {
        bail!("the shop is empty");
    }
    Ok(goods)
}

pub async fn sign_up(rest: &Rest, username: &str) -> anyhow::Result<Value> {
    let password = password();
    let email = format!("{username}@customers.example");
    let account = json!({"username": username, "email": email, "password": password});
    success(rest.post("/auth/register").body(account)).await?;
    success(rest.post("/auth/login").body(json!({"username": username, "password": password}))).await
}

async fn success(request: Request<'_>) -> anyhow::Result<Value> {
    let label = request.label();
    let answer = request.send().await?;
    answer.expect_success(&label).cloned()
}

pub fn text(of: &Value, field: &str) -> anyhow::Result<String> {
    Ok(of[field].as_str().with_context(|| format!("an answer without {field}"))?.to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
