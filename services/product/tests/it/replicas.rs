//! Lists are read from replicas, as long as those are there and fresh; by who writes, never. Another
//! database on the same server plays the replica: that is as far as the server's log goes, and shows where an answer
//! came from.

use std::time::{Duration, Instant};

use secrecy::SecretString;
use shoppee_kit::testing::eventually;
use shoppee_proto::product::v1::ListProductsRequest;
use tonic::Request;

use crate::shop::{Products, Shop};

/// The SKUs of the first page.
async fn skus(products: &Products, request: Request<ListProductsRequest>) -> Vec<String> {
    let listed = products.clone().list_products(request).await.expect("listed").into_inner();
    listed.items.into_iter().map(|product| product.sku).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn customers_read_from_a_replica_and_who_writes_does_not() {
    let (shop, elsewhere) = tokio::join!(Shop::open(), Shop::open());
    shop.product("here", 1).await;
    elsewhere.product("there", 1).await;
    let urls = vec![SecretString::from(elsewhere.database.url("product"))];
    let replica = shop.replica_with(|settings| settings.database_read_urls = urls).await;
    let reader = replica.products.clone();
    eventually("the replica is known to be fresh", || async {
        skus(&reader, shop.customer(ListProductsRequest::default())).await == ["there"]
    })
    .await;
    assert_eq!(skus(&reader, shop.admin(ListProductsRequest::default())).await, ["here"]);

    // It goes away in the middle of everything.
    elsewhere.database.block_connections().await;
    let began = Instant::now();
    assert_eq!(skus(&reader, shop.customer(ListProductsRequest::default())).await, ["here"]);
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
    assert_eq!(skus(&reader, shop.customer(ListProductsRequest::default())).await, ["here"]);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}
