//! `/auth`: accounts, sessions, tokens.

use axum::http::{HeaderMap, StatusCode, header::USER_AGENT};
use shoppee_proto::auth::v1::{
    ChangePasswordRequest, CreateWsTicketRequest, GetUserInfoRequest, ListSessionsRequest,
    ListSessionsResponse, LoginRequest, LogoutAllRequest, LogoutRequest, RefreshRequest, RegisterRequest,
    RevokeSessionRequest, Tokens, User as Account, WsTicket,
};

use crate::{
    auth::{Nobody, User},
    error::Problem,
    extract::{Json, NoBody, Path, Uuid},
    upstream::Upstream,
};

/// What a session is listed under, at most.
const LONGEST_USER_AGENT: usize = 200;

pub async fn register(
    shop: Upstream,
    Json(account): Json<RegisterRequest>,
) -> Result<(StatusCode, Json<Account>), Problem> {
    Ok((StatusCode::CREATED, Json(shop.call(&Nobody, account).await?)))
}

pub async fn login(
    shop: Upstream,
    headers: HeaderMap,
    Json(login): Json<LoginRequest>,
) -> Result<Json<Tokens>, Problem> {
    let user_agent = headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let user_agent = user_agent.chars().take(LONGEST_USER_AGENT).collect();
    Ok(Json(shop.call(&Nobody, LoginRequest { user_agent, ..login }).await?))
}

pub async fn refresh(shop: Upstream, Json(token): Json<RefreshRequest>) -> Result<Json<Tokens>, Problem> {
    Ok(Json(shop.call(&Nobody, token).await?))
}

pub async fn logout(user: User, shop: Upstream, _: NoBody) -> Result<StatusCode, Problem> {
    shop.call(&user, LogoutRequest {}).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn logout_all(user: User, shop: Upstream, _: NoBody) -> Result<StatusCode, Problem> {
    shop.call(&user, LogoutAllRequest {}).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn me(user: User, shop: Upstream) -> Result<Json<Account>, Problem> {
    Ok(Json(shop.call(&user, GetUserInfoRequest {}).await?))
}

pub async fn change_password(
    user: User,
    shop: Upstream,
    Json(change): Json<ChangePasswordRequest>,
) -> Result<StatusCode, Problem> {
    shop.call(&user, change).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn list_sessions(user: User, shop: Upstream) -> Result<Json<ListSessionsResponse>, Problem> {
    Ok(Json(shop.call(&user, ListSessionsRequest {}).await?))
}

pub async fn revoke_session(user: User, shop: Upstream, Path(id): Path<Uuid>) -> Result<StatusCode, Problem> {
    shop.call(&user, RevokeSessionRequest { id: id.into() }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn create_ws_ticket(
    user: User,
    shop: Upstream,
    _: NoBody,
) -> Result<(StatusCode, Json<WsTicket>), Problem> {
    Ok((StatusCode::CREATED, Json(shop.call(&user, CreateWsTicketRequest {}).await?)))
}
