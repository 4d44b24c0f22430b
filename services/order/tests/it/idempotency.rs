use std::time::Duration;

use crate::shop::{Shop, refused, wish};

#[tokio::test]
async fn the_same_key_and_body_is_one_order_with_one_answer() {
    let shop = Shop::open().await;
    let (admin, ann, ben) = (shop.admin().await, shop.customer("ann").await, shop.customer("ben").await);
    let (tea, cup) = (admin.sells("tea", 450, 1000).await, admin.sells("cup", 1200, 1000).await);
    let mut order = wish(&[(tea, 1), (cup, 2)]);
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
        assert_eq!(replay.into_inner(), first, "the answer of then, though it is paid by now");
    }
    let mut another = order.clone();
    another.items[0].quantity = 3;
    assert_eq!(refused(ann.orders(another).await), "idempotency_key_reused");
    assert_ne!(ben.orders(order.clone()).await.unwrap().into_inner().id, first.id, "a key is the user's own");

    shop.let_pass(Duration::from_hours(24) + Duration::from_secs(1));
    assert_ne!(ann.orders(order).await.unwrap().into_inner().id, first.id, "kept for 24 hours");
}

#[tokio::test]
async fn fifty_at_once_with_one_key_are_one_order() {
    let shop = Shop::open_with(|settings| settings.max_unpaid_orders = 1000).await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 1000).await;
    for round in 0..10 {
        let tries: Vec<_> = (0..50)
            .map(|_| {
                let ann = ann.clone();
                let mut order = wish(&[(tea, 1)]);
                order.idempotency_key = Some(format!("round-{round}"));
                tokio::spawn(async move { ann.orders(order).await })
            })
            .collect();
        let mut ids = Vec::new();
        for attempt in tries {
            match attempt.await.unwrap() {
                Ok(order) => ids.push(order.into_inner().id),
                other => assert_eq!(refused(other), "request_in_progress"),
            }
        }
        ids.dedup();
        assert_eq!(ids.len(), 1, "round {round}");
    }
    assert_eq!(admin.stock(tea).await, 990);
}

#[tokio::test]
async fn a_refusal_is_not_kept() {
    let shop = Shop::open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 1).await;
    let holder = ann.buys(tea, 1).await.id;
    let mut order = wish(&[(tea, 1)]);
    order.idempotency_key = Some("patient".to_owned());
    assert_eq!(refused(ann.orders(order.clone()).await), "out_of_stock");
    ann.cancels(&holder).await.unwrap();
    ann.orders(order.clone()).await.unwrap();
    for odd in [String::new(), "a b".to_owned(), "x".repeat(256)] {
        order.idempotency_key = Some(odd);
        assert_eq!(refused(ann.orders(order.clone()).await), "invalid_request");
    }
}

#[tokio::test]
async fn a_claim_whose_holder_died_is_taken_over_with_what_it_held() {
    let shop = Shop::open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 1).await;
    let mut order = wish(&[(tea, 1)]);
    order.idempotency_key = Some("torn".to_owned());
    let placed = ann.orders(order.clone()).await.unwrap().into_inner();
    // As if the process had died between the hold and its transaction.
    let look = shop.look().await;
    for table in ["order_line", "outbox", "event", "event_cursor", "orders"] {
        sqlx::query(sqlx::AssertSqlSafe(format!("delete from orders.{table}"))).execute(&look).await.unwrap();
    }
    sqlx::query("update orders.idempotency set answer = null, claimed_until = now() + interval '10 s'")
        .execute(&look)
        .await
        .unwrap();

    assert_eq!(refused(ann.orders(order.clone()).await), "request_in_progress");
    shop.let_pass(Duration::from_secs(11));
    let adopted = ann.orders(order).await.unwrap().into_inner();
    assert_eq!(adopted.id, placed.id, "the last unit, which the dead one held, is this order's");
    assert_eq!(admin.stock(tea).await, 0);
}
