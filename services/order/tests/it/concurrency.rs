use shoppee_kit::testing::eventually;
use shoppee_proto::order::v1::OrderStatus;

use crate::shop::{TestShop, expect_error, order_request};

#[tokio::test]
async fn the_last_unit_is_sold_once() {
    let shop = TestShop::start().await;
    let admin = shop.admin().await;
    let mut buyers = Vec::new();
    for number in 0..10 {
        buyers.push(shop.customer(&format!("buyer-{number}")).await);
    }
    for round in 0..5 {
        let tea = admin.sells(&format!("last-{round}"), 450, 1).await;
        let rush: Vec<_> = (0..200)
            .map(|number| {
                let buyer = buyers[number % buyers.len()].clone();
                tokio::spawn(async move { buyer.orders_with_retries(order_request(&[(tea, 1)])).await })
            })
            .collect();
        let mut sold = 0;
        for buyer in rush {
            match buyer.await.unwrap() {
                Ok(_) => sold += 1,
                other => assert_eq!(expect_error(other), "out_of_stock"),
            }
        }
        assert_eq!((sold, admin.stock(tea).await), (1, 0));
    }
}

#[tokio::test]
async fn fifty_concurrent_payments_charge_once() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    let id = ann.buys(tea, 1).await.id;
    let tries: Vec<_> = (0..50)
        .map(|_| {
            let (ann, id) = (ann.clone(), id.clone());
            tokio::spawn(async move { ann.pays(&id).await })
        })
        .collect();
    let mut paid = 0;
    for attempt in tries {
        match attempt.await.unwrap() {
            Ok(_) => paid += 1,
            other => {
                let reason = expect_error(other);
                assert!(["request_in_progress", "invalid_transition"].contains(&reason.as_str()), "{reason}");
            }
        }
    }
    assert_eq!(paid, 1);
    let approved: i64 =
        sqlx::query_scalar("select count(*) from orders.sandbox_charge where outcome = 'approved'")
            .fetch_one(&shop.db().await)
            .await
            .unwrap();
    assert_eq!(approved, 1);
    assert_eq!(ann.events().await.len(), 2);
}

#[tokio::test]
async fn of_concurrent_payment_and_cancellation_one_succeeds() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 200).await;
    let mut paid = 0;
    for round in 0..100 {
        let id = ann.buys(tea, 1).await.id;
        let (pay, cancel) = tokio::join!(ann.pays(&id), ann.cancels(&id));
        let order = ann.get_order(&id).await.unwrap();
        match order.status() {
            OrderStatus::Paid => {
                paid += 1;
                assert!(pay.is_ok(), "round {round}");
                assert_eq!(expect_error(cancel), "invalid_transition");
            }
            OrderStatus::Cancelled => {
                assert!(cancel.is_ok(), "round {round}");
                assert_eq!(expect_error(pay), "invalid_transition");
            }
            OrderStatus::Unspecified
            | OrderStatus::Pending
            | OrderStatus::Shipped
            | OrderStatus::Completed => {
                panic!("round {round}: {:?}", order.status())
            }
        }
        assert_eq!(ann.history(&id).await.unwrap().len(), 2, "round {round}");
    }
    eventually("stock is released", || async { admin.stock(tea).await == 200 - paid }).await;
    let approved: i64 =
        sqlx::query_scalar("select count(*) from orders.sandbox_charge where outcome = 'approved'")
            .fetch_one(&shop.db().await)
            .await
            .unwrap();
    assert_eq!(approved, paid, "a cancelled order is not charged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_requests_leave_complete_orders_or_none() {
    let shop = TestShop::start_with(|settings| settings.max_unpaid_orders = 10_000).await;
    let admin = shop.admin().await;
    let tea = admin.sells("tea", 450, 10_000).await;
    let mut customers = Vec::new();
    for number in 0..4 {
        customers.push(shop.customer(&format!("impatient-{number}")).await);
    }
    let impatient: Vec<_> = customers
        .into_iter()
        .map(|customer| {
            tokio::spawn(async move {
                let mut answered = 0;
                for timeout in (0..=30).cycle().take(150).map(std::time::Duration::from_millis) {
                    let order =
                        tokio::time::timeout(timeout, customer.orders(order_request(&[(tea, 1)]))).await;
                    answered += i64::from(matches!(order, Ok(Ok(_))));
                }
                answered
            })
        })
        .collect();
    let mut answered = 0;
    for customer in impatient {
        answered += customer.await.unwrap();
    }

    let db = shop.db().await;
    let count = async |sql: &'static str| -> i64 { sqlx::query_scalar(sql).fetch_one(&db).await.unwrap() };
    let orders = "select count(*) from orders.orders";
    eventually("no request is running", || async {
        let before = count(orders).await;
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        before == count(orders).await
    })
    .await;
    let placed = count(orders).await;
    assert!(placed > answered, "some requests were cancelled: {placed} placed, {answered} answered");
    assert_eq!(count("select count(*) from orders.order_line").await, placed);
    assert_eq!(count("select count(*) from orders.event").await, placed);
    assert_eq!(count("select coalesce(sum(seq), 0)::bigint from orders.event_cursor").await, placed);
    assert_eq!(
        count("select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'")
            .await,
        0
    );
    eventually("each hold belongs to an order", || async { admin.stock(tea).await == 10_000 - placed }).await;
}
