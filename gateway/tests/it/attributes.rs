//! Attributes of a product: depth and numbers.

use http::Method;
use serde_json::{Value, json};
use shoppee_kit::testing::eventually;

use crate::shop::{TestShop, send, text};

/// Builds an object with `levels` nested objects.
fn nested(levels: usize) -> Value {
    (0..levels).fold(json!(1), |inner, _| json!({"a": inner}))
}

#[tokio::test(flavor = "multi_thread")]
async fn too_deeply_nested_attributes_are_rejected() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = |sku: &str, attributes: Value| json!({"sku": sku, "name": "Nested lamp", "price": 1, "stock": 5, "attributes": attributes});
    let lists = json!({"x": (0..31).fold(json!([[1]]), |inner, _| json!({"a": inner}))});
    for (number, attributes) in [nested(17), nested(33), nested(100), lists].into_iter().enumerate() {
        let response = admin.post("/products", &product(&format!("deep-{number}"), attributes)).await;
        assert_eq!(response.problem(422, "validation_failed").fields(), ["attributes"]);
    }

    let created = admin.post("/products", &product("deep", nested(16))).await.expect(201).body;
    let path = format!("/products/{}", created["id"]);
    let change = json!({"attributes": nested(17)});
    assert_eq!(admin.patch(&path, &change).await.problem(422, "validation_failed").fields(), ["attributes"]);
    ann.post("/cart/items", &json!({"product_id": created["id"], "quantity": 1})).await.expect(200);
    assert_eq!(text(&ann.get("/cart").await.expect(200).body["items"][0]["sku"]), "deep");
    let page = ann.get("/products").await.expect(200).body;
    assert_eq!(page["items"][0]["attributes"], nested(16));
    // The search finds a change within a second.
    eventually("the search finds it", async || {
        ann.get("/products/search?q=nested").await.body["items"][0]["attributes"] == nested(16)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_in_attributes_are_lossless_or_rejected() {
    let shop = TestShop::start().await;
    let admin = shop.admin().await;
    let create = async |number: &str| {
        let body = format!(
            r#"{{"sku":"n{}","name":"n","price":1,"stock":1,"attributes":{{"a":[{number}]}}}}"#,
            number.replace(['.', '-', '+'], "_")
        );
        let request = admin.request(Method::POST, "/products").header("content-type", "application/json");
        send(request.body(body)).await
    };
    for literal in ["0.42451918914251396", "1e20", "-0.1", "9007199254740992", "5e-324"] {
        let created = create(literal).await.expect(201).body;
        let shown = admin.get(&format!("/products/{}", created["id"])).await.expect(200);
        for response in [&created, &shown.body] {
            let number = response["attributes"]["a"][0].as_f64().unwrap();
            assert_eq!(number.to_bits(), literal.parse::<f64>().unwrap().to_bits(), "{literal}");
        }
    }
    for lossy in ["99999999999999999999", "0.1234567890123456789", "9007199254740993", "1e-400"] {
        let refused = create(lossy).await.problem(400, "invalid_request");
        assert_eq!(refused.fields(), ["attributes.a[0]"], "{lossy}");
    }
}
