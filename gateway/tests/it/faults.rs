//! Unavailable parts of the shop.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};
use shoppee_kit::testing::eventually;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::shop::{Person, TestShop, send};

/// Starts a server that accepts connections and never responds.
pub async fn silent_server() -> (std::net::SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("an address");
    let task = tokio::spawn(async move {
        let mut connections = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.push(stream);
        }
    });
    (addr, task)
}

/// Bounds a response while a part is unavailable.
const MAX_UNAVAILABLE_LATENCY: Duration = Duration::from_millis(2500);

pub async fn expect_unavailable(person: &Person, path: &str) {
    let started = Instant::now();
    let response = person.without_retries().get(path).await;
    assert!(started.elapsed() < MAX_UNAVAILABLE_LATENCY, "{path} took {:?}", started.elapsed());
    if response.status == 504 {
        response.problem(504, "deadline_exceeded");
    } else {
        response.problem(503, "unavailable");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_service_fails_requests_fast() {
    // The name has two addresses on most machines; no process listens on one of them.
    let mut shop = TestShop::builder().services_by_name().exclusive().start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = shop.product(&admin, 100, 10).await;
    for _ in 0..20 {
        ann.get("/cart").await.expect(200);
    }
    shop.without_order_service(async |_| {
        expect_unavailable(&ann, "/cart").await;
        let started = Instant::now();
        ann.without_retries().orders(&product, 1).await.problem(503, "unavailable");
        assert!(started.elapsed() < MAX_UNAVAILABLE_LATENCY, "{:?}", started.elapsed());
        // Other routes are not affected.
        ann.get(&format!("/products/{}", product["id"])).await.expect(200);
        ann.get("/auth/me").await.expect(200);
        eventually("/readyz tells", || async { ann.without_retries().get("//readyz").await.status == 503 })
            .await;
        ann.get("//healthz").await.expect(200);
    })
    .await;
    let back = Instant::now();
    eventually("it goes on", || async { ann.get("/cart").await.status == 200 }).await;
    eventually("/readyz tells", || async { ann.get("//readyz").await.status == 200 }).await;
    assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
    ann.orders(&product, 1).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_service_is_missing_in_the_status() {
    let (silent, _task) = silent_server().await;
    let shop = TestShop::builder()
        .with("--order-url", &format!("http://{silent}"))
        .exclusive()
        .start_without_ready()
        .await;
    let admin = shop.admin().await;
    for _ in 0..2 {
        let started = Instant::now();
        let status = admin.without_retries().get("/admin/status").await.expect(200).body;
        assert!(started.elapsed() < Duration::from_millis(1500), "{:?}", started.elapsed());
        assert_eq!(status["order"], Value::Null);
        assert!(status["auth"].is_object() && status["product"].is_object(), "{status}");
        let missed = status["gateway"]["unavailable_dependencies"].as_array().expect("names");
        assert!(missed.contains(&json!("order")), "{missed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_service_fails_requests_fast() {
    let (silent, _task) = silent_server().await;
    let shop = TestShop::builder()
        .with("--order-url", &format!("http://{silent}"))
        .exclusive()
        .start_without_ready()
        .await;
    let ann = shop.customer("ann").await;
    expect_unavailable(&ann, "/cart").await;
    ann.get("/products").await.expect(200);
    let response = ann.without_retries().post("/cart/items", &json!({"product_id": 1, "quantity": 1})).await;
    assert!(matches!(response.status, 503 | 504), "{}", response.text);
    // A payment may take long, but not at a silent service; with a key it could be repeated.
    for key in [None, Some("a-key")] {
        let path = "/orders/0199d5a8-0000-7000-8000-000000000000/pay";
        let mut pay = ann.request(Method::POST, path).json(&json!({"payment_token": "tok_ok"}));
        if let Some(key) = key {
            pay = pay.header("idempotency-key", key);
        }
        let started = Instant::now();
        send(pay).await.problem(503, "unavailable");
        assert!(started.elapsed() < MAX_UNAVAILABLE_LATENCY, "{:?}", started.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shop_works_without_redis() {
    let mut shop =
        TestShop::builder().gateways(2).with("--rate-limits", "user=1000/1s").exclusive().start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = shop.product(&admin, 100, 10).await;
    shop.redis.kill();
    let started = Instant::now();
    for gateway in [0, 1] {
        let ann = ann.through(&shop, gateway);
        ann.get(&format!("/products/{}", product["id"])).await.expect(200);
        ann.orders(&product, 1).await.expect(201);
    }
    assert!(started.elapsed() < MAX_UNAVAILABLE_LATENCY, "{:?}", started.elapsed());
    eventually("/readyz tells", || async { ann.without_retries().get("//readyz").await.status == 503 }).await;
}

/// A proxy sends requests to every listening gateway: a starting one must serve them, like a stopping one.
#[tokio::test(flavor = "multi_thread")]
async fn a_starting_gateway_answers_requests() {
    let mut shop = TestShop::start().await;
    let ann = shop.customer("ann").await;
    shop.add_gateway_with_auth_latency(Duration::from_millis(300)).await;
    ann.through(&shop, 1).get("/cart").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_gateway_answers_pending_requests() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = shop.product(&admin, 100, 10).await;
    let order = ann.orders(&product, 1).await.expect(201).body;
    let path = format!("/orders/{}/pay", crate::shop::text(&order["id"]));
    let slow = tokio::spawn({
        let ann = ann.clone();
        async move { ann.post(&path, &json!({"payment_token": "tok_slow"})).await }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    shop.gateways[0].stop().await;
    assert_eq!(slow.await.expect("answered").expect(200).body["status"], "paid");
}
