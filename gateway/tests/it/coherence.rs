//! Three gateways and two product services keep copies of the same products: a change through one shows through all
//! within a second, and nobody is shown an older state after a newer one, whatever becomes of Redis meanwhile.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::shop::{Person, Shop};

const SOON: Duration = Duration::from_secs(1);
const PRODUCTS: usize = 5;
const CHANGES: usize = 100;

/// Changes one product again and again, each time through another gateway, and looks at it through all.
async fn stays_true(people: &[Person], id: &Value) {
    let path = format!("/products/{id}");
    let mut newest = vec![0; people.len()];
    for change in 0..CHANGES {
        let (writer, price) = (change % people.len(), 1000 + change);
        let written = people[writer].patch(&path, &json!({"price": price})).await.expect(200);
        let version = written.body["version"].as_i64().expect("a version");
        let began = Instant::now();
        for (gateway, person) in people.iter().enumerate() {
            loop {
                let seen = person.get(&path).await.expect(200).body["version"].as_i64().expect("a version");
                assert!(seen >= newest[gateway], "{seen} after {} at gateway {gateway}", newest[gateway]);
                newest[gateway] = seen;
                if seen >= version {
                    break;
                }
                assert!(gateway != writer, "not seen where it was written");
                assert!(began.elapsed() < SOON, "{version} not seen at gateway {gateway}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn all_stay_true(shop: &Shop) {
    let admin = shop.admin().await;
    let products = join_all((0..PRODUCTS).map(|_| shop.product(&admin, 100, 10))).await;
    let people: Vec<Person> = (0..3).map(|gateway| admin.through(shop, gateway)).collect();
    join_all(products.iter().map(|product| stays_true(&people, &product["id"]))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_shows_within_a_second_through_every_gateway() {
    let mut shop = Shop::plan().gateways(2).alone().open().await;
    shop.second_product_service().await;
    all_stay_true(&shop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_shows_within_a_second_while_redis_is_wiped_frozen_and_killed() {
    let mut shop = Shop::plan().gateways(2).alone().open().await;
    shop.second_product_service().await;
    let (pid, port) =
        (Pid::from_raw(i32::try_from(shop.redis.pid()).expect("a pid")).expect("a pid"), shop.redis.port());
    let faults = async {
        let pause = || tokio::time::sleep(Duration::from_secs(3));
        pause().await;
        shop.wipe_redis().await;
        pause().await;
        kill_process(pid, Signal::STOP).expect("freezes");
        pause().await;
        kill_process(pid, Signal::CONT).expect("thaws");
        pause().await;
        kill_process(pid, Signal::KILL).expect("kills");
        pause().await;
        shoppee_kit::testing::RedisServer::start_on(port).await
    };
    let (_redis, ()) = tokio::join!(faults, all_stay_true(&shop));
}
