//! At most ten tries of a password a minute and account.

use std::time::Duration;

use futures_util::future::join_all;
use shoppee_kit::status;
use tonic::Code::{ResourceExhausted, Unauthenticated};

use crate::shop::{PASSWORD, Shop, refused, said};

/// Ten tries, all answered.
async fn ten_wrong_tries(shop: &Shop, name: &str) {
    for _ in 0..10 {
        refused(shop.tries_to_sign_in(name, "wrong horse").await, Unauthenticated, "INVALID_CREDENTIALS");
    }
}

#[tokio::test]
async fn the_eleventh_try_is_refused_however_the_name_is_spelt() {
    let shop = Shop::open().await;
    shop.registers("ann").await;
    shop.registers("bob").await;
    let spellings = ["ann", "ANN", " ann", "ann ", "ann@example.com", "Ann@Example.COM", "\tann\n"];
    for name in spellings.iter().cycle().take(10) {
        refused(shop.tries_to_sign_in(name, "wrong horse").await, Unauthenticated, "INVALID_CREDENTIALS");
    }
    for name in spellings {
        let status =
            refused(shop.tries_to_sign_in(name, PASSWORD).await, ResourceExhausted, "TOO_MANY_ATTEMPTS");
        let retry_after = status::read(&status).retry_after.unwrap();
        assert!((Duration::from_secs(50)..=Duration::from_mins(1)).contains(&retry_after), "{retry_after:?}");
    }
    shop.signs_in("bob").await;
}

#[tokio::test]
async fn an_unknown_name_is_limited_like_a_known_one() {
    let shop = Shop::open().await;
    for name in ["ghost", "GHOST", " ghost "].iter().cycle().take(10) {
        refused(shop.tries_to_sign_in(name, "wrong horse").await, Unauthenticated, "INVALID_CREDENTIALS");
    }
    refused(shop.tries_to_sign_in("Ghost", "wrong horse").await, ResourceExhausted, "TOO_MANY_ATTEMPTS");
}

#[tokio::test]
async fn of_fifty_tries_at_once_over_two_replicas_ten_are_let_through() {
    let shop = Shop::open().await;
    let other = shop.replica().await;
    shop.registers("ann").await;
    let tries = (0..50).map(|number| {
        let shop = if number % 2 == 0 { &shop } else { &other };
        async move { said(&shop.tries_to_sign_in("ann", "wrong horse").await.unwrap_err()).1 }
    });
    let told = join_all(tries).await;
    let refused = told.iter().filter(|reason| *reason == "TOO_MANY_ATTEMPTS").count();
    // A machine that is busy otherwise may shed one that was counted.
    let counted =
        told.iter().filter(|reason| ["INVALID_CREDENTIALS", "UNAVAILABLE"].contains(&reason.as_str()));
    assert_eq!((counted.count(), refused), (10, 40), "{told:?}");
}

#[tokio::test]
async fn own_sign_ins_in_between_earn_no_more_tries() {
    let shop = Shop::open().await;
    shop.registers("ann").await;
    let mut wrong = 0;
    for number in 0..24 {
        if number % 3 == 0 {
            let right = shop.tries_to_sign_in("ann", PASSWORD).await;
            assert_eq!(right.is_ok(), wrong < 10, "{right:?}");
        } else if said(&shop.tries_to_sign_in("ann", "wrong horse").await.unwrap_err()).0 == Unauthenticated {
            wrong += 1;
        }
    }
    assert_eq!(wrong, 10);
}

#[tokio::test]
async fn who_is_right_may_sign_in_often() {
    let shop = Shop::open().await;
    shop.registers("ann").await;
    for _ in 0..12 {
        shop.signs_in("ann").await;
    }
}

#[tokio::test]
async fn the_window_slides_and_refused_tries_do_not_prolong_it() {
    let shop = Shop::open().await;
    shop.registers("ann").await;
    ten_wrong_tries(&shop, "ann").await;
    shop.tries_were_made_ago(40.0).await;
    for _ in 0..5 {
        let status =
            refused(shop.tries_to_sign_in("ann", PASSWORD).await, ResourceExhausted, "TOO_MANY_ATTEMPTS");
        let retry_after = status::read(&status).retry_after.unwrap();
        assert!((Duration::from_secs(10)..Duration::from_secs(21)).contains(&retry_after), "{retry_after:?}");
    }
    shop.tries_were_made_ago(61.0).await;
    shop.signs_in("ann").await;
}

#[tokio::test]
async fn what_retry_after_says_is_true() {
    let shop = Shop::open().await;
    shop.registers("ann").await;
    ten_wrong_tries(&shop, "ann").await;
    shop.tries_were_made_ago(56.0).await;
    let status =
        refused(shop.tries_to_sign_in("ann", PASSWORD).await, ResourceExhausted, "TOO_MANY_ATTEMPTS");
    tokio::time::sleep(status::read(&status).retry_after.unwrap() + Duration::from_millis(5)).await;
    shop.signs_in("ann").await;
}

#[tokio::test]
async fn tries_of_the_current_password_count_too() {
    let shop = Shop::open().await;
    let ann = shop.registers_and_signs_in("ann").await;
    for _ in 0..10 {
        let outcome = ann.changes_password("wrong horse", "another horse").await;
        refused(outcome, Unauthenticated, "INVALID_CREDENTIALS");
    }
    refused(ann.changes_password(PASSWORD, "another horse").await, ResourceExhausted, "TOO_MANY_ATTEMPTS");
    refused(shop.tries_to_sign_in("ann", PASSWORD).await, ResourceExhausted, "TOO_MANY_ATTEMPTS");
}
