//! Buyers that retry. A request whose outcome is unknown is retried with the same idempotency key until the outcome is
//! known, and then recorded. The audit compares the database with this record.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::{Value, json};
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use super::customers::{sign_up, text_field};
use crate::{
    demo::address,
    event_stream::EventStream,
    rest::{Request, Rest, is_transient},
};

/// The kinds of operations; each must succeed after every fault.
pub const KINDS: [&str; 5] = ["browse", "cart", "order", "pay", "cancel"];
/// Bounds the retries of an operation: longer than any fault.
const RETRY_TIMEOUT: Duration = Duration::from_secs(90);
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// Bounds the random delay between two operations of a buyer. Milliseconds.
const MAX_THINK_TIME_MS: u64 = 100;
/// Bounds the delivery of the last events to the sockets.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(15);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The state of an order after its last acknowledged step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledged {
    Placed,
    Paid,
    Cancelled,
}

/// The acknowledged operations of all buyers.
#[derive(Debug, Default)]
pub struct Record {
    successes: Mutex<BTreeMap<&'static str, u64>>,
    orders: Mutex<BTreeMap<String, Acknowledged>>,
    problems: Mutex<Vec<String>>,
    retries: Mutex<u64>,
    responses: Mutex<u64>,
}

impl Record {
    /// Returns the number of successes of each kind of operation.
    pub fn successes(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.successes).clone()
    }

    /// Returns the smallest number of successes of any kind since `before`.
    pub fn min_successes_since(&self, before: &BTreeMap<&'static str, u64>) -> u64 {
        let now = self.successes();
        let count = |of: &BTreeMap<&'static str, u64>, kind| of.get(kind).copied().unwrap_or_default();
        KINDS.iter().map(|kind| count(&now, kind) - count(before, kind)).min().unwrap_or_default()
    }

    /// Returns every order that was acknowledged, with its last acknowledged step.
    pub fn orders(&self) -> BTreeMap<String, Acknowledged> {
        lock(&self.orders).clone()
    }

    /// Returns the responses that `docs/API.md` does not allow.
    pub fn problems(&self) -> Vec<String> {
        lock(&self.problems).clone()
    }

    /// Returns the number of responses, successes and refusals.
    pub fn responses(&self) -> u64 {
        *lock(&self.responses)
    }

    /// Returns the number of retries.
    pub fn retries(&self) -> u64 {
        *lock(&self.retries)
    }
}

/// A group of running buyers, each with a socket.
#[derive(Debug)]
pub struct Buyers {
    pub record: Arc<Record>,
    pub ids: Vec<i64>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    sockets: Vec<Socket>,
    url: String,
}

impl Buyers {
    /// Registers and starts `count` buyers of `goods`.
    pub async fn start(url: &str, goods: &[i64], count: u16, seed: u64) -> anyhow::Result<Self> {
        let rest = Arc::new(Rest::new(url)?);
        let mut buyers = Self {
            record: Arc::default(),
            ids: Vec::new(),
            stop: CancellationToken::new(),
            tasks: Vec::new(),
            sockets: Vec::new(),
            url: url.to_owned(),
        };
        for number in 0..count {
            let tokens = sign_up(&rest, &format!("buyer-{number}")).await?;
            let token = text_field(&tokens, "access_token")?;
            buyers.ids.push(tokens["user"]["id"].as_i64().context("a user without an id")?);
            buyers.sockets.push(Socket::open(url, &token).await?);
            let buyer = Buyer {
                rest: rest.clone(),
                record: buyers.record.clone(),
                random: StdRng::seed_from_u64(seed.wrapping_add(number.into())),
                goods: goods.to_vec(),
                token,
            };
            let stop = buyers.stop.clone();
            buyers.tasks.push(tokio::spawn(async move { buyer.buy_until(&stop).await }));
        }
        Ok(buyers)
    }

    /// Stops each buyer after its current operation, and compares the sockets with the shop's event numbers. Returns the
    /// number of events and the problems.
    pub async fn stop(self) -> anyhow::Result<(i64, Vec<String>)> {
        self.stop.cancel();
        for task in self.tasks {
            task.await?;
        }
        let (mut events, mut problems) = (0, self.record.problems());
        for socket in self.sockets {
            let last = EventStream::open_quietly(&self.url, &socket.token).await?.last_seq();
            let mut stream = socket.read_until(last).await?;
            if stream.last_seq() != last {
                problems.push(format!("the shop is at event {last}, a socket at {}", stream.last_seq()));
            }
            problems.append(&mut stream.problems);
            events += last;
        }
        Ok((events, problems))
    }
}

/// A buyer's socket with a task that reads it all the time: the shop closes a socket that is not read, and recovers a
/// bounded number of missed events.
#[derive(Debug)]
struct Socket {
    token: String,
    /// Sends the number of the last event at the end of the run.
    last: oneshot::Sender<i64>,
    reading: JoinHandle<EventStream>,
}

impl Socket {
    async fn open(url: &str, token: &str) -> anyhow::Result<Self> {
        let stream = EventStream::open_quietly(url, token).await?;
        let (last, end) = oneshot::channel();
        Ok(Self { token: token.to_owned(), last, reading: tokio::spawn(read(stream, end)) })
    }

    /// Reads the remaining events up to the number `last`, within [`DELIVERY_TIMEOUT`].
    async fn read_until(self, last: i64) -> anyhow::Result<EventStream> {
        let _ = self.last.send(last);
        self.reading.await.context("the reader of a socket panicked")
    }
}

/// Reads a stream until `end` names its last event, and that event has arrived.
async fn read(mut stream: EventStream, mut end: oneshot::Receiver<i64>) -> EventStream {
    let last = loop {
        tokio::select! {
            event = stream.next() => if event.is_err() { return stream },
            last = &mut end => break last.unwrap_or_default(),
        }
    };
    let deadline = Instant::now() + DELIVERY_TIMEOUT;
    while stream.last_seq() < last {
        let Ok(Ok(_)) = tokio::time::timeout_at(deadline, stream.next()).await else { break };
    }
    stream
}

struct Buyer {
    rest: Arc<Rest>,
    record: Arc<Record>,
    random: StdRng,
    goods: Vec<i64>,
    token: String,
}

impl Buyer {
    async fn buy_until(mut self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            if let Err(error) = self.buy().await {
                lock(&self.record.problems).push(format!("{error:#}"));
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
    }

    /// Browses, fills the cart, orders, and pays or cancels.
    async fn buy(&mut self) -> anyhow::Result<()> {
        let rest = self.rest.clone();
        self.run("browse", rest.get("/products?in_stock=true&limit=20"), &[]).await?;
        let product = *self.goods.choose(&mut self.random).context("no goods")?;
        let quantity = self.random.random_range(1..=3);
        let token = self.token.clone();
        let line =
            rest.put(&format!("/cart/items/{product}")).bearer(&token).body(json!({"quantity": quantity}));
        self.run("cart", line, &["product_unavailable"]).await?;
        let mut items = vec![json!({"product_id": product, "quantity": quantity})];
        if self.random.random_bool(0.3) {
            let other = *self.goods.choose(&mut self.random).context("no goods")?;
            items.push(json!({"product_id": other, "quantity": 1}));
        }
        let order = rest.post("/orders").bearer(&token).idempotency_key(&self.new_idempotency_key());
        let order = order.body(json!({"items": items, "shipping_address": address()}));
        let refusals = ["out_of_stock", "product_unavailable", "too_many_unpaid_orders"];
        let Some(order) = self.run("order", order, &refusals).await? else { return Ok(()) };
        let id = text_field(&order, "id")?;
        if lock(&self.record.orders).insert(id.clone(), Acknowledged::Placed).is_some() {
            bail!("order {id} answers two idempotency keys");
        }
        if self.random.random_bool(0.7) {
            let pay = rest
                .post(&format!("/orders/{id}/pay"))
                .bearer(&token)
                .idempotency_key(&self.new_idempotency_key());
            self.run("pay", pay.body(json!({"payment_token": "tok_ok"})), &[]).await?;
            lock(&self.record.orders).insert(id, Acknowledged::Paid);
        } else {
            let cancel = rest.post(&format!("/orders/{id}/cancel")).bearer(&token).body(json!({}));
            // Cancellation has no idempotency key: a retry after the effect may be refused.
            self.run("cancel", cancel, &["invalid_transition"]).await?;
            lock(&self.record.orders).insert(id, Acknowledged::Cancelled);
        }
        Ok(())
    }

    /// Sends a request until its outcome is known. Returns the body, or `None` if the code is one of `refusals`.
    async fn run(
        &mut self,
        kind: &'static str,
        request: Request<'_>,
        refusals: &[&str],
    ) -> anyhow::Result<Option<Value>> {
        let think_time = Duration::from_millis(self.random.random_range(0..MAX_THINK_TIME_MS));
        tokio::time::sleep(think_time).await;
        let started = Instant::now();
        loop {
            let outcome = request.send_once().await;
            if outcome.is_ok() {
                *lock(&self.record.responses) += 1;
            }
            match outcome {
                Ok((status, body)) if status.is_success() => {
                    *lock(&self.record.successes).entry(kind).or_default() += 1;
                    return Ok(Some(body));
                }
                Ok((status, body)) if !is_transient(status, &body) => {
                    let code = body["code"].as_str().unwrap_or_default();
                    if refusals.contains(&code) {
                        *lock(&self.record.successes).entry(kind).or_default() += 1;
                        return Ok(None);
                    }
                    bail!("{}: {status} {body}", request.label());
                }
                // The outcome is unknown, or the error is transient.
                Ok((status, body)) if started.elapsed() > RETRY_TIMEOUT => {
                    bail!("{}: {status} {body} for {RETRY_TIMEOUT:?}", request.label())
                }
                Err(error) if started.elapsed() > RETRY_TIMEOUT => {
                    return Err(error.context(format!("{}: for {RETRY_TIMEOUT:?}", request.label())));
                }
                Ok(_) | Err(_) => {}
            }
            *lock(&self.record.retries) += 1;
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    fn new_idempotency_key(&mut self) -> String {
        format!("{:032x}", self.random.random::<u128>())
    }
}

/// Waits until each kind of operation succeeded `count` times since `before`. Returns `false` at the deadline.
pub async fn wait_for_successes(
    record: &Record,
    before: &BTreeMap<&'static str, u64>,
    count: u64,
    deadline: Instant,
) -> bool {
    while record.min_successes_since(before) < count {
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    true
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
