//! Sign-ins that meet a change of their account half-way: none survives it. Locks of the test's own hold each
//! at the one point where it could go wrong.

use futures_util::future::join_all;
use shoppee_kit::testing::eventually;
use shoppee_proto::auth::v1::LogoutAllRequest;
use sqlx::Connection as _;
use tonic::Code::{PermissionDenied, Unauthenticated};

use crate::shop::{PASSWORD, Shop, refused};

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
async fn ending_everything_from_everywhere_at_once_ends_everything() {
    let shop = Shop::open().await;
    let replica = shop.replica().await;
    shop.registers("ann").await;
    let people = join_all((0..6).map(|_| shop.signs_in("ann"))).await;
    join_all(people.iter().enumerate().map(|(number, person)| {
        let mut client = if number % 2 == 0 { &shop } else { &replica }.client.clone();
        async move { client.logout_all(person.asks(LogoutAllRequest {})).await }
    }))
    .await;
    for person in &people {
        shop.refuses_within_a_second(person.token()).await;
        replica.refuses_within_a_second(person.token()).await;
    }
}
