//! Who may register, under what name.

use std::time::Duration;

use shoppee_proto::auth::v1::Role;
use tonic::Code::{AlreadyExists, InvalidArgument, ResourceExhausted};

use crate::shop::{PASSWORD, Shop, fields, refused, unless_shed};

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
        let email = format!("ann{number}@example.com");
        async move { unless_shed(async || shop.tries_to_register(name, &email, PASSWORD).await).await }
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

#[tokio::test]
async fn a_registration_whose_answer_was_lost_gets_it_again_under_its_key() {
    let shop = Shop::open().await;
    let replica = shop.replica().await;
    let (first, replayed) = shop.registers_under("k", "ann", "ann@example.com", PASSWORD).await.unwrap();
    assert!(!replayed);
    for shop in [&shop, &replica] {
        let again = shop.registers_under("k", "ann", "ann@example.com", PASSWORD).await.unwrap();
        assert_eq!(again, (first.clone(), true));
    }
    let accounts: (i64, i64) =
        sqlx::query_as("select (select count(*) from auth.account), (select count(*) from auth.outbox)")
            .fetch_one(&mut shop.connection().await)
            .await
            .unwrap();
    assert_eq!(accounts, (1, 1));

    // The answer is as it was, also where an admin has changed the account.
    let admin = shop.admin("root").await;
    admin.updates(first.id, Some(Role::Admin), None).await.unwrap();
    let again = shop.registers_under("k", "ann", "ann@example.com", PASSWORD).await.unwrap();
    assert_eq!(again, (first, true));
}

#[tokio::test]
async fn a_registration_key_answers_no_other_registration() {
    let shop = Shop::open().await;
    shop.registers_under("k", "ann", "ann@example.com", PASSWORD).await.unwrap();
    for (username, email, password) in [
        ("ann", "ann@example.com", "wrong horse"),
        ("ann2", "ann@example.com", PASSWORD),
        ("Ann", "ann@example.com", PASSWORD),
        ("ann", "Ann@example.com", PASSWORD),
    ] {
        let outcome = shop.registers_under("k", username, email, password).await;
        refused(outcome, InvalidArgument, "IDEMPOTENCY_KEY_REUSED");
    }
    // Another key, or none, is another registration; and the same key of another address.
    let outcome = shop.registers_under("other", "ann", "ann@example.com", PASSWORD).await;
    refused(outcome, AlreadyExists, "USERNAME_TAKEN");
    let outcome = shop.registers_under("k", "bob", "bob@example.com", PASSWORD).await.unwrap();
    assert!(!outcome.1);
    for odd in ["", "a b", &"k".repeat(256)] {
        let outcome = shop.registers_under(odd, "eve", "eve@example.com", PASSWORD).await;
        refused(outcome, InvalidArgument, "INVALID_REQUEST");
    }
    shop.time_passes(Duration::from_hours(24));
    let outcome = shop.registers_under("k", "ann", "ann@example.com", PASSWORD).await;
    refused(outcome, AlreadyExists, "USERNAME_TAKEN");
}

#[tokio::test]
async fn guessing_a_password_under_a_registration_key_counts_as_tries_to_sign_in() {
    let shop = Shop::open().await;
    shop.registers_under("k", "ann", "ann@example.com", PASSWORD).await.unwrap();
    for _ in 0..10 {
        let outcome = shop.registers_under("k", "ann", "ann@example.com", "wrong horse").await;
        refused(outcome, InvalidArgument, "IDEMPOTENCY_KEY_REUSED");
    }
    let outcome = shop.registers_under("k", "ann", "ann@example.com", PASSWORD).await;
    refused(outcome, ResourceExhausted, "TOO_MANY_ATTEMPTS");
    refused(shop.tries_to_sign_in("ann", PASSWORD).await, ResourceExhausted, "TOO_MANY_ATTEMPTS");
}

#[tokio::test]
async fn of_many_registrations_under_one_key_at_once_one_is_made_and_all_get_its_answer() {
    let shop = Shop::open().await;
    let asked = (0..6).map(|_| {
        let shop = &shop;
        unless_shed(async || shop.registers_under("k", "ann", "ann@example.com", PASSWORD).await)
    });
    let answers = futures_util::future::join_all(asked).await;
    let answers: Vec<_> = answers.into_iter().map(|answer| answer.expect("an answer")).collect();
    assert!(answers.iter().filter(|(_, replayed)| !replayed).count() <= 1, "{answers:?}");
    let accounts: i64 = sqlx::query_scalar("select count(*) from auth.account")
        .fetch_one(&mut shop.connection().await)
        .await
        .unwrap();
    assert_eq!(accounts, 1);
    assert!(answers.iter().all(|(user, _)| *user == answers[0].0));
}
