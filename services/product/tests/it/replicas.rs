//! Lists and searches are read from replicas, as long as those are there and fresh; by who writes, never. Another
//! database on the same server plays the replica: that is as far as the server's log goes, and shows where an answer
//! came from.

use std::time::{Duration, Instant};

use secrecy::SecretString;
use shoppee_kit::testing::eventually;
use shoppee_proto::product::v1::{ListProductsRequest, ListProductsResponse, SearchProductsRequest};
use tonic::Request;

use crate::shop::{Products, Shop};

/// The SKUs of the first page, and of what a search for "product" finds.
async fn skus(products: &Products, ask: impl Fn(()) -> Request<()>) -> (Vec<String>, Vec<String>) {
    let of = |page: ListProductsResponse| page.items.into_iter().map(|product| product.sku).collect();
    let list = ask(()).map(|()| ListProductsRequest::default());
    let listed = products.clone().list_products(list).await.expect("listed").into_inner();
    let search = ask(()).map(|()| SearchProductsRequest { q: "product".to_owned(), ..Default::default() });
    let found = products.clone().search_products(search).await.expect("found").into_inner();
    (of(listed), of(found))
}

#[tokio::test(flavor = "multi_thread")]
async fn customers_read_from_a_replica_and_who_writes_does_not() {
    let (shop, elsewhere) = tokio::join!(Shop::open(), Shop::open());
    shop.product("here", 1).await;
    elsewhere.product("there", 1).await;
    let urls = vec![SecretString::from(elsewhere.database.url("product"))];
    let replica = shop.replica_with(|settings| settings.database_read_urls = urls).await;
    let reader = replica.products.clone();
    let both = |sku: &str| (vec![sku.to_owned()], vec![sku.to_owned()]);
    eventually("the replica is known to be fresh", || async {
        skus(&reader, |()| shop.customer(())).await == both("there")
    })
    .await;
    assert_eq!(skus(&reader, |()| shop.admin(())).await, both("here"));

    // It goes away in the middle of everything.
    elsewhere.database.shut().await;
    let began = Instant::now();
    assert_eq!(skus(&reader, |()| shop.customer(())).await, both("here"));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_not_there_is_not_missed() {
    let shop = Shop::open().await;
    shop.product("here", 1).await;
    let urls = vec![SecretString::from("postgres://nobody@127.0.0.1:1/nothing")];
    let replica = shop.replica_with(|settings| settings.database_read_urls = urls).await;
    let reader = replica.products.clone();
    let began = Instant::now();
    assert_eq!(skus(&reader, |()| shop.customer(())).await.0, ["here"]);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}
