//! Customers that browse, order, pay and receive events, and a log of the responses. They retry nothing: every failed
//! request counts as a failure of the run.

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
    event_stream::EventStream,
    rest::{Request, Rest},
    secrets::{SignIn, generate_password},
};

/// The kinds of requests.
const KINDS: [&str; 8] = ["browse", "product", "account", "cart", "order", "pay", "orders", "refresh"];
/// The number of products that customers buy, and the stock of each.
const PRODUCT_COUNT: usize = 20;
const STOCK: i64 = 1_000_000;
/// Bounds the random delay between two requests of a customer. Milliseconds.
const MAX_THINK_TIME_MS: u64 = 60;
/// Bounds the delivery of the last events to the sockets.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The outcomes of all requests.
#[derive(Debug, Default)]
pub struct RequestLog {
    successes: Mutex<BTreeMap<&'static str, u64>>,
    failures: Mutex<Vec<String>>,
}

impl RequestLog {
    /// Returns the number of successes of each kind.
    pub fn successes(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.successes).clone()
    }

    /// Returns the smallest number of successes of any kind since `before`.
    pub fn min_successes_since(&self, before: &BTreeMap<&'static str, u64>) -> u64 {
        let now = self.successes();
        let count = |of: &BTreeMap<&'static str, u64>, kind| of.get(kind).copied().unwrap_or(0);
        KINDS.iter().map(|kind| count(&now, kind) - count(before, kind)).min().unwrap_or(0)
    }

    /// Returns a line for each failed request.
    pub fn failures(&self) -> Vec<String> {
        lock(&self.failures).clone()
    }
}

/// A group of running customers.
#[derive(Debug)]
pub struct Customers {
    pub log: Arc<RequestLog>,
    began: Instant,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<i64>>,
    sockets: Vec<Socket>,
    url: String,
}

/// A customer's socket.
#[derive(Debug)]
struct Socket {
    token: String,
    received: Arc<Mutex<Received>>,
    task: JoinHandle<()>,
}

#[derive(Clone, Debug, Default)]
struct Received {
    last_seq: i64,
    reconnects: u32,
    problems: Vec<String>,
    disconnects: Vec<String>,
}

/// The check of all sockets.
#[derive(Debug, Default)]
pub struct Audit {
    pub events: i64,
    pub reconnects: u32,
    pub problems: Vec<String>,
}

impl Customers {
    /// Registers and starts the customers.
    pub async fn start(url: &str, admin: &SignIn, count: u16, seed: u64) -> anyhow::Result<Self> {
        let rest = Arc::new(Rest::new(url)?);
        let goods = restock(&rest, admin, STOCK).await?;
        let mut customers = Self {
            log: Arc::default(),
            began: Instant::now(),
            stop: CancellationToken::new(),
            tasks: Vec::new(),
            sockets: Vec::new(),
            url: url.to_owned(),
        };
        for number in 0..count {
            let tokens = sign_up(&rest, &format!("chaos-{number}")).await?;
            let token = text_field(&tokens, "access_token")?;
            let stream = EventStream::open_quietly(url, &token).await?;
            let received = Arc::new(Mutex::new(Received::default()));
            let task = tokio::spawn(receive(stream, received.clone()));
            customers.sockets.push(Socket { token: token.clone(), received, task });
            let customer = Customer {
                rest: rest.clone(),
                log: customers.log.clone(),
                began: customers.began,
                random: StdRng::seed_from_u64(seed.wrapping_add(number.into())),
                goods: goods.clone(),
                token,
                refresh: text_field(&tokens, "refresh_token")?,
                steps: 0,
            };
            customers.tasks.push(tokio::spawn(customer.shop(customers.stop.clone())));
        }
        Ok(customers)
    }

    /// Returns the access token of one customer.
    pub fn token(&self) -> &str {
        &self.sockets[0].token
    }

    /// Stops the customers, and checks that every event has reached its socket.
    pub async fn stop(self) -> anyhow::Result<Audit> {
        self.stop.cancel();
        let mut audit = Audit::default();
        for (task, socket) in self.tasks.into_iter().zip(self.sockets) {
            // Each acknowledged step must have caused an event.
            let steps = task.await?;
            let deadline = Instant::now() + DELIVERY_TIMEOUT;
            while lock(&socket.received).last_seq < steps && Instant::now() < deadline {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            socket.task.abort();
            let received = lock(&socket.received).clone();
            let last_seq = EventStream::open_quietly(&self.url, &socket.token).await?.last_seq();
            if (received.last_seq, last_seq) != (steps, steps) {
                audit.problems.push(format!(
                    "{steps} steps were taken, the shop counts {last_seq}, the socket received {}",
                    received.last_seq
                ));
            }
            audit.problems.extend(received.problems);
            audit
                .problems
                .extend(received.disconnects.into_iter().filter(|reason| reason != "closed with 1001"));
            audit.events += received.last_seq;
            audit.reconnects += received.reconnects;
        }
        Ok(audit)
    }
}

async fn receive(mut stream: EventStream, received: Arc<Mutex<Received>>) {
    loop {
        let event = stream.next().await;
        {
            let mut received = lock(&received);
            received.last_seq = stream.last_seq();
            received.reconnects = stream.reconnects;
            received.problems.clone_from(&stream.problems);
            received.disconnects.clone_from(&stream.disconnects);
        }
        if event.is_err() {
            return;
        }
    }
}

struct Customer {
    rest: Arc<Rest>,
    log: Arc<RequestLog>,
    began: Instant,
    random: StdRng,
    goods: Vec<i64>,
    token: String,
    refresh: String,
    /// The number of acknowledged order steps, each of which causes one event.
    steps: i64,
}

impl Customer {
    async fn shop(mut self, stop: CancellationToken) -> i64 {
        while !stop.is_cancelled() {
            // The log has the failure.
            let _ = self.visit().await;
        }
        self.steps
    }

    /// Makes one visit to the shop. Returns `None` if a request fails.
    async fn visit(&mut self) -> Option<()> {
        let rest = self.rest.clone();
        let token = self.token.clone();
        self.send("browse", rest.get("/products?in_stock=true&limit=20")).await?;
        let product = *self.goods.choose(&mut self.random)?;
        self.send("product", rest.get(&format!("/products/{product}"))).await?;
        self.send("account", rest.get("/auth/me").bearer(&token)).await?;
        let quantity = json!({"quantity": self.random.random_range(1..=3)});
        self.send("cart", rest.put(&format!("/cart/items/{product}")).bearer(&token).body(quantity)).await?;
        // Half of the requests have no idempotency key, so that nothing may send them twice.
        let key = self.random.random_bool(0.5).then(|| format!("{:032x}", self.random.random::<u128>()));
        let order = rest.post("/orders").bearer(&token).body(json!({"shipping_address": address()}));
        let order = self.send("order", with_key(order, key.as_deref())).await?;
        self.steps += 1;
        let id = order["id"].as_str()?;
        let pay =
            rest.post(&format!("/orders/{id}/pay")).bearer(&token).body(json!({"payment_token": "tok_ok"}));
        self.send("pay", with_key(pay, key.as_deref())).await?;
        self.steps += 1;
        self.send("orders", rest.get(&format!("/orders/{id}")).bearer(&token)).await?;
        let refresh = json!({"refresh_token": self.refresh});
        let tokens = self.send("refresh", rest.post("/auth/refresh").body(refresh)).await?;
        tokens["access_token"].as_str()?.clone_into(&mut self.token);
        tokens["refresh_token"].as_str()?.clone_into(&mut self.refresh);
        Some(())
    }

    async fn send(&mut self, kind: &'static str, request: Request<'_>) -> Option<Value> {
        let think_time = Duration::from_millis(self.random.random_range(0..MAX_THINK_TIME_MS));
        tokio::time::sleep(think_time).await;
        let sent = self.began.elapsed().as_secs_f64();
        let reason = match request.send_once().await {
            Ok((status, body)) if status.is_success() => {
                *lock(&self.log.successes).entry(kind).or_default() += 1;
                return Some(body);
            }
            Ok((status, body)) => format!("{status} {body}"),
            Err(error) => format!("{error:#}"),
        };
        let label = request.label();
        lock(&self.log.failures).push(format!("{sent:.3} s: {label}: {reason}"));
        None
    }
}

/// Sets the idempotency key of a request, if there is one.
pub fn with_key<'a>(request: Request<'a>, key: Option<&str>) -> Request<'a> {
    match key {
        Some(key) => request.idempotency_key(key),
        None => request,
    }
}

/// Adds `supply` to the stock of [`PRODUCT_COUNT`] products, and returns their ids.
pub async fn restock(rest: &Rest, admin: &SignIn, supply: i64) -> anyhow::Result<Vec<i64>> {
    let token = text_field(&sign_in(rest, admin).await?, "access_token")?;
    let page = expect_success(rest.get(&format!("/products?limit={PRODUCT_COUNT}"))).await?;
    let mut goods = Vec::new();
    for product in page["items"].as_array().context("no products")? {
        let id = product["id"].as_i64().context("a product without an id")?;
        let supply = json!({"delta": supply, "reason": "chaos"});
        expect_success(rest.post(&format!("/products/{id}/stock")).bearer(&token).body(supply)).await?;
        goods.push(id);
    }
    if goods.is_empty() {
        bail!("the shop is empty");
    }
    Ok(goods)
}

/// Registers a user and signs in. Returns the tokens.
pub async fn sign_up(rest: &Rest, username: &str) -> anyhow::Result<Value> {
    sign_in(rest, &register(rest, username).await?).await
}

/// Registers a user.
pub async fn register(rest: &Rest, username: &str) -> anyhow::Result<SignIn> {
    let user = SignIn { username: username.to_owned(), password: generate_password() };
    let email = format!("{username}@customers.example");
    let account = json!({"username": username, "email": email, "password": user.password});
    expect_success(rest.post("/auth/register").idempotency_key(username).body(account)).await?;
    Ok(user)
}

/// Signs in, and returns the tokens.
pub async fn sign_in(rest: &Rest, user: &SignIn) -> anyhow::Result<Value> {
    let credentials = json!({"username": user.username, "password": user.password});
    expect_success(rest.post("/auth/login").body(credentials)).await
}

/// Sends a request that must succeed, and returns its body.
pub async fn expect_success(request: Request<'_>) -> anyhow::Result<Value> {
    let label = request.label();
    let response = request.send().await?;
    response.expect_success(&label).cloned()
}

pub fn text_field(of: &Value, field: &str) -> anyhow::Result<String> {
    Ok(of[field].as_str().with_context(|| format!("an answer without {field}"))?.to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
