//! Idempotency keys of operations with one transaction.

use std::time::Duration;

use shoppee_kit::testing::eventually;
use shoppee_proto::order::v1::{AddCartItemRequest, CompleteOrderRequest, OrderStatus};
use tonic::{Request, Response};

use crate::shop::{TestShop, expect_error, order_request};

/// The deadline of a call of the gateway.
const GATEWAY_TIMEOUT: Duration = Duration::from_secs(2);

fn is_replay<T>(answer: &Response<T>) -> bool {
    answer.metadata().get("idempotent-replayed").is_some_and(|value| value == "true")
}

#[tokio::test]
async fn an_add_to_the_cart_under_a_key_is_applied_once() {
    let shop = TestShop::start().await;
    let (admin, ann, ben) = (shop.admin().await, shop.customer("ann").await, shop.customer("ben").await);
    let (tea, cup) = (admin.sells("tea", 450, 100).await, admin.sells("cup", 900, 100).await);
    let first = ann.add_to_cart_with_key(tea, 1, "k").await.unwrap();
    ann.add_to_cart(cup, 2).await.unwrap();
    let again = ann.add_to_cart_with_key(tea, 1, "k").await.unwrap();
    assert!(!is_replay(&first) && is_replay(&again));
    assert_eq!(first.into_inner(), again.into_inner(), "the stored response");
    assert_eq!(ann.cart().await.items.iter().map(|item| item.quantity).collect::<Vec<_>>(), [1, 2]);
    for (product, quantity) in [(tea, 2), (cup, 1)] {
        assert_eq!(
            expect_error(ann.add_to_cart_with_key(product, quantity, "k").await),
            "idempotency_key_reused"
        );
    }
    assert!(!is_replay(&ben.add_to_cart_with_key(tea, 5, "k").await.unwrap()), "a key is scoped to its user");
    for invalid in ["", "a b", &"x".repeat(256)] {
        assert_eq!(expect_error(ann.add_to_cart_with_key(tea, 1, invalid).await), "invalid_request");
    }
    // An error is not stored.
    assert_eq!(expect_error(ann.add_to_cart_with_key(tea, 1000, "full").await), "validation_failed");
    assert_eq!(expect_error(ann.add_to_cart_with_key(tea, 1000, "full").await), "validation_failed");

    shop.advance_clock(shoppee_kit::idempotency::KEY_TTL + std::time::Duration::from_secs(1));
    assert!(!is_replay(&ann.add_to_cart_with_key(tea, 3, "k").await.unwrap()), "kept for 24 hours");
}

#[tokio::test]
async fn twenty_concurrent_adds_under_one_key_are_applied_once() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 100).await;
    for round in 1..=5 {
        let tries: Vec<_> = (0..20)
            .map(|_| {
                let ann = ann.clone();
                tokio::spawn(async move { ann.add_to_cart_with_key(tea, 1, &format!("round-{round}")).await })
            })
            .collect();
        let mut first = 0;
        for attempt in tries {
            match attempt.await.unwrap() {
                Ok(answer) => first += i64::from(!is_replay(&answer)),
                other => assert_eq!(expect_error(other), "request_in_progress"),
            }
        }
        assert_eq!((first, ann.cart().await.items[0].quantity), (1, round));
    }
}

#[tokio::test]
async fn a_repeated_transition_under_a_key_gets_the_stored_response() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 100).await;
    let id = ann.buys(tea, 1).await.id;
    ann.pays(&id).await.unwrap();
    let shipped = admin.ships_with(&id, "3S-1", Some("k")).await.unwrap();
    let completed = ann.completes_with(&id, Some("k")).await.unwrap();
    assert!(!is_replay(&shipped) && !is_replay(&completed), "a key is scoped to one operation");
    let again = admin.ships_with(&id, "3S-1", Some("k")).await.unwrap();
    assert!(is_replay(&again));
    assert_eq!(again.get_ref().status(), OrderStatus::Shipped);
    assert_eq!(again.into_inner(), shipped.into_inner());
    let again = ann.completes_with(&id, Some("k")).await.unwrap();
    assert!(is_replay(&again));
    assert_eq!(again.into_inner(), completed.into_inner());
    assert_eq!(expect_error(admin.ships_with(&id, "3S-2", Some("k")).await), "idempotency_key_reused");

    let id = ann.buys(tea, 1).await.id;
    let cancelled = ann.cancels_with(&id, Some("too dear"), Some("k")).await.unwrap();
    let again = ann.cancels_with(&id, Some("too dear"), Some("k")).await.unwrap();
    assert!(is_replay(&again));
    assert_eq!(again.into_inner(), cancelled.into_inner());
    assert_eq!(expect_error(ann.cancels_with(&id, None, Some("k")).await), "idempotency_key_reused");
    assert_eq!(ann.history(&id).await.unwrap().len(), 2);
}

#[tokio::test]
async fn the_newest_responses_of_a_user_are_kept_and_expired_ones_deleted() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 100).await;
    let db = shop.db().await;
    sqlx::query(
        "insert into orders.idempotent_request (user_id, scope, key, fingerprint, answer, created_at)
         select $1, 'cart/add', 'old-' || n, '', '', now() - n * interval '1 second' from generate_series(1, 505) n",
    )
    .bind(ann.id)
    .execute(&db)
    .await
    .unwrap();
    let count = || async {
        sqlx::query_scalar::<_, i64>("select count(*) from orders.idempotent_request")
            .fetch_one(&db)
            .await
            .unwrap()
    };
    ann.add_to_cart_with_key(tea, 1, "new").await.unwrap();
    assert_eq!(count().await, shoppee_kit::idempotency::MAX_RESPONSES_PER_USER);
    assert!(is_replay(&ann.add_to_cart_with_key(tea, 1, "new").await.unwrap()));
    shop.advance_clock(shoppee_kit::idempotency::KEY_TTL + std::time::Duration::from_mins(1));
    eventually("they are deleted", || async { count().await == 0 }).await;
}

#[tokio::test]
async fn a_repeat_during_the_first_request_is_told_so_before_the_deadline_of_the_gateway() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 100).await;
    let id = ann.buys(tea, 1).await.id;
    let key = || Some("k".to_owned());
    let with_deadline = |mut request: Request<()>| {
        request.set_timeout(GATEWAY_TIMEOUT);
        request
    };
    let db = shop.db().await;

    // The first request has claimed the key in its transaction.
    let mut first = db.begin().await.unwrap();
    for scope in ["cart/add".to_owned(), format!("complete/{id}")] {
        sqlx::query(
            "insert into orders.idempotent_request (user_id, scope, key, fingerprint, answer, created_at)
             values ($1, $2, 'k', '', '', now())",
        )
        .bind(ann.id)
        .bind(scope)
        .execute(&mut *first)
        .await
        .unwrap();
    }
    let add = AddCartItemRequest { product_id: tea, quantity: 1, idempotency_key: key() };
    let complete = CompleteOrderRequest { id: id.clone(), idempotency_key: key() };
    let (mut adding, mut completing) = (ann.service(), ann.service());
    let (add, complete) =
        (with_deadline(ann.request(())).map(|()| add), with_deadline(ann.request(())).map(|()| complete));
    let (added, completed) = tokio::join!(adding.add_cart_item(add), completing.complete_order(complete));
    assert_eq!(expect_error(added), "request_in_progress");
    assert_eq!(expect_error(completed), "request_in_progress");
    first.rollback().await.unwrap();

    // The first request has locked its claim in the transaction of the order.
    let mut order = order_request(&[(tea, 1)]);
    ann.orders_with_retries(order.clone()).await.expect("the order whose fingerprint the claim has");
    order.idempotency_key = key();
    sqlx::query(
        "insert into orders.idempotency (user_id, scope, key, fingerprint, order_id, claimed_until, created_at)
         select user_id, scope, 'k', fingerprint, gen_random_uuid(), now() + interval '10 s', now()
         from orders.idempotency where user_id = $1 and scope = 'create' order by created_at desc limit 1",
    )
    .bind(ann.id)
    .execute(&db)
    .await
    .unwrap();
    let mut first = db.begin().await.unwrap();
    sqlx::query("select from orders.idempotency for update").execute(&mut *first).await.unwrap();
    let placed = ann.service().create_order(with_deadline(ann.request(())).map(|()| order)).await;
    assert_eq!(expect_error(placed), "request_in_progress");
}
