//! The machine-readable members of a problem beside its code.

use serde_json::json;

use crate::shop::{PASSWORD, TestShop, address, text};

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_order_names_its_lines() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let (lamp, cup) = (shop.product(&admin, 100, 2).await, shop.product(&admin, 50, 9).await);
    let order = |lines: &[(&serde_json::Value, i64)]| {
        let items: Vec<_> = lines
            .iter()
            .map(|(product, quantity)| json!({"product_id": product["id"], "quantity": quantity}))
            .collect();
        json!({"items": items, "shipping_address": address()})
    };
    let line = |product: &serde_json::Value, requested: i64, available: i64| {
        json!({"product_id": product["id"], "sku": product["sku"], "requested": requested,
               "available": available})
    };
    let short = ann.post("/orders", &order(&[(&lamp, 3), (&cup, 1)])).await.problem(409, "out_of_stock");
    assert_eq!(short.body["lines"], json!([line(&lamp, 3, 2)]));

    let own = ann.post("/orders", &order(&[(&lamp, 2)])).await.expect(201).body;
    let short = ann.post("/orders", &order(&[(&lamp, 1)])).await.problem(409, "out_of_stock");
    let mut refused_line = line(&lamp, 1, 0);
    refused_line["held_by_your_order"] = own["id"].clone();
    assert_eq!(short.body["lines"], json!([refused_line]));

    let mut old = order(&[(&cup, 2)]);
    old["expected_total"] = json!(80);
    let changed = ann.post("/orders", &old).await.problem(409, "price_changed");
    let mut priced = line(&cup, 2, 9);
    priced["unit_price"] = json!(50);
    assert_eq!((&changed.body["current_total"], &changed.body["lines"]), (&json!(100), &json!([priced])));

    admin.delete(&format!("/products/{}", cup["id"])).await.expect(204);
    let gone = ann.post("/orders", &order(&[(&cup, 2)])).await.problem(409, "product_unavailable");
    assert_eq!(gone.body["lines"], json!([line(&cup, 2, 0)]));
    let gone = ann.post("/cart/items", &json!({"product_id": cup["id"], "quantity": 2})).await;
    assert_eq!(gone.problem(409, "product_unavailable").body["lines"], json!([line(&cup, 2, 0)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_step_or_payment_states_its_reason() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = shop.product(&admin, 100, 2).await;
    let order = ann.orders(&product, 1).await.expect(201).body;
    let path = format!("/orders/{}", text(&order["id"]));
    let early = ann.post(&format!("{path}/complete"), &json!({})).await.problem(409, "invalid_transition");
    assert_eq!(early.body["current_status"], "pending");
    assert_eq!(early.body["allowed"], json!(["pay", "cancel"]));
    let pay = json!({"payment_token": "tok_insufficient_funds"});
    let declined = ann.post(&format!("{path}/pay"), &pay).await.problem(402, "payment_declined");
    assert_eq!(declined.body["decline_code"], "insufficient_funds");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reached_limit_is_named() {
    let shop =
        TestShop::builder().with("--rate-limits", "anonymous=1000/1s,login=1000/1s,user=2/60s").start().await;
    let ann = shop.customer("ann").await;
    let username = ann.get("/auth/me").await.expect(200).body["username"].clone();
    ann.get("/auth/me").await.expect(200);
    assert_eq!(ann.get("/auth/me").await.problem(429, "rate_limited").body["limit"], "user");

    let wrong = json!({"username": username, "password": format!("{PASSWORD}!")});
    for _ in 0..10 {
        shop.guest().post("/auth/login", &wrong).await.problem(401, "invalid_credentials");
    }
    let locked = shop.guest().post("/auth/login", &wrong).await.problem(429, "too_many_attempts");
    assert_eq!(locked.body["limit"], "account");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_faulty_fields_are_named_at_once() {
    let shop = TestShop::start().await;
    let ann = shop.customer("ann").await;
    let order = json!({"items": [{"product_id": "1"}, {"product_id": 1, "quantity": 1.5}],
                       "shipping_address": {"line1": "High Street 1", "zip": "1"}});
    let response = ann.post("/orders", &order).await.problem(400, "invalid_request");
    let mut fields = response.fields();
    fields.sort_unstable();
    assert_eq!(
        fields,
        [
            "items[0].product_id",
            "items[0].quantity",
            "items[1].quantity",
            "shipping_address.city",
            "shipping_address.country",
            "shipping_address.postal_code",
            "shipping_address.recipient",
            "shipping_address.zip",
        ]
    );
    let response = ann.get("/products?limit=x&page=2&in_stock=yes&sort=name").await;
    let response = response.problem(400, "invalid_request");
    let mut fields = response.fields();
    fields.sort_unstable();
    assert_eq!(fields, ["in_stock", "limit", "page"]);
}
