//! Live order events with the complete shop.

use std::time::Duration;

use serde_json::{Value, json};
use shoppee_kit::{
    caller::authorize,
    client,
    testing::{RedisServer, eventually},
};
use shoppee_proto::order::v1::{ListEventsRequest, order_service_client::OrderServiceClient};
use tokio::time::{Instant, sleep};

use crate::{
    realtime_fixture::{Socket, open},
    shop::{Person, TestShop, text},
};

/// Opens a socket of the person at a gateway. Returns it with the `seq` and `recovered` of its first frame.
async fn connect(shop: &TestShop, gateway: usize, person: &Person, query: &str) -> (Socket, i64, bool) {
    let url = format!("{}/ws{query}", shop.url(gateway).replace("http://", "ws://"));
    let bearer = format!("Bearer {}", person.token.as_deref().expect("signed in"));
    let (mut socket, _) = open(&url, &[("authorization", &bearer)]).await.expect("a socket");
    let (seq, recovered) = socket.ready().await;
    (socket, seq, recovered)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_counts_the_sockets_and_the_events_that_they_got() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = shop.product(&admin, 1999, 10).await;
    let status = admin.get("/admin/status").await.expect(200).body;
    let delivery = &status["gateway"]["event_delivery"];
    assert_eq!(delivery, &json!({"count": 0, "p50_seconds": null, "p99_seconds": null}));
    let (mut socket, ..) = connect(&shop, 0, &ann, "").await;
    ann.orders(&product, 1).await.expect(201);
    socket.json().await;
    // The status may be of the last second.
    eventually("the status counts them", || async {
        let status = admin.get("/admin/status").await.expect(200).body;
        let (gateway, minutes) = (&status["gateway"], status["order"]["orders_per_minute"].as_array());
        let delivery = &gateway["event_delivery"];
        let orders: i64 = minutes.into_iter().flatten().filter_map(Value::as_i64).sum();
        let seconds = delivery["p50_seconds"].as_f64().zip(delivery["p99_seconds"].as_f64());
        gateway["sockets"] == 1
            && delivery["count"] == 1
            && seconds.is_some_and(|(p50, p99)| 0.0 < p50 && p50 <= p99)
            && orders == 1
    })
    .await;
}

#[tokio::test]
async fn every_device_receives_every_step_of_an_order() {
    let shop = TestShop::builder().gateways(3).start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let ben = shop.customer("ben").await;
    let product = shop.product(&admin, 1999, 10).await;
    let (mut phone, seq, recovered) = connect(&shop, 0, &ann, "").await;
    assert_eq!((seq, recovered), (0, true));
    let (mut laptop, ..) = connect(&shop, 1, &ann, "").await;
    let (mut other, ..) = connect(&shop, 1, &ben, "").await;

    let (ann, admin) = (ann.through(&shop, 2), admin.through(&shop, 2));
    let order = ann.orders(&product, 2).await.expect(201).body;
    let id = text(&order["id"]);
    let mut versions = vec![order["version"].clone()];
    versions.push(ann.pays(&order).await.expect(200).body["version"].clone());
    let shipment = json!({"carrier": "DHL", "tracking_number": "1Z"});
    versions
        .push(admin.post(&format!("/orders/{id}/ship"), &shipment).await.expect(200).body["version"].clone());
    versions.push(
        ann.post(&format!("/orders/{id}/complete"), &json!({})).await.expect(200).body["version"].clone(),
    );

    let steps = [
        ("pending", None),
        ("paid", Some("pending")),
        ("shipped", Some("paid")),
        ("completed", Some("shipped")),
    ];
    for (step, ((status, previous), version)) in steps.into_iter().zip(versions).enumerate() {
        let frame = phone.json().await;
        assert_eq!(frame, laptop.json().await, "the same on both");
        assert_eq!((&frame["type"], &frame["user_id"]), (&json!("order"), &json!(ann.id)));
        assert_eq!(frame["seq"], json!(step + 1));
        assert_eq!(
            frame["content"],
            json!({"order_id": id, "status": status, "previous_status": previous, "total": 3998,
                   "currency": order["currency"], "version": version})
        );
    }
    other.is_silent().await;

    let history = ann.get(&format!("/orders/{id}/events")).await.expect(200).body;
    let seqs: Vec<&Value> = history["items"].as_array().unwrap().iter().map(|event| &event["seq"]).collect();
    assert_eq!(seqs, [&json!(1), &json!(2), &json!(3), &json!(4)]);
}

/// Orders and cancels, which produces two events.
async fn order_and_cancel(person: &Person, product: &Value) {
    let order = person.orders(product, 1).await.expect(201).body;
    person.post(&format!("/orders/{}/cancel", text(&order["id"])), &json!({})).await.expect(200);
}

#[tokio::test]
async fn a_revoked_session_closes_its_sockets_within_a_second() {
    let shop = TestShop::builder().gateways(2).start().await;
    let admin = shop.admin().await;
    let ann = shop.customer("ann").await;
    let elsewhere = shop.sign_in(&ann.name).await;

    let (mut here, ..) = connect(&shop, 1, &ann, "").await;
    let (mut there, ..) = connect(&shop, 1, &elsewhere, "").await;
    ann.post("/auth/logout", &json!({})).await.expect(204);
    let began = Instant::now();
    assert_eq!(here.close_code().await, 4501);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    there.is_silent().await;

    let path = format!("/admin/users/{}", ann.id);
    admin.patch(&path, &json!({"disabled": true})).await.expect(200);
    let began = Instant::now();
    assert_eq!(there.close_code().await, 4501);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_ticket_opens_one_socket() {
    let mut shop = TestShop::builder().gateways(2).start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = shop.product(&admin, 500, 10).await;
    order_and_cancel(&ann, &product).await;

    let ticket = ann.post("/auth/ws-ticket", &json!({})).await.expect(201).body;
    assert_eq!(ticket["expires_in"], 30);
    let protocols = format!("shoppee.v1, ticket.{}", text(&ticket["ticket"]));
    let headers = [("sec-websocket-protocol", protocols.as_str())];
    let urls = [0, 1].map(|gateway| format!("{}/ws?after=0", shop.url(gateway).replace("http://", "ws://")));

    // Redis is empty: the events come from the order service, with the ticket's token.
    flush_redis(&shop).await;
    let (mut socket, response) = open(&urls[0], &headers).await.unwrap();
    assert_eq!(response["sec-websocket-protocol"], "shoppee.v1");
    assert_eq!(socket.ready().await, (2, true));
    assert_eq!(socket.seqs(2).await, [1, 2]);
    assert_eq!(open(&urls[1], &headers).await.err(), Some(401), "used");
    // A ticket does not authorize reading events, used or not.
    let unused = ann.post("/auth/ws-ticket", &json!({})).await.expect(201).body;
    for ticket in [&ticket, &unused] {
        let channel = client::channel(&format!("http://{}", shop.order.addr)).unwrap();
        let mut request = tonic::Request::new(ListEventsRequest::default());
        authorize(&mut request, &text(&ticket["ticket"]).into());
        let refused = OrderServiceClient::new(channel).list_events(request).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    }
    order_and_cancel(&ann, &product).await;
    assert_eq!(socket.seqs(2).await, [3, 4]);

    // Without Redis a ticket still works at one gateway only.
    shop.redis.kill();
    let ticket = ann.post("/auth/ws-ticket", &json!({})).await.expect(201).body;
    let protocols = format!("shoppee.v1, ticket.{}", text(&ticket["ticket"]));
    let headers = [("sec-websocket-protocol", protocols.as_str())];
    let (mut socket, _) = open(&urls[1], &headers).await.unwrap();
    assert_eq!(socket.ready().await, (4, true));
    for url in &urls {
        assert_eq!(open(url, &headers).await.err(), Some(401), "used");
    }
}

/// Deletes all data in Redis.
async fn flush_redis(shop: &TestShop) {
    let redis = shop.redis.client().await;
    fred::interfaces::ClientLike::flushall::<()>(&redis, false).await.expect("flushed");
}

/// A client that reconnects with `after` misses no event while gateways stop.
#[tokio::test]
async fn a_client_resumes_without_gaps_across_stopping_gateways() {
    const ORDERS: usize = 60;
    let shop = TestShop::builder().gateways(4).start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = shop.product(&admin, 500, 1000).await;
    let busy = {
        // The last gateway keeps running.
        let (ann, product) = (ann.through(&shop, 3), product.clone());
        tokio::spawn(async move {
            for _ in 0..ORDERS {
                order_and_cancel(&ann, &product).await;
            }
        })
    };

    let (mut last, mut dead) = (0, 0);
    for visit in 0.. {
        let gateway = dead + visit % (4 - dead);
        let (mut socket, _, recovered) = connect(&shop, gateway, &ann, &format!("?after={last}")).await;
        assert!(recovered);
        if visit % 4 == 3 && dead < 3 {
            let process = shop.gateways[dead].process.process.clone();
            tokio::spawn(async move { process.tasks.stop().await });
            dead += 1;
        }
        let hang_up_at = last + 7;
        while last < hang_up_at {
            match socket.next().await {
                Ok(frame) => {
                    last += 1;
                    assert_eq!(frame["seq"], last, "in order, without a gap");
                }
                Err(code) => {
                    assert_eq!(code, 1001);
                    break;
                }
            }
            if last == 2 * i64::try_from(ORDERS).unwrap() {
                busy.await.unwrap();
                return socket.is_silent().await;
            }
        }
    }
}

/// Orders continue without Redis. Their events arrive after it restarts empty.
#[tokio::test]
async fn sockets_recover_all_events_after_redis_restarts_empty() {
    let mut shop = TestShop::builder().gateways(2).start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = shop.product(&admin, 500, 1000).await;
    let mut devices = [connect(&shop, 0, &ann, "").await.0, connect(&shop, 1, &ann, "").await.0];
    let mut seq = 0;
    for _ in 0..3 {
        order_and_cancel(&ann, &product).await;
        let port = shop.redis.port();
        shop.redis.kill();
        for _ in 0..3 {
            order_and_cancel(&ann, &product).await;
        }
        sleep(Duration::from_millis(500)).await;
        shop.redis = RedisServer::start_on(port).await;
        order_and_cancel(&ann, &product).await;
        let began = Instant::now();
        for device in &mut devices {
            assert_eq!(device.seqs(10).await, (seq + 1..=seq + 10).collect::<Vec<_>>());
        }
        assert!(began.elapsed() < Duration::from_secs(10));
        seq += 10;
    }
    // A client that reconnects gets all events.
    let (mut late, newest, recovered) = connect(&shop, 0, &ann, "?after=0").await;
    assert_eq!((newest, recovered), (30, true));
    assert_eq!(late.seqs(30).await, (1..=30).collect::<Vec<_>>());
    // A client with an invented number gets `recovered: false`.
    let (_, newest, recovered) = connect(&shop, 1, &ann, "?after=31").await;
    assert_eq!((newest, recovered), (30, false));
}
