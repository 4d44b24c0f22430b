//! What is old is forgotten, and nothing else.

use std::time::Duration;

use shoppee_kit::testing::eventually;
use tonic::Code::Unauthenticated;

use crate::shop::{Shop, refused};

async fn rows(shop: &Shop) -> (i64, i64, i64) {
    sqlx::query_as(
        "select (select count(*) from auth.session), (select count(*) from auth.refresh_token),
                (select count(*) from auth.password_try)",
    )
    .fetch_one(&mut shop.connection().await)
    .await
    .expect("counts")
}

#[tokio::test]
async fn ended_sessions_and_old_tries_are_forgotten_after_a_while() {
    let shop = Shop::open().await;
    let stays = shop.registers_and_signs_in("ann").await;
    let leaves = shop.registers_and_signs_in("bob").await;
    leaves.logs_out().await;
    shop.tries_to_sign_in("ghost", "wrong horse").await.unwrap_err();
    assert_eq!(rows(&shop).await, (2, 2, 1));

    // Time passes for the session that ended; a worker that starts looks at once.
    sqlx::query("update auth.session set ended_at = ended_at - interval '8 days'")
        .execute(&mut shop.connection().await)
        .await
        .unwrap();
    shop.time_passes(Duration::from_hours(25));
    shop.tries_were_made_ago(61.0).await;
    let later = shop.replica().await;
    eventually("it is forgotten", || async { rows(&shop).await == (1, 1, 0) }).await;
    refused(later.refreshes(&leaves.tokens.refresh_token).await, Unauthenticated, "UNAUTHENTICATED");
    let tokens = later.refreshes(&stays.tokens.refresh_token).await.unwrap();
    assert_eq!(rows(&shop).await, (1, 2, 0));

    // The first token of the session that goes on has run out long ago; the session has not.
    shop.time_passes(Duration::from_hours(20 * 24));
    let tokens = later.refreshes(&tokens.refresh_token).await.unwrap();
    shop.time_passes(Duration::from_hours(18 * 24));
    let latest = shop.replica().await;
    eventually("a used token is forgotten", || async { rows(&shop).await == (1, 2, 0) }).await;
    latest.refreshes(&tokens.refresh_token).await.unwrap();
}
