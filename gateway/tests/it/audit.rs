//! `GET /admin/audit`: the records of all services in one list.

use http::Method;
use serde_json::{Value, json};

use crate::shop::{Person, TestShop, send, text};

/// Returns all records that a query selects, page by page.
async fn records(admin: &Person, query: &str) -> Vec<Value> {
    let (mut records, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = admin.get(&format!("/admin/audit?limit=3&{query}{cursor}")).await.expect(200).body;
        let items = page["items"].as_array().expect("a list");
        assert!(items.len() <= 3, "{page}");
        records.extend(items.iter().cloned());
        let Some(next) = page["next_cursor"].as_str() else { return records };
        cursor = format!("&cursor={next}");
    }
}

fn actions(records: &[Value]) -> Vec<&str> {
    records.iter().map(|record| text(&record["action"])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_acts_of_all_services_are_one_list_with_their_requests() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = shop.product(&admin, 100, 10).await;
    let target = format!("product:{}", product["id"]);
    let order = ann.orders(&product, 1).await.expect(201).body;
    let id = text(&order["id"]);
    ann.post(&format!("/orders/{id}/pay"), &json!({"payment_token": "tok_ok"})).await.expect(200);
    let shipment = json!({"carrier": "Post", "tracking_number": "3S-1"});
    let request = admin.request(Method::POST, &format!("/orders/{id}/ship")).json(&shipment);
    send(request.header("x-request-id", "my-shipment")).await.expect(200);
    let change = admin.request(Method::PATCH, &format!("/products/{}", product["id"]));
    let change = send(change.json(&json!({"price": 90}))).await.expect(200);
    admin
        .post("/admin/service-accounts", &json!({"name": "store", "scopes": ["orders:ship"]}))
        .await
        .expect(201);
    let update = admin.request(Method::PATCH, &format!("/admin/users/{}", ann.id));
    send(update.json(&json!({"disabled": true}))).await.expect(200);

    let all = records(&admin, "").await;
    let expected =
        ["user.update", "service_account.create", "product.update", "order.ship", "product.create"];
    assert_eq!(actions(&all)[..5], expected);
    let services: Vec<_> = all[..5].iter().map(|record| text(&record["service"])).collect();
    assert_eq!(services, ["auth", "auth", "product", "order", "product"]);
    let times: Vec<_> = all.iter().map(|record| text(&record["at"])).collect();
    assert!(all.is_sorted_by(|newer, older| text(&newer["id"]) > text(&older["id"])), "{times:?}");
    // The id of the client, and the one that the gateway gave.
    assert_eq!(all[3]["request_id"], "my-shipment");
    assert_eq!(all[2]["request_id"], change.header("x-request-id"));
    assert_eq!((&all[2]["before"], &all[2]["after"]), (&json!({"price": 100}), &json!({"price": 90})));
    assert_eq!(all[0]["actor"], json!({"kind": "admin", "id": admin.id.to_string(), "name": "admin"}));
    assert_eq!(all[0]["target"], json!({"kind": "user", "id": ann.id.to_string()}));
    assert_eq!(all[1]["before"], Value::Null);

    let of_product = records(&admin, &format!("target={target}")).await;
    assert_eq!(actions(&of_product), ["product.update", "product.create"]);
    assert_eq!(actions(&records(&admin, "action=order.ship").await), ["order.ship"]);
    assert_eq!(records(&admin, &format!("actor=admin:{}", admin.id)).await.len(), all.len() - 1);
    assert_eq!(actions(&records(&admin, "actor=system:ADMIN_USERNAME").await), ["user.create"]);
    let since = format!("since={}", times[2]);
    assert_eq!(actions(&records(&admin, &since).await), expected[..3]);
    let until = format!("until={}&action=product.create&target={target}", times[2]);
    assert_eq!(actions(&records(&admin, &until).await), ["product.create"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_queries_and_other_callers_are_refused() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    ann.get("/admin/audit").await.problem(403, "forbidden");
    shop.guest().get("/admin/audit").await.problem(401, "unauthenticated");
    for (query, field) in [
        ("actor=root", "actor"),
        ("target=:1", "target"),
        ("action=Ship", "action"),
        ("since=yesterday", "since"),
        ("since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z", "since"),
        ("limit=0", "limit"),
        ("cursor=x", "cursor"),
        ("page=1", "page"),
    ] {
        let problem = admin.get(&format!("/admin/audit?{query}")).await.problem(400, "invalid_request");
        assert_eq!(problem.body["errors"][0]["field"], field, "{}", problem.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_without_the_records_of_a_service_is_refused() {
    let mut shop = TestShop::start().await;
    let admin = shop.admin().await;
    admin.get("/admin/audit").await.expect(200);
    shop.without_order_service(async |_| {
        let request = admin.request(Method::GET, "/admin/audit");
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 503);
        assert!(response.headers().contains_key("retry-after"));
    })
    .await;
}
