use std::time::Duration;

use shoppee_kit::testing::eventually;
use shoppee_proto::order::v1::{Actor, OrderStatus};

use crate::shop::{TestShop, expect_error, order_request};

#[tokio::test]
async fn an_unpaid_order_expires_and_its_stock_is_released() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    let (paid, unpaid) = (ann.buys(tea, 1).await.id, ann.buys(tea, 2).await.id);
    ann.pays(&paid).await.unwrap();

    shop.advance_clock(Duration::from_mins(15));
    assert_eq!(expect_error(ann.pays(&unpaid).await), "order_expired");
    eventually("it is cancelled", || async {
        ann.get_order(&unpaid).await.unwrap().status() == OrderStatus::Cancelled
    })
    .await;
    eventually("its stock is released", || async { admin.stock(tea).await == 9 }).await;
    let end = ann.history(&unpaid).await.unwrap().pop().unwrap();
    assert_eq!((end.actor(), end.reason.as_deref()), (Actor::System, Some("expired")));
    for outcome in [ann.pays(&unpaid).await, ann.cancels(&unpaid).await] {
        assert_eq!(expect_error(outcome), "order_expired");
    }
    assert_eq!(
        ann.get_order(&paid).await.unwrap().status(),
        OrderStatus::Paid,
        "a paid order does not expire"
    );
}

#[tokio::test]
async fn unpaid_orders_beyond_the_limit_are_rejected() {
    let shop = TestShop::start_with(|settings| settings.max_unpaid_orders = 3).await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 100).await;
    let requests: Vec<_> = (0..12)
        .map(|_| {
            let ann = ann.clone();
            tokio::spawn(async move { ann.orders(order_request(&[(tea, 1)])).await })
        })
        .collect();
    let mut placed = Vec::new();
    for request in requests {
        match request.await.unwrap() {
            Ok(order) => placed.push(order.into_inner().id),
            other => assert_eq!(expect_error(other), "too_many_unpaid_orders"),
        }
    }
    assert_eq!(placed.len(), 3, "exactly, despite concurrency");
    eventually("the rejected ones hold nothing", || async { admin.stock(tea).await == 97 }).await;
    ann.pays(&placed[0]).await.unwrap();
    ann.buys(tea, 1).await;
}

#[tokio::test]
async fn a_process_whose_clock_is_ahead_cancels_nothing_early() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    shop.set_ahead(Duration::from_mins(16));
    let (open, overdue) = (ann.buys(tea, 1).await, ann.buys(tea, 1).await.id);
    sqlx::query("update orders.orders set expires_at = now() - interval '1 second' where id = $1::uuid")
        .bind(&overdue)
        .execute(&shop.db().await)
        .await
        .unwrap();
    eventually("the overdue order is cancelled", || async {
        ann.get_order(&overdue).await.unwrap().status() == OrderStatus::Cancelled
    })
    .await;
    assert_eq!(ann.get_order(&open.id).await.unwrap().status(), OrderStatus::Pending);
    let left = open.expires_at.unwrap().seconds - open.created_at.unwrap().seconds;
    let database: i64 = sqlx::query_scalar("select extract(epoch from clock_timestamp())::bigint")
        .fetch_one(&shop.db().await)
        .await
        .unwrap();
    assert_eq!(left, 900);
    assert!((open.created_at.unwrap().seconds - database).abs() < 60, "stored by the database's clock");
    ann.pays(&open.id).await.unwrap();
}

#[tokio::test]
async fn overdue_orders_are_cancelled_in_batches_each_by_one_of_two_processes() {
    let shop = TestShop::start().await;
    let db = shop.db().await;
    let _replica = shop.start_replica().await;
    sqlx::query(
        "with placed as (
             insert into orders.orders (user_id, id, status, total, currency, shipping_address, version, expires_at,
                                        created_at, updated_at)
             select n % 70, gen_random_uuid(), 'pending', 1, 'EUR',
                    '{\"recipient\":\"A\",\"line1\":\"B\",\"city\":\"C\",\"postal_code\":\"1\",\"country\":\"DE\"}',
                    1, now() - interval '1 minute', now(), now()
             from generate_series(1, 500) as n
             returning user_id, id
         )
         insert into orders.order_line (user_id, order_id, product_id, sku, name, unit_price, quantity)
         select user_id, id, 1, 'sku', 'name', 1, 1 from placed",
    )
    .execute(&db)
    .await
    .unwrap();
    let count = async |sql: &'static str| -> i64 { sqlx::query_scalar(sql).fetch_one(&db).await.unwrap() };
    eventually("all are cancelled", || async {
        count("select count(*) from orders.orders where status = 'cancelled' and expired").await == 500
    })
    .await;
    assert_eq!(count("select count(*) from orders.event").await, 500, "each once");
    assert_eq!(count("select sum(seq)::bigint from orders.event_cursor").await, 500);
    // The orders of one transaction have the same time.
    assert!(count("select count(distinct updated_at) from orders.orders").await <= 20, "in batches");
    eventually("their stock is released", || async {
        count("select count(*) from orders.stock_task").await == 0
    })
    .await;
}
