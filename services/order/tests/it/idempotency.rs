use std::time::Duration;

use shoppee_kit::testing::eventually;

use crate::shop::{TestShop, expect_error, order_request};

#[tokio::test]
async fn requests_with_the_same_key_and_body_get_one_order_and_one_response() {
    let shop = TestShop::start().await;
    let (admin, ann, ben) = (shop.admin().await, shop.customer("ann").await, shop.customer("ben").await);
    let (tea, cup) = (admin.sells("tea", 450, 1000).await, admin.sells("cup", 1200, 1000).await);
    let mut order = order_request(&[(tea, 1), (cup, 2)]);
    order.idempotency_key = Some("key-1".to_owned());

    let first = ann.orders(order.clone()).await.unwrap();
    assert!(first.metadata().get("idempotent-replayed").is_none());
    let first = first.into_inner();
    ann.pays(&first.id).await.unwrap();
    let mut other_way_round = order.clone();
    other_way_round.items.reverse();
    for again in [order.clone(), other_way_round, order.clone()] {
        let replay = ann.orders(again).await.unwrap();
        assert_eq!(replay.metadata().get("idempotent-replayed").unwrap(), "true");
        assert_eq!(replay.into_inner(), first, "the stored response, although the order is paid now");
    }
    let mut another = order.clone();
    another.items[0].quantity = 3;
    assert_eq!(expect_error(ann.orders(another).await), "idempotency_key_reused");
    assert_ne!(
        ben.orders(order.clone()).await.unwrap().into_inner().id,
        first.id,
        "a key is scoped to its user"
    );

    shop.advance_clock(Duration::from_hours(24) + Duration::from_secs(1));
    assert_ne!(ann.orders(order).await.unwrap().into_inner().id, first.id, "kept for 24 hours");
}

#[tokio::test]
async fn fifty_concurrent_requests_with_one_key_place_one_order() {
    let shop = TestShop::start_with(|settings| settings.max_unpaid_orders = 1000).await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 1000).await;
    for round in 0..10 {
        let tries: Vec<_> = (0..50)
            .map(|_| {
                let ann = ann.clone();
                let mut order = order_request(&[(tea, 1)]);
                order.idempotency_key = Some(format!("round-{round}"));
                tokio::spawn(async move { ann.orders(order).await })
            })
            .collect();
        let mut ids = Vec::new();
        for attempt in tries {
            match attempt.await.unwrap() {
                Ok(order) => ids.push(order.into_inner().id),
                other => assert_eq!(expect_error(other), "request_in_progress"),
            }
        }
        ids.dedup();
        assert_eq!(ids.len(), 1, "round {round}");
    }
    assert_eq!(admin.stock(tea).await, 990);
}

#[tokio::test]
async fn an_error_is_not_stored_under_its_key() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 1).await;
    let holder = ann.buys(tea, 1).await.id;
    let mut order = order_request(&[(tea, 1)]);
    order.idempotency_key = Some("patient".to_owned());
    assert_eq!(expect_error(ann.orders(order.clone()).await), "out_of_stock");
    ann.cancels(&holder).await.unwrap();
    ann.orders(order.clone()).await.unwrap();
    for invalid in [String::new(), "a b".to_owned(), "x".repeat(256)] {
        order.idempotency_key = Some(invalid);
        assert_eq!(expect_error(ann.orders(order.clone()).await), "invalid_request");
    }
}

#[tokio::test]
async fn each_key_of_concurrent_refused_checkouts_is_free_again() {
    let shop = TestShop::start_with(|settings| settings.max_unpaid_orders = 1000).await;
    let (admin, ann, ben) = (shop.admin().await, shop.customer("ann").await, shop.customer("ben").await);
    let tea = admin.sells("tea", 450, 1).await;
    let holder = ann.buys(tea, 1).await.id;
    let orders = |quantity| {
        let keys = (0..40).map(|number| format!("refused-{number}"));
        let requests = keys.map(|key| {
            // Both customers use the same keys.
            [ann.clone(), ben.clone()].map(|customer| {
                let mut order = order_request(&[(tea, quantity)]);
                order.idempotency_key = Some(key.clone());
                tokio::spawn(async move { customer.orders(order).await })
            })
        });
        requests.flatten().collect::<Vec<_>>()
    };
    for refused in orders(1) {
        assert_eq!(expect_error(refused.await.unwrap()), "out_of_stock");
    }
    let db = shop.db().await;
    let keys: i64 = sqlx::query_scalar("select count(*) from orders.idempotency where key like 'refused-%'")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(keys, 0, "deleted before the responses");
    ann.cancels(&holder).await.unwrap();
    // Another body: a key that was kept would refuse it.
    for refused in orders(2) {
        assert_eq!(expect_error(refused.await.unwrap()), "out_of_stock");
    }
}

#[tokio::test]
async fn an_expired_claim_is_taken_over_with_its_hold() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 1).await;
    let mut order = order_request(&[(tea, 1)]);
    order.idempotency_key = Some("torn".to_owned());
    let placed = ann.orders(order.clone()).await.unwrap().into_inner();
    // The state after a crash between the hold and the transaction.
    let db = shop.db().await;
    for table in ["order_line", "outbox", "event", "event_cursor", "orders"] {
        sqlx::query(sqlx::AssertSqlSafe(format!("delete from orders.{table}"))).execute(&db).await.unwrap();
    }
    let claim_until = async |until: &'static str| {
        let statement = format!("update orders.idempotency set answer = null, claimed_until = {until}");
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&db).await.unwrap();
    };
    claim_until("now() + interval '1 h'").await;
    assert_eq!(expect_error(ann.orders(order.clone()).await), "request_in_progress");
    // The clock is not advanced: the order id must be young enough to be adopted.
    claim_until("now()").await;
    let adopted = ann.orders(order).await.unwrap().into_inner();
    assert_eq!(adopted.id, placed.id, "the new request adopts the hold of the last unit");
    assert_eq!(admin.stock(tea).await, 0);
}

#[tokio::test]
async fn a_repeat_gets_the_order_that_the_former_holder_of_its_lease_placed() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    ann.add_to_cart(tea, 1).await.unwrap();
    let mut order = order_request(&[]);
    order.idempotency_key = Some("k".to_owned());
    let placed = ann.orders(order.clone()).await.unwrap().into_inner();
    let db = shop.db().await;
    let answer: Vec<u8> =
        sqlx::query_scalar("select answer from orders.idempotency").fetch_one(&db).await.unwrap();
    // The repeat takes the key over, and stops at the cart, until the first request has committed.
    sqlx::query("update orders.idempotency set answer = null, claimed_until = now()")
        .execute(&db)
        .await
        .unwrap();
    let mut first = db.begin().await.unwrap();
    sqlx::query("lock table orders.cart_line in access exclusive mode").execute(&mut *first).await.unwrap();
    let repeat = tokio::spawn({
        let (ann, order) = (ann.clone(), order.clone());
        async move { ann.orders(order).await }
    });
    eventually("the repeat waits", || async {
        let waiting = "select count(*) from pg_stat_activity
                       where datname = current_database() and wait_event_type = 'Lock'";
        sqlx::query_scalar::<_, i64>(waiting).fetch_one(&db).await.unwrap() == 1
    })
    .await;
    sqlx::query("update orders.idempotency set answer = $1").bind(answer).execute(&mut *first).await.unwrap();
    first.commit().await.unwrap();
    let response = repeat.await.unwrap().expect("the stored response");
    assert_eq!(response.metadata().get("idempotent-replayed").unwrap(), "true");
    assert_eq!(response.into_inner(), placed);
}
