//! Who may register, under what name.

use shoppee_proto::auth::v1::Role;
use tonic::Code::{AlreadyExists, InvalidArgument};

use crate::shop::{PASSWORD, Shop, fields, refused};

#[tokio::test]
async fn a_new_user_is_a_user_and_is_not_signed_in() {
    let shop = Shop::open().await;
    let user = shop.tries_to_register("Ann_B.c-1", "Ann.B+shop@Example.com", PASSWORD).await.unwrap();
    assert_eq!(user.id, 1, "ids begin at 1");
    assert_eq!((user.username.as_str(), user.email.as_str()), ("Ann_B.c-1", "Ann.B+shop@Example.com"));
    assert_eq!(user.role(), Role::User);
    assert_eq!(user.disabled, None, "only an admin is told");
    assert!(user.created_at.is_some());
    let sessions: i64 = sqlx::query_scalar("select count(*) from auth.session")
        .fetch_one(&mut shop.connection().await)
        .await
        .unwrap();
    assert_eq!(sessions, 0);
}

#[tokio::test]
async fn names_and_addresses_are_taken_in_any_case() {
    let shop = Shop::open().await;
    shop.tries_to_register("ann", "ann@example.com", PASSWORD).await.unwrap();
    for (username, email, reason) in [
        ("ann", "other@example.com", "USERNAME_TAKEN"),
        ("ANN", "other@example.com", "USERNAME_TAKEN"),
        ("other", "ann@example.com", "EMAIL_TAKEN"),
        ("other", "Ann@EXAMPLE.com", "EMAIL_TAKEN"),
    ] {
        refused(shop.tries_to_register(username, email, PASSWORD).await, AlreadyExists, reason);
    }
    shop.tries_to_register("other", "other@example.com", PASSWORD).await.unwrap();
}

#[tokio::test]
async fn of_many_who_want_one_name_at_once_one_gets_it() {
    let shop = Shop::open().await;
    let asked = (0..8).map(|number| {
        let (shop, name) = (&shop, if number % 2 == 0 { "ann" } else { "ANN" });
        async move { shop.tries_to_register(name, &format!("ann{number}@example.com"), PASSWORD).await }
    });
    let (got, not): (Vec<_>, Vec<_>) =
        futures_util::future::join_all(asked).await.into_iter().partition(Result::is_ok);
    assert_eq!(got.len(), 1);
    for loser in not {
        refused(loser, AlreadyExists, "USERNAME_TAKEN");
    }
}

#[tokio::test]
async fn every_broken_rule_is_told_at_once() {
    let shop = Shop::open().await;
    let status = refused(
        shop.tries_to_register("a b", "nowhere", "short").await,
        InvalidArgument,
        "VALIDATION_FAILED",
    );
    assert_eq!(fields(&status), ["username", "email", "password"]);
    for (username, email, password, field) in [
        ("an", "ann@example.com", PASSWORD, "username"),
        ("ann\0", "ann@example.com", PASSWORD, "username"),
        ("ann", "ann@example.com\0", PASSWORD, "email"),
        ("ann", "ann@example.com", "1234567", "password"),
        ("ann", "ann@example.com", "12345678\0", "password"),
        ("ann", "ann@example.com", &"x".repeat(257), "password"),
        ("", "ann@example.com", PASSWORD, "username"),
    ] {
        let outcome = shop.tries_to_register(username, email, password).await;
        assert_eq!(fields(&refused(outcome, InvalidArgument, "VALIDATION_FAILED")), [field]);
    }
    shop.tries_to_register("ann", "ann@example.com", &"ß".repeat(256)).await.unwrap();
    shop.tries_to_sign_in("ann", &"ß".repeat(256)).await.unwrap();
}
