//! Authorization: every method except the open ones needs a user's token.

use shoppee_kit::status;
use shoppee_proto::auth::v1::*;
use tonic::{Code, Request, Status};

use crate::shop::{ORDER_SECRET, TestAuth, with};

/// Calls every method that is not open with the same credentials, and returns their errors.
async fn call_all(shop: &TestAuth, token: Option<&str>) -> Vec<(&'static str, Status)> {
    fn ask<T>(token: Option<&str>, message: T) -> Request<T> {
        token.map_or_else(|| unreachable!("a token"), |token| with(token, message))
    }
    macro_rules! call {
        ($($method:ident $message:expr),* $(,)?) => {{
            let mut outcomes = Vec::new();
            $(
                let request = match token {
                    Some(_) => ask(token, $message),
                    None => Request::new($message),
                };
                let outcome = shop.client.clone().$method(request).await;
                outcomes.push((stringify!($method), outcome.err().expect(stringify!($method))));
            )*
            outcomes
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
        create_service_account CreateServiceAccountRequest::default(),
        list_service_accounts ListServiceAccountsRequest::default(),
        get_service_account GetServiceAccountRequest::default(),
        rotate_service_account RotateServiceAccountRequest::default(),
        revoke_service_account RevokeServiceAccountRequest::default(),
    }
}

#[tokio::test]
async fn without_a_token_only_the_open_methods_succeed() {
    let shop = TestAuth::start().await;
    let outcomes = call_all(&shop, None).await;
    assert_eq!(outcomes.len() + 5, 21, "all methods of the service");
    for (method, status) in outcomes {
        assert_eq!(status.code(), Code::Unauthenticated, "{method}");
        assert_eq!(status::parse(&status).reason, "UNAUTHENTICATED", "{method}");
    }
    shop.registers_and_signs_in("ann").await;
    shop.client.clone().get_jwks(GetJwksRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_service_token_is_forbidden_for_user_methods() {
    let shop = TestAuth::start().await;
    let request = IssueServiceTokenRequest {
        client_id: "order".to_owned(),
        client_secret: ORDER_SECRET.to_owned(),
        scope: None,
    };
    let token = shop.client.clone().issue_service_token(request).await.unwrap().into_inner().access_token;
    for (method, status) in call_all(&shop, Some(&token)).await {
        assert_eq!(status.code(), Code::PermissionDenied, "{method}");
    }
}

#[tokio::test]
async fn an_invalid_token_does_not_affect_the_open_methods() {
    let shop = TestAuth::start().await;
    let request = RegisterRequest {
        username: "ann".to_owned(),
        email: "ann@example.com".to_owned(),
        password: crate::shop::PASSWORD.to_owned(),
        idempotency_key: None,
    };
    shop.client.clone().register(with("nonsense", request)).await.unwrap();
    shop.client.clone().get_jwks(with("nonsense", GetJwksRequest::default())).await.unwrap();
}
