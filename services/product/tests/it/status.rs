//! Tests of the status of the service.

use shoppee_kit::testing::eventually;
use shoppee_proto::product::v1::{GetStatusRequest, ProductServiceStatus};

use crate::test_shop::TestShop;

async fn get_status(shop: &TestShop) -> ProductServiceStatus {
    let request = shop.admin(GetStatusRequest {});
    shop.status.clone().get_status(request).await.expect("a status").into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_shows_a_stock_that_does_not_balance_and_a_dependency_that_is_gone() {
    let mut shop = TestShop::start().await;
    let product = shop.product("a", 10).await.id;
    shop.product("b", 10).await;
    eventually("all is well", || async {
        let status = get_status(&shop).await;
        status.search_index_products == 2
            && status.search_index_age_seconds < 2.0
            && status.stock_audit_age_seconds < 5.0
            && status.stock_violations == 0
            && status.unavailable_dependencies.is_empty()
    })
    .await;
    sqlx::query("update product.stock set available = available + 1 where product_id = $1")
        .bind(product)
        .execute(&shop.pool)
        .await
        .expect("changed past the ledger");
    eventually("the violation is found", || async { get_status(&shop).await.stock_violations == 1 }).await;
    shop.redis.kill();
    eventually("Redis is missed", || async {
        let missed = get_status(&shop).await.unavailable_dependencies;
        missed.iter().any(|name| name.contains("redis"))
    })
    .await;
}
