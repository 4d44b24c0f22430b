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

#[tokio::test]
async fn a_password_is_right_however_its_characters_are_composed() {
    const COMPOSED: &str = "caf\u{e9} \u{f1}andu";
    const DECOMPOSED: &str = "cafe\u{301}\u{a0}n\u{303}andu";
    let shop = Shop::open().await;
    for (name, set, typed) in [("ann", COMPOSED, DECOMPOSED), ("ben", DECOMPOSED, COMPOSED)] {
        let person = shop.registers_and_signs_in(name).await;
        person.changes_password(PASSWORD, set).await.unwrap();
        for same in [set, typed] {
            shop.tries_to_sign_in(name, same).await.unwrap();
        }
        person.changes_password(typed, "another horse").await.unwrap();
    }
}

#[tokio::test]
async fn a_hash_of_a_decomposed_password_is_made_anew_at_the_next_sign_in() {
    const TYPED: &str = "cafe\u{301} horse";
    let shop = Shop::open().await;
    shop.registers("ann").await;
    let salt = argon2::password_hash::SaltString::encode_b64(b"sixteen bytes ..").unwrap();
    let old =
        argon2::PasswordHasher::hash_password(&argon2::Argon2::default(), TYPED.as_bytes(), &salt).unwrap();
    sqlx::query("update auth.account set password_hash = $1")
        .bind(old.to_string())
        .execute(&mut shop.connection().await)
        .await
        .unwrap();
    let composed = "caf\u{e9} horse";
    refused(shop.tries_to_sign_in("ann", composed).await, Unauthenticated, "INVALID_CREDENTIALS");
    for same in [TYPED, composed, TYPED] {
        shop.tries_to_sign_in("ann", same).await.unwrap();
    }
}
