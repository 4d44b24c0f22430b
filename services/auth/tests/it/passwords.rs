//! Password changes.

use futures_util::future::join_all;
use tonic::Code::{InvalidArgument, Unauthenticated};

use crate::shop::{PASSWORD, TestAuth, expect_error, fields};

#[tokio::test]
async fn a_changed_password_replaces_the_old_one_at_once() {
    let shop = TestAuth::start().await;
    let ann = shop.registers_and_signs_in("ann").await;
    ann.changes_password(PASSWORD, "another horse").await.unwrap();
    expect_error(shop.try_sign_in("ann", PASSWORD).await, Unauthenticated, "INVALID_CREDENTIALS");
    shop.try_sign_in("ann", "another horse").await.unwrap();
    shop.me(ann.token()).await.unwrap();
}

#[tokio::test]
async fn a_change_needs_the_current_password_and_a_valid_new_one() {
    let shop = TestAuth::start().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let elsewhere = shop.signs_in("ann").await;
    expect_error(
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
        let status =
            expect_error(ann.changes_password(current, new).await, InvalidArgument, "VALIDATION_FAILED");
        assert_eq!(fields(&status), [field]);
    }
    shop.signs_in("ann").await;
    shop.me(elsewhere.token()).await.unwrap();
}

#[tokio::test]
async fn of_concurrent_password_changes_one_succeeds() {
    let shop = TestAuth::start().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let news: Vec<String> = (0..4).map(|number| format!("another horse {number}")).collect();
    let changed = join_all(news.iter().map(|new| ann.changes_password(PASSWORD, new))).await;
    let made: Vec<&String> =
        news.iter().zip(&changed).filter(|(_, outcome)| outcome.is_ok()).map(|(new, _)| new).collect();
    let [made] = made.as_slice() else { panic!("{changed:?}") };
    shop.try_sign_in("ann", made).await.unwrap();
}

#[tokio::test]
async fn a_password_is_valid_in_composed_and_decomposed_form() {
    const COMPOSED: &str = "caf\u{e9} \u{f1}andu";
    const DECOMPOSED: &str = "cafe\u{301}\u{a0}n\u{303}andu";
    let shop = TestAuth::start().await;
    for (name, set, typed) in [("ann", COMPOSED, DECOMPOSED), ("ben", DECOMPOSED, COMPOSED)] {
        let person = shop.registers_and_signs_in(name).await;
        person.changes_password(PASSWORD, set).await.unwrap();
        for same in [set, typed] {
            shop.try_sign_in(name, same).await.unwrap();
        }
        person.changes_password(typed, "another horse").await.unwrap();
    }
}

#[tokio::test]
async fn a_hash_of_a_decomposed_password_is_replaced_at_the_next_sign_in() {
    const TYPED: &str = "cafe\u{301} horse";
    let shop = TestAuth::start().await;
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
    expect_error(shop.try_sign_in("ann", composed).await, Unauthenticated, "INVALID_CREDENTIALS");
    for same in [TYPED, composed, TYPED] {
        shop.try_sign_in("ann", same).await.unwrap();
    }
}
