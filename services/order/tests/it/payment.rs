use std::time::Duration;

use shoppee_kit::testing::eventually;
use shoppee_proto::order::v1::{OrderStatus, PaymentStatus};

use crate::shop::{TestShop, expect_error};

#[tokio::test]
async fn a_declined_payment_leaves_the_order_open() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let id = ann.buys(admin.sells("tea", 450, 10).await, 1).await.id;
    for token in ["tok_declined", "tok_insufficient_funds"] {
        assert_eq!(expect_error(ann.pays_with(&id, token, None).await), "payment_declined");
    }
    for token in ["", "tok_visa", "TOK_OK"] {
        assert_eq!(expect_error(ann.pays_with(&id, token, None).await), "validation_failed");
    }
    assert_eq!(ann.get_order(&id).await.unwrap().status(), OrderStatus::Pending);
    assert_eq!(ann.events().await.len(), 1);
    assert_eq!(ann.pays(&id).await.unwrap().payment.unwrap().status(), PaymentStatus::Paid);
}

#[tokio::test]
async fn a_repeated_payment_under_a_key_gets_the_stored_response() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let id = ann.buys(admin.sells("tea", 450, 10).await, 1).await.id;
    let is_replay = |metadata: &tonic::metadata::MetadataMap| metadata.get("idempotent-replayed").is_some();

    let first = ann.pays_with(&id, "tok_declined", Some("k1")).await.unwrap_err();
    let again = ann.pays_with(&id, "tok_declined", Some("k1")).await.unwrap_err();
    assert_eq!(first.message(), again.message());
    assert!(!is_replay(first.metadata()) && is_replay(again.metadata()), "a decline is stored too");
    assert_eq!(expect_error(ann.pays_with(&id, "tok_ok", Some("k1")).await), "idempotency_key_reused");

    let first = ann.pays_with(&id, "tok_ok", Some("k2")).await.unwrap();
    admin.ships(&id).await.unwrap();
    let again = ann.pays_with(&id, "tok_ok", Some("k2")).await.unwrap();
    assert!(!is_replay(first.metadata()) && is_replay(again.metadata()));
    assert_eq!(first.into_inner(), again.into_inner(), "the stored response, not the current state");
    assert_eq!(expect_error(ann.pays_with(&id, "tok_ok", Some("k3")).await), "invalid_transition");
}

#[tokio::test]
async fn a_payment_left_open_by_a_crash_is_recovered() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    let (charged, never_charged) = (ann.buys(tea, 1).await.id, ann.buys(tea, 1).await.id);
    // The rows after a crash behind the provider's response, and after a crash before the call.
    let db = shop.db().await;
    for (id, was_charged) in [(&charged, true), (&never_charged, false)] {
        let attempt = uuid::Uuid::now_v7();
        sqlx::query(
            "insert into orders.payment_attempt (user_id, order_id, id, state, key, started_at)
             values ($1, $2::uuid, $3, 'charging', null, now())",
        )
        .bind(ann.id)
        .bind(id)
        .bind(attempt)
        .execute(&db)
        .await
        .unwrap();
        if was_charged {
            sqlx::query(
                "insert into orders.sandbox_charge (attempt_id, outcome, amount, currency, at)
                 values ($1, 'approved', 450, 'EUR', now())",
            )
            .bind(attempt)
            .execute(&db)
            .await
            .unwrap();
        }
    }
    assert_eq!(expect_error(ann.pays(&charged).await), "request_in_progress");

    shop.advance_clock(Duration::from_secs(31));
    eventually("the charged order is paid", || async {
        ann.get_order(&charged).await.unwrap().status() == OrderStatus::Paid
    })
    .await;
    eventually("the other can be paid anew", || async { ann.pays(&never_charged).await.is_ok() }).await;
    let approved: i64 =
        sqlx::query_scalar("select count(*) from orders.sandbox_charge where outcome = 'approved'")
            .fetch_one(&db)
            .await
            .unwrap();
    assert_eq!(approved, 2, "each order was charged once");
}

#[tokio::test]
async fn a_payment_of_an_order_cancelled_during_the_charge_is_refunded() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    let id = ann.buys(tea, 1).await.id;
    let paying = {
        let (ann, id) = (ann.clone(), id.clone());
        tokio::spawn(async move { ann.pays_with(&id, "tok_slow", None).await })
    };
    let db = shop.db().await;
    eventually("the payment has begun", || async {
        let begun: i64 =
            sqlx::query_scalar("select count(*) from orders.payment_attempt where state = 'charging'")
                .fetch_one(&db)
                .await
                .unwrap();
        begun == 1
    })
    .await;
    // One call to the product service precedes the charge.
    tokio::time::sleep(Duration::from_millis(500)).await;
    ann.cancels(&id).await.unwrap();
    assert_eq!(expect_error(paying.await.unwrap()), "invalid_transition");
    eventually("the payment is refunded", || async {
        let outcome: String =
            sqlx::query_scalar("select outcome from orders.sandbox_charge").fetch_one(&db).await.unwrap();
        outcome == "refunded"
    })
    .await;
    eventually("the stock is released", || async { admin.stock(tea).await == 10 }).await;
}
