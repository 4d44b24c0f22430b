//! `scripts/demo`: drives one order from registration to completion by REST through one gateway, and receives its events on
//! a WebSocket of another. Processes may be killed meanwhile: requests are retried with their idempotency key, and the
//! WebSocket resumes.

mod products;
mod target;

use std::{path::Path, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use rand::seq::IndexedRandom as _;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    event_stream::{Event, EventStream},
    output::{Style, print_line, print_partial, styled},
    rest::{self, Response, Rest},
    secrets::generate_password,
};
use target::Target;
pub use target::parse_address;

/// Products that the demo chooses from.
const PAGE_SIZE: usize = 50;
const ORDER_LINES: usize = 3;

/// Drives one order through its whole life, and shows each response with the WebSocket frame it causes
#[derive(Debug, Args)]
pub struct Options {
    /// Milliseconds between two steps, which leave time to kill a process
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pause: u64,
    /// The URL of a deployed shop to use instead of the one of scripts/up, like `https://shop.example`; given twice, the
    /// socket goes to the second
    #[arg(long, value_name = "URL")]
    url: Vec<String>,
    /// The admin account that ships the order in a deployed shop; the password is taken from ADMIN_PASSWORD
    #[arg(long, value_name = "NAME", default_value = "admin", requires = "url")]
    admin_user: String,
    /// Creates a few products first if nothing is in stock
    #[arg(long)]
    stock: bool,
}

pub const AFTER_HELP: &str = "Environment:
  ADMIN_PASSWORD  of the admin of a deployed shop
  SSL_CERT_FILE   authorities to trust instead of this host's

A customer demo-… with one completed order is left in the shop, and what --stock created.";

pub async fn run(state: &Path, options: &Options) -> anyhow::Result<()> {
    let shop = if options.url.is_empty() {
        Target::of_this_checkout(state)?
    } else {
        Target::deployed(&options.url, &options.admin_user).await?
    };
    let rest = Rest::new(&shop.rest)?;
    let pause = Duration::from_millis(options.pause);

    print_line(&format!("{}  REST {}, socket {}", styled(Style::Bold, "Shoppee"), shop.rest, shop.socket));
    print_line("");
    // Checked first, so that a run without an admin leaves nothing in the shop.
    let (admin, role) = sign_in(&rest, &shop.admin.username, &shop.admin.password).await?;
    if role != "admin" {
        bail!("{} is not an admin of this shop: the order could not be shipped", shop.admin.username);
    }
    let mut goods = list_in_stock(&rest).await?;
    if goods.is_empty() && options.stock {
        goods = products::create(&rest, &admin).await?;
    }
    if goods.is_empty() {
        bail!("nothing is in stock in this shop; --stock creates a few products first");
    }
    let customer = sign_up(&rest).await?;
    let mut stream = EventStream::open(&shop.socket, &customer).await?;
    let total = fill_cart(&rest, &customer, &goods).await?;

    let key = format!("demo-{:016x}", rand::random::<u64>());
    let request = rest
        .post("/orders")
        .bearer(&customer)
        .idempotency_key(&format!("{key}-order"))
        .body(json!({"shipping_address": address(), "expected_total": total}));
    let mut demo = Demo { rest: &rest, stream: &mut stream, order: String::new(), max_lag: 0.0 };
    demo.step("pending", None, &customer, request).await?;
    let order = demo.order.clone();
    let payment = json!({"payment_token": "tok_ok"});
    let parcel =
        json!({"carrier": "Slow Mail", "tracking_number": format!("SM{:010}", rand::random::<u32>())});
    let steps = [
        ("paid", "pending", "pay", &customer, payment, Some(format!("{key}-pay"))),
        ("shipped", "paid", "ship", &admin, parcel, None),
        ("completed", "shipped", "complete", &customer, json!({}), None),
    ];
    for (state, previous, verb, token, body, key) in steps {
        tokio::time::sleep(pause).await;
        let mut request = rest.post(&format!("/orders/{order}/{verb}")).bearer(token);
        if let Some(key) = key {
            request = request.idempotency_key(&key);
        }
        if body != json!({}) {
            request = request.body(body);
        }
        demo.step(state, Some(previous), token, request).await?;
    }
    let max_lag = demo.max_lag;
    check_history(&rest, &customer, &order, &stream).await?;
    print_result(&stream, max_lag)
}

struct Demo<'a> {
    rest: &'a Rest,
    stream: &'a mut EventStream,
    order: String,
    /// The longest time from commit to frame. Milliseconds.
    max_lag: f64,
}

impl Demo<'_> {
    /// Sends the request that moves the order to `state`, and waits for the frame of that change.
    async fn step(
        &mut self,
        state: &str,
        previous: Option<&str>,
        token: &str,
        request: rest::Request<'_>,
    ) -> anyhow::Result<()> {
        let label = request.label();
        let mut response = request.send().await?;
        // A retried step whose first response was lost has been applied.
        if response.retried && response.code() == "invalid_transition" {
            response = self.rest.get(&format!("/orders/{}", self.order)).bearer(token).send().await?;
        }
        let order = response.expect_success(&label)?;
        if self.order.is_empty() {
            text(order, "id")?.clone_into(&mut self.order);
        }
        let now = text(order, "status")?;
        let committed = OffsetDateTime::parse(text(order, "updated_at")?, &Rfc3339)?;
        print_partial(&row(&label, &response, &styled(Style::Bold, &format!("{now:<9}"))));
        if now != state {
            print_line("");
            bail!("the order should be {state} now, not {now}");
        }
        let event = self.stream.next_or_timeout().await?;
        let lag = (event.received_at - committed).as_seconds_f64() * 1000.0;
        self.max_lag = self.max_lag.max(lag);
        print_line(&format!("  {}", frame(&event, lag)));
        let expected = (self.order.as_str(), state, previous);
        let received = (event.order_id.as_str(), event.status.as_str(), event.previous_status.as_deref());
        if received != expected {
            bail!("the socket delivered {received:?} and not {expected:?}");
        }
        Ok(())
    }
}

async fn sign_up(rest: &Rest) -> anyhow::Result<String> {
    let (username, password) = (format!("demo-{:08x}", rand::random::<u32>()), generate_password());
    let body =
        json!({"username": username, "email": format!("{username}@customers.example"), "password": password});
    let request = rest.post("/auth/register").body(body);
    let label = request.label();
    let response = request.send().await?;
    if !(response.retried && response.code() == "username_taken") {
        response.expect_success(&label)?;
    }
    print_line(&row(&label, &response, &username));
    let (token, _) = sign_in(rest, &username, &password).await?;
    Ok(token)
}

/// Signs in, and returns the access token and the role.
async fn sign_in(rest: &Rest, username: &str, password: &str) -> anyhow::Result<(String, String)> {
    let request = rest.post("/auth/login").body(json!({"username": username, "password": password}));
    let label = request.label();
    let response = request.send().await?;
    let tokens = response.expect_success(&label)?;
    let role = tokens["user"]["role"].as_str().unwrap_or_default();
    print_line(&row(&label, &response, &format!("{username}, {role}")));
    Ok((text(tokens, "access_token")?.to_owned(), role.to_owned()))
}

async fn list_in_stock(rest: &Rest) -> anyhow::Result<Vec<Value>> {
    let request = rest.get(&format!("/products?in_stock=true&limit={PAGE_SIZE}"));
    let label = request.label();
    let response = request.send().await?;
    let products = response.expect_success(&label)?["items"].as_array().cloned().unwrap_or_default();
    print_line(&row(&label, &response, &format!("{} products", products.len())));
    Ok(products)
}

/// Puts a few products into the cart, and returns the total.
async fn fill_cart(rest: &Rest, customer: &str, goods: &[Value]) -> anyhow::Result<i64> {
    let mut total = 0;
    for product in goods.choose_multiple(&mut rand::rng(), ORDER_LINES) {
        // PUT sets the quantity, so that a retry changes nothing.
        let request =
            rest.put(&format!("/cart/items/{}", product["id"])).bearer(customer).body(json!({"quantity": 1}));
        let label = request.label();
        let response = request.send().await?;
        let cart = response.expect_success(&label)?;
        total = cart["total"].as_i64().context("a cart has a total")?;
        let name = product["name"].as_str().unwrap_or_default();
        print_line(&row(&label, &response, &format!("{name}, {} in all", money(cart))));
    }
    Ok(total)
}

/// Compares the order's events by REST with those of the WebSocket.
async fn check_history(rest: &Rest, customer: &str, order: &str, stream: &EventStream) -> anyhow::Result<()> {
    let request = rest.get(&format!("/orders/{order}/events")).bearer(customer);
    let label = request.label();
    let response = request.send().await?;
    let events = response.expect_success(&label)?["items"].as_array().cloned().unwrap_or_default();
    print_line(&row(&label, &response, &format!("{} events", events.len())));
    let stored: Vec<(Option<i64>, &str)> = events
        .iter()
        .map(|event| (event["seq"].as_i64(), event["status"].as_str().unwrap_or_default()))
        .collect();
    let received: Vec<(Option<i64>, &str)> =
        stream.events.iter().map(|event| (Some(event.seq), event.status.as_str())).collect();
    if stored == received {
        Ok(())
    } else {
        Err(anyhow!("the history has {stored:?}, the socket {received:?}"))
    }
}

fn print_result(stream: &EventStream, max_lag: f64) -> anyhow::Result<()> {
    print_line("");
    let count = stream.events.len();
    if let Some(problem) = stream.problems.first() {
        bail!("{} {count} events seen, but: {problem}", styled(Style::Bad, "✗"));
    }
    let reconnects = match stream.reconnects {
        0 => String::new(),
        1 => "; the socket came back once".to_owned(),
        times => format!("; the socket came back {times} times"),
    };
    print_line(&format!(
        "{} all {count} events seen, in order, no gap; commit to frame {max_lag:.1} ms at most{reconnects}",
        styled(Style::Good, "✓")
    ));
    Ok(())
}

fn row(label: &str, response: &Response, detail: &str) -> String {
    let style = if response.status < 300 { Style::Good } else { Style::Notice };
    let status = styled(style, &response.status.to_string());
    let latency = format!("{:.0} ms", response.latency.as_secs_f64() * 1000.0);
    format!("  {label:<34} → {status} {} {detail}", styled(Style::Dim, &format!("{latency:>7}")))
}

fn frame(event: &Event, lag: f64) -> String {
    let clock = event.received_at.time();
    let at =
        format!("{:02}:{:02}:{:02}.{:03}", clock.hour(), clock.minute(), clock.second(), clock.millisecond());
    let previous = event.previous_status.as_deref().unwrap_or("new");
    format!(
        "{} seq {}: {previous} → {} {}",
        styled(Style::Notice, "◂ frame"),
        event.seq,
        event.status,
        styled(Style::Dim, &format!("at {at}, {lag:.1} ms after the commit"))
    )
}

fn money(of: &Value) -> String {
    let minor = of["total"].as_i64().unwrap_or_default();
    format!("{}.{:02} {}", minor / 100, minor % 100, of["currency"].as_str().unwrap_or_default())
}

fn text<'a>(of: &'a Value, field: &str) -> anyhow::Result<&'a str> {
    of[field].as_str().with_context(|| format!("an response without {field}"))
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
