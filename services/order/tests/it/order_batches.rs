//! The group commit of orders: the orders of a batch do not affect each other.

use std::time::Duration;

use futures_util::future::join_all;
use shoppee_proto::order::v1::CreateOrderRequest;
use tokio::time::timeout;

use crate::shop::{TestShop, expect_error, order_request};

/// Enough orders that some share a batch.
const ORDERS: usize = 40;

#[tokio::test]
async fn an_order_that_the_schema_refuses_does_not_refuse_its_batch() {
    let shop = TestShop::start_with(|settings| settings.max_unpaid_orders = 10_000).await;
    let admin = shop.admin().await;
    let (tea, odd) = (admin.sells("tea", 450, 1000).await, admin.sells("odd", 450, 1000).await);
    sqlx::query("alter table orders.order_line add constraint order_line_test_check check (sku <> 'odd')")
        .execute(&shop.service_db("order").await)
        .await
        .unwrap();
    let mut customers = Vec::new();
    for number in 0..8 {
        customers.push(shop.customer(&format!("customer-{number}")).await);
    }
    let orders = (0..ORDERS).map(|number| {
        let product = if number % 4 == 0 { odd } else { tea };
        let customer = customers[number % customers.len()].clone();
        tokio::spawn(async move { (product, customer.orders(order_request(&[(product, 1)])).await) })
    });
    for placed in join_all(orders).await {
        match placed.unwrap() {
            (product, Ok(_)) => assert_eq!(product, tea),
            (product, refused) => assert_eq!((product, expect_error(refused).as_str()), (odd, "internal")),
        }
    }
    // The units of refused orders are released.
    shoppee_kit::testing::eventually("the stock is back", || async { admin.stock(odd).await == 1000 }).await;
}

#[tokio::test]
async fn a_locked_account_delays_no_order_of_another_user() {
    let shop = TestShop::start().await;
    let admin = shop.admin().await;
    let tea = admin.sells("tea", 450, 1000).await;
    let (ann, ben) = (shop.customer("ann").await, shop.customer("ben").await);
    ann.buys(tea, 1).await;
    ben.buys(tea, 1).await;
    let database = shop.db().await;
    let mut locking = database.begin().await.unwrap();
    sqlx::query("select from orders.event_cursor order by user_id limit 1 for update")
        .execute(&mut *locking)
        .await
        .unwrap();
    let delayed = tokio::spawn(async move { ann.orders_with_retries(order_request(&[(tea, 1)])).await });
    for _ in 0..5 {
        timeout(Duration::from_secs(2), ben.orders(order_request(&[(tea, 1)]))).await.unwrap().unwrap();
    }
    assert!(!delayed.is_finished(), "the order of the locked account waits");
    locking.rollback().await.unwrap();
    delayed.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_locked_cart_delays_no_order_of_another_user() {
    let shop = TestShop::start().await;
    let admin = shop.admin().await;
    let tea = admin.sells("tea", 450, 1000).await;
    let (ann, ben) = (shop.customer("ann").await, shop.customer("ben").await);
    ann.add_to_cart(tea, 1).await.unwrap();
    let database = shop.db().await;
    let mut locking = database.begin().await.unwrap();
    sqlx::query("select from orders.cart where user_id = $1 for update")
        .bind(ann.id)
        .execute(&mut *locking)
        .await
        .unwrap();
    let delayed = tokio::spawn(async move { ann.orders_with_retries(order_request(&[])).await });
    for _ in 0..5 {
        timeout(Duration::from_secs(2), ben.orders(order_request(&[(tea, 1)]))).await.unwrap().unwrap();
    }
    assert!(!delayed.is_finished(), "the order of the locked cart waits");
    locking.rollback().await.unwrap();
    delayed.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_locked_key_delays_no_order_of_another_user() {
    let shop = TestShop::start_with(|settings| settings.max_unpaid_orders = 10_000).await;
    let admin = shop.admin().await;
    let tea = admin.sells("tea", 450, 1000).await;
    let (ann, ben) = (shop.customer("ann").await, shop.customer("ben").await);
    let keyed = CreateOrderRequest { idempotency_key: Some("k".to_owned()), ..order_request(&[(tea, 1)]) };
    ann.orders(keyed.clone()).await.unwrap();
    let database = shop.db().await;
    // The key has expired, so that a checkout replaces its claim.
    sqlx::query("update orders.idempotency set created_at = created_at - interval '2 days'")
        .execute(&database)
        .await
        .unwrap();
    let mut locking = database.begin().await.unwrap();
    sqlx::query("select from orders.idempotency for update").execute(&mut *locking).await.unwrap();
    let repeats = (0..5).map(|_| ann.orders(keyed.clone()));
    let others = (0..ORDERS).map(|_| ben.orders(order_request(&[(tea, 1)])));
    let (_, placed) = tokio::join!(join_all(repeats), join_all(others));
    for order in placed {
        order.expect("the order of another user");
    }
    locking.rollback().await.unwrap();
}

#[tokio::test]
async fn concurrent_orders_of_one_user_are_all_written() {
    let shop = TestShop::start_with(|settings| settings.max_unpaid_orders = 10_000).await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 1000).await;
    let orders = (0..ORDERS).map(|_| {
        let ann = ann.clone();
        tokio::spawn(async move { ann.orders(order_request(&[(tea, 1)])).await })
    });
    for placed in join_all(orders).await {
        placed.unwrap().unwrap();
    }
    let seqs: Vec<i64> = ann.events().await.iter().map(|event| event.seq).collect();
    assert_eq!(seqs, (1..=i64::try_from(ORDERS).unwrap()).collect::<Vec<_>>());
}
