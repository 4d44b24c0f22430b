//! Tests of read replicas: customers read lists from a fresh replica, and admins from the primary. Another
//! database on the same server stands for the replica. It has the same write position, and its products show
//! which server has answered.

use std::time::{Duration, Instant};

use secrecy::SecretString;
use shoppee_kit::testing::eventually;
use shoppee_proto::product::v1::ListProductsRequest;
use tonic::Request;

use crate::test_shop::{Products, TestShop};

/// Returns the SKUs of the first page.
async fn skus(products: &Products, request: Request<ListProductsRequest>) -> Vec<String> {
    let listed = products.clone().list_products(request).await.expect("listed").into_inner();
    listed.items.into_iter().map(|product| product.sku).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn customers_read_from_a_replica_and_admins_from_the_primary() {
    let (shop, elsewhere) = tokio::join!(TestShop::start(), TestShop::start());
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

    // The replica becomes unavailable.
    elsewhere.database.block_connections().await;
    let began = Instant::now();
    assert_eq!(skus(&reader, shop.customer(ListProductsRequest::default())).await, ["here"]);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_read_from_the_primary_without_a_reachable_replica() {
    let shop = TestShop::start().await;
    shop.product("here", 1).await;
    let urls = vec![SecretString::from("postgres://nobody@127.0.0.1:1/nothing")];
    let replica = shop.replica_with(|settings| settings.database_read_urls = urls).await;
    let reader = replica.products.clone();
    let began = Instant::now();
    assert_eq!(skus(&reader, shop.customer(ListProductsRequest::default())).await, ["here"]);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}
