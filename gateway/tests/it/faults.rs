//! Parts of the shop that are away.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::json;
use shoppee_kit::testing::eventually;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::shop::{Person, Shop, send};

/// A socket that accepts, and says nothing.
pub async fn silence() -> (std::net::SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("an address");
    let task = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    (addr, task)
}

/// How long an answer may take where a part is away.
const PROMISED: Duration = Duration::from_millis(2500);

pub async fn refused(person: &Person, path: &str) {
    let started = Instant::now();
    let answer = person.without_retries().get(path).await;
    assert!(started.elapsed() < PROMISED, "{path} took {:?}", started.elapsed());
    if answer.status == 504 {
        answer.problem(504, "deadline_exceeded");
    } else {
        answer.problem(503, "unavailable");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_gone_is_not_waited_for() {
    // By a name with two addresses on most machines, on one of which nobody listens.
    let mut shop = Shop::plan().by_name().alone().open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = shop.product(&admin, 100, 10).await;
    for _ in 0..20 {
        ann.get("/cart").await.expect(200);
    }
    shop.without_orders(async |_| {
        refused(&ann, "/cart").await;
        let started = Instant::now();
        ann.without_retries().orders(&product, 1).await.problem(503, "unavailable");
        assert!(started.elapsed() < PROMISED, "{:?}", started.elapsed());
        // The others are not concerned.
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
async fn a_service_that_says_nothing_is_not_waited_for() {
    let (silent, _task) = silence().await;
    let shop = Shop::plan().with("--order-url", &format!("http://{silent}")).alone().open_unready().await;
    let ann = shop.customer("ann").await;
    refused(&ann, "/cart").await;
    ann.get("/products").await.expect(200);
    let answer = ann.without_retries().post("/cart/items", &json!({"product_id": 1, "quantity": 1})).await;
    assert!(matches!(answer.status, 503 | 504), "{}", answer.text);
    // A payment may take its time, but only at a service that lives; with a key it could be repeated.
    for key in [None, Some("a-key")] {
        let path = "/orders/0199d5a8-0000-7000-8000-000000000000/pay";
        let mut pay = ann.request(Method::POST, path).json(&json!({"payment_token": "tok_ok"}));
        if let Some(key) = key {
            pay = pay.header("idempotency-key", key);
        }
        let started = Instant::now();
        send(pay).await.problem(503, "unavailable");
        assert!(started.elapsed() < PROMISED, "{:?}", started.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_away_is_hardly_noticed() {
    let mut shop = Shop::plan().gateways(2).with("--rate-limits", "user=1000/1s").alone().open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = shop.product(&admin, 100, 10).await;
    shop.redis.kill();
    let started = Instant::now();
    for gateway in [0, 1] {
        let ann = ann.through(&shop, gateway);
        ann.get(&format!("/products/{}", product["id"])).await.expect(200);
        ann.orders(&product, 1).await.expect(201);
    }
    assert!(started.elapsed() < PROMISED, "{:?}", started.elapsed());
    eventually("/readyz tells", || async { ann.without_retries().get("//readyz").await.status == 503 }).await;
}

/// A proxy sends requests to whoever listens: as little as one that stops may one that starts refuse them.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_starts_answers_what_it_is_asked() {
    let mut shop = Shop::open().await;
    let ann = shop.customer("ann").await;
    shop.gateway_far_from_auth(Duration::from_millis(300)).await;
    ann.through(&shop, 1).get("/cart").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_stops_answers_what_it_was_asked() {
    let shop = Shop::open().await;
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
