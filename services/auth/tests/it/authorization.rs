//! Every method but the open ones needs a token of a person.

use shoppee_kit::status;
use shoppee_proto::auth::v1::*;
use tonic::{Code, Request, Status};

use crate::shop::{ORDER_SECRET, Shop, with};

/// Calls every method that is not open, with the same credentials; what each said.
async fn call_all(shop: &Shop, token: Option<&str>) -> Vec<(&'static str, Status)> {
    fn ask<T>(token: Option<&str>, message: T) -> Request<T> {
        token.map_or_else(|| unreachable!("a token"), |token| with(token, message))
    }
    macro_rules! call {
        ($($method:ident $message:expr),* $(,)?) => {{
            let mut told = Vec::new();
            $(
                let request = match token {
                    Some(_) => ask(token, $message),
                    None => Request::new($message),
                };
                let outcome = shop.client.clone().$method(request).await;
                told.push((stringify!($method), outcome.err().expect(stringify!($method))));
            )*
            told
        }};
    }
    call! {
        logout LogoutRequest {},
        logout_all LogoutAllRequest {},
        get_user_info GetUserInfoRequest {},
        change_password ChangePasswordRequest::default(),
        list_sessions ListSessionsRequest::default(),
        revoke_session RevokeSessionRequest::default(),
        create_ws_ticket CreateWsTicketRequest {},
        redeem_ws_ticket RedeemWsTicketRequest {},
        list_users ListUsersRequest::default(),
        get_user GetUserRequest::default(),
        update_user UpdateUserRequest::default(),
    }
}

#[tokio::test]
async fn without_a_token_nothing_but_the_open_methods_answers() {
    let shop = Shop::open().await;
    let told = call_all(&shop, None).await;
    assert_eq!(told.len() + 5, 16, "all methods of the service");
    for (method, status) in told {
        assert_eq!(status.code(), Code::Unauthenticated, "{method}");
        assert_eq!(status::read(&status).reason, "UNAUTHENTICATED", "{method}");
    }
    shop.registers_and_signs_in("ann").await;
    shop.client.clone().get_jwks(GetJwksRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_service_is_no_person() {
    let shop = Shop::open().await;
    let request =
        IssueServiceTokenRequest { client_id: "order".to_owned(), client_secret: ORDER_SECRET.to_owned() };
    let token = shop.client.clone().issue_service_token(request).await.unwrap().into_inner().access_token;
    for (method, status) in call_all(&shop, Some(&token)).await {
        assert_eq!(status.code(), Code::PermissionDenied, "{method}");
    }
}

#[tokio::test]
async fn a_bad_token_does_not_close_the_open_methods() {
    let shop = Shop::open().await;
    let request = RegisterRequest {
        username: "ann".to_owned(),
        email: "ann@example.com".to_owned(),
        password: crate::shop::PASSWORD.to_owned(),
        idempotency_key: None,
    };
    shop.client.clone().register(with("nonsense", request)).await.unwrap();
    shop.client.clone().get_jwks(with("nonsense", GetJwksRequest::default())).await.unwrap();
}
