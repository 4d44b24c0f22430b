//! Refunds and the recovery of payments, with a provider that is slow, rejects calls or fails.

use std::time::Duration;

use shoppee_kit::testing::eventually;
use shoppee_proto::order::v1::{OrderStatus, PaymentStatus};
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use crate::shop::{Person, TestShop, expect_error};

/// Makes the sandbox fail if `condition` holds, and counts the failures.
async fn inject_sandbox_failures(db: &PgPool, condition: &str) {
    for statement in [
        "create sequence orders.failures",
        "create function orders.fail() returns trigger language plpgsql as
         $$ begin perform nextval('orders.failures'); raise exception 'on purpose'; end $$",
        &format!(
            "create trigger fail before insert or update on orders.sandbox_charge
             for each row when ({condition}) execute function orders.fail()"
        ),
    ] {
        sqlx::query(AssertSqlSafe(statement.to_owned())).execute(db).await.expect("answers");
    }
}

async fn failures(db: &PgPool) -> i64 {
    let called = "select case when is_called then last_value else 0 end from orders.failures";
    sqlx::query_scalar(called).fetch_one(db).await.expect("answers")
}

async fn payment(person: &Person, id: &str) -> PaymentStatus {
    person.get_order(id).await.expect("answers").payment.expect("a payment").status()
}

#[tokio::test]
async fn a_cancellation_does_not_wait_for_its_refund() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let id = ann.buys(admin.sells("tea", 450, 10).await, 1).await.id;
    ann.pays(&id).await.unwrap();
    let db = shop.db().await;
    // The provider does not respond while its ledger is locked.
    let mut ledger = db.begin().await.unwrap();
    sqlx::query("select from orders.sandbox_charge for update").execute(&mut *ledger).await.unwrap();
    let cancelled = admin.cancels(&id).await.unwrap();
    assert_eq!(cancelled.status(), OrderStatus::Cancelled);
    assert_eq!(cancelled.payment.unwrap().status(), PaymentStatus::RefundPending);
    assert_eq!(payment(&ann, &id).await, PaymentStatus::RefundPending);
    ledger.rollback().await.unwrap();
    shop.advance_clock(Duration::from_secs(16));
    eventually("the payment is refunded", || async { payment(&ann, &id).await == PaymentStatus::Refunded })
        .await;
    assert_eq!(ann.history(&id).await.unwrap().len(), 3, "a refund is no transition");
}

#[tokio::test]
async fn a_rejected_refund_fails_and_is_not_retried() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let id = ann.buys(admin.sells("tea", 450, 10).await, 1).await.id;
    ann.pays(&id).await.unwrap();
    let db = shop.db().await;
    sqlx::query("update orders.sandbox_charge set outcome = 'declined'").execute(&db).await.unwrap();
    admin.cancels(&id).await.unwrap();
    eventually("it has failed", || async { payment(&ann, &id).await == PaymentStatus::RefundFailed }).await;
    let state: String =
        sqlx::query_scalar("select state from orders.payment_attempt").fetch_one(&db).await.unwrap();
    assert_eq!(state, "refund_failed");
    // An operator's retry, after the provider accepts the refund.
    sqlx::query("update orders.sandbox_charge set outcome = 'approved'").execute(&db).await.unwrap();
    sqlx::query("update orders.payment_attempt set state = 'refunding', tries = 0, next_try_at = now()")
        .execute(&db)
        .await
        .unwrap();
    eventually("the payment is refunded", || async { payment(&ann, &id).await == PaymentStatus::Refunded })
        .await;
}

#[tokio::test]
async fn failed_refunds_are_leased_to_one_worker_with_increasing_delays() {
    let shop = TestShop::start().await;
    let db = shop.db().await;
    let _replica = shop.start_replica().await;
    sqlx::query(
        "insert into orders.sandbox_charge (attempt_id, outcome, amount, currency, at)
         select gen_random_uuid(), 'approved', 1, 'EUR', now() from generate_series(1, 40)",
    )
    .execute(&db)
    .await
    .unwrap();
    inject_sandbox_failures(&db, "true").await;
    sqlx::query(
        "insert into orders.payment_attempt (user_id, order_id, id, state, started_at, next_try_at)
         select 1, gen_random_uuid(), attempt_id, 'refunding', now(), now() from orders.sandbox_charge",
    )
    .execute(&db)
    .await
    .unwrap();
    let tries = async |tries: i32| {
        sqlx::query_scalar::<_, i64>("select count(*) from orders.payment_attempt where tries = $1")
            .bind(tries)
            .fetch_one(&db)
            .await
            .unwrap()
    };
    eventually("each was tried", || async { tries(1).await == 40 }).await;
    shop.advance_clock(Duration::from_secs(16));
    eventually("each was tried again", || async { tries(2).await == 40 }).await;
    // No attempt ran twice at the same time, although two processes poll every few seconds.
    assert!((1..=80).contains(&failures(&db).await));
    let shortest: f64 = sqlx::query_scalar(
        "select extract(epoch from min(next_try_at) - now() - interval '16 seconds')::float8
         from orders.payment_attempt",
    )
    .fetch_one(&db)
    .await
    .unwrap();
    assert!(shortest > 15.0, "twice as long as the first time: {shortest}");
}

#[tokio::test]
async fn an_outage_of_the_provider_does_not_count_as_a_failed_refund() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let id = ann.buys(admin.sells("tea", 450, 10).await, 1).await.id;
    ann.pays(&id).await.unwrap();
    let db = shop.db().await;
    inject_sandbox_failures(&db, "true").await;
    let fail_with = async |condition: &str| {
        let function = format!(
            "create or replace function orders.fail() returns trigger language plpgsql as
             $$ begin perform nextval('orders.failures'); raise exception '{condition}'; end $$"
        );
        sqlx::query(AssertSqlSafe(function)).execute(&db).await.unwrap();
    };
    let tries = async || -> i32 {
        sqlx::query_scalar("select tries from orders.payment_attempt").fetch_one(&db).await.unwrap()
    };
    // Like a server without a free connection.
    let outage = "away' using errcode = '53300";
    fail_with(outage).await;
    admin.cancels(&id).await.unwrap();
    for outages in 1..=3 {
        eventually("the refund was tried", || async { failures(&db).await >= outages }).await;
        shop.advance_clock(Duration::from_mins(10));
    }
    assert_eq!(tries().await, 0);

    sqlx::query("update orders.payment_attempt set tries = 14").execute(&db).await.unwrap();
    fail_with("rejected").await;
    let failed = failures(&db).await;
    shop.advance_clock(Duration::from_mins(10));
    eventually("an error is counted", || async { tries().await == 15 }).await;
    assert!(failures(&db).await > failed);
    assert_eq!(payment(&ann, &id).await, PaymentStatus::RefundPending);
    shop.advance_clock(Duration::from_mins(10));
    eventually("the 16th error is the last", || async {
        payment(&ann, &id).await == PaymentStatus::RefundFailed
    })
    .await;
}

#[tokio::test]
async fn a_payment_that_cannot_be_recovered_does_not_block_others() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 100).await;
    let db = shop.db().await;
    let mut failing = Vec::new();
    let paid = ann.buys(tea, 1).await.id;
    for _ in 0..3 {
        failing.push(ann.buys(tea, 1).await.id);
    }
    let open = async |order: &str, started: &str| -> Uuid {
        sqlx::query_scalar(AssertSqlSafe(format!(
            "insert into orders.payment_attempt (user_id, order_id, id, state, started_at, next_try_at)
             values ($1, $2::uuid, gen_random_uuid(), 'charging', {started}, now()) returning id"
        )))
        .bind(ann.id)
        .bind(order)
        .fetch_one(&db)
        .await
        .unwrap()
    };
    let newest = open(&paid, "now()").await;
    sqlx::query(
        "insert into orders.sandbox_charge (attempt_id, outcome, amount, currency, at)
         values ($1, 'approved', 450, 'EUR', now())",
    )
    .bind(newest)
    .execute(&db)
    .await
    .unwrap();
    inject_sandbox_failures(&db, &format!("new.attempt_id <> '{newest}'")).await;
    for order in &failing {
        open(order, "now() - interval '1 hour'").await;
    }
    eventually("the charged order is paid", || async {
        ann.get_order(&paid).await.unwrap().status() == OrderStatus::Paid
    })
    .await;
    eventually("the others were tried", || async { failures(&db).await >= 3 }).await;
}

#[tokio::test]
async fn a_declined_payment_shortens_the_hold_to_the_deadline_of_the_order() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let order = ann.buys(admin.sells("tea", 450, 10).await, 1).await;
    let product = shop.service_db("product").await;
    let outlives = async || -> i64 {
        let expires_at: time::OffsetDateTime =
            sqlx::query_scalar("select expires_at from product.stock_hold")
                .fetch_one(&product)
                .await
                .unwrap();
        expires_at.unix_timestamp() - order.expires_at.unwrap().seconds
    };
    assert_eq!(expect_error(ann.pays_with(&order.id, "tok_declined", None).await), "payment_declined");
    eventually("the hold is shortened", || async { (55..=65).contains(&outlives().await) }).await;
    ann.pays(&order.id).await.unwrap();
    assert!(outlives().await > 3600, "during a charge the hold outlives an outage");
}
