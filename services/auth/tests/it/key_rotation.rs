//! Changing the secret that keys are derived from.

use shoppee_proto::auth::v1::GetJwksRequest;
use tonic::Code::Unauthenticated;

use crate::shop::{SECRET, Shop, refused};

const NEXT: &str = "the next secret, which is as long as the first";

#[tokio::test]
async fn a_new_secret_refuses_no_living_token_while_the_old_one_is_named() {
    let shop = Shop::open().await;
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
    refused(shop.me(&tokens.access_token).await, Unauthenticated, "UNAUTHENTICATED");
    // An answer lost in the middle of the change is given again.
    let again = rotated.refreshes(&ann.tokens.refresh_token).await.unwrap();
    assert_eq!(again.refresh_token, tokens.refresh_token);

    let done = rotated.replica_with(|settings| settings.jwt_secret_previous = None).await;
    refused(done.me(ann.token()).await, Unauthenticated, "UNAUTHENTICATED");
    done.me(&tokens.access_token).await.unwrap();
}
