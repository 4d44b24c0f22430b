//! Service accounts, the token endpoint, and the routes that admit the tokens of services.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use crate::shop::{ApiResponse, Person, TestShop, send, text};

pub const SCOPES: [&str; 8] = [
    "catalogue:write",
    "events:watch",
    "orders:cancel",
    "orders:read",
    "orders:ship",
    "stock:adjust",
    "stock:hold",
    "users:read",
];
const FORM: &str = "application/x-www-form-urlencoded";

pub async fn account(admin: &Person, scopes: &[&str]) -> Value {
    let request = json!({"name": "warehouse", "scopes": scopes});
    admin.post("/admin/service-accounts", &request).await.expect(201).body
}

/// Sends a form to the token endpoint.
async fn issue(guest: &Person, form: &str, basic: Option<(&str, &str)>) -> ApiResponse {
    let request = guest.request(Method::POST, "//oauth/token").header("content-type", FORM);
    let request = match basic {
        Some((id, secret)) => request.basic_auth(id, Some(secret)),
        None => request,
    };
    send(request.body(form.to_owned())).await
}

/// Returns a client with a token of the account.
pub async fn service(shop: &TestShop, account: &Value) -> Person {
    let (id, secret) = (text(&account["id"]), text(&account["client_secret"]));
    let guest = shop.guest();
    let answer = issue(&guest, "grant_type=client_credentials", Some((id, secret))).await.expect(200);
    guest.with_token(text(&answer.body["access_token"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_endpoint_answers_in_the_form_of_oauth() {
    let shop = TestShop::start().await;
    let (admin, guest) = (shop.admin().await, shop.guest());
    let account = account(&admin, &["orders:read", "orders:ship"]).await;
    let (id, secret) = (text(&account["id"]), text(&account["client_secret"]));

    let answer = issue(&guest, "grant_type=client_credentials&scope=orders%3Aship", Some((id, secret))).await;
    let answer = answer.expect(200);
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(answer.header("content-type"), "application/json");
    let body = answer.body.as_object().unwrap();
    let fields: Vec<_> = body.keys().map(String::as_str).collect();
    assert_eq!(fields, ["access_token", "expires_in", "scope", "token_type"]);
    assert_eq!((&body["scope"], &body["token_type"]), (&json!("orders:ship"), &json!("Bearer")));
    assert_eq!(body["expires_in"], 900);
    let credentials = format!("client_id={id}&client_secret={secret}");
    issue(&guest, &format!("grant_type=client_credentials&{credentials}"), None).await.expect(200);

    let oauth_error = |answer: ApiResponse, status: u16, error: &str| {
        let answer = answer.expect(status);
        assert_eq!(answer.body["error"], error, "{}", answer.text);
        assert_eq!(answer.header("cache-control"), "no-store");
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(answer.header("www-authenticate").starts_with("Basic"), status == 401);
        assert!(!answer.text.contains(secret), "{}", answer.text);
    };
    let grant = "grant_type=client_credentials";
    for (form, basic, status, error) in [
        (grant.to_owned(), Some((id, "wrong")), 401, "invalid_client"),
        (grant.to_owned(), Some(("unknown", secret)), 401, "invalid_client"),
        (grant.to_owned(), None, 401, "invalid_client"),
        (format!("{grant}&scope=users:read"), Some((id, secret)), 400, "invalid_scope"),
        (format!("{grant}&scope=orders:read+users:read"), Some((id, secret)), 400, "invalid_scope"),
        (format!("{grant}&{credentials}"), Some((id, secret)), 400, "invalid_request"),
        (format!("{grant}&{grant}"), Some((id, secret)), 400, "invalid_request"),
        ("scope=orders:read".to_owned(), Some((id, secret)), 400, "invalid_request"),
        ("grant_type=password".to_owned(), Some((id, secret)), 400, "unsupported_grant_type"),
        (format!("{grant}&scope=%ff"), Some((id, secret)), 400, "invalid_request"),
        (format!("{grant}&scope={}", "x".repeat(50_000)), Some((id, secret)), 400, "invalid_scope"),
    ] {
        oauth_error(issue(&guest, &form, basic).await, status, error);
    }
    let json = guest.request(Method::POST, "//oauth/token").basic_auth(id, Some(secret));
    oauth_error(send(json.json(&json!({"grant_type": "client_credentials"}))).await, 400, "invalid_request");
    let bearer = guest.with_token("x").request(Method::POST, "//oauth/token").header("content-type", FORM);
    oauth_error(send(bearer.body(grant)).await, 401, "invalid_client");
    issue(&guest, &"x".repeat(70_000), None).await.problem(413, "payload_too_large");
    guest.get("//oauth/token").await.problem(405, "method_not_allowed");
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_created_rotated_and_revoked_by_admins_only() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let created = account(&admin, &["users:read"]).await;
    let id = text(&created["id"]);
    let path = format!("/admin/service-accounts/{id}");
    let mut shown = admin.get(&path).await.expect(200).body;
    assert!(shown.get("client_secret").is_none());
    let mut expected = created.clone();
    expected.as_object_mut().unwrap().remove("client_secret");
    assert_eq!(shown, expected);

    let key = |request: reqwest::RequestBuilder| request.header("idempotency-key", "rotate-1");
    let rotate = || send(key(admin.request(Method::POST, &format!("{path}/rotate"))));
    let (rotated, repeat) = (rotate().await.expect(200), rotate().await.expect(200));
    assert_eq!(rotated.body, repeat.body);
    assert_eq!(repeat.header("idempotent-replayed"), "true");
    let worker = service(&shop, &rotated.body).await;
    service(&shop, &created).await;
    worker.get("/admin/users").await.expect(200);

    // Neither a customer nor a service administrates accounts.
    for other in [&ann, &worker] {
        other.get("/admin/service-accounts").await.problem(403, "forbidden");
        other.get(&path).await.problem(403, "forbidden");
        other.post(&format!("{path}/rotate"), &json!({})).await.problem(403, "forbidden");
        let new = json!({"name": "x", "scopes": ["users:read"]});
        other.post("/admin/service-accounts", &new).await.problem(403, "forbidden");
        other.delete(&path).await.problem(403, "forbidden");
    }
    for (body, status, code) in [
        (json!({"name": "x"}), 400, "invalid_request"),
        (json!({"name": "x", "scopes": "users:read"}), 400, "invalid_request"),
        (json!({"name": "x", "scopes": ["users:read"], "client_secret": "mine"}), 400, "invalid_request"),
        (json!({"name": "x", "scopes": ["admin"]}), 422, "validation_failed"),
        (json!({"name": "", "scopes": ["users:read"]}), 422, "validation_failed"),
    ] {
        admin.post("/admin/service-accounts", &body).await.problem(status, code);
    }
    admin.get("/admin/service-accounts/unknown").await.problem(404, "not_found");

    admin.delete(&path).await.expect(204);
    let started = Instant::now();
    loop {
        let answer = worker.get("/admin/users").await;
        if answer.status == 401 {
            answer.problem(401, "session_revoked");
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(1), "still accepted after a second");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    admin.delete(&path).await.expect(204);
    shown = admin.get(&path).await.expect(200).body;
    assert!(shown["revoked_at"].is_string());
    let secret = text(&rotated.body["client_secret"]);
    issue(&shop.guest(), "grant_type=client_credentials", Some((id, secret))).await.expect(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_reads_ships_and_cancels_the_orders_of_all_users() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = shop.product(&admin, 100, 100).await;
    let clerk = service(&shop, &account(&admin, &["orders:read"]).await).await;
    let shipper = service(&shop, &account(&admin, &["orders:ship"]).await).await;
    let other_shipper = service(&shop, &account(&admin, &["orders:ship"]).await).await;
    let canceller = service(&shop, &account(&admin, &["orders:cancel"]).await).await;

    let order = ann.orders(&product, 1).await.expect(201).body;
    ann.pays(&order).await.expect(200);
    let path = format!("/orders/{}", text(&order["id"]));
    assert_eq!(clerk.get(&path).await.expect(200).body["status"], "paid");
    clerk.get(&format!("{path}/events")).await.expect(200);
    let all = clerk.get(&format!("/admin/orders?user_id={}", ann.id)).await.expect(200).body;
    assert_eq!(all["items"][0]["id"], order["id"]);
    // A service has no orders of its own.
    clerk.get("/orders").await.problem(403, "forbidden");
    shipper.get(&path).await.problem(403, "forbidden");

    let send_parcel = |who: &Person, path: &str, number: &str| {
        let request = who.request(Method::POST, &format!("{path}/ship")).header("idempotency-key", "one");
        send(request.json(&json!({"carrier": "PostNL", "tracking_number": number})))
    };
    assert_eq!(send_parcel(&shipper, &path, "1").await.expect(200).body["status"], "shipped");
    assert_eq!(send_parcel(&shipper, &path, "1").await.expect(200).header("idempotent-replayed"), "true");
    send_parcel(&shipper, &path, "2").await.problem(422, "idempotency_key_reused");
    // The same key of another service is another key.
    assert_eq!(send_parcel(&other_shipper, &path, "1").await.expect(200).header("idempotent-replayed"), "");
    send_parcel(&clerk, &path, "1").await.problem(403, "forbidden");

    let order = ann.orders(&product, 1).await.expect(201).body;
    ann.pays(&order).await.expect(200);
    let path = format!("/orders/{}", text(&order["id"]));
    clerk.post(&format!("{path}/cancel"), &json!({})).await.problem(403, "forbidden");
    let refunded =
        canceller.post(&format!("{path}/cancel"), &json!({"reason": "lost"})).await.expect(200).body;
    assert_eq!(refunded["status"], "cancelled");
    for not_theirs in ["pay", "complete"] {
        let body = json!({"payment_token": "tok_ok"});
        let body = if not_theirs == "pay" { body } else { json!({}) };
        canceller.post(&format!("{path}/{not_theirs}"), &body).await.problem(403, "forbidden");
    }
    canceller.get("/cart").await.problem(403, "forbidden");
    canceller.get("/auth/me").await.problem(403, "forbidden");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_writes_the_catalogue_changes_no_stock() {
    let shop = TestShop::start().await;
    let admin = shop.admin().await;
    let writer = service(&shop, &account(&admin, &["catalogue:write"]).await).await;
    let stocker = service(&shop, &account(&admin, &["stock:adjust"]).await).await;
    let both = service(&shop, &account(&admin, &["catalogue:write", "stock:adjust"]).await).await;
    let product = shop.product(&writer, 100, 5).await;
    let path = format!("/products/{}", product["id"]);
    assert_eq!(writer.patch(&path, &json!({"price": 90})).await.expect(200).body["price"], 90);
    writer.patch(&path, &json!({"stock": 50})).await.problem(403, "forbidden");
    writer
        .post(&format!("{path}/stock"), &json!({"delta": 1, "reason": "r"}))
        .await
        .problem(403, "forbidden");
    let batch = |row: Value| json!({"on_error": "abort", "items": [row]});
    for row in [json!({"id": product["id"], "stock": 50}), json!({"id": product["id"], "stock_delta": 1})] {
        writer.post("/products/batch", &batch(row.clone())).await.problem(403, "forbidden");
        stocker.post("/products/batch", &batch(row.clone())).await.problem(403, "forbidden");
        assert_eq!(both.post("/products/batch", &batch(row)).await.expect(200).body["updated"], 1);
    }
    let price = batch(json!({"id": product["id"], "price": 80}));
    assert_eq!(writer.post("/products/batch", &price).await.expect(200).body["updated"], 1);
    let adjusted = stocker.post(&format!("{path}/stock"), &json!({"delta": 1, "reason": "r"})).await;
    assert_eq!(adjusted.expect(200).body["stock"], 52);
    stocker.patch(&path, &json!({"price": 1})).await.problem(403, "forbidden");
    writer.delete(&path).await.expect(204);
}
