//! Batching of concurrent product requests: each gets the same response as a single request.

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
    faults::{expect_unavailable, silent_server},
    shop::{TestShop, text},
};

const PRODUCTS: usize = 30;
/// Requests per product.
const REQUESTS: usize = 20;

/// Starts a shop whose gateways cache nothing. Returns it with its products.
async fn shop() -> (TestShop, Vec<Value>) {
    let shop = TestShop::builder().with("--cache-l1-ttl", "0s").exclusive().start().await;
    let admin = shop.admin().await;
    let products = join_all((0..PRODUCTS).map(|_| shop.product(&admin, 100, 10))).await;
    (shop, products)
}

/// Adds a gateway without a cache that uses every product service, and waits until all products are in the services'
/// memory. Returns its index and the counter of its calls.
async fn add_gateway(shop: &mut TestShop, products: &[Value]) -> (usize, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let proxies =
        join_all(shop.product_services().into_iter().map(|service| counting_proxy(service, calls.clone())))
            .await;
    let urls: Vec<String> = proxies.iter().map(|proxy| format!("http://{proxy}")).collect();
    shop.add_gateway(&[("--product-url", &urls.join(",")), ("--cache-l1-ttl", "0s")]).await;
    let gateway = shop.gateways.len() - 1;
    let guest = shop.guest().through(shop, gateway);
    eventually("the gateway is ready", || async { guest.get("//readyz").await.status == 200 }).await;
    eventually("all products are in memory", || async {
        let before = calls.load(Ordering::Relaxed);
        join_all(products.iter().map(async |product| guest.get(&path(product)).await.expect(200))).await;
        // A product that is not in memory takes a call of its own. Health checks count too.
        calls.load(Ordering::Relaxed) - before < products.len() / 2
    })
    .await;
    (gateway, calls)
}

fn path(product: &Value) -> String {
    format!("/products/{}", product["id"])
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_get_their_own_products() {
    let (mut shop, products) = shop().await;
    let (gateway, _) = add_gateway(&mut shop, &products).await;
    let [admin, ann, guest] =
        [shop.admin().await, shop.customer("ann").await, shop.guest()].map(|who| who.through(&shop, gateway));
    let (gone, unknown) = (path(&products[0]), "/products/999999999");
    admin.delete(&gone).await.expect(204);

    // Some of the concurrent requests are always for products that are not shown.
    join_all((0..PRODUCTS).map(async |turn| {
        for step in 0..REQUESTS {
            let (who, number) = ([&ann, &guest][step % 2], (turn + step) % PRODUCTS);
            if number == 0 {
                who.get(&gone).await.problem(404, "not_found");
                who.get(unknown).await.problem(404, "not_found");
                assert_eq!(text(&admin.get(&gone).await.expect(200).body["status"]), "archived");
            } else {
                let response = who.get(&path(&products[number])).await.expect(200);
                assert_eq!(response.body["sku"], products[number]["sku"]);
                assert!(!response.header("etag").is_empty());
            }
        }
    }))
    .await;
}

/// Starts a proxy to a service that counts its calls.
async fn counting_proxy(service: SocketAddr, calls: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(service).await.expect("connects");
            let (client_read, mut client_write) = client.into_split();
            let (mut server_read, server_write) = server.into_split();
            tokio::spawn(async move { copy(&mut server_read, &mut client_write).await });
            tokio::spawn(count(client_read, server_write, calls.clone()));
        }
    });
    addr
}

/// Forwards frames (RFC 9113 §4.1); each call starts with one of type HEADERS.
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
async fn concurrent_requests_share_calls() {
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
    let new_calls = calls.load(Ordering::Relaxed) - before;
    assert!(new_calls < PRODUCTS * REQUESTS / 2, "{new_calls} calls for {} requests", PRODUCTS * REQUESTS);
}

/// Two services share the calls, and a write at one reaches the other shortly after.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_visible_to_its_author_under_load() {
    let (mut shop, products) = shop().await;
    shop.add_product_service().await;
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
async fn an_unavailable_service_fails_requests_fast() {
    let (mut shop, products) = shop().await;
    let guest = shop.guest().without_retries();
    shop.without_product_service(async |_| {
        let responses = join_all((0..200).map(async |turn| {
            let began = Instant::now();
            let response = guest.get(&path(&products[turn % PRODUCTS])).await;
            assert!(began.elapsed() < Duration::from_millis(2500), "{:?}", began.elapsed());
            response.problem(503, "unavailable");
        }));
        responses.await;
    })
    .await;
    eventually("the gateway recovers", || async { guest.get(&path(&products[0])).await.status == 200 }).await;
    join_all((0..200).map(async |turn| guest.get(&path(&products[turn % PRODUCTS])).await.expect(200))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_service_fails_requests_fast() {
    let (silent, _task) = silent_server().await;
    let plan =
        TestShop::builder().with("--product-url", &format!("http://{silent}")).with("--cache-l1-ttl", "0s");
    let shop = plan.exclusive().start_without_ready().await;
    let guest = shop.guest();
    join_all((1..120).map(async |id| expect_unavailable(&guest, &format!("/products/{id}")).await)).await;
}
