//! `scripts/demo`: one order from registration to completion, by REST through one gateway, watched on a socket of
//! another. Anything may be killed meanwhile: a request is repeated with its idempotency key, the socket comes back where
//! it was.

mod shop;
mod stock;

use std::{path::Path, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use rand::seq::IndexedRandom as _;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    rest::{self, Answer, Rest},
    screen::{Ink, begin, ink, say},
    secrets::password,
    socket::{Event, Watch},
};
use shop::Shop;

/// How much of the first page is looked at for something to buy, and how many of it are bought.
const PAGE: usize = 50;
const LINES: usize = 3;

/// Drives one order through its whole life, and shows each answer with the WebSocket frame it causes
#[derive(Debug, Args)]
pub struct Options {
    /// Milliseconds between two steps, for whoever wants to kill something meanwhile
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pause: u64,
    /// Where the deployed shop is that is driven instead of the one of scripts/up, like https://shop.example; given
    /// twice, the socket goes to the second
    #[arg(long, value_name = "URL")]
    url: Vec<String>,
    /// Who ships the order in a deployed shop; the password is taken from ADMIN_PASSWORD
    #[arg(long, value_name = "NAME", default_value = "admin", requires = "url")]
    admin_user: String,
    /// Creates a few products first, where nothing is in stock
    #[arg(long)]
    stock: bool,
}

pub const AFTER_HELP: &str = "Environment:
  ADMIN_PASSWORD  of the admin of a deployed shop
  SSL_CERT_FILE   authorities to trust instead of this host's

A customer demo-… with one completed order is left in the shop, and what --stock created.";

pub async fn run(state: &Path, options: &Options) -> anyhow::Result<()> {
    let shop = if options.url.is_empty() {
        Shop::of_this_checkout(state)?
    } else {
        Shop::deployed(&options.url, &options.admin_user).await?
    };
    let rest = Rest::new(&shop.rest)?;
    let pause = Duration::from_millis(options.pause);

    say(&format!("{}  REST {}, socket {}", ink(Ink::Bold, "Shoppee"), shop.rest, shop.socket));
    say("");
    // First: whoever is no admin leaves nothing in the shop.
    let (admin, role) = sign_in(&rest, &shop.admin.username, &shop.admin.password).await?;
    if role != "admin" {
        bail!("{} is not an admin of this shop: nobody could ship the order", shop.admin.username);
    }
    let mut goods = in_stock(&rest).await?;
    if goods.is_empty() && options.stock {
        goods = stock::create(&rest, &admin).await?;
    }
    if goods.is_empty() {
        bail!("nothing is in stock in this shop; --stock creates a few products first");
    }
    let customer = sign_up(&rest).await?;
    let mut watch = Watch::open(&shop.socket, &customer).await?;
    let total = fill_cart(&rest, &customer, &goods).await?;

    let key = format!("demo-{:016x}", rand::random::<u64>());
    let request = rest
        .post("/orders")
        .by(&customer)
        .key(&format!("{key}-order"))
        .body(json!({"shipping_address": address(), "expected_total": total}));
    let mut demo = Demo { rest: &rest, watch: &mut watch, order: String::new(), slowest: 0.0 };
    demo.step("pending", None, &customer, request).await?;
    let order = demo.order.clone();
    let token = json!({"payment_token": "tok_ok"});
    let parcel =
        json!({"carrier": "Slow Mail", "tracking_number": format!("SM{:010}", rand::random::<u32>())});
    let steps = [
        ("paid", "pending", "pay", &customer, token, Some(format!("{key}-pay"))),
        ("shipped", "paid", "ship", &admin, parcel, None),
        ("completed", "shipped", "complete", &customer, json!({}), None),
    ];
    for (state, before, verb, who, body, key) in steps {
        tokio::time::sleep(pause).await;
        let mut request = rest.post(&format!("/orders/{order}/{verb}")).by(who);
        if let Some(key) = key {
            request = request.key(&key);
        }
        if body != json!({}) {
            request = request.body(body);
        }
        demo.step(state, Some(before), who, request).await?;
    }
    let slowest = demo.slowest;
    history(&rest, &customer, &order, &watch).await?;
    verdict(&watch, slowest)
}

struct Demo<'a> {
    rest: &'a Rest,
    watch: &'a mut Watch,
    order: String,
    /// From commit to frame. Milliseconds.
    slowest: f64,
}

impl Demo<'_> {
    /// Sends what brings the order into `state`, and waits for the frame that says so.
    async fn step(
        &mut self,
        state: &str,
        before: Option<&str>,
        who: &str,
        request: rest::Request<'_>,
    ) -> anyhow::Result<()> {
        let label = request.label();
        let mut answer = request.send().await?;
        // A step whose answer was lost, repeated: it has been taken.
        if answer.repeated && answer.code() == "invalid_transition" {
            answer = self.rest.get(&format!("/orders/{}", self.order)).by(who).send().await?;
        }
        let order = answer.expect_success(&label)?;
        if self.order.is_empty() {
            text(order, "id")?.clone_into(&mut self.order);
        }
        let now = text(order, "status")?;
        let committed = OffsetDateTime::parse(text(order, "updated_at")?, &Rfc3339)?;
        begin(&row(&label, &answer, &ink(Ink::Bold, &format!("{now:<9}"))));
        if now != state {
            say("");
            bail!("the order should be {state} now, not {now}");
        }
        let event = self.watch.event().await?;
        let late = (event.at - committed).as_seconds_f64() * 1000.0;
        self.slowest = self.slowest.max(late);
        say(&format!("  {}", frame(&event, late)));
        let expected = (self.order.as_str(), state, before);
        let told = (event.order_id.as_str(), event.status.as_str(), event.previous.as_deref());
        if told != expected {
            bail!("the socket told of {told:?} and not of {expected:?}");
        }
        Ok(())
    }
}

async fn sign_up(rest: &Rest) -> anyhow::Result<String> {
    let (username, password) = (format!("demo-{:08x}", rand::random::<u32>()), password());
    let body =
        json!({"username": username, "email": format!("{username}@customers.example"), "password": password});
    let request = rest.post("/auth/register").body(body);
    let label = request.label();
    let answer = request.send().await?;
    if !(answer.repeated && answer.code() == "username_taken") {
        answer.expect_success(&label)?;
    }
    say(&row(&label, &answer, &username));
    let (token, _) = sign_in(rest, &username, &password).await?;
    Ok(token)
}

/// The access token and the role.
async fn sign_in(rest: &Rest, username: &str, password: &str) -> anyhow::Result<(String, String)> {
    let request = rest.post("/auth/login").body(json!({"username": username, "password": password}));
    let label = request.label();
    let answer = request.send().await?;
    let tokens = answer.expect_success(&label)?;
    let role = tokens["user"]["role"].as_str().unwrap_or_default();
    say(&row(&label, &answer, &format!("{username}, {role}")));
    Ok((text(tokens, "access_token")?.to_owned(), role.to_owned()))
}

async fn in_stock(rest: &Rest) -> anyhow::Result<Vec<Value>> {
    let request = rest.get(&format!("/products?in_stock=true&limit={PAGE}"));
    let label = request.label();
    let answer = request.send().await?;
    let found = answer.expect_success(&label)?["items"].as_array().cloned().unwrap_or_default();
    say(&row(&label, &answer, &format!("{} products", found.len())));
    Ok(found)
}

/// Puts a few things into the cart; returns what they cost.
async fn fill_cart(rest: &Rest, customer: &str, goods: &[Value]) -> anyhow::Result<i64> {
    let mut total = 0;
    for product in goods.choose_multiple(&mut rand::rng(), LINES) {
        // Set, not added: it may be repeated.
        let request =
            rest.put(&format!("/cart/items/{}", product["id"])).by(customer).body(json!({"quantity": 1}));
        let label = request.label();
        let answer = request.send().await?;
        let cart = answer.expect_success(&label)?;
        total = cart["total"].as_i64().context("a cart has a total")?;
        let name = product["name"].as_str().unwrap_or_default();
        say(&row(&label, &answer, &format!("{name}, {} in all", money(cart))));
    }
    Ok(total)
}

/// The order's history by REST must be what the socket told.
async fn history(rest: &Rest, customer: &str, order: &str, watch: &Watch) -> anyhow::Result<()> {
    let request = rest.get(&format!("/orders/{order}/events")).by(customer);
    let label = request.label();
    let answer = request.send().await?;
    let events = answer.expect_success(&label)?["items"].as_array().cloned().unwrap_or_default();
    say(&row(&label, &answer, &format!("{} events", events.len())));
    let kept: Vec<(Option<i64>, &str)> = events
        .iter()
        .map(|event| (event["seq"].as_i64(), event["status"].as_str().unwrap_or_default()))
        .collect();
    let seen: Vec<(Option<i64>, &str)> =
        watch.seen.iter().map(|event| (Some(event.seq), event.status.as_str())).collect();
    if kept == seen { Ok(()) } else { Err(anyhow!("the history says {kept:?}, the socket {seen:?}")) }
}

fn verdict(watch: &Watch, slowest: f64) -> anyhow::Result<()> {
    say("");
    let seen = watch.seen.len();
    if let Some(problem) = watch.problems.first() {
        bail!("{} {seen} events seen, but: {problem}", ink(Ink::Bad, "✗"));
    }
    let also = match watch.reconnects {
        0 => String::new(),
        1 => "; the socket came back once".to_owned(),
        times => format!("; the socket came back {times} times"),
    };
    say(&format!(
        "{} all {seen} events seen, in order, no gap; commit to frame {slowest:.1} ms at most{also}",
        ink(Ink::Good, "✓")
    ));
    Ok(())
}

fn row(label: &str, answer: &Answer, what: &str) -> String {
    let inked = if answer.status < 300 { Ink::Good } else { Ink::Notice };
    let status = ink(inked, &answer.status.to_string());
    let took = format!("{:.0} ms", answer.took.as_secs_f64() * 1000.0);
    format!("  {label:<34} → {status} {} {what}", ink(Ink::Dim, &format!("{took:>7}")))
}

fn frame(event: &Event, late: f64) -> String {
    let clock = event.at.time();
    let at =
        format!("{:02}:{:02}:{:02}.{:03}", clock.hour(), clock.minute(), clock.second(), clock.millisecond());
    let before = event.previous.as_deref().unwrap_or("new");
    format!(
        "{} seq {}: {before} → {} {}",
        ink(Ink::Notice, "◂ frame"),
        event.seq,
        event.status,
        ink(Ink::Dim, &format!("at {at}, {late:.1} ms after the commit"))
    )
}

fn money(of: &Value) -> String {
    let minor = of["total"].as_i64().unwrap_or_default();
    format!("{}.{:02} {}", minor / 100, minor % 100, of["currency"].as_str().unwrap_or_default())
}

fn text<'a>(of: &'a Value, field: &str) -> anyhow::Result<&'a str> {
    of[field].as_str().with_context(|| format!("an answer without {field}"))
}

pub fn address() -> Value {
    json!({
        "recipient": "Robin Demo",
        "line1": "1 Harbour Street",
        "city": "Bergen",
        "postal_code": "5003",
        "country": "NO",
    })
}
