//! Signing in.

use std::time::Instant;

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use shoppee_kit::caller::{Claims, Role};
use shoppee_proto::auth::v1::{GetJwksRequest, IssueServiceTokenRequest};
use tonic::Code::{InvalidArgument, PermissionDenied, Unauthenticated};

use crate::shop::{ORDER_SECRET, PASSWORD, Shop, fields, refused, said};

#[tokio::test]
async fn by_name_or_address_in_any_case() {
    let shop = Shop::open().await;
    let ann = shop.tries_to_register("Ann", "Ann@Example.com", PASSWORD).await.unwrap();
    for name in ["Ann", "ann", "ANN", "ann@example.com", "ANN@EXAMPLE.COM", " ann "] {
        let person = shop.tries_to_sign_in(name, PASSWORD).await.unwrap();
        assert_eq!(person.tokens.user.as_ref(), Some(&ann));
        assert_eq!(person.tokens.token_type, "Bearer");
        assert_eq!((person.tokens.expires_in, person.tokens.refresh_expires_in), (86_400, 30 * 86_400));
        assert_eq!(shop.me(person.token()).await.unwrap(), ann);
    }
}

#[tokio::test]
async fn an_access_token_is_as_in_the_contract() {
    let shop = Shop::open().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let keys = shop.client.clone().get_jwks(GetJwksRequest::default()).await.unwrap().into_inner().keys;
    let [key] = keys.as_slice() else { panic!("one key: {keys:?}") };
    assert_eq!(
        (key.kty.as_str(), key.crv.as_str(), key.alg.as_str(), key.r#use.as_str()),
        ("OKP", "Ed25519", "EdDSA", "sig")
    );

    let header = jsonwebtoken::decode_header(ann.token()).unwrap();
    assert_eq!(header.typ.as_deref(), Some("at+jwt"));
    assert_eq!(header.kid.as_ref(), Some(&key.kid));
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_issuer(&["shoppee"]);
    validation.set_audience(&["shoppee-api"]);
    let key = DecodingKey::from_ed_components(&key.x).unwrap();
    let claims = jsonwebtoken::decode::<Claims>(ann.token(), &key, &validation).unwrap().claims;
    assert_eq!((claims.user_id, claims.sub.as_str()), (ann.id(), ann.id().to_string().as_str()));
    assert_eq!((claims.username.as_str(), claims.role), ("ann", Role::User));
    assert_eq!(claims.exp - claims.iat, 86_400);
    assert_eq!(claims.sid.to_string(), ann.sessions().await[0].id);
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_user_look_the_same() {
    let shop = Shop::open().await;
    shop.registers("ann").await;
    let wrong =
        refused(shop.tries_to_sign_in("ann", "wrong horse").await, Unauthenticated, "INVALID_CREDENTIALS");
    let unknown =
        refused(shop.tries_to_sign_in("bob", PASSWORD).await, Unauthenticated, "INVALID_CREDENTIALS");
    assert_eq!(wrong.message(), unknown.message());
    assert_eq!(wrong.details(), unknown.details());

    // The best of many: what it costs without what else the machine does.
    let mut best = [f64::INFINITY; 2];
    let mut alike = false;
    for round in 1..=40 {
        for (name, best) in ["ann", "bob"].into_iter().zip(&mut best) {
            let started = Instant::now();
            refused(shop.tries_to_sign_in(name, "wrong horse").await, Unauthenticated, "INVALID_CREDENTIALS");
            *best = started.elapsed().as_secs_f64().min(*best);
        }
        let [wrong, unknown] = best;
        alike = (0.6..1.67).contains(&(unknown / wrong));
        if alike && round >= 6 {
            break;
        }
        shop.tries_were_made_ago(60.0).await;
    }
    assert!(alike, "wrong and unknown take {best:?} s");
}

#[tokio::test]
async fn what_can_be_no_credential_is_not_tried() {
    let shop = Shop::open().await;
    shop.registers("ann").await;
    for (name, password, field) in [
        ("", PASSWORD, "username"),
        ("   ", PASSWORD, "username"),
        ("ann\0", PASSWORD, "username"),
        (&"x".repeat(255), PASSWORD, "username"),
        ("ann", "", "password"),
        ("ann", "1234567\0", "password"),
        ("ann", &"x".repeat(257), "password"),
    ] {
        let outcome = shop.tries_to_sign_in(name, password).await;
        assert_eq!(fields(&refused(outcome, InvalidArgument, "VALIDATION_FAILED")), [field]);
    }
    // None of it counted, and odd text is only text.
    for name in ["ann' or '1'='1", "ann%", "änn\u{202e}", "*"] {
        refused(shop.tries_to_sign_in(name, PASSWORD).await, Unauthenticated, "INVALID_CREDENTIALS");
    }
    shop.signs_in("ann").await;
}

#[tokio::test]
async fn a_disabled_user_is_told_only_after_the_right_password() {
    let shop = Shop::open().await;
    let (admin, ann) = (shop.admin("root").await, shop.registers("ann").await);
    admin.updates(ann.id, None, Some(true)).await.unwrap();
    refused(shop.tries_to_sign_in("ann", "wrong horse").await, Unauthenticated, "INVALID_CREDENTIALS");
    refused(shop.tries_to_sign_in("ann", PASSWORD).await, PermissionDenied, "ACCOUNT_DISABLED");
    admin.updates(ann.id, None, Some(false)).await.unwrap();
    shop.signs_in("ann").await;
}

#[tokio::test]
async fn a_weaker_hash_of_old_is_made_anew() {
    let shop = Shop::open().await;
    shop.registers("ann").await;
    let mut conn = shop.connection().await;
    // argon2id of PASSWORD with m=8, t=1, made by another implementation.
    let weak =
        "$argon2id$v=19$m=8,t=1,p=1$c2l4dGVlbiBieXRlcyBvaw$JstIM51//NA/dUwa6zDBwqkAkW6yiNMpSQIcldEnqvs";
    sqlx::query("update auth.account set password_hash = $1").bind(weak).execute(&mut conn).await.unwrap();
    let first = shop.signs_in("ann").await;
    let stored: String =
        sqlx::query_scalar("select password_hash from auth.account").fetch_one(&mut conn).await.unwrap();
    assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
    shop.signs_in("ann").await;
    assert!(shop.me(first.token()).await.is_ok(), "the same password: no session ends");
}

#[tokio::test]
async fn a_service_signs_in_with_its_secret_and_acts_for_no_user() {
    let shop = Shop::open().await;
    let asks = |id: &str, secret: &str| {
        let request = IssueServiceTokenRequest { client_id: id.to_owned(), client_secret: secret.to_owned() };
        let mut client = shop.client.clone();
        async move { client.issue_service_token(request).await }
    };
    let issued = asks("order", ORDER_SECRET).await.unwrap().into_inner();
    assert_eq!(issued.expires_in, 3600);
    let claims = jsonwebtoken::dangerous::insecure_decode::<Claims>(&issued.access_token).unwrap().claims;
    assert_eq!((claims.user_id, claims.sub.as_str(), claims.role), (0, "0", Role::Service));
    assert_eq!(claims.username, "order");
    refused(shop.me(&issued.access_token).await, PermissionDenied, "FORBIDDEN");

    let (wrong, unknown) =
        (asks("order", "wrong").await.unwrap_err(), asks("nobody", ORDER_SECRET).await.unwrap_err());
    assert_eq!(said(&wrong), (Unauthenticated, "INVALID_CREDENTIALS".to_owned()));
    assert_eq!((wrong.message(), wrong.details()), (unknown.message(), unknown.details()));
}
