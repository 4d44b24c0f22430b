use fred::{
    clients::Client,
    interfaces::{ClientLike as _, StreamsInterface as _},
    types::{Builder, config::Config, streams::XReadValue},
};
use prost::Message as _;
use shoppee_kit::testing::eventually;
use shoppee_proto::{
    order::v1::{ListEventsRequest, OrderEvent},
    streams,
};

use crate::shop::{Shop, wish};

async fn redis(shop: &Shop) -> Client {
    let config = Config::from_url(&format!("redis://127.0.0.1:{}", shop.redis.port())).expect("a URL");
    let client = Builder::from_config(config).build().expect("a client");
    client.init().await.expect("connects");
    client
}

async fn read(redis: &Client, stream: &str) -> Vec<(String, OrderEvent)> {
    let entries: Vec<XReadValue<String, String, Vec<u8>>> =
        redis.xrange_values(stream, "-", "+", None).await.expect("reads");
    let decode = |bytes: &Vec<u8>| OrderEvent::decode(bytes.as_slice()).expect("an event");
    entries.into_iter().map(|(id, fields)| (id, decode(&fields[streams::FIELD]))).collect()
}

#[tokio::test]
async fn every_step_reaches_the_streams_in_order() {
    let shop = Shop::open().await;
    let (admin, ann, ben) = (shop.admin().await, shop.customer("ann").await, shop.customer("ben").await);
    let tea = admin.sells("tea", 450, 100).await;
    for _ in 0..5 {
        for person in [&ann, &ben] {
            let id = person.buys(tea, 1).await.id;
            person.pays(&id).await.unwrap();
        }
    }
    let redis = redis(&shop).await;
    for person in [&ann, &ben] {
        let history = streams::history(person.id);
        eventually("all are published", || async { read(&redis, &history).await.len() == 10 }).await;
        let published = read(&redis, &history).await;
        let numbers: Vec<_> = published.iter().map(|(id, event)| (id.clone(), event.seq)).collect();
        assert_eq!(numbers, (1..=10).map(|seq| (format!("{seq}-0"), seq)).collect::<Vec<_>>());
        let events: Vec<_> = published.into_iter().map(|(_, event)| event).collect();
        assert_eq!(events, person.events().await, "what travels is what is kept");
        let fanned_out = read(&redis, &streams::fan_out(person.id)).await;
        let seqs: Vec<_> = fanned_out
            .iter()
            .filter(|(_, event)| event.user_id == person.id)
            .map(|(_, event)| event.seq)
            .collect();
        assert_eq!(seqs, (1..=10).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn nothing_is_lost_while_redis_is_away_and_the_service_is_replaced() {
    let mut shop = Shop::open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 100).await;
    shop.redis.kill();
    for _ in 0..20 {
        let started = std::time::Instant::now();
        ann.buys(tea, 1).await;
        assert!(started.elapsed() < std::time::Duration::from_secs(2), "orders go on without Redis");
        let newest = ann.events().await.pop().unwrap();
        ann.cancels(&newest.order_id).await.unwrap();
    }
    shop.stop_order().await;
    let port = shop.redis.port();
    shop.redis = shoppee_kit::testing::RedisServer::start_on(port).await;
    shop.start_order().await;

    let (redis, history) = (redis(&shop).await, streams::history(ann.id));
    eventually("all 40 are there", || async { read(&redis, &history).await.len() == 40 }).await;
    let look = shop.look().await;
    eventually("the outbox is empty", || async {
        let left: i64 =
            sqlx::query_scalar("select count(*) from orders.outbox").fetch_one(&look).await.unwrap();
        left == 0
    })
    .await;
}

#[tokio::test]
async fn numbers_have_no_gap_though_orders_come_at_once() {
    let shop = Shop::open_with(|settings| settings.max_unpaid_orders = 1000).await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 30).await;
    // More than there is: the refused ones must not use up numbers.
    let tries: Vec<_> = (0..60)
        .map(|_| {
            let ann = ann.clone();
            tokio::spawn(async move { ann.orders(wish(&[(tea, 1)])).await.is_ok() })
        })
        .collect();
    for attempt in tries {
        attempt.await.unwrap();
    }
    let seqs: Vec<_> = ann.events().await.iter().map(|event| event.seq).collect();
    assert_eq!(seqs, (1..=30).collect::<Vec<_>>());

    let page = |after_seq, limit| ann.request(ListEventsRequest { after_seq, limit });
    let answer = ann.service().list_events(page(Some(25), Some(3))).await.unwrap().into_inner();
    assert_eq!(answer.events.iter().map(|event| event.seq).collect::<Vec<_>>(), [26, 27, 28]);
    assert_eq!(answer.last_seq, 30);
    let answer = ann.service().list_events(page(None, None)).await.unwrap().into_inner();
    assert_eq!((answer.events.len(), answer.last_seq), (0, 30));
}

#[tokio::test]
async fn whoever_registers_gets_a_cart() {
    let mut shop = Shop::open().await;
    let ann = shop.customer("ann").await;
    let look = shop.look().await;
    let has_cart = async |id: i64| {
        let found: Option<i64> = sqlx::query_scalar("select user_id from orders.cart where user_id = $1")
            .bind(id)
            .fetch_optional(&look)
            .await
            .unwrap();
        found.is_some()
    };
    eventually("ann has a cart", || has_cart(ann.id)).await;
    shop.stop_order().await;
    let ben = shop.customer("ben").await;
    shop.start_order().await;
    eventually("ben, who registered meanwhile, has one too", || has_cart(ben.id)).await;
}
