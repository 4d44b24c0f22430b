//! Rate limits over all gateways, with and without Redis.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::json;
use shoppee_kit::testing::{RedisServer, eventually};

use crate::shop::{Person, TestShop, send};

/// Sends requests at a steady rate through all gateways in turn. Returns the number of admitted ones.
async fn count_admitted(shop: &TestShop, person: &Person, a_second: u32, seconds: u32) -> usize {
    let clients: Vec<Person> =
        (0..shop.gateways.len()).map(|gateway| person.through(shop, gateway)).collect();
    let started = Instant::now();
    let requests = (0..a_second * seconds).map(|number| {
        let client = clients[number as usize % clients.len()].clone();
        async move {
            tokio::time::sleep_until((started + Duration::from_secs(1) * number / a_second).into()).await;
            client.get("/cart").await.status
        }
    });
    let responses = futures_util::future::join_all(requests).await;
    assert!(responses.iter().all(|status| matches!(status, 200 | 429)), "{responses:?}");
    responses.iter().filter(|status| **status == 200).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_holds_over_three_gateways() {
    // 10 a second with a burst of 20.
    let shop = TestShop::builder()
        .gateways(3)
        .with("--rate-limits", "user=20/2s,anonymous=1000/1s")
        .exclusive()
        .start()
        .await;
    let ann = shop.customer("ann").await;
    let admitted = count_admitted(&shop, &ann, 30, 8).await;
    let fair = 20 + 8 * 10;
    assert!(admitted.abs_diff(fair) * 100 <= fair * 5, "{admitted} of {fair}");
    shop.customer("bob").await.get("/cart").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_of_a_refusal_is_accurate() {
    let shop = TestShop::builder().gateways(2).with("--rate-limits", "user=3/6s").exclusive().start().await;
    let ann = shop.customer("ann").await;
    let first = ann.get("/cart").await.expect(200);
    assert_eq!(first.header("ratelimit-policy"), "\"user\";q=3;w=6");
    assert_eq!(first.header("ratelimit"), "\"user\";r=2;t=2");
    ann.get("/cart").await.expect(200);
    ann.through(&shop, 1).get("/cart").await.expect(200);
    let refused = ann.get("/cart").await.problem(429, "rate_limited");
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert_eq!(refused.header("ratelimit"), format!("\"user\";r=0;t={wait}"));
    assert!((1..=2).contains(&wait), "{wait}");
    // Another address, gateway or session does not evade the limit.
    let elsewhere = ann.through(&shop, 1).request(Method::GET, "/cart").header("x-forwarded-for", "9.9.9.9");
    send(elsewhere).await.problem(429, "rate_limited");
    let phone = shop.sign_in(&ann.name).await;
    phone.get("/cart").await.problem(429, "rate_limited");
    tokio::time::sleep(Duration::from_secs(wait)).await;
    ann.get("/cart").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarded_addresses_count_only_from_trusted_proxies() {
    let shop = TestShop::builder()
        .gateways(2)
        .with("--trusted-proxies", "127.0.0.0/8,10.0.0.0/8")
        .with("--rate-limits", "anonymous=2/60s")
        .exclusive()
        .start()
        .await;
    let guest = shop.guest();
    let from = |address: &'static str| {
        send(guest.request(Method::GET, "/products").header("x-forwarded-for", address))
    };
    from("203.0.113.1").await.expect(200);
    from("9.9.9.9, 203.0.113.1").await.expect(200);
    from("8.8.8.8, 203.0.113.1, 10.0.0.3").await.problem(429, "rate_limited");
    from("203.0.113.2").await.expect(200);
    from("2001:db8::1").await.expect(200);
    from("2001:db8::2").await.expect(200);
    from("2001:db8::3").await.problem(429, "rate_limited");
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_in_is_limited_by_address_with_redis_and_without() {
    let mut shop = TestShop::builder()
        .gateways(3)
        .with("--rate-limits", "login=9/60s,anonymous=1000/1s")
        .with("--trusted-proxies", "127.0.0.0/8")
        .exclusive()
        .start()
        .await;
    let ann = shop.customer("ann").await;
    let guess = async |shop: &TestShop, address: &str, number: usize| {
        let account = json!({"username": format!("somebody{number}"), "password": "wrong password"});
        let guest = shop.guest().through(shop, number % 3);
        send(guest.request(Method::POST, "/auth/login").header("x-forwarded-for", address).json(&account))
            .await
    };
    let (first, second) = ("203.0.113.1", "203.0.113.2");
    for number in 0..9 {
        guess(&shop, first, number).await.problem(401, "invalid_credentials");
    }
    let refused = guess(&shop, first, 9).await.problem(429, "too_many_attempts");
    assert!(refused.header("ratelimit").contains("\"login\";r=0"));

    let port = shop.redis.port();
    shop.redis.kill();
    // The gateways remember the counts of the lost Redis.
    for number in 0..3 {
        guess(&shop, first, number).await.problem(429, "too_many_attempts");
    }
    // Each gateway now counts locally, with a third of the limit: nine in all.
    let mut tried = 0;
    for number in 0..30 {
        let response = guess(&shop, second, number).await;
        if response.status == 401 {
            tried += 1;
        } else {
            response.problem(429, "too_many_attempts");
        }
    }
    assert_eq!(tried, 9);
    let started = Instant::now();
    ann.get("/products").await.expect(200);
    ann.get("/auth/me").await.expect(200);
    assert!(started.elapsed() < Duration::from_secs(2), "the shop goes on");

    shop.redis = RedisServer::start_on(port).await;
    let back = Instant::now();
    // The new Redis has no counts. A gateway uses it again when it admits more than its third.
    eventually("limits are global again", || async {
        guess(&shop, second, 0).await.header("ratelimit").contains("\"login\";r=8")
    })
    .await;
    assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
}
