//! The caps on one user's unpaid orders.

use shoppee_kit::testing::eventually;

use crate::shop::{Shop, refused, wish};

#[tokio::test]
async fn unpaid_orders_of_a_user_hold_so_many_units_and_one_more() {
    let shop = Shop::open_with(|settings| settings.max_unpaid_units = 2500).await;
    let (admin, ann, ben) = (shop.admin().await, shop.customer("ann").await, shop.customer("ben").await);
    let tea = admin.sells("tea", 450, 100_000).await;
    let paid = ann.buys(tea, 1000).await.id;
    ann.buys(tea, 1000).await;
    assert_eq!(refused(ann.orders(wish(&[(tea, 501)])).await), "too_many_unpaid_units");
    eventually("the refused order holds nothing", || async { admin.stock(tea).await == 98_000 }).await;
    ann.buys(tea, 500).await;
    ann.buys(tea, 1).await;
    assert_eq!(refused(ann.orders(wish(&[(tea, 2)])).await), "too_many_unpaid_units");
    ben.buys(tea, 1000).await;
    ann.pays(&paid).await.unwrap();
    ann.buys(tea, 999).await;
}

#[tokio::test]
async fn unpaid_orders_of_a_user_hold_a_share_of_a_product_beyond_a_thousand_units() {
    let shop = Shop::open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let (few, some, many) = (
        admin.sells("few", 450, 10).await,
        admin.sells("some", 450, 3000).await,
        admin.sells("many", 450, 100_000).await,
    );
    ann.buys(few, 10).await;
    ann.buys(some, 990).await;
    assert_eq!(refused(ann.orders(wish(&[(some, 2)])).await), "too_many_unpaid_units");
    ann.buys(some, 1).await;
    ann.buys(many, 1000).await;
    assert_eq!(refused(ann.orders(wish(&[(many, 1), (some, 2)])).await), "too_many_unpaid_units");
}

#[tokio::test]
async fn without_rate_limits_unpaid_orders_hold_any_number() {
    let shop = Shop::open_with(|settings| settings.rate_limits = "off".to_owned()).await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 6000).await;
    for _ in 0..6 {
        ann.buys(tea, 1000).await;
    }
    assert_eq!(admin.stock(tea).await, 0);
}
