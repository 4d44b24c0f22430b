//! Sign-ins that meet a change of their account half-way: none survives it. Locks of the test's own hold each
//! at the one point where it could go wrong.

use futures_util::future::join_all;
use shoppee_kit::testing::eventually;
use shoppee_proto::auth::v1::LogoutAllRequest;
use sqlx::Connection as _;
use tonic::Code::{PermissionDenied, Unauthenticated};

use crate::shop::{PASSWORD, Shop, refused, said};

/// Waits until this many of the service's statements wait for a lock.
async fn wait_for_locks(shop: &Shop, number: i64) {
    eventually("they wait for a lock", || async {
        let waiting: i64 = sqlx::query_scalar(
            "select count(distinct pid) from pg_locks
             where not granted and pid in
                 (select pid from pg_stat_activity where datname = current_database())",
        )
        .fetch_one(&mut shop.connection().await)
        .await
        .expect("counts");
        waiting == number
    })
    .await;
}

#[tokio::test]
async fn a_sign_in_that_is_half_done_does_not_outlive_being_disabled() {
    let shop = Shop::open().await;
    let root = shop.admin("root").await;
    let ann = shop.registers("ann").await;
    let mut conn = shop.connection().await;
    let mut holding = conn.begin().await.unwrap();
    sqlx::query("lock table auth.refresh_token in share mode").execute(&mut *holding).await.unwrap();
    let (signed_in, disabled, ()) = tokio::join!(
        // Its session is written, and stops at its refresh token, before the commit.
        shop.tries_to_sign_in("ann", PASSWORD),
        async {
            wait_for_locks(&shop, 1).await;
            root.updates(ann.id, None, Some(true)).await
        },
        async {
            // The change must wait for the sign-in, which it could not see yet.
            wait_for_locks(&shop, 2).await;
            holding.commit().await.unwrap();
        },
    );
    disabled.unwrap();
    let ann = signed_in.unwrap();
    shop.refuses_within_a_second(ann.token()).await;
    refused(shop.refreshes(&ann.tokens.refresh_token).await, Unauthenticated, "SESSION_REVOKED");
    refused(shop.tries_to_sign_in("ann", PASSWORD).await, PermissionDenied, "ACCOUNT_DISABLED");
}

#[tokio::test]
async fn a_password_that_is_changed_while_it_is_hashed_lets_nobody_in() {
    let shop = Shop::open().await;
    shop.registers("ann").await;
    let mut conn = shop.connection().await;
    let mut change = conn.begin().await.unwrap();
    sqlx::query("update auth.account set password_version = password_version + 1")
        .execute(&mut *change)
        .await
        .unwrap();
    let (signed_in, ()) = tokio::join!(shop.tries_to_sign_in("ann", PASSWORD), async {
        wait_for_locks(&shop, 1).await;
        change.commit().await.unwrap();
    });
    refused(signed_in, Unauthenticated, "INVALID_CREDENTIALS");
    shop.signs_in("ann").await;
}

#[tokio::test]
async fn two_devices_that_sign_in_at_once_are_both_let_in() {
    let shop = Shop::open().await;
    shop.registers("ann").await;
    let (mut first, mut second) = (shop.connection().await, shop.connection().await);
    let mut before_the_commit = first.begin().await.unwrap();
    sqlx::query("lock table auth.refresh_token in share mode")
        .execute(&mut *before_the_commit)
        .await
        .unwrap();
    let mut tries = second.begin().await.unwrap();
    let (phone, laptop, ()) =
        tokio::join!(shop.tries_to_sign_in("ann", PASSWORD), shop.tries_to_sign_in("ann", PASSWORD), async {
            // Both are counted; now each finds the other's try beside its own when it gives it back.
            wait_for_locks(&shop, 2).await;
            sqlx::query("select from auth.password_try for update").execute(&mut *tries).await.unwrap();
            before_the_commit.commit().await.unwrap();
            wait_for_locks(&shop, 2).await;
            tries.commit().await.unwrap();
        },);
    phone.unwrap();
    laptop.unwrap();
    let counted: i64 = sqlx::query_scalar("select count(*) from auth.password_try")
        .fetch_one(&mut shop.connection().await)
        .await
        .unwrap();
    assert_eq!(counted, 0, "a right password counts as a try");
}

#[tokio::test]
async fn ending_everything_from_everywhere_at_once_ends_everything() {
    let shop = Shop::open().await;
    let replica = shop.replica().await;
    shop.registers("ann").await;
    let mut people = Vec::new();
    for _ in 0..6 {
        people.push(shop.signs_in("ann").await);
    }
    let answers = join_all(people.iter().enumerate().map(|(number, person)| {
        let mut client = if number % 2 == 0 { &shop } else { &replica }.client.clone();
        async move { client.logout_all(person.asks(LogoutAllRequest {})).await }
    }))
    .await;
    for ended_by_another in answers.into_iter().filter_map(Result::err) {
        assert_eq!(said(&ended_by_another), (Unauthenticated, "SESSION_REVOKED".to_owned()));
    }
    for person in &people {
        shop.refuses_within_a_second(person.token()).await;
        replica.refuses_within_a_second(person.token()).await;
    }
}
