//! Malformed and hostile requests: each gets its documented error, never a 5xx, and has no effect.

use std::time::Duration;

use http::Method;
use serde_json::json;
use shoppee_kit::testing::eventually;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::shop::{ApiResponse, Person, TestShop, address, send, text};

async fn raw(person: &Person, method: Method, path: &str, body: impl Into<reqwest::Body>) -> ApiResponse {
    send(person.request(method, path).header("content-type", "application/json").body(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_bodies_are_rejected_without_effect() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = shop.product(&admin, 100, 10).await;
    let line = |quantity: &str| format!(r#"{{"product_id":{},"quantity":{quantity}}}"#, product["id"]);

    for (body, field) in [
        (String::new(), "body"),
        ("{".into(), "body"),
        ("null".into(), "body"),
        ("[]".into(), "body"),
        ("\"text\"".into(), "body"),
        ("{} {}".into(), "product_id"),
        (format!("{} x", line("1")), "body"),
        (format!("[{},1]", product["id"]), "body"),
        (line("1.5"), "quantity"),
        (line("\"1\""), "quantity"),
        (line("null"), "quantity"),
        (line("1e400"), "quantity"),
        (line("9223372036854775808"), "quantity"),
        (line("1,\"quantity\":2"), "quantity"),
        (line("1,\"price\":1"), "price"),
        (line("1,\"user_id\":1"), "user_id"),
        (line("1").replace("product_id", "Product_id"), "Product_id"),
        (r#"{"quantity":1}"#.into(), "product_id"),
        ("[".repeat(60_000), "body"),
        (format!(r#"{{"product_id":{}"#, "[".repeat(60_000)), "body"),
    ] {
        let response = raw(&ann, Method::POST, "/cart/items", body.clone()).await;
        let response = response.problem(400, "invalid_request");
        assert!(response.fields().starts_with(&[field]) || body.len() > 1000, "{body}: {}", response.text);
    }
    for (quantity, status) in [("0", 422), ("-1", 422), ("1001", 422), ("9223372036854775807", 422)] {
        let response = raw(&ann, Method::POST, "/cart/items", line(quantity)).await;
        assert_eq!(response.problem(status, "validation_failed").fields(), ["quantity"]);
    }
    raw(&ann, Method::POST, "/cart/items", vec![0xff, 0xfe, b'{']).await.problem(400, "invalid_request");
    let invalid_utf8 = [&b"{\"username\":\"\xff\",\"password\":\"x\"}"[..]].concat();
    raw(&shop.guest(), Method::POST, "/auth/login", invalid_utf8).await.problem(400, "invalid_request");
    assert_eq!(ann.get("/cart").await.expect(200).body["items"], json!([]), "none of it had an effect");

    // Text that PostgreSQL cannot store.
    let nul = json!({"sku": "a", "name": "a\u{0}b", "price": 1, "stock": 1});
    admin.post("/products", &nul).await.problem(422, "validation_failed");
    let mut invalid_address = address();
    invalid_address["recipient"] = json!("\u{0}");
    let nul = json!({"items": [{"product_id": product["id"], "quantity": 1}],
                     "shipping_address": invalid_address});
    ann.post("/orders", &nul).await.problem(422, "validation_failed");
    let login = shop.guest().post("/auth/login", &json!({"username": "\u{0}", "password": "\u{0}"})).await;
    assert!(matches!(login.status, 401 | 422), "{}", login.text);
    assert_eq!(ann.get("/orders").await.expect(200).body["items"], json!([]));

    let mut order = json!({"items": [], "shipping_address": address()});
    assert_eq!(ann.post("/orders", &order).await.problem(422, "validation_failed").fields(), ["items"]);
    order["items"] = json!([{"product_id": product["id"], "quantity": 1, "unit_price": 1}]);
    assert_eq!(
        ann.post("/orders", &order).await.problem(400, "invalid_request").fields(),
        ["items[0].unit_price"]
    );
    for extra in ["total", "status", "user_id", "role"] {
        let mut order = json!({"shipping_address": address()});
        order[extra] = json!(1);
        assert_eq!(ann.post("/orders", &order).await.problem(400, "invalid_request").fields(), [extra]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_and_mistyped_bodies_are_rejected() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let padded = |size: usize| {
        let body = r#"{"username":"ann","password":"x"}"#;
        format!("{body}{}", " ".repeat(size - body.len()))
    };
    raw(&shop.guest(), Method::POST, "/auth/login", padded(64 * 1024))
        .await
        .problem(401, "invalid_credentials");
    raw(&shop.guest(), Method::POST, "/auth/login", padded(64 * 1024 + 1))
        .await
        .problem(413, "payload_too_large");
    // A client that sends far too much still receives the response.
    raw(&shop.guest(), Method::POST, "/auth/login", padded(12 << 20)).await.problem(413, "payload_too_large");
    raw(&admin, Method::POST, "/products/batch", padded(12 << 20)).await.problem(413, "payload_too_large");
    // Beyond the drain limit the client receives the response, or finds the connection closed.
    let far = shop.guest().request(Method::POST, "/auth/login").header("content-type", "application/json");
    let far = far.body(padded(20 << 20)).send().await;
    assert!(far.is_err() || far.is_ok_and(|response| response.status() == 413));
    let batch = format!(r#"{{"on_error":"abort","items":[]}}{}"#, " ".repeat(8 * 1024 * 1024));
    raw(&admin, Method::POST, "/products/batch", batch).await.problem(413, "payload_too_large");
    let rows = format!(r#"{{"on_error":"abort","items":[{}{{}}]}}"#, "{},".repeat(1_000_000));
    raw(&admin, Method::POST, "/products/batch", rows).await.problem(422, "validation_failed");

    let login = r#"{"username":"nobody","password":"x"}"#;
    for (kind, status) in [
        ("application/json", 401),
        ("application/json; charset=utf-8", 401),
        ("application/vnd.shop+json", 401),
        ("application/json; charset=latin1", 415),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
    ] {
        let request = ann.request(Method::POST, "/auth/login").header("content-type", kind).body(login);
        let code = if status == 401 { "invalid_credentials" } else { "unsupported_media_type" };
        send(request).await.problem(status, code);
    }
    let without = ann.request(Method::POST, "/auth/login").body(login);
    send(without).await.problem(415, "unsupported_media_type");
    let zipped = ann.request(Method::POST, "/auth/login").header("content-encoding", "gzip");
    send(zipped.header("content-type", "application/json").body(login))
        .await
        .problem(415, "unsupported_media_type");

    // A route without parameters accepts no body, an empty one and an empty object; any other is an error.
    for body in ["", "{}", " {} "] {
        raw(&ann, Method::POST, "/auth/ws-ticket", body).await.expect(201);
    }
    raw(&ann, Method::POST, "/auth/ws-ticket", "{\"a\":1}").await.problem(400, "invalid_request");
    raw(&ann, Method::POST, "/auth/ws-ticket", "nonsense").await.problem(400, "invalid_request");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_ids_and_invalid_parameters_are_rejected() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    for id in [
        "0",
        "-1",
        "1.5",
        "abc",
        "9223372036854775807",
        "9223372036854775808",
        "1%00",
        "%ff",
        "%2e%2e",
        "1%27--",
    ] {
        ann.get(&format!("/products/{id}")).await.problem(404, "not_found");
        admin.get(&format!("/admin/users/{id}")).await.problem(404, "not_found");
        ann.get(&format!("/orders/{id}")).await.problem(404, "not_found");
        ann.delete(&format!("/auth/sessions/{id}")).await.problem(404, "not_found");
        ann.put(&format!("/cart/items/{id}"), &json!({"quantity": 0})).await;
    }
    ann.get("/orders/00000000-0000-0000-0000-000000000000").await.problem(404, "not_found");

    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=-1", "limit"),
        ("limit=x", "limit"),
        ("limit=99999999999999999999", "limit"),
        ("limit=5&limit=5", "limit"),
        ("limit=", "limit"),
        ("sort=best", "sort"),
        ("in_stock=1", "in_stock"),
        ("min_price=1.5", "min_price"),
        ("min_price=-1", "min_price"),
        ("min_price=2&max_price=1", "min_price"),
        ("page=2", "page"),
        ("cursor=nonsense", "cursor"),
        ("cursor=", "cursor"),
        ("category=%ff", "query"),
        ("%zz=1", "query"),
        ("q=x", "q"),
    ] {
        let response = ann.get(&format!("/products?{query}")).await.problem(400, "invalid_request");
        assert_eq!(response.fields(), [field], "{query}");
    }
    for query in ["", "?q=", "?q=%ff", "?q=a&sort=best", "?q=a&facets=1", &format!("?q={}", "x".repeat(201))]
    {
        ann.get(&format!("/products/search{query}")).await.problem(400, "invalid_request");
    }
    for query in ["status=PAID", "status=unspecified", "user_id=1", "cursor=x", "x"] {
        ann.get(&format!("/orders?{query}")).await.problem(400, "invalid_request");
    }
    for query in ["user_id=0", "user_id=x", "status=gone"] {
        admin.get(&format!("/admin/orders?{query}")).await.problem(400, "invalid_request");
    }
    admin.get("/admin/users?role=service").await.problem(400, "invalid_request");
    admin
        .patch(&format!("/admin/users/{}", ann.id), &json!({"role": "service"}))
        .await
        .problem(400, "invalid_request");
    // A route without parameters rejects any.
    for path in
        ["/cart", "/auth/me", "/categories", "/products/1", "/orders/00000000-0000-0000-0000-000000000001"]
    {
        ann.get(&format!("{path}?x=1")).await.problem(400, "invalid_request");
    }
    ann.post("/orders?x=1", &json!({"shipping_address": address()})).await.problem(400, "invalid_request");

    let nasty =
        ["'; drop table users; --", "%", "\\", "😀", "a&b|c!", "\"", "((((", "*", "\u{0}", &"é".repeat(200)];
    for text in nasty {
        for path in ["/products/search?q=", "/products?category="] {
            let response = ann.get(&format!("{path}{}", form(text))).await;
            assert!(matches!(response.status, 200 | 400), "{path}{text}: {}", response.text);
        }
        let response = admin.get(&format!("/admin/users?q={}", form(text))).await;
        assert!(matches!(response.status, 200 | 400), "{text}: {}", response.text);
    }
}

fn form(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_methods_and_invalid_headers_are_rejected() {
    let shop = TestShop::start().await;
    let ann = shop.customer("ann").await;
    let response = send(ann.request(Method::PUT, "/cart")).await.problem(405, "method_not_allowed");
    assert_eq!(sorted(response.header("allow")), ["DELETE", "GET", "HEAD"]);
    let response = send(ann.request(Method::PATCH, "/products")).await.problem(405, "method_not_allowed");
    assert_eq!(sorted(response.header("allow")), ["GET", "HEAD", "POST"]);
    let brew = Method::from_bytes(b"BREW").unwrap();
    send(ann.request(brew, "/cart")).await.problem(405, "method_not_allowed");
    send(ann.request(Method::OPTIONS, "/cart")).await.problem(405, "method_not_allowed");
    send(ann.request(Method::POST, "//healthz")).await.problem(405, "method_not_allowed");

    for key in ["a b", "\u{e9}", &"k".repeat(256), ""] {
        let request = ann.request(Method::POST, "/orders").json(&json!({"shipping_address": address()}));
        let key = reqwest::header::HeaderValue::from_bytes(key.as_bytes()).unwrap();
        send(request.header("idempotency-key", key)).await.problem(400, "invalid_request");
    }
    let long = "x".repeat(8000);
    send(ann.request(Method::GET, "/cart").header("x-anything", &long)).await.expect(200);
    let own = send(ann.request(Method::GET, "/cart").header("x-request-id", "mine-1")).await.expect(200);
    assert_eq!(own.header("x-request-id"), "mine-1");
    let odd = send(ann.request(Method::GET, "/cart").header("x-request-id", "<script>")).await.expect(200);
    assert_eq!(odd.header("x-request-id").len(), 36);
    ann.get(&format!("/products/{}", "9".repeat(20_000))).await.problem(404, "not_found");
}

fn sorted(list: &str) -> Vec<&str> {
    let mut words: Vec<&str> = list.split(',').map(str::trim).collect();
    words.sort_unstable();
    words
}

/// Sends bytes to the first gateway, and reads until it closes the connection.
async fn exchange(shop: &TestShop, request: &[u8], wait: Duration) -> Option<String> {
    let mut stream = TcpStream::connect(shop.gateways[0].addr).await.expect("accepts");
    stream.write_all(request).await.expect("sent");
    let mut response = Vec::new();
    let result = tokio::time::timeout(wait, stream.read_to_end(&mut response)).await;
    result.ok().map(|_| String::from_utf8_lossy(&response).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_invalid_heads_close_the_connection() {
    let shop = TestShop::builder().with("--header-timeout", "1s").start().await;
    let wait = Duration::from_secs(5);
    for request in
        [&b""[..], b"P", b"PRI * HTTP/2.0\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"\x16\x03\x01"]
    {
        assert!(exchange(&shop, request, wait).await.is_some(), "still open after {request:?}");
    }
    let heads = format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(64 * 1024));
    assert!(
        exchange(&shop, heads.as_bytes(), wait)
            .await
            .is_some_and(|response| response.starts_with("HTTP/1.1 4"))
    );
    let many = format!("GET /healthz HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(1000));
    assert!(
        exchange(&shop, many.as_bytes(), wait)
            .await
            .is_some_and(|response| response.starts_with("HTTP/1.1 431"))
    );
    let both = b"POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\
        Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let response = exchange(&shop, both, wait).await.expect("closed");
    assert!(response.matches("HTTP/1.1").count() <= 2, "{response}");
    for hosts in ["", "Host: x\r\nHost: y\r\n"] {
        let request = format!("GET /healthz HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
        let response = exchange(&shop, request.as_bytes(), wait).await.expect("closed");
        assert!(response.starts_with("HTTP/1.1 400"), "{response}");
    }
    shop.guest().get("//healthz").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_arrive_times_out() {
    let shop = TestShop::start().await;
    let slow = b"POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\n\
        Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    let response = exchange(&shop, slow, Duration::from_secs(30)).await.expect("closed within 30 s");
    assert!(response.starts_with("HTTP/1.1 408") && response.contains("request_timeout"), "{response}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_completes_after_the_client_disconnects() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = shop.product(&admin, 100, 10).await;
    let order = ann.orders(&product, 1).await.expect(201).body;
    let path = format!("/orders/{}", text(&order["id"]));
    // The provider takes three seconds, the client waits for a fraction of one.
    let payment =
        ann.request(Method::POST, &format!("{path}/pay")).json(&json!({"payment_token": "tok_slow"}));
    assert!(payment.timeout(Duration::from_millis(300)).send().await.is_err_and(|error| error.is_timeout()));
    assert_eq!(text(&ann.get(&path).await.expect(200).body["status"]), "pending");
    eventually("the order is paid", || async {
        text(&ann.get(&path).await.expect(200).body["status"]) == "paid"
    })
    .await;
}
