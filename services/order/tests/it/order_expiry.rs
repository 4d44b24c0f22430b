use std::time::Duration;

use shoppee_kit::testing::eventually;
use shoppee_proto::order::v1::{Actor, OrderStatus};

use crate::shop::{Shop, refused};

#[tokio::test]
async fn an_order_that_is_not_paid_runs_out_and_its_stock_comes_back() {
    let shop = Shop::open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    let (kept, lost) = (ann.buys(tea, 1).await.id, ann.buys(tea, 2).await.id);
    ann.pays(&kept).await.unwrap();

    shop.let_pass(Duration::from_mins(15));
    assert_eq!(refused(ann.pays(&lost).await), "order_expired");
    eventually("it is cancelled", || async {
        ann.sees(&lost).await.unwrap().status() == OrderStatus::Cancelled
    })
    .await;
    eventually("its stock is back", || async { admin.stock(tea).await == 9 }).await;
    let end = ann.history(&lost).await.unwrap().pop().unwrap();
    assert_eq!((end.actor(), end.reason.as_deref()), (Actor::System, Some("expired")));
    for step in [ann.pays(&lost).await, ann.cancels(&lost).await] {
        assert_eq!(refused(step), "order_expired");
    }
    assert_eq!(ann.sees(&kept).await.unwrap().status(), OrderStatus::Paid, "what is paid stays");
}

#[tokio::test]
async fn only_so_many_orders_may_wait_for_payment() {
    let shop = Shop::open_with(|settings| settings.max_unpaid_orders = 3).await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 100).await;
    let wishes: Vec<_> = (0..12)
        .map(|_| {
            let ann = ann.clone();
            tokio::spawn(async move { ann.orders(crate::shop::wish(&[(tea, 1)])).await })
        })
        .collect();
    let mut placed = Vec::new();
    for wish in wishes {
        match wish.await.unwrap() {
            Ok(order) => placed.push(order.into_inner().id),
            other => assert_eq!(refused(other), "too_many_unpaid_orders"),
        }
    }
    assert_eq!(placed.len(), 3, "exactly, though they came at once");
    eventually("the refused ones hold nothing", || async { admin.stock(tea).await == 97 }).await;
    ann.pays(&placed[0]).await.unwrap();
    ann.buys(tea, 1).await;
}

#[tokio::test]
async fn a_process_whose_clock_is_ahead_cancels_nothing_early() {
    let shop = Shop::open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    shop.set_ahead(Duration::from_mins(16));
    let (open, overdue) = (ann.buys(tea, 1).await, ann.buys(tea, 1).await.id);
    sqlx::query("update orders.orders set expires_at = now() - interval '1 second' where id = $1::uuid")
        .bind(&overdue)
        .execute(&shop.look().await)
        .await
        .unwrap();
    eventually("what is overdue is cancelled", || async {
        ann.sees(&overdue).await.unwrap().status() == OrderStatus::Cancelled
    })
    .await;
    assert_eq!(ann.sees(&open.id).await.unwrap().status(), OrderStatus::Pending);
    let left = open.expires_at.unwrap().seconds - open.created_at.unwrap().seconds;
    let database: i64 = sqlx::query_scalar("select extract(epoch from clock_timestamp())::bigint")
        .fetch_one(&shop.look().await)
        .await
        .unwrap();
    assert_eq!(left, 900);
    assert!((open.created_at.unwrap().seconds - database).abs() < 60, "stored by the database's clock");
    ann.pays(&open.id).await.unwrap();
}

#[tokio::test]
async fn overdue_orders_are_cancelled_in_batches_each_by_one_of_two_processes() {
    let shop = Shop::open().await;
    let look = shop.look().await;
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
    .execute(&look)
    .await
    .unwrap();
    let count = async |sql: &'static str| -> i64 { sqlx::query_scalar(sql).fetch_one(&look).await.unwrap() };
    eventually("all are cancelled", || async {
        count("select count(*) from orders.orders where status = 'cancelled' and expired").await == 500
    })
    .await;
    assert_eq!(count("select count(*) from orders.event").await, 500, "each once");
    assert_eq!(count("select sum(seq)::bigint from orders.event_cursor").await, 500);
    // Orders of one transaction have one time.
    assert!(count("select count(distinct updated_at) from orders.orders").await <= 20, "in batches");
    eventually("their stock is released", || async {
        count("select count(*) from orders.stock_task").await == 0
    })
    .await;
}
