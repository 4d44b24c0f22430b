use std::time::Duration;

use prost::Message as _;
use shoppee_kit::{idempotency::fingerprint, testing::eventually};
use shoppee_proto::order::v1::{OrderStatus, PaymentStatus};
use sqlx::PgPool;

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
    let (db, product) = (shop.db().await, shop.service_db("product").await);
    eventually("the hold is extended, which the charge follows", || async {
        let extended = "select count(*) from product.stock_hold where expires_at > now() + interval '1 hour'";
        sqlx::query_scalar::<_, i64>(extended).fetch_one(&product).await.unwrap() == 1
    })
    .await;
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

/// Locks the row of an order, as recovery does.
async fn lock_order<'a>(db: &PgPool, order: &str) -> sqlx::Transaction<'a, sqlx::Postgres> {
    let mut transaction = db.begin().await.expect("the database answers");
    sqlx::query("select from orders.orders where id = $1::uuid for update")
        .bind(order)
        .execute(&mut *transaction)
        .await
        .expect("the database answers");
    transaction
}

/// Waits until a request has taken the key of a payment over.
async fn wait_taken_over(db: &PgPool) {
    eventually("the repeat has taken the key over", || async {
        let is_claimed = "select claimed_until > now() from orders.idempotency where scope like 'pay/%'";
        sqlx::query_scalar::<_, bool>(is_claimed).fetch_one(db).await.expect("the database answers")
    })
    .await;
}

/// Saves a response under the key of a payment.
async fn save_response(transaction: &mut sqlx::PgConnection, response: &[u8]) {
    sqlx::query("update orders.idempotency set answer = $1 where scope like 'pay/%'")
        .bind(response)
        .execute(transaction)
        .await
        .expect("the database answers");
}

#[tokio::test]
async fn a_repeated_payment_that_meets_its_recovery_gets_the_stored_response() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let order = ann.buys(admin.sells("tea", 450, 10).await, 1).await;
    let db = shop.db().await;
    // The claim of a process that died.
    sqlx::query(
        "insert into orders.idempotency (user_id, scope, key, fingerprint, order_id, claimed_until, created_at)
         values ($1, 'pay/' || $2, 'k', $3, $2::uuid, now(), now())",
    )
    .bind(ann.id)
    .bind(&order.id)
    .bind(fingerprint(&"Ok"))
    .execute(&db)
    .await
    .unwrap();
    let mut recovery = lock_order(&db, &order.id).await;
    let repeat = tokio::spawn({
        let (ann, id) = (ann.clone(), order.id.clone());
        async move { ann.pays_with(&id, "tok_ok", Some("k")).await }
    });
    wait_taken_over(&db).await;
    // Recovery pays the order, and saves the response, before the repeat sees the order.
    sqlx::query("update orders.orders set status = 'paid', paid_at = now() where id = $1::uuid")
        .bind(&order.id)
        .execute(&mut *recovery)
        .await
        .unwrap();
    save_response(&mut recovery, &[b"o", order.encode_to_vec().as_slice()].concat()).await;
    recovery.commit().await.unwrap();

    let response = repeat.await.unwrap().expect("the stored response");
    assert_eq!(response.metadata().get("idempotent-replayed").unwrap(), "true");
    assert_eq!(response.into_inner(), order);
}

#[tokio::test]
async fn an_attempt_is_not_opened_under_a_key_with_a_response() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let id = ann.buys(admin.sells("tea", 450, 10).await, 1).await.id;
    assert_eq!(expect_error(ann.pays_with(&id, "tok_declined", Some("k")).await), "payment_declined");
    let db = shop.db().await;
    // The claim is lost while the former holder saves its response.
    sqlx::query(
        "update orders.idempotency set answer = null, claimed_until = now() where scope like 'pay/%'",
    )
    .execute(&db)
    .await
    .unwrap();
    let mut first = lock_order(&db, &id).await;
    let repeat = tokio::spawn({
        let (ann, id) = (ann.clone(), id.clone());
        async move { ann.pays_with(&id, "tok_declined", Some("k")).await }
    });
    wait_taken_over(&db).await;
    save_response(&mut first, b"dthe card was declined").await;
    first.commit().await.unwrap();
    assert_eq!(expect_error(repeat.await.unwrap()), "payment_declined");
    let attempts: i64 =
        sqlx::query_scalar("select count(*) from orders.payment_attempt").fetch_one(&db).await.unwrap();
    assert_eq!(attempts, 1, "one key, one charge");
}

#[tokio::test]
async fn a_charge_that_outlasts_its_lease_is_completed_by_its_process() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let id = ann.buys(admin.sells("tea", 450, 10).await, 1).await.id;
    let paying = tokio::spawn({
        let (ann, id) = (ann.clone(), id.clone());
        async move { ann.pays_with(&id, "tok_slow", Some("k")).await }
    });
    let db = shop.db().await;
    eventually("the payment has begun", || async {
        let open = "select count(*) from orders.payment_attempt where state = 'charging'";
        sqlx::query_scalar::<_, i64>(open).fetch_one(&db).await.unwrap() == 1
    })
    .await;
    // The charge takes 3 s, and the lease of 3 s ends after 2.
    shop.advance_clock(Duration::from_secs(1));
    assert_eq!(paying.await.unwrap().unwrap().into_inner().status(), OrderStatus::Paid);
    let outcomes: Vec<String> =
        sqlx::query_scalar("select outcome from orders.sandbox_charge").fetch_all(&db).await.unwrap();
    assert_eq!(outcomes, ["approved"]);
}
