//! Races in the complete shop with three gateways: no unit is sold twice, no order is duplicated, no update is lost.

use std::collections::HashSet;

use futures_util::future::join_all;
use serde_json::json;

use crate::shop::{ApiResponse, Person, TestShop, text};

/// Bounds the unpaid orders of one customer.
const MAX_UNPAID_ORDERS: usize = 20;

async fn customers(shop: &TestShop, count: usize) -> Vec<Person> {
    let mut customers = Vec::new();
    for number in 0..count {
        customers.push(shop.customer("buyer").await.through(shop, number % shop.gateways.len()));
    }
    customers
}

fn with_status(responses: &[ApiResponse], status: u16) -> Vec<&ApiResponse> {
    responses.iter().filter(|response| response.status == status).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_unit_is_sold_once_to_concurrent_buyers() {
    const BUYERS: usize = 200;
    let shop = TestShop::builder().gateways(3).exclusive().start().await;
    let admin = shop.admin().await;
    let customers = customers(&shop, BUYERS / 5).await;
    for _ in 0..3 {
        let product = shop.product(&admin, 100, 1).await;
        let buyers = customers.iter().cycle().take(BUYERS);
        let responses = join_all(buyers.map(|buyer| buyer.orders(&product, 1))).await;
        let outcomes: Vec<(u16, &str)> = responses
            .iter()
            .map(|response| (response.status, response.body["detail"].as_str().unwrap_or("ok")))
            .collect();
        assert_eq!(with_status(&responses, 201).len(), 1, "{outcomes:?}");
        for loser in responses.into_iter().filter(|response| response.status != 201) {
            loser.problem(409, "out_of_stock");
        }
        let remaining = admin.get(&format!("/products/{}", product["id"])).await.expect(200).body;
        assert_eq!(remaining["stock"], 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_repeats_of_a_key_create_one_order() {
    const KEYS: usize = 20;
    let shop = TestShop::builder().gateways(3).exclusive().start().await;
    let admin = shop.admin().await;
    let product = shop.product(&admin, 100, 1000).await;
    let customers = customers(&shop, KEYS.div_ceil(MAX_UNPAID_ORDERS - 10)).await;
    let mut ids = HashSet::new();
    for number in 0..KEYS {
        let customer = &customers[number % customers.len()];
        let key = format!("key-{number}");
        let clients: Vec<Person> = (0..50).map(|client| customer.through(&shop, client % 3)).collect();
        let responses =
            join_all(clients.iter().map(|client| client.orders_with_key(&product, 1, &key))).await;
        let created = with_status(&responses, 201);
        assert!(!created.is_empty());
        let of_key: HashSet<&str> = created.iter().map(|response| text(&response.body["id"])).collect();
        assert_eq!(of_key.len(), 1, "one key, one order");
        assert_eq!(
            created.iter().filter(|response| response.header("idempotent-replayed").is_empty()).count(),
            1
        );
        ids.extend(of_key.into_iter().map(str::to_owned));
        for response in responses.into_iter().filter(|response| response.status != 201) {
            response.problem(409, "request_in_progress");
        }
    }
    assert_eq!(ids.len(), KEYS);
    let remaining = admin.get(&format!("/products/{}", product["id"])).await.expect(200).body;
    assert_eq!(remaining["stock"], 1000 - KEYS);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_adds_of_two_devices_fill_one_cart() {
    let shop = TestShop::builder().gateways(3).exclusive().start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = shop.product(&admin, 100, 1000).await;
    let line = json!({"product_id": product["id"], "quantity": 1});
    let devices = [ann.through(&shop, 1), ann.through(&shop, 2)];
    let adds = devices.iter().map(async |device| {
        for _ in 0..100 {
            device.post("/cart/items", &line).await.expect(200);
        }
    });
    join_all(adds).await;
    let cart = ann.get("/cart").await.expect(200).body;
    assert_eq!((&cart["items"][0]["quantity"], &cart["total"]), (&json!(200), &json!(20_000)));
}
