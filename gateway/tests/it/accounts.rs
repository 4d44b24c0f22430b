//! Accounts over REST: known devices, repeated registrations.

use http::Method;
use serde_json::json;

use crate::shop::{ApiResponse, PASSWORD, Person, TestShop, send};

async fn sign_in(guest: &Person, name: &str, password: &str, header: Option<(&str, &str)>) -> ApiResponse {
    let login = json!({"username": name, "password": password});
    let request = guest.request(Method::POST, "/auth/login").json(&login);
    send(header.into_iter().fold(request, |request, (name, value)| request.header(name, value))).await
}

#[tokio::test]
async fn a_known_device_signs_in_while_the_account_is_locked() {
    let shop = TestShop::builder().gateways(2).with("--rate-limits", "off").start().await;
    let ann = shop.customer("ann").await;
    let guest = shop.guest();
    let first = sign_in(&guest, &ann.name, PASSWORD, None).await.expect(200);
    let device = first.header("device-token").to_owned();
    let cookie = first.header("set-cookie").to_owned();
    let attributes = "; Path=/api/v1/auth; Max-Age=15552000; HttpOnly; SameSite=Strict";
    assert_eq!(cookie, format!("shoppee_device={device}{attributes}"), "without Secure in development");
    assert!(first.body.get("device_token").is_none(), "not in the body: {}", first.text);

    for _ in 0..10 {
        sign_in(&guest, &ann.name, "wrong horse", None).await.problem(401, "invalid_credentials");
    }
    sign_in(&guest, &ann.name, PASSWORD, None).await.problem(429, "too_many_attempts");
    let pair = cookie.split(';').next().unwrap();
    for (gateway, header) in [(0, ("cookie", pair)), (1, ("cookie", pair)), (1, ("device-token", &*device))] {
        let again = sign_in(&guest.through(&shop, gateway), &ann.name, PASSWORD, Some(header)).await;
        assert!(!again.expect(200).header("device-token").is_empty());
    }
    let nonsense = Some(("device-token", "nonsense"));
    sign_in(&guest, &ann.name, PASSWORD, nonsense).await.problem(429, "too_many_attempts");
    // A device token is no session token.
    guest.with_token(&device).get("/auth/me").await.problem(401, "unauthenticated");
}

#[tokio::test]
async fn a_repeated_registration_is_replayed_by_any_gateway() {
    let shop = TestShop::builder().gateways(2).with("--rate-limits", "off").start().await;
    let register = async |gateway, key: &str, password: &str| {
        let account = json!({"username": "ann", "email": "ann@example.com", "password": password});
        let guest = shop.guest().through(&shop, gateway);
        send(guest.request(Method::POST, "/auth/register").header("idempotency-key", key).json(&account))
            .await
    };
    let first = register(0, "k", PASSWORD).await.expect(201);
    assert_eq!(first.header("idempotent-replayed"), "");
    for gateway in [0, 1] {
        let again = register(gateway, "k", PASSWORD).await.expect(201);
        assert_eq!((again.header("idempotent-replayed"), &again.body), ("true", &first.body));
    }
    register(1, "k", "another horse").await.problem(422, "idempotency_key_reused");
    register(1, "other", PASSWORD).await.problem(409, "username_taken");
}

#[tokio::test]
async fn every_account_write_validates_its_idempotency_key() {
    let shop = TestShop::start().await;
    let (ann, admin) = (shop.customer("ann").await, shop.admin().await);
    let patch = format!("/admin/users/{}", ann.id);
    let account = json!({"username": "eve", "email": "eve@example.com", "password": PASSWORD});
    let login = json!({"username": ann.name, "password": PASSWORD});
    for (person, method, path, body) in [
        (&ann, Method::POST, "/auth/register", &account),
        (&ann, Method::POST, "/auth/login", &login),
        (&ann, Method::POST, "/auth/refresh", &json!({"refresh_token": "x"})),
        (&ann, Method::POST, "/auth/ws-ticket", &json!({})),
        (&ann, Method::POST, "/auth/logout", &json!({})),
        (&ann, Method::POST, "/auth/logout-all", &json!({})),
        (&admin, Method::PATCH, &patch, &json!({"disabled": true})),
    ] {
        let request = person.request(method.clone(), path).header("idempotency-key", "a b").json(body);
        let response = send(request).await.problem(400, "invalid_request");
        assert_eq!(response.fields(), ["Idempotency-Key"], "{path}");
    }
    for (path, body, field) in [
        ("/auth/register", &account, "idempotency_key"),
        ("/auth/login", &login, "device_token"),
        ("/auth/login", &login, "user_agent"),
    ] {
        let mut body = body.clone();
        body[field] = json!("x");
        ann.post(path, &body).await.problem(400, "invalid_request");
    }
    // No call had an effect: the session is still valid.
    ann.get("/auth/me").await.expect(200);
}
