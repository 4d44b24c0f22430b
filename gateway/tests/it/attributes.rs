//! Attributes as deep as they may be, and deeper.

use serde_json::{Value, json};

use crate::shop::{Shop, text};

/// An object with so many levels of objects.
fn nested(levels: usize) -> Value {
    (0..levels).fold(json!(1), |inner, _| json!({"a": inner}))
}

#[tokio::test(flavor = "multi_thread")]
async fn deeply_nested_attributes_are_refused_and_break_no_page() {
    let shop = Shop::open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = |sku: &str, attributes: Value| {
        json!({"sku": sku, "name": "Nested lamp", "price": 1, "stock": 5, "attributes": attributes})
    };
    let lists = json!({"x": (0..31).fold(json!([[1]]), |inner, _| json!({"a": inner}))});
    for (number, attributes) in [nested(17), nested(33), nested(100), lists].into_iter().enumerate() {
        let answer = admin.post("/products", &product(&format!("deep-{number}"), attributes)).await;
        assert_eq!(answer.problem(422, "validation_failed").fields(), ["attributes"]);
    }

    let created = admin.post("/products", &product("deep", nested(16))).await.expect(201).body;
    let path = format!("/products/{}", created["id"]);
    let change = json!({"attributes": nested(17)});
    assert_eq!(admin.patch(&path, &change).await.problem(422, "validation_failed").fields(), ["attributes"]);
    ann.post("/cart/items", &json!({"product_id": created["id"], "quantity": 1})).await.expect(200);
    assert_eq!(text(&ann.get("/cart").await.expect(200).body["items"][0]["sku"]), "deep");
    for list in ["/products", "/products/search?q=nested"] {
        let page = ann.get(list).await.expect(200).body;
        assert_eq!(page["items"][0]["attributes"], nested(16), "{list}");
    }
}
