//! The limit of ten login attempts per minute and account.

use std::time::Duration;

use futures_util::future::join_all;
use shoppee_kit::{status, testing::eventually};
use tonic::Code::{ResourceExhausted, Unauthenticated};

use crate::shop::{PASSWORD, TestAuth, code_and_reason, expect_error};

/// Makes ten attempts with a wrong password.
async fn ten_wrong_attempts(shop: &TestAuth, name: &str) {
    for _ in 0..10 {
        expect_error(shop.try_sign_in(name, "wrong horse").await, Unauthenticated, "INVALID_CREDENTIALS");
    }
}

#[tokio::test]
async fn the_eleventh_attempt_is_limited_for_any_spelling_of_the_name() {
    let shop = TestAuth::start().await;
    shop.registers("ann").await;
    shop.registers("bob").await;
    let spellings = ["ann", "ANN", " ann", "ann ", "ann@example.com", "Ann@Example.COM", "\tann\n"];
    for name in spellings.iter().cycle().take(10) {
        expect_error(shop.try_sign_in(name, "wrong horse").await, Unauthenticated, "INVALID_CREDENTIALS");
    }
    for name in spellings {
        let status =
            expect_error(shop.try_sign_in(name, PASSWORD).await, ResourceExhausted, "TOO_MANY_ATTEMPTS");
        let retry_after = status::parse(&status).retry_after.unwrap();
        assert!((Duration::from_secs(50)..=Duration::from_mins(1)).contains(&retry_after), "{retry_after:?}");
    }
    shop.signs_in("bob").await;
}

#[tokio::test]
async fn attempts_with_an_unknown_name_are_limited() {
    let shop = TestAuth::start().await;
    for name in ["ghost", "GHOST", " ghost "].iter().cycle().take(10) {
        expect_error(shop.try_sign_in(name, "wrong horse").await, Unauthenticated, "INVALID_CREDENTIALS");
    }
    expect_error(shop.try_sign_in("Ghost", "wrong horse").await, ResourceExhausted, "TOO_MANY_ATTEMPTS");
}

#[tokio::test]
async fn of_fifty_concurrent_attempts_on_two_replicas_ten_are_allowed() {
    let shop = TestAuth::start().await;
    let other = shop.replica().await;
    shop.registers("ann").await;
    let attempts = (0..50).map(|number| {
        let shop = if number % 2 == 0 { &shop } else { &other };
        async move { code_and_reason(&shop.try_sign_in("ann", "wrong horse").await.unwrap_err()).1 }
    });
    let reasons = join_all(attempts).await;
    let count = |expected: &str| reasons.iter().filter(|reason| *reason == expected).count();
    // A busy machine may shed an attempt, which then does not count.
    let (wrong, shed) = (count("INVALID_CREDENTIALS"), count("UNAVAILABLE"));
    assert_eq!(wrong + shed + count("TOO_MANY_ATTEMPTS"), 50, "{reasons:?}");
    assert!(wrong == 10 || shed > 0 && wrong < 10, "{reasons:?}");
}

#[tokio::test]
async fn successful_sign_ins_do_not_raise_the_limit() {
    let shop = TestAuth::start().await;
    shop.registers("ann").await;
    let mut wrong = 0;
    for number in 0..24 {
        if number % 3 == 0 {
            let right = shop.try_sign_in("ann", PASSWORD).await;
            assert_eq!(right.is_ok(), wrong < 10, "{right:?}");
        } else if code_and_reason(&shop.try_sign_in("ann", "wrong horse").await.unwrap_err()).0
            == Unauthenticated
        {
            wrong += 1;
        }
    }
    assert_eq!(wrong, 10);
}

#[tokio::test]
async fn successful_sign_ins_are_not_limited() {
    let shop = TestAuth::start().await;
    shop.registers("ann").await;
    for _ in 0..12 {
        shop.signs_in("ann").await;
    }
}

#[tokio::test]
async fn the_window_slides_and_limited_attempts_do_not_extend_it() {
    let shop = TestAuth::start().await;
    shop.registers("ann").await;
    ten_wrong_attempts(&shop, "ann").await;
    shop.age_attempts(40.0).await;
    for _ in 0..5 {
        let status =
            expect_error(shop.try_sign_in("ann", PASSWORD).await, ResourceExhausted, "TOO_MANY_ATTEMPTS");
        let retry_after = status::parse(&status).retry_after.unwrap();
        assert!((Duration::from_secs(10)..Duration::from_secs(21)).contains(&retry_after), "{retry_after:?}");
    }
    shop.age_attempts(61.0).await;
    shop.signs_in("ann").await;
}

#[tokio::test]
async fn an_attempt_after_retry_after_is_allowed() {
    let shop = TestAuth::start().await;
    shop.registers("ann").await;
    ten_wrong_attempts(&shop, "ann").await;
    shop.age_attempts(56.0).await;
    let status =
        expect_error(shop.try_sign_in("ann", PASSWORD).await, ResourceExhausted, "TOO_MANY_ATTEMPTS");
    tokio::time::sleep(status::parse(&status).retry_after.unwrap() + Duration::from_millis(5)).await;
    shop.signs_in("ann").await;
}

#[tokio::test]
async fn password_changes_and_sign_ins_have_separate_limits() {
    let shop = TestAuth::start().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let elsewhere = shop.signs_in("ann").await;
    ten_wrong_attempts(&shop, "ann").await;
    for session in [&ann, &elsewhere].into_iter().cycle().take(10) {
        let outcome = session.changes_password("wrong horse", "another horse").await;
        expect_error(outcome, Unauthenticated, "INVALID_CREDENTIALS");
    }
    for session in [&ann, &elsewhere] {
        let outcome = session.changes_password(PASSWORD, "another horse").await;
        expect_error(outcome, ResourceExhausted, "TOO_MANY_ATTEMPTS");
    }
    shop.age_attempts(61.0).await;
    ten_wrong_attempts(&shop, "ann").await;
    ann.changes_password(PASSWORD, "another horse").await.expect("despite attempts of others");
}

/// Makes an attempt with a wrong password from this device.
async fn wrong_attempt(shop: &TestAuth, device: &str) -> (tonic::Code, String) {
    code_and_reason(&shop.try_sign_in_from(Some(device), "ann", "wrong horse").await.expect_err("is wrong"))
}

#[tokio::test]
async fn wrong_passwords_from_elsewhere_do_not_lock_out_a_recognized_device() {
    let shop = TestAuth::start().await;
    let replica = shop.replica().await;
    let phone = shop.registers_and_signs_in("ann").await;
    let laptop = shop.signs_in("ann").await;
    ten_wrong_attempts(&shop, "ann").await;
    expect_error(shop.try_sign_in("ann", PASSWORD).await, ResourceExhausted, "TOO_MANY_ATTEMPTS");
    replica.try_sign_in_from(Some(phone.device_token()), "ANN@example.com", PASSWORD).await.unwrap();

    // The device has a limit of ten attempts of its own, over all replicas.
    for number in 0..10 {
        let shop = [&shop, &replica][number % 2];
        assert_eq!(wrong_attempt(shop, phone.device_token()).await.1, "INVALID_CREDENTIALS", "{number}");
    }
    assert_eq!(wrong_attempt(&shop, phone.device_token()).await.1, "TOO_MANY_ATTEMPTS");
    shop.try_sign_in_from(Some(laptop.device_token()), "ann", PASSWORD).await.expect("another device");
}

#[tokio::test]
async fn frequent_sign_ins_do_not_raise_the_limit_of_a_device() {
    let shop = TestAuth::start().await;
    let first = shop.registers_and_signs_in("ann").await;
    let mut tokens = vec![first.device_token().to_owned()];
    for _ in 0..3 {
        shop.advance_clock(Duration::from_secs(1));
        let again = shop.try_sign_in_from(tokens.last().map(String::as_str), "ann", PASSWORD).await;
        tokens.push(again.unwrap().device_token().to_owned());
    }
    tokens.dedup();
    assert_eq!(tokens.len(), 4, "each is a new token of one device");
    for number in 0..10 {
        assert_eq!(wrong_attempt(&shop, &tokens[number % 4]).await.1, "INVALID_CREDENTIALS");
    }
    for token in &tokens {
        assert_eq!(wrong_attempt(&shop, token).await.1, "TOO_MANY_ATTEMPTS");
    }
}

#[tokio::test]
async fn a_device_token_is_valid_for_its_account_and_password_only() {
    let shop = TestAuth::start().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let bob = shop.registers_and_signs_in("bob").await;
    let old = ann.device_token().to_owned();
    ann.changes_password(PASSWORD, "another horse").await.unwrap();
    ten_wrong_attempts(&shop, "ann").await;
    let access = ann.token().to_owned();
    for device in [bob.device_token(), &old, "", "nonsense", &access, &"A".repeat(96)] {
        let outcome = shop.try_sign_in_from(Some(device), "ann", "another horse").await;
        expect_error(outcome, ResourceExhausted, "TOO_MANY_ATTEMPTS");
    }
    shop.age_attempts(61.0).await;
    let anew = shop.try_sign_in("ann", "another horse").await.unwrap();
    ten_wrong_attempts(&shop, "ann").await;
    let months = Duration::from_hours(180 * 24);
    shop.try_sign_in_from(Some(anew.device_token()), "ann", "another horse").await.unwrap();
    shop.advance_clock(months);
    let outcome = shop.try_sign_in_from(Some(anew.device_token()), "ann", "another horse").await;
    expect_error(outcome, ResourceExhausted, "TOO_MANY_ATTEMPTS");
}

#[tokio::test]
async fn a_shed_attempt_does_not_count() {
    let shop = TestAuth::start_with(|settings| settings.password_hashes = Some(1)).await;
    shop.registers("ann").await;
    // More concurrent attempts than one thread can hash in time, each of another account.
    let names: Vec<String> = (0..90).map(|number| format!("ghost{number}")).collect();
    let others = join_all(names.iter().map(|name| shop.try_sign_in(name, "wrong horse")));
    let anns = join_all((0..8).map(|_| shop.try_sign_in("ann", "wrong horse")));
    let (others, anns) = tokio::join!(others, anns);
    let count = |outcomes: &[Result<_, tonic::Status>], reason: &str| {
        outcomes.iter().filter(|outcome| code_and_reason(outcome.as_ref().unwrap_err()).1 == reason).count()
    };
    assert!(count(&others, "UNAVAILABLE") > 0, "nothing was shed");
    let tried = count(&others, "INVALID_CREDENTIALS") + count(&anns, "INVALID_CREDENTIALS");
    eventually("shed attempts do not count", || async {
        let counted: i64 =
            sqlx::query_scalar("select coalesce(sum(cardinality(tried_at)), 0) from auth.password_try")
                .fetch_one(&mut shop.connection().await)
                .await
                .unwrap();
        usize::try_from(counted).unwrap() == tried
    })
    .await;
}
