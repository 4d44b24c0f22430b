//! Forged tokens: other keys, other algorithms, and changed headers and claims.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use ed25519_dalek::{Signer as _, SigningKey};
use hkdf::Hkdf;
use serde_json::{Value, json};
use sha2::Sha256;
use shoppee_proto::auth::v1::{GetJwksRequest, Jwk};
use tonic::Code::Unauthenticated;

use crate::shop::{Person, SECRET, TestAuth, expect_error};

/// Derives the signing key from the secret.
fn key(secret: &str) -> SigningKey {
    let mut seed = [0; 32];
    Hkdf::<Sha256>::new(None, secret.as_bytes()).expand(b"shoppee-jwt-ed25519", &mut seed).expect("32 bytes");
    SigningKey::from_bytes(&seed)
}

fn part(json: &Value) -> String {
    BASE64.encode(json.to_string())
}

/// Signs a token with the given header and claims.
fn sign(header: &Value, claims: &Value, key: &SigningKey) -> String {
    let message = format!("{}.{}", part(header), part(claims));
    let signature = BASE64.encode(key.sign(message.as_bytes()).to_bytes());
    format!("{message}.{signature}")
}

fn hs256(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let mut token = format!("{}.{}", part(header), part(claims));
    let signature = jsonwebtoken::crypto::sign(
        token.as_bytes(),
        &jsonwebtoken::EncodingKey::from_secret(secret),
        jsonwebtoken::Algorithm::HS256,
    )
    .expect("signs");
    token.push('.');
    token.push_str(&signature);
    token
}

fn decoded(token: &str, part: usize) -> Value {
    let bytes = BASE64.decode(token.split('.').nth(part).expect("three parts")).expect("base64url");
    serde_json::from_slice(&bytes).expect("JSON")
}

/// Returns `object` with one member changed, or removed if `value` is `None`.
fn with_member(object: &Value, name: &str, value: Option<Value>) -> Value {
    let mut object = object.clone();
    let members = object.as_object_mut().expect("an object");
    match value {
        Some(value) => members.insert(name.to_owned(), value),
        None => members.remove(name),
    };
    object
}

async fn shop_and_ann() -> (TestAuth, Person, Value, Value, Jwk) {
    let shop = TestAuth::start().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let (header, claims) = (decoded(ann.token(), 0), decoded(ann.token(), 1));
    let jwk = shop
        .client
        .clone()
        .get_jwks(GetJwksRequest::default())
        .await
        .expect("keys")
        .into_inner()
        .keys
        .remove(0);
    (shop, ann, header, claims, jwk)
}

#[tokio::test]
async fn a_token_signed_with_the_derived_key_is_valid() {
    let (shop, _ann, header, claims, _) = shop_and_ann().await;
    shop.me(&sign(&header, &claims, &key(SECRET))).await.unwrap();
    let other = with_member(&claims, "jti", Some(json!("018c7a3e-0000-7000-8000-000000000000")));
    shop.me(&sign(&header, &other, &key(SECRET))).await.unwrap();
}

#[tokio::test]
async fn other_algorithms_and_keys_are_rejected() {
    let (shop, ann, header, claims, jwk) = shop_and_ann().await;
    let (own_key, other_key) = (key(SECRET), key("another secret that is long enough"));
    let public = BASE64.decode(&jwk.x).unwrap();
    let alg = |alg: &str| with_member(&header, "alg", Some(json!(alg)));
    let message = format!("{}.{}", part(&header), part(&claims));
    let mut forged = vec![
        sign(&header, &claims, &other_key),
        hs256(&alg("HS256"), &claims, &public),
        hs256(&alg("HS256"), &claims, jwk.x.as_bytes()),
        hs256(&alg("HS256"), &claims, SECRET.as_bytes()),
        hs256(&header, &claims, &public),
        sign(&with_member(&header, "kid", None), &claims, &own_key),
        sign(&with_member(&header, "kid", Some(json!("unknown"))), &claims, &own_key),
        sign(&with_member(&header, "kid", Some(json!(""))), &claims, &own_key),
        sign(&with_member(&header, "kid", Some(json!(7))), &claims, &own_key),
        sign(&with_member(&header, "kid", Some(json!("../../dev/null"))), &claims, &own_key),
        sign(
            &with_member(
                &with_member(&header, "kid", None),
                "jwk",
                Some(json!({"kty": "OKP", "crv": "Ed25519", "x": jwk.x})),
            ),
            &claims,
            &other_key,
        ),
        sign(&with_member(&header, "jku", Some(json!("http://evil.example/jwks"))), &claims, &other_key),
        format!("{message}."),
        message.clone(),
        format!("{message}.{}", "A".repeat(86)),
        format!("{}.{}", ann.token(), "x"),
        format!("{}=", ann.token()),
        String::from("."),
        String::from(".."),
        String::from("a.b.c"),
        "x".repeat(3000),
    ];
    for none in ["none", "None", "NONE", ""] {
        forged.push(format!("{}.{}.", part(&alg(none)), part(&claims)));
        forged.push(sign(&alg(none), &claims, &own_key));
    }
    for other in ["HS256", "HS512", "RS256", "ES256", "PS256", "EdDsa", "Ed25519"] {
        forged.push(sign(&alg(other), &claims, &own_key));
    }
    for typ in ["JWT", "at+JWT ", "", "application/at+jwt"] {
        forged.push(sign(&with_member(&header, "typ", Some(json!(typ))), &claims, &own_key));
    }
    forged.push(sign(&with_member(&header, "typ", None), &claims, &own_key));
    for (name, value) in [
        ("crit", json!(["exp"])),
        ("crit", json!(["https://shop.example/unknown"])),
        ("crit", json!([])),
        ("b64", json!(false)),
        ("b64", json!(true)),
        ("zip", json!("DEF")),
    ] {
        forged.push(sign(&with_member(&header, name, Some(value)), &claims, &own_key));
    }
    // A duplicate parameter, although both values are valid.
    let duplicate = format!(r#"{{"kid":"{}",{}"#, jwk.kid, &header.to_string()[1..]);
    let message = format!("{}.{}", BASE64.encode(duplicate), part(&claims));
    forged.push(format!("{message}.{}", BASE64.encode(own_key.sign(message.as_bytes()).to_bytes())));
    for token in forged {
        expect_error(shop.me(&token).await, Unauthenticated, "UNAUTHENTICATED");
    }
}

#[tokio::test]
async fn a_token_with_a_flipped_bit_is_rejected() {
    let (shop, ann, ..) = shop_and_ann().await;
    let token = ann.token();
    for place in (0..token.len()).step_by(7).chain([token.len() - 2]) {
        let mut flipped = token.as_bytes().to_vec();
        flipped[place] = if flipped[place] == b'A' { b'E' } else { b'A' };
        let flipped = String::from_utf8(flipped).unwrap();
        expect_error(shop.me(&flipped).await, Unauthenticated, "UNAUTHENTICATED");
    }
    shop.me(token).await.unwrap();
}

#[tokio::test]
async fn a_token_with_missing_or_mistyped_claims_is_rejected() {
    let (shop, _ann, header, claims, _) = shop_and_ann().await;
    let own_key = key(SECRET);
    let mut forged = Vec::new();
    for name in ["user_id", "username", "role", "sub", "sid", "jti", "iss", "aud", "iat", "exp"] {
        forged.push(with_member(&claims, name, None));
        forged.push(with_member(&claims, name, Some(Value::Null)));
        forged.push(with_member(&claims, name, Some(json!({}))));
        forged.push(with_member(&claims, name, Some(json!([true]))));
    }
    for (name, value) in [
        ("user_id", json!("1")),
        ("user_id", json!(1.5)),
        ("user_id", json!(2)),
        ("user_id", json!(-1)),
        ("user_id", json!(1e30)),
        ("sub", json!(1)),
        ("sub", json!("2")),
        ("sub", json!("01")),
        ("sub", json!("")),
        ("role", json!("king")),
        ("role", json!("Admin")),
        ("role", json!(1)),
        ("sid", json!("x")),
        ("jti", json!(7)),
        ("iss", json!("other")),
        ("aud", json!("other")),
        ("aud", json!(["other"])),
        ("exp", json!("9999999999")),
        ("exp", json!(-1)),
        ("exp", json!(f64::MAX)),
        ("exp", json!(claims["iat"].as_i64().unwrap() + 7 * 86_400 + 1)),
        ("exp", json!(i64::MAX)),
        ("nbf", json!(claims["iat"].as_i64().unwrap() + 60)),
        ("nbf", json!("1")),
        ("nbf", json!({})),
        ("iat", json!("1")),
        ("iat", json!(claims["iat"].as_i64().unwrap() + 60)),
        ("iat", json!(claims["exp"].as_i64().unwrap() + 60)),
    ] {
        forged.push(with_member(&claims, name, Some(value)));
    }
    for claims in forged {
        let outcome = shop.me(&sign(&header, &claims, &own_key)).await;
        assert_eq!(outcome.expect_err(&claims.to_string()).code(), Unauthenticated, "{claims}");
    }
    // A duplicate claim, although both values are valid.
    let duplicate = format!(r#"{{"role":"user",{}"#, &claims.to_string()[1..]);
    let message = format!("{}.{}", part(&header), BASE64.encode(duplicate));
    let token = format!("{message}.{}", BASE64.encode(own_key.sign(message.as_bytes()).to_bytes()));
    expect_error(shop.me(&token).await, Unauthenticated, "UNAUTHENTICATED");
}

#[tokio::test]
async fn a_token_expires_on_the_second() {
    let shop = TestAuth::start_with(|settings| settings.access_token_ttl = Duration::from_mins(5)).await;
    let ann = shop.registers_and_signs_in("ann").await;
    shop.me(ann.token()).await.unwrap();
    shop.advance_clock(Duration::from_mins(4) + Duration::from_secs(50));
    shop.me(ann.token()).await.unwrap();
    shop.advance_clock(Duration::from_secs(10));
    expect_error(shop.me(ann.token()).await, Unauthenticated, "TOKEN_EXPIRED");
    let tokens = shop.refreshes(&ann.tokens.refresh_token).await.unwrap();
    shop.me(&tokens.access_token).await.unwrap();
}
