//! Authorization: the callers of each route, and the responses to others.

use http::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    service_accounts::{SCOPES, account, service},
    shop::{Person, TestShop, address, send, text},
};

/// Returns every route that needs a token: method, path, a valid body.
fn user_routes(order: &str, product: i64) -> Vec<(Method, String, Value)> {
    vec![
        (Method::POST, "/auth/logout".into(), Value::Null),
        (Method::POST, "/auth/logout-all".into(), Value::Null),
        (Method::GET, "/auth/me".into(), Value::Null),
        (Method::PUT, "/auth/password".into(), json!({"current_password": "x", "new_password": "y"})),
        (Method::GET, "/auth/sessions".into(), Value::Null),
        (Method::DELETE, format!("/auth/sessions/{}", Uuid::new_v4()), Value::Null),
        (Method::POST, "/auth/ws-ticket".into(), Value::Null),
        (Method::GET, "/cart".into(), Value::Null),
        (Method::DELETE, "/cart".into(), Value::Null),
        (Method::POST, "/cart/items".into(), json!({"product_id": product, "quantity": 1})),
        (Method::PUT, format!("/cart/items/{product}"), json!({"quantity": 1})),
        (Method::DELETE, format!("/cart/items/{product}"), Value::Null),
        (Method::POST, "/orders".into(), json!({"shipping_address": address()})),
        (Method::GET, "/orders".into(), Value::Null),
        (Method::GET, format!("/orders/{order}"), Value::Null),
        (Method::GET, format!("/orders/{order}/events"), Value::Null),
        (Method::POST, format!("/orders/{order}/pay"), json!({"payment_token": "tok_ok"})),
        (Method::POST, format!("/orders/{order}/cancel"), json!({})),
        (Method::POST, format!("/orders/{order}/complete"), Value::Null),
    ]
}

/// Returns every route of admins.
fn admin_routes(order: &str, product: i64, user: i64) -> Vec<(Method, String, Value)> {
    vec![
        (Method::GET, "/admin/users".into(), Value::Null),
        (Method::GET, format!("/admin/users/{user}"), Value::Null),
        (Method::PATCH, format!("/admin/users/{user}"), json!({"role": "admin"})),
        (Method::GET, "/admin/orders".into(), Value::Null),
        (Method::GET, "/admin/audit".into(), Value::Null),
        (Method::GET, "/admin/status".into(), Value::Null),
        (Method::GET, format!("/admin/products/{product}/stock-changes"), Value::Null),
        (Method::POST, "/products".into(), json!({"sku": "S", "name": "N", "price": 1, "stock": 1})),
        (Method::PATCH, format!("/products/{product}"), json!({"price": 1})),
        (Method::DELETE, format!("/products/{product}"), Value::Null),
        (Method::POST, format!("/products/{product}/stock"), json!({"delta": 1, "reason": "r"})),
        (Method::POST, "/products/batch".into(), json!({"on_error": "abort", "items": []})),
        (Method::POST, "/categories".into(), json!({"slug": "s", "name": "n"})),
        (Method::PATCH, "/categories/1".into(), json!({"name": "n"})),
        (Method::DELETE, "/categories/1".into(), Value::Null),
        (Method::POST, format!("/orders/{order}/ship"), json!({"carrier": "c", "tracking_number": "t"})),
    ]
}

async fn send_route(
    person: &Person,
    (method, path, body): &(Method, String, Value),
) -> crate::shop::ApiResponse {
    let request = person.request(method.clone(), path);
    send(if body.is_null() { request } else { request.json(body) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_without_a_token_or_the_role_are_refused() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = shop.product(&admin, 100, 10).await;
    let order = ann.orders(&product, 1).await.expect(201).body;
    let (order_id, product_id) = (text(&order["id"]), product["id"].as_i64().unwrap());

    let guest = shop.guest();
    for route in user_routes(order_id, product_id).iter().chain(&admin_routes(order_id, product_id, ann.id)) {
        send_route(&guest, route).await.problem(401, "unauthenticated");
        send_route(&guest.with_token("no.token.atall"), route).await.problem(401, "unauthenticated");
    }
    for route in &admin_routes(order_id, product_id, ann.id) {
        send_route(&ann, route).await.problem(403, "forbidden");
    }
    let unchanged = guest.get(&format!("/products/{product_id}")).await.expect(200).body;
    assert_eq!((&unchanged["price"], &unchanged["stock"]), (&json!(100), &json!(9)));
    assert_eq!(ann.get(&format!("/orders/{order_id}")).await.expect(200).body, order);
    admin
        .post(&format!("/orders/{order_id}/pay"), &json!({"payment_token": "tok_ok"}))
        .await
        .problem(403, "forbidden");
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_of_other_users_are_not_found() {
    let shop = TestShop::start().await;
    let admin = shop.admin().await;
    let (ann, bob) = (shop.customer("ann").await, shop.customer("bob").await);
    let product = shop.product(&admin, 100, 10).await;
    let order = ann.orders(&product, 1).await.expect(201).body;
    let (foreign, unknown) = (text(&order["id"]).to_owned(), Uuid::now_v7().to_string());
    let same = |a: &crate::shop::ApiResponse, b: &crate::shop::ApiResponse| {
        let without_id = |response: &crate::shop::ApiResponse| {
            let mut body = response.body.clone();
            body.as_object_mut().unwrap().remove("request_id");
            body
        };
        assert_eq!(without_id(a), without_id(b));
    };
    let order_routes = |id: &str| {
        user_routes(id, 1).into_iter().filter(|(_, path, _)| path.contains(id)).collect::<Vec<_>>()
    };
    for (foreign, missing) in order_routes(&foreign).iter().zip(&order_routes(&unknown)) {
        let foreign = send_route(&bob, foreign).await.problem(404, "not_found");
        same(&foreign, &send_route(&bob, missing).await.problem(404, "not_found"));
    }
    let sessions = ann.get("/auth/sessions").await.expect(200).body;
    let session = text(&sessions["items"][0]["id"]).to_owned();
    let theirs = bob.delete(&format!("/auth/sessions/{session}")).await.problem(404, "not_found");
    same(&theirs, &bob.delete(&format!("/auth/sessions/{unknown}")).await.problem(404, "not_found"));
    assert_eq!(bob.get("/orders").await.expect(200).body["items"], json!([]));
    ann.get("/auth/me").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_comes_only_from_a_valid_token() {
    let shop = TestShop::start().await;
    let (ann, guest) = (shop.customer("ann").await, shop.guest());
    for name in [
        "x-user-id",
        "x-user",
        "x-role",
        "x-forwarded-user",
        "x-auth-request-user",
        "grpc-metadata-authorization",
    ] {
        let request = guest.request(Method::GET, "/auth/me").header(name, "1");
        send(request).await.problem(401, "unauthenticated");
        let request = ann.request(Method::GET, "/admin/users").header(name, "admin");
        send(request).await.problem(403, "forbidden");
    }
    let token = ann.token.clone().unwrap();
    for odd in ["", "Bearer", "Bearer ", "Basic YTpi", &format!("Bearer {token}x"), &format!("Token {token}")]
    {
        let request = guest.request(Method::GET, "/auth/me").header("authorization", odd);
        send(request).await.problem(401, "unauthenticated");
    }
    let twice = ann.request(Method::GET, "/auth/me").header("authorization", "Bearer other");
    send(twice).await.problem(401, "unauthenticated");
    let lower = guest.request(Method::GET, "/auth/me").header("authorization", format!("bearer {token}"));
    send(lower).await.expect(200);
    // A public route needs no token, but rejects an invalid one.
    guest.get("/products").await.expect(200);
    guest.with_token("bad").get("/products").await.problem(401, "unauthenticated");
    // Signing in ignores an invalid token.
    let login = json!({"username": ann.name, "password": crate::shop::PASSWORD});
    guest.with_token("bad").post("/auth/login", &login).await.expect(200);
    // A ticket only opens a socket.
    let ticket = ann.post("/auth/ws-ticket", &json!({})).await.expect(201).body;
    guest.with_token(text(&ticket["ticket"])).get("/auth/me").await.problem(401, "unauthenticated");
}

/// Every documented operation with each kind of caller: the gateway admits a caller where the document says so.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_admits_the_callers_that_the_document_names() {
    let shop = TestShop::start().await;
    let (admin, customer, guest) = (shop.admin().await, shop.customer("ann").await, shop.guest());
    let document = guest.get("//openapi.json").await.expect(200).body;
    let mut services = Vec::new();
    for scope in SCOPES {
        services.push((scope, service(&shop, &account(&admin, &[scope]).await).await));
    }
    let (mut problems, mut for_admins) = (Vec::new(), 0);
    for (path, item) in document["paths"].as_object().unwrap() {
        let Some(route) = path.strip_prefix("/api/v1") else { continue };
        // No resource has these ids, and no body is a list, so that an admitted call changes nothing.
        let parts = route.split('/').map(|part| match part {
            "{id}" if route.starts_with("/orders") || route.contains("service-accounts") => {
                "019bc0e1-7a40-7c3e-9f53-2d6a1c0b8e44"
            }
            "{id}" | "{product_id}" => "999999",
            part => part,
        });
        let url = parts.collect::<Vec<_>>().join("/");
        for (method, operation) in item.as_object().unwrap() {
            let security = operation["security"].as_array().unwrap();
            let is_open = security.is_empty() || security.contains(&json!({}));
            let scopes = security.iter().find_map(|one| one["serviceToken"].as_array());
            let method: Method = method.to_uppercase().parse().unwrap();
            let body = operation.get("requestBody").map_or(Value::Null, |_| json!([]));
            let route = (method.clone(), url.clone(), body);
            let status = send_route(&guest, &route).await.status;
            if (status != 401) != is_open {
                problems.push(format!("{method} {url} without a token: {status}"));
            }
            if operation["description"].as_str().is_some_and(|text| text.starts_with("For admins")) {
                for_admins += 1;
                let status = send_route(&customer, &route).await.status;
                if status != 403 {
                    problems.push(format!("{method} {url} as a customer: {status}"));
                }
            }
            for (scope, caller) in &services {
                let status = send_route(caller, &route).await.status;
                let is_admitted = is_open || scopes.is_some_and(|scopes| scopes.contains(&json!(scope)));
                if (status != 403) != is_admitted {
                    problems.push(format!("{method} {url} with {scope}: {status}"));
                }
            }
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    assert!(for_admins > 10, "the document names {for_admins} routes for admins");
}
