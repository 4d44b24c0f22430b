//! Three gateways and two product services cache the same products. A change through one is visible through all within a
//! second, and no client reads an older state after a newer one, with and without Redis.

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

use crate::shop::{Person, TestShop};

/// Bounds the time until a change is visible through every gateway.
const MAX_CHANGE_LAG: Duration = Duration::from_secs(1);
const PRODUCTS: usize = 5;
const CHANGES: usize = 100;

/// Changes one product repeatedly through alternating gateways, and reads it through all.
async fn assert_coherent(people: &[Person], id: &Value) {
    let path = format!("/products/{id}");
    let (mut newest, stalls) = (vec![0; people.len()], Stalls::watch());
    for change in 0..CHANGES {
        let (writer, price) = (change % people.len(), 1000 + change);
        let response = people[writer].patch(&path, &json!({"price": price})).await.expect(200);
        let version = response.body["version"].as_i64().expect("a version");
        let began = Instant::now();
        for (gateway, person) in people.iter().enumerate() {
            loop {
                let read = person.get(&path).await.expect(200).body["version"].as_i64().expect("a version");
                assert!(read >= newest[gateway], "{read} after {} at gateway {gateway}", newest[gateway]);
                newest[gateway] = read;
                if read >= version {
                    break;
                }
                assert!(gateway != writer, "not visible at the gateway of the write");
                let is_late = began.elapsed() > MAX_CHANGE_LAG + stalls.allowance();
                assert!(!is_late, "{version} not visible at gateway {gateway}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn assert_all_coherent(shop: &TestShop) {
    let admin = shop.admin().await;
    let products = join_all((0..PRODUCTS).map(|_| shop.product(&admin, 100, 10))).await;
    let people: Vec<Person> = (0..3).map(|gateway| admin.through(shop, gateway)).collect();
    join_all(products.iter().map(|product| assert_coherent(&people, &product["id"]))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_shows_within_a_second_through_every_gateway() {
    let mut shop = TestShop::builder().gateways(2).exclusive().start().await;
    shop.add_product_service().await;
    assert_all_coherent(&shop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_shows_within_a_second_while_redis_fails() {
    let mut shop = TestShop::builder().gateways(2).exclusive().start().await;
    shop.add_product_service().await;
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
    let (_redis, ()) = tokio::join!(faults, assert_all_coherent(&shop));
}

/// Starts a shop with two gateways, each with a product service of its own that has all products in memory. The second
/// service receives changes later.
async fn start_with_two_services(count: usize) -> (TestShop, Vec<Value>) {
    let mut shop = TestShop::builder().exclusive().start().await;
    shop.add_product_service_with_database_latency(Duration::from_millis(20)).await;
    let admin = shop.admin().await;
    let products = join_all((0..count).map(|_| shop.product(&admin, 100, 10))).await;
    for gateway in [0, 1] {
        fetch_all(&shop.guest().through(&shop, gateway), &products).await;
    }
    (shop, products)
}

/// Fetches products; omits those that are not found.
async fn fetch_all(person: &Person, products: &[Value]) -> Vec<Value> {
    let mut found = Vec::new();
    for product in products {
        let response = person.get(&format!("/products/{}", product["id"])).await;
        found.extend((response.status == 200).then_some(response.body));
    }
    found
}

/// Runs `test` with concurrent requests. The gateway calls its services in turn, and these requests vary the turns.
async fn with_other_requests(guest: &Person, test: impl Future<Output = ()>) {
    let others = join_all((1..=4).map(async |other| {
        loop {
            guest.get(&format!("/products/{}", 1_000_000_000 + other)).await.expect(404);
        }
    }));
    tokio::select! {
        () = test => {}
        _ = others => {}
    }
}

/// The service whose changes the gateway watches is ahead of another service.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_gateway_caches_no_stale_product() {
    let (mut shop, products) = start_with_two_services(100).await;
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
        let gateway = shop.add_gateway_to_all_products().await;
        let person = shop.guest().through(&shop, gateway);
        let (changed, products) = (changed.clone(), products.clone());
        readers.push(tokio::spawn(async move {
            loop {
                // The most recently changed products.
                let now = changed.load(Ordering::Relaxed);
                fetch_all(&person, &products[now.saturating_sub(20)..now]).await;
                if now == all {
                    break;
                }
            }
            tokio::time::sleep(MAX_CHANGE_LAG).await;
            fetch_all(&person, &products).await
        }));
    }
    assert!(!all_changes.is_finished());
    all_changes.await.expect("done");
    for reader in readers {
        let products = reader.await.expect("read");
        let stale = products.iter().filter(|product| product["price"] != 200).count();
        assert_eq!((products.len(), stale), (all, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_update_is_visible_to_its_author_from_every_service() {
    let (mut shop, products) = start_with_two_services(20).await;
    let gateway = shop.add_gateway_to_all_products().await;
    let admin = shop.admin().await.through(&shop, gateway);
    for price in 200..205 {
        let items: Vec<Value> =
            products.iter().map(|product| json!({"id": product["id"], "price": price})).collect();
        let batch = json!({"on_error": "continue", "items": items});
        assert_eq!(admin.post("/products/batch", &batch).await.expect(200).body["updated"], products.len());
        for _ in 0..2 {
            for product in fetch_all(&shop.guest().through(&shop, gateway), &products).await {
                assert_eq!(product["price"], price);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archived_product_does_not_reappear() {
    let (mut shop, products) = start_with_two_services(20).await;
    let gateway = shop.add_gateway_to_all_products().await;
    let (admin, guest) = (shop.admin().await, shop.guest().through(&shop, gateway));
    let all_go = async {
        for product in &products {
            let path = format!("/products/{}", product["id"]);
            // Through a gateway with only one of the services.
            admin.delete(&path).await.expect(204);
            let mut gone = false;
            for _ in 0..20 {
                let status = guest.get(&path).await.status;
                assert!(status == 404 || !gone, "{status} after 404");
                gone = status == 404;
            }
        }
    };
    with_other_requests(&guest, all_go).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_product_is_visible_at_once() {
    let (mut shop, products) = start_with_two_services(1).await;
    let gateway = shop.add_gateway_to_all_products().await;
    let (admin, guest) = (shop.admin().await.through(&shop, gateway), shop.guest().through(&shop, gateway));
    let all_come = async {
        let mut last = products[0]["id"].as_i64().expect("an id");
        for _ in 0..10 {
            // The services cache for a while that there is no such product.
            for _ in 0..6 {
                guest.get(&format!("/products/{}", last + 1)).await.expect(404);
            }
            let created = shop.product(&admin, 100, 10).await;
            last = created["id"].as_i64().expect("an id");
            for _ in 0..6 {
                guest.get(&format!("/products/{last}")).await.expect(200);
            }
        }
    };
    with_other_requests(&guest, all_come).await;
}

/// Requests a page repeatedly, so that it is always cached.
async fn keep_hot(guest: &Person, path: &str) {
    loop {
        guest.get(path).await.expect(200);
    }
}

/// Waits until a page shows a product at a price. On a list, that price never decreases.
async fn wait_for_price(guest: &Person, path: &str, id: &Value, price: i64, newest: &mut i64, is_list: bool) {
    let (began, stalls) = (Instant::now(), Stalls::watch());
    loop {
        let page = guest.get(path).await.expect(200).body;
        let items = page["items"].as_array().expect("items");
        let item = items.iter().find(|item| item["id"] == *id);
        let shown = item.map_or(0, |item| item["price"].as_i64().expect("a price"));
        assert!(shown >= *newest || !is_list, "{shown} after {newest} on {path}");
        *newest = shown;
        if shown >= price {
            return;
        }
        assert!(began.elapsed() < MAX_CHANGE_LAG + stalls.allowance(), "{price} is not on {path}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_shows_within_a_second_on_hot_pages_of_every_gateway() {
    let mut shop = TestShop::builder().gateways(2).exclusive().start().await;
    shop.add_product_service().await;
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
            let reads = newest.iter_mut().enumerate().map(|(at, newest)| {
                let (guest, (path, is_list)) = (&guests[at / pages.len()], pages[at % pages.len()]);
                wait_for_price(guest, path, &product["id"], price, newest, is_list)
            });
            join_all(reads).await;
        }
    };
    tokio::select! {
        () = changes => {}
        _ = join_all(hot) => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_shows_a_change_at_once_through_the_gateway_that_made_it() {
    let shop = TestShop::start().await;
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
    let shop = TestShop::start().await;
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
