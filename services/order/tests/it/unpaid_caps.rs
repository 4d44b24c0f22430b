//! The caps on one user's unpaid orders.

use shoppee_kit::testing::eventually;

use crate::shop::{TestShop, expect_error, order_request};

#[tokio::test]
async fn unpaid_orders_reserve_units_up_to_the_cap_and_one_more() {
    let shop = TestShop::start_with(|settings| settings.max_unpaid_units = 2500).await;
    let (admin, ann, ben) = (shop.admin().await, shop.customer("ann").await, shop.customer("ben").await);
    let tea = admin.sells("tea", 450, 100_000).await;
    let paid = ann.buys(tea, 1000).await.id;
    ann.buys(tea, 1000).await;
    assert_eq!(expect_error(ann.orders(order_request(&[(tea, 501)])).await), "too_many_unpaid_units");
    eventually("the rejected order holds nothing", || async { admin.stock(tea).await == 98_000 }).await;
    ann.buys(tea, 500).await;
    ann.buys(tea, 1).await;
    assert_eq!(expect_error(ann.orders(order_request(&[(tea, 2)])).await), "too_many_unpaid_units");
    ben.buys(tea, 1000).await;
    ann.pays(&paid).await.unwrap();
    ann.buys(tea, 999).await;
}

#[tokio::test]
async fn unpaid_orders_beyond_a_thousand_units_are_capped_at_a_share_of_the_product() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let (few, some, many) = (
        admin.sells("few", 450, 10).await,
        admin.sells("some", 450, 3000).await,
        admin.sells("many", 450, 100_000).await,
    );
    ann.buys(few, 10).await;
    ann.buys(some, 990).await;
    assert_eq!(expect_error(ann.orders(order_request(&[(some, 2)])).await), "too_many_unpaid_units");
    ann.buys(some, 1).await;
    ann.buys(many, 1000).await;
    assert_eq!(
        expect_error(ann.orders(order_request(&[(many, 1), (some, 2)])).await),
        "too_many_unpaid_units"
    );
}

#[tokio::test]
async fn without_rate_limits_unpaid_orders_reserve_any_number_of_units() {
    let shop = TestShop::start_with(|settings| settings.rate_limits = "off".to_owned()).await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 6000).await;
    for _ in 0..6 {
        ann.buys(tea, 1000).await;
    }
    assert_eq!(admin.stock(tea).await, 0);
}

#[tokio::test]
async fn an_order_beyond_a_limit_of_its_user_holds_no_stock() {
    let shop = TestShop::start_with(|settings| {
        settings.max_unpaid_orders = 2;
        settings.max_unpaid_units = 1000;
    })
    .await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 2000).await;
    ann.buys(tea, 900).await;
    assert_eq!(expect_error(ann.orders(order_request(&[(tea, 101)])).await), "too_many_unpaid_units");
    ann.buys(tea, 1).await;
    assert_eq!(expect_error(ann.orders(order_request(&[(tea, 1)])).await), "too_many_unpaid_orders");
    let db = shop.service_db("product").await;
    let holds: i64 =
        sqlx::query_scalar("select count(*) from product.stock_hold").fetch_one(&db).await.unwrap();
    assert_eq!(holds, 2, "those of the placed orders");
}
