//! Changing one's password.

use futures_util::future::join_all;
use tonic::Code::{InvalidArgument, Unauthenticated};

use crate::shop::{PASSWORD, Shop, fields, refused};

#[tokio::test]
async fn the_new_one_counts_from_now_on() {
    let shop = Shop::open().await;
    let ann = shop.registers_and_signs_in("ann").await;
    ann.changes_password(PASSWORD, "another horse").await.unwrap();
    refused(shop.tries_to_sign_in("ann", PASSWORD).await, Unauthenticated, "INVALID_CREDENTIALS");
    shop.tries_to_sign_in("ann", "another horse").await.unwrap();
    shop.me(ann.token()).await.unwrap();
}

#[tokio::test]
async fn the_current_one_must_be_right_and_the_new_one_good() {
    let shop = Shop::open().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let elsewhere = shop.signs_in("ann").await;
    refused(
        ann.changes_password("wrong horse", "another horse").await,
        Unauthenticated,
        "INVALID_CREDENTIALS",
    );
    for (current, new, field) in [
        ("", "another horse", "current_password"),
        (PASSWORD, "1234567", "new_password"),
        (PASSWORD, "12345678\0", "new_password"),
        (PASSWORD, &"x".repeat(257), "new_password"),
    ] {
        let status = refused(ann.changes_password(current, new).await, InvalidArgument, "VALIDATION_FAILED");
        assert_eq!(fields(&status), [field]);
    }
    shop.signs_in("ann").await;
    shop.me(elsewhere.token()).await.unwrap();
}

#[tokio::test]
async fn of_several_changes_at_once_one_is_made() {
    let shop = Shop::open().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let news: Vec<String> = (0..4).map(|number| format!("another horse {number}")).collect();
    let changed = join_all(news.iter().map(|new| ann.changes_password(PASSWORD, new))).await;
    let made: Vec<&String> =
        news.iter().zip(&changed).filter(|(_, outcome)| outcome.is_ok()).map(|(new, _)| new).collect();
    let [made] = made.as_slice() else { panic!("{changed:?}") };
    shop.tries_to_sign_in("ann", made).await.unwrap();
}
