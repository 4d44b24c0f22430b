//! Live order events with the whole shop behind them (contract §4).

use std::time::Duration;

use serde_json::{Value, json};
use shoppee_kit::testing::RedisServer;
use tokio::time::{Instant, sleep};

use crate::{
    realtime_stage::{Socket, open},
    shop::{Person, Shop, text},
};

/// A socket of the person on the n-th gateway, and the `seq` it begins with.
async fn connect(shop: &Shop, gateway: usize, person: &Person, query: &str) -> (Socket, i64, bool) {
    let url = format!("{}/ws{query}", shop.url(gateway).replace("http://", "ws://"));
    let bearer = format!("Bearer {}", person.token.as_deref().expect("signed in"));
    let (mut socket, _) = open(&url, &[("authorization", &bearer)]).await.expect("a socket");
    let (seq, recovered) = socket.ready().await;
    (socket, seq, recovered)
}

#[tokio::test]
async fn an_order_is_seen_on_every_device_at_every_step() {
    let shop = Shop::plan().gateways(3).open().await;
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

    let told = ann.get(&format!("/orders/{id}/events")).await.expect(200).body;
    let seqs: Vec<&Value> = told["items"].as_array().unwrap().iter().map(|event| &event["seq"]).collect();
    assert_eq!(seqs, [&json!(1), &json!(2), &json!(3), &json!(4)]);
}

/// Orders and cancels, which makes two events.
async fn order_and_cancel(person: &Person, product: &Value) {
    let order = person.orders(product, 1).await.expect(201).body;
    person.post(&format!("/orders/{}/cancel", text(&order["id"])), &json!({})).await.expect(200);
}

#[tokio::test]
async fn the_end_of_a_session_ends_its_sockets_on_every_gateway_within_a_second() {
    let shop = Shop::plan().gateways(2).open().await;
    let admin = shop.admin().await;
    let ann = shop.customer("ann").await;
    let elsewhere = shop.sign_in(&ann.name).await;

    let (mut here, ..) = connect(&shop, 1, &ann, "").await;
    let (mut there, ..) = connect(&shop, 1, &elsewhere, "").await;
    ann.post("/auth/logout", &json!({})).await.expect(204);
    let began = Instant::now();
    assert_eq!(here.closed().await, 4501);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    there.is_silent().await;

    let path = format!("/admin/users/{}", ann.id);
    admin.patch(&path, &json!({"disabled": true})).await.expect(200);
    let began = Instant::now();
    assert_eq!(there.closed().await, 4501);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_browser_opens_a_socket_with_a_ticket_once() {
    let shop = Shop::plan().gateways(2).open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = shop.product(&admin, 500, 10).await;
    order_and_cancel(&ann, &product).await;

    let ticket = ann.post("/auth/ws-ticket", &json!({})).await.expect(201).body;
    assert_eq!(ticket["expires_in"], 30);
    let protocols = format!("shoppee.v1, ticket.{}", text(&ticket["ticket"]));
    let headers = [("sec-websocket-protocol", protocols.as_str())];
    let url = |gateway| format!("{}/ws?after=0", shop.url(gateway).replace("http://", "ws://"));

    // Redis knows nothing: the order service takes the ticket for its word.
    forget_events(&shop).await;
    let (mut socket, answer) = open(&url(0), &headers).await.unwrap();
    assert_eq!(answer["sec-websocket-protocol"], "shoppee.v1");
    assert_eq!(socket.ready().await, (2, true));
    assert_eq!(socket.seqs(2).await, [1, 2]);
    assert_eq!(open(&url(1), &headers).await.err(), Some(401), "used");
    order_and_cancel(&ann, &product).await;
    assert_eq!(socket.seqs(2).await, [3, 4]);
}

/// Everything in Redis is gone.
async fn forget_events(shop: &Shop) {
    let redis = shop.redis.client().await;
    fred::interfaces::ClientLike::flushall::<()>(&redis, false).await.expect("flushed");
}

/// G6: whatever becomes of gateways and connections, a client that comes back with `after` misses nothing.
#[tokio::test]
async fn a_client_that_wanders_between_dying_gateways_misses_nothing() {
    const ORDERS: usize = 60;
    let shop = Shop::plan().gateways(4).open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = shop.product(&admin, 500, 1000).await;
    let busy = {
        // The last gateway stays.
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

/// C10: orders go on without Redis, and what happened meanwhile arrives when it is back, though it lost
/// everything.
#[tokio::test]
async fn a_redis_that_dies_and_comes_back_empty_is_not_noticed_on_a_socket() {
    let mut shop = Shop::plan().gateways(2).open().await;
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
    // A client that comes back now finds all of it.
    let (mut late, newest, recovered) = connect(&shop, 0, &ann, "?after=0").await;
    assert_eq!((newest, recovered), (30, true));
    assert_eq!(late.seqs(30).await, (1..=30).collect::<Vec<_>>());
    // And one that made its number up is told.
    let (_, newest, recovered) = connect(&shop, 1, &ann, "?after=31").await;
    assert_eq!((newest, recovered), (30, false));
}
