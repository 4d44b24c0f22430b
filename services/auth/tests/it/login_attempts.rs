//! At most ten tries of a password a minute and account.

use std::time::Duration;

use futures_util::future::join_all;
use shoppee_kit::{status, testing::eventually};
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
    let count = |wanted: &str| told.iter().filter(|reason| *reason == wanted).count();
    // A machine that is busy otherwise may shed one, which then does not count.
    let (wrong, shed) = (count("INVALID_CREDENTIALS"), count("UNAVAILABLE"));
    assert_eq!(wrong + shed + count("TOO_MANY_ATTEMPTS"), 50, "{told:?}");
    assert!(wrong == 10 || shed > 0 && wrong < 10, "{told:?}");
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
async fn tries_of_the_current_password_are_counted_apart_from_those_to_sign_in() {
    let shop = Shop::open().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let elsewhere = shop.signs_in("ann").await;
    ten_wrong_tries(&shop, "ann").await;
    for session in [&ann, &elsewhere].into_iter().cycle().take(10) {
        let outcome = session.changes_password("wrong horse", "another horse").await;
        refused(outcome, Unauthenticated, "INVALID_CREDENTIALS");
    }
    for session in [&ann, &elsewhere] {
        let outcome = session.changes_password(PASSWORD, "another horse").await;
        refused(outcome, ResourceExhausted, "TOO_MANY_ATTEMPTS");
    }
    shop.tries_were_made_ago(61.0).await;
    ten_wrong_tries(&shop, "ann").await;
    ann.changes_password(PASSWORD, "another horse").await.expect("whatever others try");
}

/// A try with a wrong password from this device.
async fn wrong_try(shop: &Shop, device: &str) -> (tonic::Code, String) {
    said(&shop.tries_to_sign_in_from(Some(device), "ann", "wrong horse").await.expect_err("is wrong"))
}

#[tokio::test]
async fn wrong_passwords_from_elsewhere_do_not_lock_a_device_out_that_has_signed_in_before() {
    let shop = Shop::open().await;
    let replica = shop.replica().await;
    let phone = shop.registers_and_signs_in("ann").await;
    let laptop = shop.signs_in("ann").await;
    ten_wrong_tries(&shop, "ann").await;
    refused(shop.tries_to_sign_in("ann", PASSWORD).await, ResourceExhausted, "TOO_MANY_ATTEMPTS");
    replica.tries_to_sign_in_from(Some(phone.device_token()), "ANN@example.com", PASSWORD).await.unwrap();

    // It has ten tries of its own, over all replicas, and no more.
    for number in 0..10 {
        let shop = [&shop, &replica][number % 2];
        assert_eq!(wrong_try(shop, phone.device_token()).await.1, "INVALID_CREDENTIALS", "{number}");
    }
    assert_eq!(wrong_try(&shop, phone.device_token()).await.1, "TOO_MANY_ATTEMPTS");
    shop.tries_to_sign_in_from(Some(laptop.device_token()), "ann", PASSWORD).await.expect("another device");
}

#[tokio::test]
async fn signing_in_often_earns_a_device_no_more_tries() {
    let shop = Shop::open().await;
    let first = shop.registers_and_signs_in("ann").await;
    let mut tokens = vec![first.device_token().to_owned()];
    for _ in 0..3 {
        shop.time_passes(Duration::from_secs(1));
        let again = shop.tries_to_sign_in_from(tokens.last().map(String::as_str), "ann", PASSWORD).await;
        tokens.push(again.unwrap().device_token().to_owned());
    }
    tokens.dedup();
    assert_eq!(tokens.len(), 4, "each is a new token of one device");
    for number in 0..10 {
        assert_eq!(wrong_try(&shop, &tokens[number % 4]).await.1, "INVALID_CREDENTIALS");
    }
    for token in &tokens {
        assert_eq!(wrong_try(&shop, token).await.1, "TOO_MANY_ATTEMPTS");
    }
}

#[tokio::test]
async fn a_device_token_counts_for_its_account_and_its_password_alone() {
    let shop = Shop::open().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let bob = shop.registers_and_signs_in("bob").await;
    let old = ann.device_token().to_owned();
    ann.changes_password(PASSWORD, "another horse").await.unwrap();
    ten_wrong_tries(&shop, "ann").await;
    let access = ann.token().to_owned();
    for device in [bob.device_token(), &old, "", "nonsense", &access, &"A".repeat(96)] {
        let outcome = shop.tries_to_sign_in_from(Some(device), "ann", "another horse").await;
        refused(outcome, ResourceExhausted, "TOO_MANY_ATTEMPTS");
    }
    shop.tries_were_made_ago(61.0).await;
    let anew = shop.tries_to_sign_in("ann", "another horse").await.unwrap();
    ten_wrong_tries(&shop, "ann").await;
    let months = Duration::from_hours(180 * 24);
    shop.tries_to_sign_in_from(Some(anew.device_token()), "ann", "another horse").await.unwrap();
    shop.time_passes(months);
    let outcome = shop.tries_to_sign_in_from(Some(anew.device_token()), "ann", "another horse").await;
    refused(outcome, ResourceExhausted, "TOO_MANY_ATTEMPTS");
}

#[tokio::test]
async fn a_try_that_is_shed_for_load_does_not_count() {
    let shop = Shop::open_with(|settings| settings.password_hashes = Some(1)).await;
    shop.registers("ann").await;
    // Far more at once than one thread can hash in time; each of another account.
    let names: Vec<String> = (0..90).map(|number| format!("ghost{number}")).collect();
    let others = join_all(names.iter().map(|name| shop.tries_to_sign_in(name, "wrong horse")));
    let anns = join_all((0..8).map(|_| shop.tries_to_sign_in("ann", "wrong horse")));
    let (others, anns) = tokio::join!(others, anns);
    let count = |outcomes: &[Result<_, tonic::Status>], reason: &str| {
        outcomes.iter().filter(|outcome| said(outcome.as_ref().unwrap_err()).1 == reason).count()
    };
    assert!(count(&others, "UNAVAILABLE") > 0, "nothing was shed");
    let tried = count(&others, "INVALID_CREDENTIALS") + count(&anns, "INVALID_CREDENTIALS");
    eventually("what was not tried does not count", || async {
        let counted: i64 =
            sqlx::query_scalar("select coalesce(sum(cardinality(tried_at)), 0) from auth.password_try")
                .fetch_one(&mut shop.connection().await)
                .await
                .unwrap();
        usize::try_from(counted).unwrap() == tried
    })
    .await;
}
