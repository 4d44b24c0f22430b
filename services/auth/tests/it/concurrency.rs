//! Sign-ins that run concurrently with a change of their account: none survives it. The tests hold locks to stop each
//! transaction at its critical point.

use futures_util::future::join_all;
use shoppee_kit::testing::eventually;
use shoppee_proto::auth::v1::LogoutAllRequest;
use sqlx::Connection as _;
use tonic::Code::{PermissionDenied, Unauthenticated};

use crate::shop::{PASSWORD, TestAuth, code_and_reason, expect_error};

/// Waits until `number` statements of the service wait for a lock.
async fn wait_for_locks(shop: &TestAuth, number: i64) {
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
async fn a_concurrent_sign_in_does_not_survive_disabling_the_account() {
    let shop = TestAuth::start().await;
    let root = shop.admin("root").await;
    let ann = shop.registers("ann").await;
    let mut conn = shop.connection().await;
    let mut holding = conn.begin().await.unwrap();
    sqlx::query("lock table auth.refresh_token in share mode").execute(&mut *holding).await.unwrap();
    let (signed_in, disabled, ()) = tokio::join!(
        // The sign-in has inserted its session, and waits at its refresh token, before the commit.
        shop.try_sign_in("ann", PASSWORD),
        async {
            wait_for_locks(&shop, 1).await;
            root.updates(ann.id, None, Some(true)).await
        },
        async {
            // The change must wait for the sign-in, which it cannot see yet.
            wait_for_locks(&shop, 2).await;
            holding.commit().await.unwrap();
        },
    );
    disabled.unwrap();
    let ann = signed_in.unwrap();
    shop.rejects_within_a_second(ann.token()).await;
    expect_error(shop.refreshes(&ann.tokens.refresh_token).await, Unauthenticated, "SESSION_REVOKED");
    expect_error(shop.try_sign_in("ann", PASSWORD).await, PermissionDenied, "ACCOUNT_DISABLED");
}

#[tokio::test]
async fn a_sign_in_fails_if_the_password_changes_during_the_hash() {
    let shop = TestAuth::start().await;
    shop.registers("ann").await;
    let mut conn = shop.connection().await;
    let mut change = conn.begin().await.unwrap();
    sqlx::query("update auth.account set password_version = password_version + 1")
        .execute(&mut *change)
        .await
        .unwrap();
    let (signed_in, ()) = tokio::join!(shop.try_sign_in("ann", PASSWORD), async {
        wait_for_locks(&shop, 1).await;
        change.commit().await.unwrap();
    });
    expect_error(signed_in, Unauthenticated, "INVALID_CREDENTIALS");
    shop.signs_in("ann").await;
}

#[tokio::test]
async fn concurrent_sign_ins_of_two_devices_both_succeed() {
    let shop = TestAuth::start().await;
    shop.registers("ann").await;
    let (mut first, mut second) = (shop.connection().await, shop.connection().await);
    let mut before_the_commit = first.begin().await.unwrap();
    sqlx::query("lock table auth.refresh_token in share mode")
        .execute(&mut *before_the_commit)
        .await
        .unwrap();
    let mut tries = second.begin().await.unwrap();
    let (phone, laptop, ()) =
        tokio::join!(shop.try_sign_in("ann", PASSWORD), shop.try_sign_in("ann", PASSWORD), async {
            // Both attempts are counted, so each finds the other's attempt when it refunds its own.
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
    assert_eq!(counted, 0, "a right password is not counted");
}

#[tokio::test]
async fn concurrent_logouts_of_all_sessions_revoke_all_sessions() {
    let shop = TestAuth::start().await;
    let replica = shop.replica().await;
    shop.registers("ann").await;
    let mut people = Vec::new();
    for _ in 0..6 {
        people.push(shop.signs_in("ann").await);
    }
    let answers = join_all(people.iter().enumerate().map(|(number, person)| {
        let mut client = if number % 2 == 0 { &shop } else { &replica }.client.clone();
        async move { client.logout_all(person.request(LogoutAllRequest {})).await }
    }))
    .await;
    for status in answers.into_iter().filter_map(Result::err) {
        assert_eq!(code_and_reason(&status), (Unauthenticated, "SESSION_REVOKED".to_owned()));
    }
    for person in &people {
        shop.rejects_within_a_second(person.token()).await;
        replica.rejects_within_a_second(person.token()).await;
    }
}
