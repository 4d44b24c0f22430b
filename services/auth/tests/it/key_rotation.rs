//! Key rotation: the change of the secret from which keys are derived.

use shoppee_proto::auth::v1::GetJwksRequest;
use tonic::Code::Unauthenticated;

use crate::shop::{SECRET, TestAuth, expect_error};

const NEXT: &str = "the next secret, which is as long as the first";

#[tokio::test]
async fn tokens_of_the_previous_secret_stay_valid_while_it_is_set() {
    let shop = TestAuth::start().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let old = shop.client.clone().get_jwks(GetJwksRequest::default()).await.unwrap().into_inner().keys;

    let rotated = shop
        .replica_with(|settings| {
            settings.jwt_secret = NEXT.into();
            settings.jwt_secret_previous = Some(SECRET.into());
        })
        .await;
    let keys = rotated.client.clone().get_jwks(GetJwksRequest::default()).await.unwrap().into_inner().keys;
    assert_eq!((keys.len(), &keys[1]), (2, &old[0]));
    rotated.me(ann.token()).await.unwrap();
    let tokens = rotated.refreshes(&ann.tokens.refresh_token).await.unwrap();
    rotated.me(&tokens.access_token).await.unwrap();
    let header = jsonwebtoken::decode_header(&tokens.access_token).unwrap();
    assert_eq!(header.kid.as_ref(), Some(&keys[0].kid), "signed with the new key");
    expect_error(shop.me(&tokens.access_token).await, Unauthenticated, "UNAUTHENTICATED");
    // A refresh may be retried after the rotation.
    let again = rotated.refreshes(&ann.tokens.refresh_token).await.unwrap();
    assert_eq!(again.refresh_token, tokens.refresh_token);

    let done = rotated.replica_with(|settings| settings.jwt_secret_previous = None).await;
    expect_error(done.me(ann.token()).await, Unauthenticated, "UNAUTHENTICATED");
    done.me(&tokens.access_token).await.unwrap();
}
