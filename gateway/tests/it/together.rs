//! Requests for products that come at the same moment go on together: each is answered as if it had come alone.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::Value;
use shoppee_kit::testing::eventually;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
};

use crate::{
    faults::{refused, silence},
    shop::{Shop, text},
};

const PRODUCTS: usize = 30;
/// For each.
const REQUESTS: usize = 20;

/// A shop whose gateways keep nothing, and what it sells.
async fn shop() -> (Shop, Vec<Value>) {
    let shop = Shop::plan().with("--cache-l1-ttl", "0s").alone().open().await;
    let admin = shop.admin().await;
    let products = join_all((0..PRODUCTS).map(|_| shop.product(&admin, 100, 10))).await;
    (shop, products)
}

/// Adds a gateway that keeps nothing and asks every product service; whoever goes through it then finds all products in
/// their memories, which are believed some moments after the start. Also the calls that it makes, as they are counted.
async fn add_gateway(shop: &mut Shop, products: &[Value]) -> (usize, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let ways =
        join_all(shop.product_services().into_iter().map(|service| counted(service, calls.clone()))).await;
    let urls: Vec<String> = ways.iter().map(|way| format!("http://{way}")).collect();
    shop.another_gateway(&[("--product-url", &urls.join(",")), ("--cache-l1-ttl", "0s")]).await;
    let gateway = shop.gateways.len() - 1;
    let guest = shop.guest().through(shop, gateway);
    eventually("it serves", || async { guest.get("//readyz").await.status == 200 }).await;
    eventually("all are in memory", || async {
        let before = calls.load(Ordering::Relaxed);
        join_all(products.iter().map(async |product| guest.get(&path(product)).await.expect(200))).await;
        // Each that is not takes a call of its own; besides, services are asked how they are.
        calls.load(Ordering::Relaxed) - before < products.len() / 2
    })
    .await;
    (gateway, calls)
}

fn path(product: &Value) -> String {
    format!("/products/{}", product["id"])
}

#[tokio::test(flavor = "multi_thread")]
async fn each_gets_what_it_asked_for() {
    let (mut shop, products) = shop().await;
    let (gateway, _) = add_gateway(&mut shop, &products).await;
    let [admin, ann, guest] =
        [shop.admin().await, shop.customer("ann").await, shop.guest()].map(|who| who.through(&shop, gateway));
    let (gone, unknown) = (path(&products[0]), "/products/999999999");
    admin.delete(&gone).await.expect(204);

    // Of the crowd, there is always somebody who asks for what is not shown.
    join_all((0..PRODUCTS).map(async |turn| {
        for step in 0..REQUESTS {
            let (who, number) = ([&ann, &guest][step % 2], (turn + step) % PRODUCTS);
            if number == 0 {
                who.get(&gone).await.problem(404, "not_found");
                who.get(unknown).await.problem(404, "not_found");
                assert_eq!(text(&admin.get(&gone).await.expect(200).body["status"]), "archived");
            } else {
                let answer = who.get(&path(&products[number])).await.expect(200);
                assert_eq!(answer.body["sku"], products[number]["sku"]);
                assert!(!answer.header("etag").is_empty());
            }
        }
    }))
    .await;
}

/// A way to a service on which the calls are counted.
async fn counted(service: SocketAddr, calls: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(service).await.expect("is there");
            let (from, mut back) = near.into_split();
            let (mut answers, to) = far.into_split();
            tokio::spawn(async move { copy(&mut answers, &mut back).await });
            tokio::spawn(count(from, to, calls.clone()));
        }
    });
    addr
}

/// Hands frames on (RFC 9113, section 4.1); each call begins with one of type HEADERS.
async fn count(
    mut from: impl AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    calls: Arc<AtomicUsize>,
) -> std::io::Result<()> {
    let mut preface = [0; 24];
    from.read_exact(&mut preface).await?;
    to.write_all(&preface).await?;
    loop {
        let mut head = [0; 9];
        from.read_exact(&mut head).await?;
        let [a, b, c, kind, ..] = head;
        let mut payload = vec![0; usize::try_from(u32::from_be_bytes([0, a, b, c])).expect("24 bits")];
        from.read_exact(&mut payload).await?;
        calls.fetch_add(usize::from(kind == 1), Ordering::Relaxed);
        to.write_all(&[&head, &*payload].concat()).await?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_are_few_calls() {
    let (mut shop, products) = shop().await;
    let (gateway, calls) = add_gateway(&mut shop, &products).await;
    let guest = shop.guest().through(&shop, gateway);
    let before = calls.load(Ordering::Relaxed);
    join_all((0..PRODUCTS).map(async |turn| {
        for step in 0..REQUESTS {
            guest.get(&path(&products[(turn + step) % PRODUCTS])).await.expect(200);
        }
    }))
    .await;
    let made = calls.load(Ordering::Relaxed) - before;
    assert!(made < PRODUCTS * REQUESTS / 2, "{made} calls for {} requests", PRODUCTS * REQUESTS);
}

/// Two services share the calls, and what was written at one is at the other a moment later.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_is_seen_in_the_midst_of_many() {
    let (mut shop, products) = shop().await;
    shop.second_product_service().await;
    let (gateway, _) = add_gateway(&mut shop, &products).await;
    let (admin, guest) = (shop.admin().await.through(&shop, gateway), shop.guest().through(&shop, gateway));
    let crowd = join_all((0..200).map(async |turn| {
        for step in 0..20 {
            guest.get(&path(&products[(turn + step) % PRODUCTS])).await.expect(200);
        }
    }));
    let changes = async {
        for price in 1..100 {
            let product = &products[price % PRODUCTS];
            admin.patch(&path(product), &serde_json::json!({"price": price})).await.expect(200);
            assert_eq!(guest.get(&path(product)).await.expect(200).body["price"], price);
        }
    };
    tokio::join!(crowd, changes);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_service_is_away_nobody_is_kept_waiting() {
    let (mut shop, products) = shop().await;
    let guest = shop.guest().without_retries();
    shop.without_products(async |_| {
        let answers = join_all((0..200).map(async |turn| {
            let began = Instant::now();
            let answer = guest.get(&path(&products[turn % PRODUCTS])).await;
            assert!(began.elapsed() < Duration::from_millis(2500), "{:?}", began.elapsed());
            answer.problem(503, "unavailable");
        }));
        answers.await;
    })
    .await;
    eventually("it goes on", || async { guest.get(&path(&products[0])).await.status == 200 }).await;
    join_all((0..200).map(async |turn| guest.get(&path(&products[turn % PRODUCTS])).await.expect(200))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_service_says_nothing_nobody_is_kept_waiting_either() {
    let (silent, _task) = silence().await;
    let plan = Shop::plan().with("--product-url", &format!("http://{silent}")).with("--cache-l1-ttl", "0s");
    let shop = plan.alone().open_unready().await;
    let guest = shop.guest();
    join_all((1..120).map(async |id| refused(&guest, &format!("/products/{id}")).await)).await;
}
