//! Three gateways and two product services keep copies of the same products: a change through one shows through all
//! within a second, and nobody is shown an older state after a newer one, whatever becomes of Redis meanwhile.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use shoppee_kit::testing::{Stalls, eventually};

use crate::shop::{Person, Shop};

const SOON: Duration = Duration::from_secs(1);
const PRODUCTS: usize = 5;
const CHANGES: usize = 100;

/// Changes one product again and again, each time through another gateway, and looks at it through all.
async fn stays_true(people: &[Person], id: &Value) {
    let path = format!("/products/{id}");
    let (mut newest, stalls) = (vec![0; people.len()], Stalls::watch());
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
                let late = began.elapsed() > SOON + stalls.allowance();
                assert!(!late, "{version} not seen at gateway {gateway}");
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

/// A shop of two product services, one behind each of its gateways, and products that both have in memory. The second
/// learns of changes later.
async fn two_services(count: usize) -> (Shop, Vec<Value>) {
    let mut shop = Shop::plan().alone().open().await;
    shop.second_product_service_far_from_its_database(Duration::from_millis(20)).await;
    let admin = shop.admin().await;
    let products = join_all((0..count).map(|_| shop.product(&admin, 100, 10))).await;
    for gateway in [0, 1] {
        shows(&shop.guest().through(&shop, gateway), &products).await;
    }
    (shop, products)
}

/// How products are shown, those of them that are.
async fn shows(person: &Person, products: &[Value]) -> Vec<Value> {
    let mut shown = Vec::new();
    for product in products {
        let answer = person.get(&format!("/products/{}", product["id"])).await;
        shown.extend((answer.status == 200).then_some(answer.body));
    }
    shown
}

/// The services are asked in turn: others who ask meanwhile mix the turns up.
async fn among_others(guest: &Person, meanwhile: impl Future<Output = ()>) {
    let others = join_all((1..=4).map(async |other| {
        loop {
            guest.get(&format!("/products/{}", 1_000_000_000 + other)).await.expect(404);
        }
    }));
    tokio::select! {
        () = meanwhile => {}
        _ = others => {}
    }
}

/// The service that it listens to has told already what another does not know yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_has_just_come_keeps_nothing_old() {
    let (mut shop, products) = two_services(100).await;
    let (admin, all) = (shop.admin().await, products.len());
    let changed = Arc::new(AtomicUsize::new(0));
    let (changing, count) = (products.clone(), changed.clone());
    let all_changes = tokio::spawn(async move {
        for product in &changing {
            admin.patch(&format!("/products/{}", product["id"]), &json!({"price": 200})).await.expect(200);
            count.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let mut readers = Vec::new();
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let gateway = shop.gateway_to_all().await;
        let person = shop.guest().through(&shop, gateway);
        let (changed, products) = (changed.clone(), products.clone());
        readers.push(tokio::spawn(async move {
            loop {
                // Those that have just been changed.
                let now = changed.load(Ordering::Relaxed);
                shows(&person, &products[now.saturating_sub(20)..now]).await;
                if now == all {
                    break;
                }
            }
            tokio::time::sleep(SOON).await;
            shows(&person, &products).await
        }));
    }
    assert!(!all_changes.is_finished());
    all_changes.await.expect("done");
    for reader in readers {
        let shown = reader.await.expect("read");
        let old = shown.iter().filter(|product| product["price"] != 200).count();
        assert_eq!((shown.len(), old), (all, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_changed_many_sees_it_whichever_service_tells() {
    let (mut shop, products) = two_services(20).await;
    let gateway = shop.gateway_to_all().await;
    let admin = shop.admin().await.through(&shop, gateway);
    for price in 200..205 {
        let items: Vec<Value> =
            products.iter().map(|product| json!({"id": product["id"], "price": price})).collect();
        let batch = json!({"on_error": "continue", "items": items});
        assert_eq!(admin.post("/products/batch", &batch).await.expect(200).body["updated"], products.len());
        for _ in 0..2 {
            for product in shows(&shop.guest().through(&shop, gateway), &products).await {
                assert_eq!(product["price"], price);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_does_not_come_back() {
    let (mut shop, products) = two_services(20).await;
    let gateway = shop.gateway_to_all().await;
    let (admin, guest) = (shop.admin().await, shop.guest().through(&shop, gateway));
    let all_go = async {
        for product in &products {
            let path = format!("/products/{}", product["id"]);
            // Through a gateway of one of the services.
            admin.delete(&path).await.expect(204);
            let mut gone = false;
            for _ in 0..20 {
                let status = guest.get(&path).await.status;
                assert!(status == 404 || !gone, "{status} after 404");
                gone = status == 404;
            }
        }
    };
    among_others(&guest, all_go).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_just_been_made_is_there() {
    let (mut shop, products) = two_services(1).await;
    let gateway = shop.gateway_to_all().await;
    let (admin, guest) = (shop.admin().await.through(&shop, gateway), shop.guest().through(&shop, gateway));
    let all_come = async {
        let mut last = products[0]["id"].as_i64().expect("an id");
        for _ in 0..10 {
            // Whoever is asked remembers for a while that there is no such product.
            for _ in 0..6 {
                guest.get(&format!("/products/{}", last + 1)).await.expect(404);
            }
            let made = shop.product(&admin, 100, 10).await;
            last = made["id"].as_i64().expect("an id");
            for _ in 0..6 {
                guest.get(&format!("/products/{last}")).await.expect(200);
            }
        }
    };
    among_others(&guest, all_come).await;
}

/// Requests a page again and again, so that it is always cached.
async fn keep_hot(guest: &Person, path: &str) {
    loop {
        guest.get(path).await.expect(200);
    }
}

/// Waits until a page shows a product at a price; that price never goes back on a list.
async fn shows_price(guest: &Person, path: &str, id: &Value, price: i64, newest: &mut i64, is_list: bool) {
    let (began, stalls) = (Instant::now(), Stalls::watch());
    loop {
        let page = guest.get(path).await.expect(200).body;
        let items = page["items"].as_array().expect("items");
        let item = items.iter().find(|item| item["id"] == *id);
        let seen = item.map_or(0, |item| item["price"].as_i64().expect("a price"));
        assert!(seen >= *newest || !is_list, "{seen} after {newest} on {path}");
        *newest = seen;
        if seen >= price {
            return;
        }
        assert!(began.elapsed() < SOON + stalls.allowance(), "{price} is not on {path}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_shows_within_a_second_on_hot_pages_of_every_gateway() {
    let mut shop = Shop::plan().gateways(2).alone().open().await;
    shop.second_product_service().await;
    let admin = shop.admin().await;
    let product = shop.product(&admin, 1000, 10).await;
    let search = format!("/products/search?q={}", product["sku"].as_str().expect("a SKU"));
    let pages = [("/products?limit=5", true), (search.as_str(), false)];
    let guests: Vec<Person> = (0..3).map(|gateway| shop.guest().through(&shop, gateway)).collect();
    let admins: Vec<Person> = (0..3).map(|gateway| admin.through(&shop, gateway)).collect();
    let hot = guests.iter().flat_map(|guest| pages.map(|(path, _)| keep_hot(guest, path)));
    let changes = async {
        let mut newest = vec![0; guests.len() * pages.len()];
        for change in 1..=30 {
            let (price, path) = (1000 + change, format!("/products/{}", product["id"]));
            let writer = usize::try_from(change).expect("small") % admins.len();
            admins[writer].patch(&path, &json!({"price": price})).await.expect(200);
            let seen = newest.iter_mut().enumerate().map(|(at, newest)| {
                let (guest, (path, is_list)) = (&guests[at / pages.len()], pages[at % pages.len()]);
                shows_price(guest, path, &product["id"], price, newest, is_list)
            });
            join_all(seen).await;
        }
    };
    tokio::select! {
        () = changes => {}
        _ = join_all(hot) => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_shows_a_change_at_once_through_the_gateway_that_made_it() {
    let shop = Shop::open().await;
    let (admin, guest) = (shop.admin().await, shop.guest());
    let product = shop.product(&admin, 1000, 10).await;
    for price in 1001..1011 {
        guest.get("/products?limit=5").await.expect(200);
        admin.patch(&format!("/products/{}", product["id"]), &json!({"price": price})).await.expect(200);
        let page = guest.get("/products?limit=5").await.expect(200).body;
        let items = page["items"].as_array().expect("items");
        let shown = items.iter().find(|item| item["id"] == product["id"]).expect("the product");
        assert_eq!(shown["price"], price);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn admins_and_guests_do_not_share_pages() {
    let shop = Shop::open().await;
    let (admin, guest) = (shop.admin().await, shop.guest());
    let product = shop.product(&admin, 1000, 10).await;
    let path = format!("/products/search?q={}", product["sku"].as_str().expect("a SKU"));
    eventually("it is found", || async { admin.get(&path).await.body["total"] == 1 }).await;
    let first = admin.get(&path).await.expect(200);
    for person in [&admin, &guest, &admin] {
        let page = person.get(&path).await.expect(200);
        let caching = if person.token.is_none() { "public, no-cache" } else { "private, no-cache" };
        assert_eq!(page.header("cache-control"), caching);
        // The gateway renders the pages of admins, the service those of all others.
        assert_eq!(page.body, first.body);
    }
}
