//! The cleanup job deletes expired rows, and no others.

use std::time::Duration;

use shoppee_kit::testing::eventually;
use tonic::Code::Unauthenticated;

use crate::shop::{TestAuth, expect_error};

async fn rows(shop: &TestAuth) -> (i64, i64, i64) {
    sqlx::query_as(
        "select (select count(*) from auth.session), (select count(*) from auth.refresh_token),
                (select count(*) from auth.password_try)",
    )
    .fetch_one(&mut shop.connection().await)
    .await
    .expect("counts")
}

#[tokio::test]
async fn ended_sessions_and_old_attempts_are_deleted_after_their_retention() {
    let shop = TestAuth::start().await;
    let stays = shop.registers_and_signs_in("ann").await;
    let leaves = shop.registers_and_signs_in("bob").await;
    leaves.logs_out().await;
    shop.try_sign_in("ghost", "wrong horse").await.unwrap_err();
    assert_eq!(rows(&shop).await, (2, 2, 1));

    // The revoked session is aged. A worker runs when it starts.
    sqlx::query("update auth.session set ended_at = ended_at - interval '8 days'")
        .execute(&mut shop.connection().await)
        .await
        .unwrap();
    shop.advance_clock(Duration::from_hours(25));
    shop.age_attempts(61.0).await;
    let later = shop.replica().await;
    eventually("they are deleted", || async { rows(&shop).await == (1, 1, 0) }).await;
    expect_error(later.refreshes(&leaves.tokens.refresh_token).await, Unauthenticated, "UNAUTHENTICATED");
    let tokens = later.refreshes(&stays.tokens.refresh_token).await.unwrap();
    assert_eq!(rows(&shop).await, (1, 2, 0));

    // The first token of the active session has expired long ago; the session has not.
    shop.advance_clock(Duration::from_hours(20 * 24));
    let tokens = later.refreshes(&tokens.refresh_token).await.unwrap();
    shop.advance_clock(Duration::from_hours(18 * 24));
    let latest = shop.replica().await;
    eventually("a used token is deleted", || async { rows(&shop).await == (1, 2, 0) }).await;
    latest.refreshes(&tokens.refresh_token).await.unwrap();
}
