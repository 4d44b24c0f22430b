//! Registration: valid names, uniqueness, and idempotency keys.

use std::time::Duration;

use shoppee_proto::auth::v1::Role;
use tonic::Code::{AlreadyExists, InvalidArgument, ResourceExhausted};

use crate::shop::{PASSWORD, TestAuth, expect_error, fields, retry_while_shed};

#[tokio::test]
async fn a_new_account_has_the_role_user_and_no_session() {
    let shop = TestAuth::start().await;
    let user = shop.try_register("Ann_B.c-1", "Ann.B+shop@Example.com", PASSWORD).await.unwrap();
    assert_eq!(user.id, 1, "ids begin at 1");
    assert_eq!((user.username.as_str(), user.email.as_str()), ("Ann_B.c-1", "Ann.B+shop@Example.com"));
    assert_eq!(user.role(), Role::User);
    assert_eq!(user.disabled, None, "only admins see it");
    assert!(user.created_at.is_some());
    let sessions: i64 = sqlx::query_scalar("select count(*) from auth.session")
        .fetch_one(&mut shop.connection().await)
        .await
        .unwrap();
    assert_eq!(sessions, 0);
}

#[tokio::test]
async fn names_and_addresses_are_unique_ignoring_case() {
    let shop = TestAuth::start().await;
    shop.try_register("ann", "ann@example.com", PASSWORD).await.unwrap();
    for (username, email, reason) in [
        ("ann", "other@example.com", "USERNAME_TAKEN"),
        ("ANN", "other@example.com", "USERNAME_TAKEN"),
        ("other", "ann@example.com", "EMAIL_TAKEN"),
        ("other", "Ann@EXAMPLE.com", "EMAIL_TAKEN"),
    ] {
        expect_error(shop.try_register(username, email, PASSWORD).await, AlreadyExists, reason);
    }
    shop.try_register("other", "other@example.com", PASSWORD).await.unwrap();
}

#[tokio::test]
async fn of_concurrent_registrations_of_one_name_one_succeeds() {
    let shop = TestAuth::start().await;
    let requests = (0..8).map(|number| {
        let (shop, name) = (&shop, if number % 2 == 0 { "ann" } else { "ANN" });
        let email = format!("ann{number}@example.com");
        async move { retry_while_shed(async || shop.try_register(name, &email, PASSWORD).await).await }
    });
    let (accepted, rejected): (Vec<_>, Vec<_>) =
        futures_util::future::join_all(requests).await.into_iter().partition(Result::is_ok);
    assert_eq!(accepted.len(), 1);
    for outcome in rejected {
        expect_error(outcome, AlreadyExists, "USERNAME_TAKEN");
    }
}

#[tokio::test]
async fn all_invalid_fields_are_reported_at_once() {
    let shop = TestAuth::start().await;
    let status = expect_error(
        shop.try_register("a b", "nowhere", "short").await,
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
        let outcome = shop.try_register(username, email, password).await;
        assert_eq!(fields(&expect_error(outcome, InvalidArgument, "VALIDATION_FAILED")), [field]);
    }
    shop.try_register("ann", "ann@example.com", &"ß".repeat(256)).await.unwrap();
    shop.try_sign_in("ann", &"ß".repeat(256)).await.unwrap();
}

#[tokio::test]
async fn a_repeated_registration_under_a_key_gets_the_same_response() {
    let shop = TestAuth::start().await;
    let replica = shop.replica().await;
    let (first, replayed) = shop.registers_with_key("k", "ann", "ann@example.com", PASSWORD).await.unwrap();
    assert!(!replayed);
    for shop in [&shop, &replica] {
        let again = shop.registers_with_key("k", "ann", "ann@example.com", PASSWORD).await.unwrap();
        assert_eq!(again, (first.clone(), true));
    }
    let accounts: (i64, i64) =
        sqlx::query_as("select (select count(*) from auth.account), (select count(*) from auth.outbox)")
            .fetch_one(&mut shop.connection().await)
            .await
            .unwrap();
    assert_eq!(accounts, (1, 1));

    // The response is the stored one, also after a change of the account.
    let admin = shop.admin("root").await;
    admin.updates(first.id, Some(Role::Admin), None).await.unwrap();
    let again = shop.registers_with_key("k", "ann", "ann@example.com", PASSWORD).await.unwrap();
    assert_eq!(again, (first, true));
}

#[tokio::test]
async fn a_registration_key_is_rejected_for_another_registration() {
    let shop = TestAuth::start().await;
    shop.registers_with_key("k", "ann", "ann@example.com", PASSWORD).await.unwrap();
    for (username, email, password) in [
        ("ann", "ann@example.com", "wrong horse"),
        ("ann2", "ann@example.com", PASSWORD),
        ("Ann", "ann@example.com", PASSWORD),
        ("ann", "Ann@example.com", PASSWORD),
    ] {
        let outcome = shop.registers_with_key("k", username, email, password).await;
        expect_error(outcome, InvalidArgument, "IDEMPOTENCY_KEY_REUSED");
    }
    // Another key is another registration, and so is the same key with another address.
    let outcome = shop.registers_with_key("other", "ann", "ann@example.com", PASSWORD).await;
    expect_error(outcome, AlreadyExists, "USERNAME_TAKEN");
    let outcome = shop.registers_with_key("k", "bob", "bob@example.com", PASSWORD).await.unwrap();
    assert!(!outcome.1);
    for invalid in ["", "a b", &"k".repeat(256)] {
        let outcome = shop.registers_with_key(invalid, "eve", "eve@example.com", PASSWORD).await;
        expect_error(outcome, InvalidArgument, "INVALID_REQUEST");
    }
    shop.advance_clock(Duration::from_hours(24));
    let outcome = shop.registers_with_key("k", "ann", "ann@example.com", PASSWORD).await;
    expect_error(outcome, AlreadyExists, "USERNAME_TAKEN");
}

#[tokio::test]
async fn password_guesses_under_a_registration_key_count_as_login_attempts() {
    let shop = TestAuth::start().await;
    shop.registers_with_key("k", "ann", "ann@example.com", PASSWORD).await.unwrap();
    for _ in 0..10 {
        let outcome = shop.registers_with_key("k", "ann", "ann@example.com", "wrong horse").await;
        expect_error(outcome, InvalidArgument, "IDEMPOTENCY_KEY_REUSED");
    }
    let outcome = shop.registers_with_key("k", "ann", "ann@example.com", PASSWORD).await;
    expect_error(outcome, ResourceExhausted, "TOO_MANY_ATTEMPTS");
    expect_error(shop.try_sign_in("ann", PASSWORD).await, ResourceExhausted, "TOO_MANY_ATTEMPTS");
}

#[tokio::test]
async fn concurrent_registrations_under_one_key_create_one_account() {
    let shop = TestAuth::start().await;
    let requests = (0..6).map(|_| {
        let shop = &shop;
        retry_while_shed(async || shop.registers_with_key("k", "ann", "ann@example.com", PASSWORD).await)
    });
    let answers = futures_util::future::join_all(requests).await;
    let answers: Vec<_> = answers.into_iter().map(|answer| answer.expect("an answer")).collect();
    assert!(answers.iter().filter(|(_, replayed)| !replayed).count() <= 1, "{answers:?}");
    let accounts: i64 = sqlx::query_scalar("select count(*) from auth.account")
        .fetch_one(&mut shop.connection().await)
        .await
        .unwrap();
    assert_eq!(accounts, 1);
    assert!(answers.iter().all(|(user, _)| *user == answers[0].0));
}
