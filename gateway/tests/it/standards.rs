//! Header semantics of the standards, with headers of real clients.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::shop::{PASSWORD, TestShop, send, text};

/// Sends a request head, and reads the response until it contains `last`.
async fn exchange(shop: &TestShop, head: &str, last: &str) -> String {
    let mut stream = TcpStream::connect(shop.gateways[0].addr).await.expect("accepts");
    stream.write_all(head.as_bytes()).await.expect("sent");
    let (mut response, mut buffer) = (String::new(), [0; 4096]);
    let reading = async {
        while !response.contains(last) {
            let read = stream.read(&mut buffer).await.expect("read");
            if read == 0 {
                break;
            }
            response.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reading).await.expect("a response");
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_refuses_identity_gets_an_unencoded_response() {
    let shop = TestShop::start().await;
    let admin = shop.admin().await;
    for number in 0..20 {
        let product = json!({"sku": format!("lamp-{number}"), "name": "A lamp", "price": 1, "stock": 1});
        admin.post("/products", &product).await.expect(201);
    }
    let list = admin.get("/products").await.expect(200).body;
    for codings in ["identity;q=0", "*;q=0", "br", "gzip;q=0, identity;q=0"] {
        let request = |path: &str| admin.request(Method::GET, path).header("accept-encoding", codings);
        let response = send(request("/products")).await.expect(200);
        assert_eq!((response.header("content-encoding"), &response.body), ("", &list), "{codings}");
        send(request("/products?limit=0")).await.problem(400, "invalid_request");
    }
    let request = admin.request(Method::GET, "/products").header("accept-encoding", "gzip, identity;q=0");
    assert_eq!(send(request).await.expect(200).header("content-encoding"), "gzip");
}

#[tokio::test(flavor = "multi_thread")]
async fn expect_continue_with_a_too_large_body_is_refused() {
    let shop = TestShop::start().await;
    let head = |length: usize| {
        format!(
            "POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
        )
    };
    let refused = exchange(&shop, &head(64 * 1024 + 1), "payload_too_large").await;
    assert!(refused.starts_with("HTTP/1.1 413"), "{refused}");
    let awaited = exchange(&shop, &head(64 * 1024), "\r\n\r\n").await;
    assert!(awaited.starts_with("HTTP/1.1 100"), "{awaited}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_coding_below_the_chunks_is_refused() {
    let shop = TestShop::start().await;
    let body = r#"{"username":"x","password":"y"}"#;
    for (codings, status) in [("chunked", "401"), ("gzip, chunked", "400"), ("gzip,chunked", "400")] {
        let request = format!(
            "POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
             Transfer-Encoding: {codings}\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        );
        let response = exchange(&shop, &request, "request_id").await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{codings}: {response}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsupported_websocket_version_is_refused_with_the_supported_one() {
    let shop = TestShop::start().await;
    let ann = shop.customer("ann").await;
    let request = ann
        .request(Method::GET, "//ws")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-version", "8");
    let response = send(request).await.problem(400, "invalid_request");
    assert_eq!(response.header("sec-websocket-version"), "13");
}

#[tokio::test(flavor = "multi_thread")]
async fn json_content_types_accept_any_parameters() {
    let shop = TestShop::start().await;
    for kind in ["application/json; charset=utf8", "application/json; profile=\"a;b\"; charset=UTF-8"] {
        let request = shop.guest().request(Method::POST, "/auth/login").header("content-type", kind);
        let response = send(request.body(r#"{"username":"x","password":"y"}"#)).await;
        response.problem(401, "invalid_credentials");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn if_none_match_any_refuses_a_write() {
    let shop = TestShop::start().await;
    let admin = shop.admin().await;
    let product = shop.product(&admin, 100, 10).await;
    let path = format!("/products/{}", product["id"]);
    for method in [Method::PATCH, Method::DELETE] {
        let request = admin.request(method.clone(), &path).header("if-none-match", "*");
        let request = if method == Method::PATCH { request.json(&json!({"price": 1})) } else { request };
        send(request).await.problem(412, "version_mismatch");
    }
    let unknown = admin.request(Method::DELETE, "/products/999999").header("if-none-match", "*");
    send(unknown).await.problem(404, "not_found");
    assert_eq!(admin.get(&path).await.expect(200).body["price"], 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn if_none_match_refuses_a_write_of_a_listed_state() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = shop.product(&admin, 100, 10).await;
    let path = format!("/products/{}", product["id"]);
    let first = admin.get(&path).await.expect(200).header("etag").to_owned();
    let change = |method: &Method, path: &str, tags: &str| {
        let request = admin.request(method.clone(), path).header("if-none-match", tags);
        send(if *method == Method::PATCH { request.json(&json!({"price": 200})) } else { request })
    };
    // The stock changes, the version does not.
    ann.orders(&product, 1).await.expect(201);
    for method in [Method::PATCH, Method::DELETE] {
        for tags in [first.clone(), format!("W/{first}"), format!("\"x\", {first}")] {
            change(&method, &path, &tags).await.problem(412, "version_mismatch");
        }
        change(&method, "/products/999999", &first).await.problem(404, "not_found");
    }
    assert_eq!(admin.get(&path).await.expect(200).body["price"], 100);
    change(&Method::PATCH, &path, "\"x\"").await.expect(200);
    let both =
        admin.request(Method::DELETE, &path).header("if-match", &first).header("if-none-match", "\"x\"");
    send(both).await.problem(412, "version_mismatch");
    change(&Method::DELETE, &path, &first).await.expect(204);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_listed_under_a_user_agent_in_any_language() {
    let shop = TestShop::start().await;
    let ann = shop.customer("ann").await;
    let username = ann.get("/auth/me").await.expect(200).body["username"].clone();
    let agent = http::HeaderValue::from_bytes("Büro-Kasse/1".as_bytes()).unwrap();
    let login = shop.guest().request(Method::POST, "/auth/login").header("user-agent", agent);
    send(login.json(&json!({"username": username, "password": PASSWORD}))).await.expect(200);
    let sessions = ann.get("/auth/sessions").await.expect(200).body;
    let agents: Vec<&str> =
        sessions["items"].as_array().unwrap().iter().map(|one| text(&one["user_agent"])).collect();
    assert!(agents.contains(&"Büro-Kasse/1"), "{agents:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn null_in_a_batch_row_clears_the_field() {
    let shop = TestShop::start().await;
    let admin = shop.admin().await;
    let category = json!({"slug": "lamps", "name": "Lamps"});
    let category = admin.post("/categories", &category).await.expect(201).body["id"].clone();
    let product = json!({"sku": "lamp", "name": "Lamp", "price": 1, "stock": 1, "category_id": category});
    let id = admin.post("/products", &product).await.expect(201).body["id"].clone();
    let batch = |row: Value| json!({"on_error": "abort", "items": [row]});
    let row = json!({"id": id, "category_id": null, "description": null});
    let response = admin.post("/products/batch", &batch(row)).await.expect(200).body;
    assert_eq!(response["updated"], 1);
    assert_eq!(admin.get(&format!("/products/{id}")).await.expect(200).body["category"], Value::Null);
    let refused = admin.post("/products/batch", &batch(json!({"id": id, "price": null}))).await;
    assert_eq!(refused.problem(400, "invalid_request").fields(), ["items[0].price"]);
}
