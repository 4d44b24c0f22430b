//! Registrations reach the stream `users` despite outages of Redis and of replicas.

use fred::{
    clients::Client,
    interfaces::{ClientLike as _, StreamsInterface as _},
    types::{Builder, Value, config::Config},
};
use prost::Message as _;
use shoppee_kit::testing::{RedisServer, eventually};
use shoppee_proto::{auth::v1::UserRegistered, streams};

use crate::shop::{PASSWORD, TestAuth};

async fn client(redis: &RedisServer) -> Client {
    let url = format!("redis://127.0.0.1:{}", redis.port());
    let client = Builder::from_config(Config::from_url(&url).expect("a URL")).build().expect("a client");
    client.init().await.expect("connects");
    client
}

/// Returns the users in the stream, in its order.
async fn users(client: &Client) -> Vec<i64> {
    let entries: Vec<(String, Vec<(String, Value)>)> =
        client.xrange_values(streams::USERS_STREAM, "-", "+", None).await.map(to_pairs).expect("reads");
    entries
        .into_iter()
        .map(|(_, fields)| {
            let [(name, value)] = fields.as_slice() else { panic!("one field: {fields:?}") };
            assert_eq!(name, streams::MESSAGE_FIELD);
            let event = UserRegistered::decode(value.as_bytes().expect("bytes")).expect("decodes");
            assert!(event.at.is_some());
            event.user_id
        })
        .collect()
}

fn to_pairs(
    entries: Vec<fred::types::streams::XReadValue<String, String, Value>>,
) -> Vec<(String, Vec<(String, Value)>)> {
    entries.into_iter().map(|(id, fields)| (id, fields.into_iter().collect())).collect()
}

async fn pending(shop: &TestAuth) -> i64 {
    sqlx::query_scalar("select count(*) from auth.outbox")
        .fetch_one(&mut shop.connection().await)
        .await
        .expect("counts")
}

#[tokio::test]
async fn a_registration_is_published_once_and_at_once() {
    let redis = RedisServer::start().await;
    let shop = TestAuth::start_with(|settings| settings.redis = redis.settings()).await;
    let replica = shop.replica().await;
    let client = client(&redis).await;
    eventually("Redis is connected", || async { shop.process.process.readiness.failing().is_empty() }).await;
    let mut registered = Vec::new();
    for number in 0..10 {
        let shop = if number % 2 == 0 { &shop } else { &replica };
        registered.push(shop.registers(&format!("user{number}")).await.id);
    }
    eventually("all are published", || async { pending(&shop).await == 0 }).await;
    let mut published = users(&client).await;
    published.sort_unstable();
    assert_eq!(published, registered);
    let outcome = shop.try_register("user0", "other@example.com", PASSWORD).await;
    assert!(outcome.is_err());
    eventually("nothing is left to publish", || async { pending(&shop).await == 0 }).await;
    assert_eq!(users(&client).await.len(), 10, "a rejected one is not published");
}

#[tokio::test]
async fn registrations_during_a_redis_outage_are_published_after_it() {
    let mut redis = RedisServer::start().await;
    let shop = TestAuth::start_with(|settings| settings.redis = redis.settings()).await;
    redis.kill();
    let mut registered = Vec::new();
    for number in 0..5 {
        let started = std::time::Instant::now();
        registered.push(shop.registers_and_signs_in(&format!("user{number}")).await.id());
        assert!(started.elapsed() < std::time::Duration::from_secs(2), "requests do not wait for Redis");
    }
    assert_eq!(pending(&shop).await, 5);

    let redis = RedisServer::start_on(redis.port()).await;
    let client = client(&redis).await;
    eventually("all are published", || async { pending(&shop).await == 0 }).await;
    let mut published = users(&client).await;
    published.sort_unstable();
    published.dedup();
    assert_eq!(published, registered);
}

#[tokio::test]
async fn registrations_left_by_a_dead_replica_are_published_by_another() {
    let redis = RedisServer::start().await;
    let shop = TestAuth::start().await;
    let ann = shop.registers("ann").await;
    shop.process.stop().await;
    let replica = shop.replica_with(|settings| settings.redis = redis.settings()).await;
    let client = client(&redis).await;
    eventually("it is published", || async { pending(&replica).await == 0 }).await;
    assert_eq!(users(&client).await, [ann.id]);
}
