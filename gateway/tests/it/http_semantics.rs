//! HTTP semantics of responses: cache validators, idempotency, CORS, request ids, security headers.

use http::Method;
use serde_json::{Value, json};
use shoppee_kit::testing::eventually;

use crate::shop::{TestShop, address, send, text};

#[tokio::test(flavor = "multi_thread")]
async fn if_none_match_returns_304_until_the_product_changes() {
    let shop = TestShop::start().await;
    let (admin, guest) = (shop.admin().await, shop.guest());
    let product = shop.product(&admin, 100, 10).await;
    let path = format!("/products/{}", product["id"]);
    let first = guest.get(&path).await.expect(200);
    let etag = first.header("etag").to_owned();
    assert!(etag.starts_with('"') && first.header("cache-control").contains("no-cache"));

    for tags in [etag.clone(), format!("W/{etag}"), format!("\"x\", {etag}"), "*".to_owned()] {
        let again = send(guest.request(Method::GET, &path).header("if-none-match", &tags)).await.expect(304);
        assert_eq!((again.text.as_str(), again.header("etag")), ("", etag.as_str()));
    }
    let other = send(guest.request(Method::GET, &path).header("if-none-match", "\"x\"")).await.expect(200);
    assert_eq!(other.header("etag"), etag);

    // Stock is part of the body, so its change must change the tag.
    shop.customer("ann").await.orders(&product, 1).await.expect(201);
    let moved = send(guest.request(Method::GET, &path).header("if-none-match", &etag)).await.expect(200);
    assert_eq!(moved.body["stock"], 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn if_match_refuses_a_stale_write() {
    let shop = TestShop::start().await;
    let admin = shop.admin().await;
    let product = shop.product(&admin, 100, 10).await;
    let path = format!("/products/{}", product["id"]);
    let etag = shop.guest().get(&path).await.expect(200).header("etag").to_owned();
    let change = |tag: &str, price: i64| {
        send(admin.request(Method::PATCH, &path).header("if-match", tag).json(&json!({"price": price})))
    };
    let changed = change(&etag, 200).await.expect(200);
    assert_ne!(changed.header("etag"), etag);
    for tag in [etag.as_str(), "\"nonsense\"", "nonsense", &format!("W/{}", changed.header("etag"))] {
        change(tag, 300).await.problem(412, "version_mismatch");
    }
    change("*", 300).await.expect(200);
    let etag = admin.get(&path).await.expect(200).header("etag").to_owned();
    change(&format!("{}, {etag}", changed.header("etag")), 400).await.expect(200);
    let gone = send(admin.request(Method::DELETE, &path).header("if-match", &etag)).await;
    gone.problem(412, "version_mismatch");
    let etag = admin.get(&path).await.expect(200).header("etag").to_owned();
    send(admin.request(Method::DELETE, &path).header("if-match", &etag)).await.expect(204);
    send(
        admin.request(Method::PATCH, "/products/999999").header("if-match", &etag).json(&json!({"price": 1})),
    )
    .await
    .problem(404, "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_catalogue_write_is_replayed_by_its_key() {
    let shop = TestShop::builder().gateways(2).start().await;
    let admin = shop.admin().await;
    let product = json!({"sku": "lamp", "name": "Lamp", "price": 100, "stock": 5});
    let category = json!({"slug": "lamps", "name": "Lamps"});
    // Keys are shared by all gateways.
    let twice = async |method: Method, path: String, body: &Value, status: u16| {
        let send_to = |gateway: usize| {
            let admin = admin.through(&shop, gateway);
            send(admin.request(method.clone(), &path).header("idempotency-key", "key-1").json(body))
        };
        let (first, again) = (send_to(0).await.expect(status), send_to(1).await.expect(status));
        assert_eq!((first.header("idempotent-replayed"), again.header("idempotent-replayed")), ("", "true"));
        assert_eq!((&first.body, first.header("etag")), (&again.body, again.header("etag")), "{path}");
        let other = send(admin.request(method, &path).header("idempotency-key", "key-1").json(&json!({})));
        assert!([400, 422].contains(&other.await.status), "{path}");
        first.body
    };
    let product = twice(Method::POST, "/products".to_owned(), &product, 201).await;
    let id = &product["id"];
    twice(Method::PATCH, format!("/products/{id}"), &json!({"price": 90}), 200).await;
    let delivery = json!({"delta": 3, "reason": "delivery"});
    assert_eq!(twice(Method::POST, format!("/products/{id}/stock"), &delivery, 200).await["stock"], 8);
    let batch = json!({"on_error": "continue", "items": [{"id": id, "stock_delta": 2}]});
    assert_eq!(twice(Method::POST, "/products/batch".to_owned(), &batch, 200).await["updated"], 1);
    let category = twice(Method::POST, "/categories".to_owned(), &category, 201).await;
    let renamed = json!({"name": "Lights"});
    twice(Method::PATCH, format!("/categories/{}", category["id"]), &renamed, 200).await;
    assert_eq!(admin.get(&format!("/products/{id}")).await.expect(200).body["stock"], 10);
    let wrong = json!({"delta": 4, "reason": "delivery"});
    let stock = admin.request(Method::POST, &format!("/products/{id}/stock"));
    send(stock.header("idempotency-key", "key-1").json(&wrong)).await.problem(422, "idempotency_key_reused");
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_cart_and_order_steps_are_replayed_by_their_key() {
    let shop = TestShop::builder().gateways(2).start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = shop.product(&admin, 100, 10).await;
    let add = async |gateway: usize, quantity: i64| {
        let customer = ann.through(&shop, gateway);
        let request = customer.request(Method::POST, "/cart/items").header("idempotency-key", "add-1");
        send(request.json(&json!({"product_id": product["id"], "quantity": quantity}))).await
    };
    let first = add(0, 2).await.expect(200);
    assert_eq!(first.header("idempotent-replayed"), "");
    let again = add(1, 2).await.expect(200);
    assert_eq!((&again.body, again.header("idempotent-replayed")), (&first.body, "true"));
    assert_eq!(ann.get("/cart").await.expect(200).body["items"][0]["quantity"], 2);
    add(0, 3).await.problem(422, "idempotency_key_reused");

    let order = ann.orders(&product, 1).await.expect(201).body;
    ann.pays(&order).await.expect(200);
    let step = async |name: &str, body: Option<Value>| {
        let path = format!("/orders/{}/{name}", text(&order["id"]));
        let request = admin.request(Method::POST, &path).header("idempotency-key", "step-1");
        send(match body {
            Some(body) => request.json(&body),
            None => request,
        })
        .await
    };
    let parcel = json!({"carrier": "Post", "tracking_number": "1"});
    for (name, body, status) in [("ship", Some(parcel), "shipped"), ("complete", None, "completed")] {
        let first = step(name, body.clone()).await.expect(200);
        assert_eq!((text(&first.body["status"]), first.header("idempotent-replayed")), (status, ""));
        let again = step(name, body).await.expect(200);
        assert_eq!((&again.body, again.header("idempotent-replayed")), (&first.body, "true"));
    }
    // Without a key the step returns the order as it is.
    let path = format!("/orders/{}/complete", text(&order["id"]));
    let completed = send(ann.request(Method::POST, &path)).await.expect(200);
    assert_eq!((text(&completed.body["status"]), completed.header("idempotent-replayed")), ("completed", ""));

    let paid = ann.orders(&product, 1).await.expect(201).body;
    ann.pays(&paid).await.expect(200);
    let cancel = format!("/orders/{}/cancel", text(&paid["id"]));
    let cancelled = admin.post(&cancel, &json!({"reason": "lost"})).await.expect(200).body;
    assert_eq!(
        (&cancelled["payment"]["status"], &cancelled["payment"]["refunded_at"]),
        (&json!("refund_pending"), &Value::Null)
    );
    admin.post(&cancel, &json!({"reason": "lost"})).await.expect(200);
    admin.post(&cancel, &json!({"reason": "other"})).await.problem(409, "invalid_transition");
    eventually("the payment is refunded", || async {
        let path = format!("/orders/{}", text(&paid["id"]));
        ann.get(&path).await.expect(200).body["payment"]["status"] == "refunded"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_order_is_replayed_by_its_key() {
    let shop = TestShop::builder().gateways(2).start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = shop.product(&admin, 100, 10).await;
    let first = ann.orders_with_key(&product, 2, "key-1").await.expect(201);
    assert_eq!(first.header("idempotent-replayed"), "");
    let again = ann.through(&shop, 1).orders_with_key(&product, 2, "key-1").await.expect(201);
    assert_eq!((&again.body, again.header("location")), (&first.body, first.header("location")));
    assert_eq!(again.header("idempotent-replayed"), "true");
    // An equal body in another spelling.
    let other_spelling = format!(
        r#" {{ "shipping_address": {}, "items": [ {{"quantity": 2, "product_id": {}}} ] }}"#,
        address(),
        product["id"]
    );
    let request = ann.request(Method::POST, "/orders").header("content-type", "application/json");
    let again = send(request.header("idempotency-key", "key-1").body(other_spelling)).await.expect(201);
    assert_eq!((&again.body["id"], again.header("idempotent-replayed")), (&first.body["id"], "true"));
    ann.orders_with_key(&product, 3, "key-1").await.problem(422, "idempotency_key_reused");
    let bob = shop.customer("bob").await;
    let his = bob.orders_with_key(&product, 2, "key-1").await.expect(201);
    assert_ne!(his.body["id"], first.body["id"]);
    assert_eq!(ann.get(&format!("/products/{}", product["id"])).await.expect(200).body["stock"], 6);

    let pay = |token: &str, key: &str| {
        let path = format!("/orders/{}/pay", text(&first.body["id"]));
        send(
            ann.request(Method::POST, &path)
                .header("idempotency-key", key)
                .json(&json!({"payment_token": token})),
        )
    };
    let declined = pay("tok_declined", "pay-1").await.problem(402, "payment_declined");
    assert_eq!(declined.header("idempotent-replayed"), "");
    let again = pay("tok_declined", "pay-1").await.problem(402, "payment_declined");
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(text(&pay("tok_ok", "pay-2").await.expect(200).body["status"]), "paid");
    assert_eq!(pay("tok_ok", "pay-2").await.expect(200).header("idempotent-replayed"), "true");
    pay("tok_ok", "pay-3").await.problem(409, "invalid_transition");
    pay("tok_unknown", "pay-4").await.problem(422, "validation_failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_allowed_origins_may_read_responses() {
    let shop = TestShop::builder()
        .with("--cors-origins", "https://shop.example,http://localhost:3000")
        .start()
        .await;
    let guest = shop.guest();
    let ask = |origin: &'static str, method: Method| {
        let request = guest.request(method.clone(), "/products").header("origin", origin);
        send(if method == Method::OPTIONS {
            request.header("access-control-request-method", "POST")
        } else {
            request
        })
    };
    let preflight = ask("https://shop.example", Method::OPTIONS).await.expect(204);
    assert_eq!(preflight.header("access-control-allow-origin"), "https://shop.example");
    assert!(preflight.header("access-control-allow-methods").contains("POST"));
    assert!(preflight.header("access-control-allow-headers").contains("idempotency-key"));
    let response = ask("http://localhost:3000", Method::GET).await.expect(200);
    assert_eq!(response.header("access-control-allow-origin"), "http://localhost:3000");
    for exposed in ["etag", "location", "retry-after", "ratelimit", "x-request-id", "idempotent-replayed"] {
        assert!(response.header("access-control-expose-headers").contains(exposed), "{exposed}");
    }
    assert!(response.headers.get_all("vary").iter().any(|vary| vary == "origin"));
    for hostile in ["https://evil.example", "null", "https://shop.example.evil.example"] {
        for method in [Method::OPTIONS, Method::GET] {
            let response = ask(hostile, method).await;
            assert_eq!(response.header("access-control-allow-origin"), "", "{hostile}");
        }
    }
    // A page may read errors too, even those before a handler.
    let missing = guest.request(Method::GET, "/nothing").header("origin", "https://shop.example");
    assert_eq!(
        send(missing).await.problem(404, "not_found").header("access-control-allow-origin"),
        "https://shop.example"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_response_has_security_headers() {
    let shop = TestShop::start().await;
    let (ann, guest) = (shop.customer("ann").await, shop.guest());
    for response in [
        ann.get("/cart").await,
        guest.get("/cart").await,
        guest.get("/nothing").await,
        guest.get("//healthz").await,
    ] {
        assert_eq!(response.header("x-content-type-options"), "nosniff");
        assert_eq!(response.header("cache-control"), "no-store");
        assert_eq!(response.header("referrer-policy"), "no-referrer");
        assert!(!response.header("x-request-id").is_empty());
    }
    let head = send(ann.request(Method::HEAD, "/cart")).await.expect(200);
    assert_eq!(head.text, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_long_public_responses_are_compressed() {
    let shop = TestShop::start().await;
    let (admin, guest) = (shop.admin().await, shop.guest());
    for _ in 0..8 {
        shop.product(&admin, 100, 10).await;
    }
    let compressed = async |path: &str| {
        let response =
            send(guest.request(Method::GET, path).header("accept-encoding", "gzip, br")).await.expect(200);
        let varies = response.headers.get_all("vary").iter().any(|value| value == "accept-encoding");
        (response.header("content-encoding").to_owned(), varies)
    };
    assert_eq!(compressed("/products").await, ("gzip".to_owned(), true));
    assert_eq!(compressed("/products?limit=1").await.0, "", "too short for compression");
    let plain = guest.get("/products").await.expect(200);
    assert_eq!((plain.header("content-encoding"), plain.body["items"].as_array().unwrap().len()), ("", 8));
    let mine = admin.request(Method::GET, "/admin/users").header("accept-encoding", "gzip");
    assert_eq!(send(mine).await.expect(200).header("content-encoding"), "");
}
