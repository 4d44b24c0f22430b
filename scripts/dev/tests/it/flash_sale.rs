//! The control port of `scripts/up`: its access rules, and a flash sale while a gateway is killed.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lifecycle::Checkout;

/// Bounds the sign-ins of the buyers, and the sale: a few seconds each on an idle machine.
const PHASE_TIMEOUT: Duration = Duration::from_mins(1);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The control port as its page uses it.
struct Page {
    client: reqwest::Client,
    url: String,
    origin: String,
    session: String,
}

/// Splits the address of the page into its origin, the URL of the control port, and the token.
fn parse(address: &str) -> (String, String, String) {
    let (origin, rest) = address.split_once("/demo#").expect("a page");
    let (port, token) = rest.split_once('.').expect("a port and a token");
    (origin.to_owned(), format!("http://127.0.0.1:{port}"), token.to_owned())
}

impl Page {
    async fn open(client: &reqwest::Client, address: &str) -> Option<Self> {
        let (origin, url, token) = parse(address);
        let request =
            client.post(format!("{url}/session")).header("origin", &origin).json(&json!({"token": token}));
        let response = request.send().await.expect("a response");
        if response.status() == 401 {
            return None;
        }
        let session: Value = response.json().await.expect("a session");
        let session = session["session"].as_str().expect("a key").to_owned();
        Some(Self { client: client.clone(), url, origin, session })
    }

    async fn post(&self, path: &str) -> u16 {
        let request = self.client.post(format!("{}{path}", self.url)).header("origin", &self.origin);
        request.bearer_auth(&self.session).send().await.expect("a response").status().as_u16()
    }

    /// Returns the present state: the first event of a stream.
    async fn state(&self) -> Value {
        let request = self.client.get(format!("{}/state", self.url)).header("origin", &self.origin);
        let mut response = request.bearer_auth(&self.session).send().await.expect("a stream");
        let mut text = String::new();
        while !text.ends_with("\n\n") {
            let chunk = response.chunk().await.expect("a stream").expect("an event");
            text.push_str(std::str::from_utf8(&chunk).expect("text"));
        }
        serde_json::from_str(text.trim().strip_prefix("data: ").expect("data")).expect("JSON")
    }

    async fn state_when(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let state = self.state().await;
            if holds(&state) {
                return state;
            }
            assert!(started.elapsed() < PHASE_TIMEOUT, "{what}: {state}");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

#[tokio::test]
async fn a_flash_sale_is_exact_while_a_gateway_is_killed_and_its_port_refuses_other_pages() {
    let checkout = Checkout::new("flash-sale");
    checkout.succeeds("up", &["--detach", "--gateways", "3", "--products", "20"]);
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let demo_address = || checkout.run_file()["demo"].as_str().expect("an address").to_owned();
    let address = demo_address();
    let (origin, url, _) = parse(&address);
    let status_of = async |host: &str, origin: &str| {
        let request = client.get(format!("{url}/state")).header("host", host).header("origin", origin);
        request.send().await.expect("a response").status().as_u16()
    };
    let own_host = url.trim_start_matches("http://");
    assert_eq!(status_of("rebound.example", &origin).await, 421);
    assert_eq!(status_of(own_host, "http://other.example").await, 403);
    assert_eq!(status_of(own_host, &url).await, 403);
    assert_eq!(status_of(own_host, &origin).await, 401);
    let long = json!({"token": "0".repeat(4096)});
    let request = client.post(format!("{url}/session")).header("origin", &origin).json(&long);
    assert_eq!(request.send().await.expect("a response").status(), 413);
    let policy = client.get(format!("{origin}/demo")).send().await.expect("the page");
    let policy = policy.headers()["content-security-policy"].to_str().expect("text").to_owned();
    assert!(policy.contains(&format!("connect-src 'self' {url};")), "{policy}");

    // The address is good once; the next one is in run.json.
    let page = Page::open(&client, &address).await.expect("a session");
    assert!(Page::open(&client, &address).await.is_none());
    let started = Instant::now();
    while demo_address() == address {
        assert!(started.elapsed() < PHASE_TIMEOUT, "run.json has the next address");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    assert!(Page::open(&client, &demo_address()).await.is_some());

    page.state_when("the buyers are signed in", |state| state["buyers"]["ready"] == 300).await;
    assert_eq!(page.post("/sale").await, 202);
    assert_eq!(page.post("/sale").await, 409, "one at a time");
    let before = page.state_when("the sale runs", |state| state["sale"]["buyers"] == 300).await;
    assert_eq!(page.post("/gateways/1/kill").await, 202);
    assert_eq!(page.post("/gateways/3/kill").await, 404);
    let is_over = |state: &Value| ["done", "failed"].iter().any(|phase| state["sale"]["phase"] == *phase);
    let state = page.state_when("the sale is over", is_over).await;
    let sale = &state["sale"];
    let numbers = ["ordered", "refused", "paid", "left"].map(|name| &sale[name]);
    assert_eq!(numbers, [100, 200, 100, 0], "{sale}");
    let ledger = json!({"supplied": 100, "available": 0, "held": 0, "sold": 100, "orders": 100});
    assert_eq!(sale["ledger"], ledger, "{sale}");
    let pid = |state: &Value| state["gateways"][1]["pid"].clone();
    let is_restarted = |state: &Value| pid(state) != pid(&before) && state["gateways"][1]["is_up"] == true;
    page.state_when("the gateway is back", is_restarted).await;
}
