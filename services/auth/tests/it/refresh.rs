//! Going on with a session.

use std::{collections::HashSet, time::Duration};

use futures_util::future::join_all;
use shoppee_kit::caller::Claims;
use shoppee_proto::auth::v1::Role;
use tonic::Code::Unauthenticated;

use crate::shop::{Shop, refused};

#[tokio::test]
async fn each_refresh_gives_new_tokens_of_the_same_session() {
    let shop = Shop::open().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let mut seen = HashSet::from([ann.tokens.refresh_token.clone(), ann.tokens.access_token.clone()]);
    let mut token = ann.tokens.refresh_token.clone();
    for _ in 0..5 {
        shop.time_passes(Duration::from_mins(1));
        let tokens = shop.refreshes(&token).await.unwrap();
        assert!(seen.insert(tokens.refresh_token.clone()) && seen.insert(tokens.access_token.clone()));
        assert_eq!((tokens.expires_in, tokens.refresh_expires_in), (86_400, 30 * 86_400));
        assert_eq!(tokens.user, ann.tokens.user);
        shop.me(&tokens.access_token).await.unwrap();
        token = tokens.refresh_token;
    }
    assert_eq!(ann.sessions().await.len(), 1);
    assert!(shop.me(ann.token()).await.is_ok(), "the first access token lives as long as it said");
}

#[tokio::test]
async fn a_used_token_ends_its_whole_family() {
    let shop = Shop::open().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let elsewhere = shop.signs_in("ann").await;
    let second = shop.refreshes(&ann.tokens.refresh_token).await.unwrap();
    shop.time_passes(Duration::from_secs(11));
    refused(shop.refreshes(&ann.tokens.refresh_token).await, Unauthenticated, "SESSION_REVOKED");
    refused(shop.refreshes(&second.refresh_token).await, Unauthenticated, "SESSION_REVOKED");
    shop.refuses_within_a_second(&second.access_token).await;
    shop.refuses_within_a_second(ann.token()).await;
    assert!(
        shop.refreshes(&elsewhere.tokens.refresh_token).await.is_ok(),
        "another sign-in is another family"
    );
}

#[tokio::test]
async fn an_older_token_ends_it_even_at_once() {
    let shop = Shop::open().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let second = shop.refreshes(&ann.tokens.refresh_token).await.unwrap();
    let third = shop.refreshes(&second.refresh_token).await.unwrap();
    refused(shop.refreshes(&ann.tokens.refresh_token).await, Unauthenticated, "SESSION_REVOKED");
    refused(shop.refreshes(&third.refresh_token).await, Unauthenticated, "SESSION_REVOKED");
}

#[tokio::test]
async fn a_lost_answer_may_be_asked_for_again_for_ten_seconds() {
    let shop = Shop::open().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let replica = shop.replica().await;
    let lost = shop.refreshes(&ann.tokens.refresh_token).await.unwrap();
    shop.time_passes(Duration::from_secs(8));
    let again = replica.refreshes(&ann.tokens.refresh_token).await.unwrap();
    assert_eq!(again.refresh_token, lost.refresh_token);
    assert_ne!(again.access_token, lost.access_token);
    let left = lost.refresh_expires_in - again.refresh_expires_in;
    assert!((8..=10).contains(&left), "it runs out when the lost one did: {left}");
    shop.me(&again.access_token).await.unwrap();
    shop.refreshes(&again.refresh_token).await.unwrap();
}

#[tokio::test]
async fn two_at_once_get_the_same_successor() {
    let shop = Shop::open().await;
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
async fn a_session_runs_out() {
    let shop = Shop::open_with(|settings| settings.refresh_token_ttl = Duration::from_hours(1)).await;
    let ann = shop.registers_and_signs_in("ann").await;
    shop.time_passes(Duration::from_mins(59));
    let tokens = shop.refreshes(&ann.tokens.refresh_token).await.unwrap();
    shop.time_passes(Duration::from_mins(59));
    let tokens = shop.refreshes(&tokens.refresh_token).await.unwrap();
    shop.time_passes(Duration::from_hours(1));
    refused(shop.refreshes(&tokens.refresh_token).await, Unauthenticated, "TOKEN_EXPIRED");
}

#[tokio::test]
async fn the_role_is_the_one_the_account_has_now() {
    let shop = Shop::open().await;
    let (root, ann) = (shop.admin("root").await, shop.registers("ann").await);
    root.updates(ann.id, Some(Role::Admin), None).await.unwrap();
    let ann = shop.signs_in("ann").await;
    let tokens = shop.refreshes(&ann.tokens.refresh_token).await.unwrap();
    let claims = jsonwebtoken::dangerous::insecure_decode::<Claims>(&tokens.access_token).unwrap().claims;
    assert_eq!(claims.role, shoppee_kit::caller::Role::Admin);
    assert_eq!(tokens.user.unwrap().role(), Role::Admin);
}

#[tokio::test]
async fn what_was_never_handed_out_is_worth_nothing() {
    let shop = Shop::open().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let token = &ann.tokens.refresh_token;
    let mut flipped = token.clone();
    flipped.replace_range(..1, if token.starts_with('A') { "B" } else { "A" });
    for odd in [
        "",
        "x",
        &"A".repeat(43),
        &"A".repeat(100_000 / 2),
        &flipped,
        &format!("{token}="),
        ann.token(),
        "\0",
    ] {
        refused(shop.refreshes(odd).await, Unauthenticated, "UNAUTHENTICATED");
    }
    refused(shop.me(token).await, Unauthenticated, "UNAUTHENTICATED");
    shop.refreshes(token).await.unwrap();
}

#[tokio::test]
async fn no_token_is_stored() {
    let shop = Shop::open().await;
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
        // Base64 and base64url agree but for two characters.
        let standard = token.refresh_token.replace('-', "+").replace('_', "/");
        assert!(!stored.contains(&token.refresh_token) && !stored.contains(&standard));
        assert!(!stored.contains(&token.access_token));
    }
    assert!(!stored.contains(crate::shop::PASSWORD));
}
