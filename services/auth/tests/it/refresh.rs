//! Refresh token rotation.

use std::{collections::HashSet, time::Duration};

use futures_util::future::join_all;
use shoppee_kit::caller::Claims;
use shoppee_proto::auth::v1::Role;
use tonic::Code::Unauthenticated;

use crate::shop::{TestAuth, expect_error};

#[tokio::test]
async fn each_refresh_gives_new_tokens_of_the_same_session() {
    let shop = TestAuth::start().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let mut tokens_so_far =
        HashSet::from([ann.tokens.refresh_token.clone(), ann.tokens.access_token.clone()]);
    let mut token = ann.tokens.refresh_token.clone();
    for _ in 0..5 {
        shop.advance_clock(Duration::from_mins(1));
        let tokens = shop.refreshes(&token).await.unwrap();
        assert!(
            tokens_so_far.insert(tokens.refresh_token.clone())
                && tokens_so_far.insert(tokens.access_token.clone())
        );
        assert_eq!((tokens.expires_in, tokens.refresh_expires_in), (86_400, 30 * 86_400));
        assert_eq!(tokens.user, ann.tokens.user);
        shop.me(&tokens.access_token).await.unwrap();
        token = tokens.refresh_token;
    }
    assert_eq!(ann.sessions().await.len(), 1);
    assert!(shop.me(ann.token()).await.is_ok(), "the first access token stays valid until its expiry");
}

#[tokio::test]
async fn a_reused_token_revokes_its_family() {
    let shop = TestAuth::start().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let elsewhere = shop.signs_in("ann").await;
    let second = shop.refreshes(&ann.tokens.refresh_token).await.unwrap();
    shop.advance_clock(Duration::from_secs(11));
    expect_error(shop.refreshes(&ann.tokens.refresh_token).await, Unauthenticated, "SESSION_REVOKED");
    expect_error(shop.refreshes(&second.refresh_token).await, Unauthenticated, "SESSION_REVOKED");
    shop.rejects_within_a_second(&second.access_token).await;
    shop.rejects_within_a_second(ann.token()).await;
    assert!(
        shop.refreshes(&elsewhere.tokens.refresh_token).await.is_ok(),
        "another sign-in is another family"
    );
}

#[tokio::test]
async fn an_older_token_revokes_its_family_without_grace() {
    let shop = TestAuth::start().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let second = shop.refreshes(&ann.tokens.refresh_token).await.unwrap();
    let third = shop.refreshes(&second.refresh_token).await.unwrap();
    expect_error(shop.refreshes(&ann.tokens.refresh_token).await, Unauthenticated, "SESSION_REVOKED");
    expect_error(shop.refreshes(&third.refresh_token).await, Unauthenticated, "SESSION_REVOKED");
}

#[tokio::test]
async fn a_refresh_may_be_retried_for_ten_seconds() {
    let shop = TestAuth::start().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let replica = shop.replica().await;
    let lost = shop.refreshes(&ann.tokens.refresh_token).await.unwrap();
    shop.advance_clock(Duration::from_secs(8));
    let again = replica.refreshes(&ann.tokens.refresh_token).await.unwrap();
    assert_eq!(again.refresh_token, lost.refresh_token);
    assert_ne!(again.access_token, lost.access_token);
    let left = lost.refresh_expires_in - again.refresh_expires_in;
    assert!((8..=10).contains(&left), "it expires with the lost one: {left}");
    shop.me(&again.access_token).await.unwrap();
    shop.refreshes(&again.refresh_token).await.unwrap();
}

#[tokio::test]
async fn concurrent_refreshes_get_the_same_successor() {
    let shop = TestAuth::start().await;
    let other = shop.replica().await;
    for round in 0..5 {
        let ann = shop.registers_and_signs_in(&format!("ann{round}")).await;
        let both = join_all((0..6).map(|number| {
            let shop = if number % 2 == 0 { &shop } else { &other };
            let token = &ann.tokens.refresh_token;
            async move { shop.refreshes(token).await.unwrap() }
        }))
        .await;
        assert!(both.iter().all(|tokens| tokens.refresh_token == both[0].refresh_token));
        shop.refreshes(&both[0].refresh_token).await.unwrap();
    }
}

#[tokio::test]
async fn a_session_expires_without_a_refresh() {
    let shop = TestAuth::start_with(|settings| settings.refresh_token_ttl = Duration::from_hours(1)).await;
    let ann = shop.registers_and_signs_in("ann").await;
    shop.advance_clock(Duration::from_mins(59));
    let tokens = shop.refreshes(&ann.tokens.refresh_token).await.unwrap();
    shop.advance_clock(Duration::from_mins(59));
    let tokens = shop.refreshes(&tokens.refresh_token).await.unwrap();
    shop.advance_clock(Duration::from_hours(1));
    expect_error(shop.refreshes(&tokens.refresh_token).await, Unauthenticated, "TOKEN_EXPIRED");
}

#[tokio::test]
async fn a_refresh_issues_the_current_role() {
    let shop = TestAuth::start().await;
    let (root, ann) = (shop.admin("root").await, shop.registers("ann").await);
    root.updates(ann.id, Some(Role::Admin), None).await.unwrap();
    let ann = shop.signs_in("ann").await;
    let tokens = shop.refreshes(&ann.tokens.refresh_token).await.unwrap();
    let claims = jsonwebtoken::dangerous::insecure_decode::<Claims>(&tokens.access_token).unwrap().claims;
    assert_eq!(claims.role, shoppee_kit::caller::Role::Admin);
    assert_eq!(tokens.user.unwrap().role(), Role::Admin);
}

#[tokio::test]
async fn a_text_that_is_no_refresh_token_is_rejected() {
    let shop = TestAuth::start().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let token = &ann.tokens.refresh_token;
    let mut flipped = token.clone();
    flipped.replace_range(..1, if token.starts_with('A') { "B" } else { "A" });
    for invalid in [
        "",
        "x",
        &"A".repeat(43),
        &"A".repeat(100_000 / 2),
        &flipped,
        &format!("{token}="),
        ann.token(),
        "\0",
    ] {
        expect_error(shop.refreshes(invalid).await, Unauthenticated, "UNAUTHENTICATED");
    }
    expect_error(shop.me(token).await, Unauthenticated, "UNAUTHENTICATED");
    shop.refreshes(token).await.unwrap();
}

#[tokio::test]
async fn no_token_is_stored() {
    let shop = TestAuth::start().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let tokens = shop.refreshes(&ann.tokens.refresh_token).await.unwrap();
    let mut conn = shop.connection().await;
    let stored: String = sqlx::query_scalar(
        "select string_agg(everything, ' ') from (
             select to_jsonb(account)::text from auth.account
             union all select to_jsonb(session)::text from auth.session
             union all select to_jsonb(token)::text || ' ' || encode(token.hash, 'base64')
                              || ' ' || encode(coalesce(token.successor_salt, ''), 'base64')
                       from auth.refresh_token token
         ) as dump (everything)",
    )
    .fetch_one(&mut conn)
    .await
    .unwrap();
    assert!(stored.contains("ann@example.com"));
    for token in [&ann.tokens, &tokens] {
        // Base64 and base64url differ in two characters.
        let standard = token.refresh_token.replace('-', "+").replace('_', "/");
        assert!(!stored.contains(&token.refresh_token) && !stored.contains(&standard));
        assert!(!stored.contains(&token.access_token));
    }
    assert!(!stored.contains(crate::shop::PASSWORD));
}
