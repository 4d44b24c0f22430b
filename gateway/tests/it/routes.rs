//! Every route with valid requests.

use http::Method;
use serde_json::{Value, json};
use shoppee_kit::testing::eventually;

use crate::shop::{PASSWORD, TestShop, address, send, text};

#[tokio::test(flavor = "multi_thread")]
async fn an_account_registers_signs_in_and_ends_its_sessions() {
    let shop = TestShop::start().await;
    let guest = shop.guest();
    let account = json!({"username": "Ann.Example", "email": "Ann@Example.com", "password": PASSWORD});
    let user = guest.post("/auth/register", &account).await.expect(201).body;
    assert_eq!((text(&user["username"]), text(&user["role"])), ("Ann.Example", "user"));
    assert!(
        user["id"].is_i64() && user.get("disabled").is_none() && text(&user["created_at"]).ends_with('Z')
    );
    guest.post("/auth/register", &account).await.problem(409, "username_taken");
    let again = json!({"username": "other", "email": "ann@example.COM", "password": PASSWORD});
    guest.post("/auth/register", &again).await.problem(409, "email_taken");

    let tokens =
        guest.post("/auth/login", &json!({"username": "ann@example.com", "password": PASSWORD})).await;
    let tokens = tokens.expect(200).body;
    assert_eq!((text(&tokens["token_type"]), &tokens["expires_in"]), ("Bearer", &json!(86_400)));
    assert_eq!(tokens["user"], user);
    let ann = guest.with_token(text(&tokens["access_token"]));
    assert_eq!(ann.get("/auth/me").await.expect(200).body, user);

    let refreshed = guest.post("/auth/refresh", &json!({"refresh_token": tokens["refresh_token"]})).await;
    let ann = guest.with_token(text(&refreshed.expect(200).body["access_token"]));
    let ticket = ann.post("/auth/ws-ticket", &json!({})).await.expect(201).body;
    assert_eq!(ticket["expires_in"], 30);

    let other = shop.sign_in("Ann.Example").await;
    let sessions = ann.get("/auth/sessions").await.expect(200).body;
    let sessions = sessions["items"].as_array().unwrap();
    assert_eq!(sessions.len(), 2);
    let second = sessions.iter().find(|session| session["current"] == false).unwrap();
    ann.delete(&format!("/auth/sessions/{}", text(&second["id"]))).await.expect(204);
    wait_until_ended(|| other.get("/auth/me")).await;

    let change = json!({"current_password": PASSWORD, "new_password": "another good one"});
    ann.put("/auth/password", &change).await.expect(204);
    let old = json!({"username": "Ann.Example", "password": PASSWORD});
    guest.post("/auth/login", &old).await.problem(401, "invalid_credentials");
    send(ann.request(Method::POST, "/auth/logout")).await.expect(204);
    wait_until_ended(|| ann.get("/auth/me")).await;
}

/// Waits until the session has ended, for at most a second.
async fn wait_until_ended<F: Future<Output = crate::shop::ApiResponse>>(ask: impl Fn() -> F) {
    let started = std::time::Instant::now();
    loop {
        let response = ask().await;
        if response.status == 401 {
            response.problem(401, "session_revoked");
            return;
        }
        assert!(started.elapsed().as_millis() < 1000, "the session goes on: {}", response.text);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_sessions_end_at_once() {
    let shop = TestShop::start().await;
    let ann = shop.customer("ann").await;
    let phone = shop.sign_in(&ann.name).await;
    phone.post("/auth/logout-all", &json!({})).await.expect(204);
    wait_until_ended(|| ann.get("/cart")).await;
    wait_until_ended(|| phone.get("/cart")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_manages_users() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let results = admin.get(&format!("/admin/users?q={}&role=user", ann.name)).await.expect(200).body;
    assert_eq!((&results["items"][0]["id"], &results["next_cursor"]), (&json!(ann.id), &Value::Null));
    let path = format!("/admin/users/{}", ann.id);
    assert_eq!(admin.get(&path).await.expect(200).body["disabled"], false);
    assert_eq!(admin.patch(&path, &json!({"disabled": true})).await.expect(200).body["disabled"], true);
    wait_until_ended(|| ann.get("/auth/me")).await;
    let login = json!({"username": ann.name, "password": PASSWORD});
    shop.guest().post("/auth/login", &login).await.problem(403, "account_disabled");
    let changed = admin.patch(&path, &json!({"disabled": false, "role": "admin"})).await.expect(200).body;
    assert_eq!((text(&changed["role"]), &changed["disabled"]), ("admin", &json!(false)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalogue_is_changed_and_read() {
    let shop = TestShop::start().await;
    let (admin, guest) = (shop.admin().await, shop.guest());
    let tools = admin.post("/categories", &json!({"slug": "tools", "name": "Tools"})).await.expect(201).body;
    let hammers = json!({"slug": "hammers", "name": "Hammers", "parent_id": tools["id"]});
    let hammers = admin.post("/categories", &hammers).await.expect(201).body;
    assert_eq!(guest.get("/categories").await.expect(200).body["items"].as_array().unwrap().len(), 2);
    let path = format!("/categories/{}", hammers["id"]);
    let root = admin.patch(&path, &json!({"parent_id": null})).await.expect(200).body;
    assert_eq!((&root["parent_id"], text(&root["name"])), (&Value::Null, "Hammers"));
    admin.patch(&path, &json!({"parent_id": tools["id"], "name": "Hammer"})).await.expect(200);
    admin.delete(&format!("/categories/{}", tools["id"])).await.problem(409, "category_in_use");

    let product = json!({
        "sku": "HAM-1", "name": "Claw hammer", "price": 1999, "stock": 5, "description": "Steel",
        "category_id": hammers["id"], "image_url": "https://img.example/1.jpg",
        "attributes": {"grams": 450, "colours": ["red", null], "deep": {"a": 1.5}},
    });
    let created = admin.post("/products", &product).await.expect(201);
    let location = created.header("location").to_owned();
    assert_eq!(location, format!("/api/v1/products/{}", created.body["id"]));
    let shown = guest.get(location.strip_prefix("/api/v1").unwrap()).await.expect(200);
    assert_eq!((&shown.body, shown.header("etag")), (&created.body, created.header("etag")));
    assert_eq!(shown.body["attributes"], product["attributes"]);
    assert_eq!((text(&shown.body["currency"]), text(&shown.body["status"])), ("EUR", "active"));
    assert_eq!(shown.body["category"], json!({"id": hammers["id"], "slug": "hammers", "name": "Hammer"}));
    admin.post("/products", &product).await.problem(409, "sku_taken");

    for query in [
        "",
        "?category=tools",
        "?category=hammers&in_stock=true&min_price=1999&max_price=1999&sort=name&limit=1",
    ] {
        let list = guest.get(&format!("/products{query}")).await.expect(200).body;
        assert_eq!(
            (&list["items"][0]["id"], &list["next_cursor"]),
            (&created.body["id"], &Value::Null),
            "{query}"
        );
    }
    assert_eq!(guest.get("/products?in_stock=false").await.expect(200).body["items"], json!([]));
    let search = "/products/search?q=hamer&category=tools";
    eventually("it is found", || async {
        let results = guest.get(search).await;
        results.status == 200 && results.body["total"] == 1
    })
    .await;
    let results = guest.get(search).await.expect(200).body;
    assert_eq!(results["items"][0]["id"], created.body["id"]);
    assert_eq!((&results["total_is_exact"], &results["next_cursor"]), (&json!(true), &Value::Null));
    assert_eq!(results.get("facets"), None);
    let facets = &guest.get(&format!("{search}&sort=price_asc&facets=true")).await.expect(200).body["facets"];
    let count = |slug: &str, name: &str| json!({"slug": slug, "name": name, "count": 1});
    let expected = json!({
        "category": [count("hammers", "Hammer"), count("tools", "Tools")],
        "in_stock": {"true": 1, "false": 0},
        "price": [{"min": 1000, "max": 1999, "count": 1}],
    });
    assert_eq!(*facets, expected);
    for odd in ["sort=best", "facets=1", "facets=true&facets=true", "cursor=e30"] {
        guest.get(&format!("/products/search?q=hammer&{odd}")).await.problem(400, "invalid_request");
    }

    let path = format!("/products/{}", created.body["id"]);
    let changed = admin.patch(&path, &json!({"price": 2500, "image_url": null})).await.expect(200).body;
    assert_eq!(
        (&changed["price"], &changed["image_url"], &changed["stock"]),
        (&json!(2500), &Value::Null, &json!(5))
    );
    let stock = admin.post(&format!("{path}/stock"), &json!({"delta": -2, "reason": "broken"})).await;
    assert_eq!(stock.expect(200).body["stock"], 3);
    admin
        .post(&format!("{path}/stock"), &json!({"delta": -4, "reason": "x"}))
        .await
        .problem(409, "out_of_stock");
    let batch = json!({"on_error": "continue", "items": [
        {"sku": "HAM-1", "price": 1}, {"id": 999_999, "price": 1}, {"id": created.body["id"], "price": 2},
    ]});
    let done = admin.post("/products/batch", &batch).await.expect(200).body;
    assert_eq!((&done["updated"], &done["failed"]), (&json!(1), &json!(2)));
    assert_eq!((text(&done["results"][0]["status"]), &done["results"][0]["index"]), ("updated", &json!(0)));
    assert_eq!(text(&done["results"][1]["error"]["code"]), "not_found");

    admin.delete(&path).await.expect(204);
    guest.get(&path).await.problem(404, "not_found");
    assert_eq!(text(&admin.get(&path).await.expect(200).body["status"]), "archived");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_goes_from_the_cart_to_completion() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let (hammer, nail) = (shop.product(&admin, 1999, 10).await, shop.product(&admin, 5, 1000).await);
    let add = |product: &Value, quantity| json!({"product_id": product["id"], "quantity": quantity});
    ann.post("/cart/items", &add(&hammer, 1)).await.expect(200);
    ann.post("/cart/items", &add(&hammer, 1)).await.expect(200);
    let line = format!("/cart/items/{}", nail["id"]);
    ann.put(&line, &json!({"quantity": 100})).await.expect(200);
    let cart = ann.get("/cart").await.expect(200).body;
    assert_eq!((&cart["total"], text(&cart["currency"])), (&json!(2 * 1999 + 100 * 5), "EUR"));
    let lines = cart["items"].as_array().unwrap();
    assert!(lines.len() == 2 && lines.iter().all(|line| line["available"] == true));
    ann.delete(&line).await.expect(200);

    let new = json!({"shipping_address": address(), "expected_total": 2 * 1999});
    let created = ann.post("/orders", &new).await.expect(201);
    let (order, path) = (created.body.clone(), format!("/orders/{}", text(&created.body["id"])));
    assert_eq!(created.header("location"), format!("/api/v1{path}"));
    assert_eq!(
        (text(&order["status"]), &order["total"], &order["user_id"]),
        ("pending", &json!(3998), &json!(ann.id))
    );
    assert_eq!((text(&order["payment"]["status"]), &order["shipment"]), ("unpaid", &Value::Null));
    assert_eq!(ann.get("/cart").await.expect(200).body["items"], json!([]));
    assert_eq!(ann.get(&path).await.expect(200).body, order);
    assert_eq!(ann.get("/orders?status=pending&limit=1").await.expect(200).body["items"], json!([order]));

    let paid = ann.pays(&order).await.expect(200).body;
    assert_eq!((text(&paid["status"]), text(&paid["payment"]["status"])), ("paid", "paid"));
    let parcel = json!({"carrier": "DHL", "tracking_number": "123"});
    let shipped = admin.post(&format!("{path}/ship"), &parcel).await.expect(200).body;
    assert_eq!((text(&shipped["status"]), text(&shipped["shipment"]["carrier"])), ("shipped", "DHL"));
    let done = send(ann.request(Method::POST, &format!("{path}/complete"))).await.expect(200).body;
    assert_eq!(text(&done["status"]), "completed");

    let events = ann.get(&format!("{path}/events")).await.expect(200).body;
    let steps: Vec<&str> =
        events["items"].as_array().unwrap().iter().map(|event| text(&event["status"])).collect();
    assert_eq!(steps, ["pending", "paid", "shipped", "completed"]);
    assert_eq!(
        (&events["items"][0]["previous_status"], text(&events["items"][2]["actor"])),
        (&Value::Null, "admin")
    );
    let of_ann =
        admin.get(&format!("/admin/orders?user_id={}&status=completed", ann.id)).await.expect(200).body;
    assert_eq!(of_ann["items"][0]["id"], order["id"]);

    ann.post("/cart/items", &add(&hammer, 1)).await.expect(200);
    ann.delete("/cart").await.expect(204);
    ann.post("/orders", &json!({"shipping_address": address()})).await.problem(409, "cart_empty");
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_outside_the_base_path_respond() {
    let shop = TestShop::start().await;
    let guest = shop.guest();
    guest.get("//healthz").await.expect(200);
    guest.get("//readyz").await.expect(200);
    let keys = guest.get("//.well-known/jwks.json").await.expect(200);
    let key = &keys.body["keys"][0];
    assert_eq!((text(&key["kty"]), text(&key["crv"]), text(&key["use"])), ("OKP", "Ed25519", "sig"));
    assert!(keys.header("cache-control").contains("max-age"));
    guest.get("//metrics").await.expect(200);
    guest.get("//nothing").await.problem(404, "not_found");
    guest.get("/nothing").await.problem(404, "not_found");
}

#[tokio::test]
async fn a_cursor_belongs_to_one_list_with_its_filters() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = shop.product(&admin, 450, 10).await;
    shop.product(&admin, 450, 10).await;
    for _ in 0..2 {
        ann.orders(&tea, 1).await.expect(201);
        admin.orders(&tea, 1).await.expect(201);
    }
    let lists = [
        "/admin/orders?limit=1",
        "/admin/orders?limit=1&status=pending",
        "/admin/users?limit=1",
        "/admin/users?limit=1&role=user",
        "/admin/audit?limit=1",
        "/admin/audit?limit=1&action=product.create",
        "/products?limit=1",
        "/categories?limit=1",
        "/orders?limit=1",
    ];
    let mut cursors = Vec::new();
    for list in lists {
        let page = admin.get(list).await.expect(200).body;
        cursors.extend(page["next_cursor"].as_str().map(|cursor| (list, cursor.to_owned())));
    }
    cursors.push((
        "",
        ann.get("/orders?limit=1").await.expect(200).body["next_cursor"].as_str().unwrap().to_owned(),
    ));
    assert!(cursors.len() > 4, "{cursors:?}");
    for (of, cursor) in &cursors {
        for list in lists {
            let response = admin.get(&format!("{list}&cursor={cursor}")).await;
            if *of == list {
                response.expect(200);
            } else {
                assert_eq!(
                    response.problem(400, "invalid_request").fields(),
                    ["cursor"],
                    "{list} with that of {of}"
                );
            }
        }
    }
}
