//! Tests of the status of the service.

use shoppee_kit::testing::eventually;
use shoppee_proto::order::v1::{
    GetStatusRequest, OrderServiceStatus, status_service_client::StatusServiceClient,
};
use tonic::Code;
use uuid::Uuid;

use crate::shop::{Person, TestShop};

async fn get_status(shop: &TestShop, admin: &Person) -> OrderServiceStatus {
    let request = admin.request(GetStatusRequest {});
    StatusServiceClient::new(shop.order.clone()).get_status(request).await.expect("a status").into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_counts_the_orders_of_each_minute() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = admin.sells("a", 100, 100).await;
    for _ in 0..3 {
        ann.buys(product, 1).await;
    }
    // An order of ten minutes ago, and one of before the last hour.
    for age in [10 * 60, 61 * 60] {
        sqlx::query(
            "insert into orders.orders (user_id, id, status, total, currency, shipping_address, version, expires_at, \
             created_at, updated_at) \
             select 1, (lpad(to_hex(((extract(epoch from now()) - $1) * 1000)::bigint), 12, '0') \
                        || '70008000000000000000')::uuid, 'completed', 1, 'EUR', '{}', 1, now(), now(), now()",
        )
        .bind(age)
        .execute(&shop.db().await)
        .await
        .expect("inserted");
    }
    for _ in 0..2 {
        let minutes = get_status(&shop, &admin).await.orders_per_minute;
        assert_eq!(minutes.len(), 60);
        // The minute may end meanwhile.
        assert_eq!(minutes[58] + minutes[59], 3, "{minutes:?}");
        assert_eq!(minutes[48..51].iter().sum::<i64>(), 1, "{minutes:?}");
        assert_eq!(minutes.iter().sum::<i64>(), 4, "{minutes:?}");
        // The second status has the complete minutes from memory.
    }
    ann.buys(product, 1).await;
    assert_eq!(get_status(&shop, &admin).await.orders_per_minute.iter().sum::<i64>(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_shows_what_waits_and_what_is_wrong() {
    let mut shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = admin.sells("a", 100, 100).await;
    let refused =
        StatusServiceClient::new(shop.order.clone()).get_status(ann.request(GetStatusRequest {})).await;
    assert_eq!(refused.expect_err("refused").code(), Code::PermissionDenied);
    eventually("all is well", || async {
        let status = get_status(&shop, &admin).await;
        status.outbox_pending == 0
            && status.order_mismatches == 0
            && status.unavailable_dependencies.is_empty()
    })
    .await;
    shop.redis.kill();
    ann.buys(product, 1).await;
    eventually("the event waits", || async {
        let status = get_status(&shop, &admin).await;
        status.outbox_pending == 1
            && status.outbox_oldest_seconds > 0.0
            && !status.unavailable_dependencies.is_empty()
    })
    .await;
    sqlx::query("insert into orders.audit_mismatch (order_id, kind, detail, confirmed) values ($1, 'payment', '', true)")
        .bind(Uuid::now_v7())
        .execute(&shop.db().await)
        .await
        .expect("inserted");
    assert_eq!(get_status(&shop, &admin).await.order_mismatches, 1);
}
