//! `/auth`: accounts, sessions, tokens.
//!
//! Every POST accepts an `Idempotency-Key`, but only registering needs it. Any other may be repeated, as it starts or ends
//! a session: its key is checked and has no effect.

use axum::extract;
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{COOKIE, SET_COOKIE, USER_AGENT},
};
use shoppee_proto::auth::v1::{
    ChangePasswordRequest, CreateWsTicketRequest, GetUserInfoRequest, ListSessionsRequest,
    ListSessionsResponse, LoginRequest, LogoutAllRequest, LogoutRequest, RefreshRequest, RegisterRequest,
    RevokeSessionRequest, Tokens, User as Account, WsTicket,
};

use crate::{
    auth::{Anonymous, User},
    error::Problem,
    extract::{EmptyBody, IdempotencyKey, Json, Path, Query, Uuid},
    routes::{
        idempotency,
        pagination::{Page, as_query_error, check_limit},
    },
    state::AppState,
    upstream::Upstream,
};

/// Bounds the user agent of a session. Characters.
const MAX_USER_AGENT_LEN: usize = 200;

/// The header that identifies a device which has signed in before, both ways: for clients without cookies.
const DEVICE_TOKEN: HeaderName = HeaderName::from_static("device-token");
/// The cookie that identifies the device of a browser.
const DEVICE_COOKIE: &str = "shoppee_device";
/// The lifetime of the cookie: 180 days, for which the auth service accepts the token. Seconds.
const DEVICE_COOKIE_MAX_AGE: u32 = 180 * 24 * 60 * 60;
/// Bounds a device token, above the length of a valid one. Bytes.
const MAX_DEVICE_TOKEN_LEN: usize = 256;

pub async fn register(
    upstream: Upstream,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    Json(account): Json<RegisterRequest>,
) -> Result<(StatusCode, HeaderMap, Json<Account>), Problem> {
    let request = RegisterRequest { idempotency_key, ..account };
    let (metadata, account, _) = upstream.call_with_metadata(&Anonymous, request).await?.into_parts();
    Ok((StatusCode::CREATED, idempotency::headers(&metadata), Json(account)))
}

pub async fn login(
    extract::State(state): extract::State<AppState>,
    _: IdempotencyKey,
    headers: HeaderMap,
    Json(login): Json<LoginRequest>,
) -> Result<(HeaderMap, Json<Tokens>), Problem> {
    let user_agent = headers.get(USER_AGENT).map(user_agent).unwrap_or_default();
    let request = LoginRequest { user_agent, device_token: device_token(&headers), ..login };
    let mut tokens = state.upstream.call(&Anonymous, request).await?;
    let headers = tokens.device_token.take().map(|token| device_headers(&token, state.secure_cookies));
    Ok((headers.unwrap_or_default(), Json(tokens)))
}

/// Returns the text of a user agent. Most are ASCII; others are UTF-8, or in an unknown encoding.
fn user_agent(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).chars().take(MAX_USER_AGENT_LEN).collect()
}

/// Returns the token that the device was given at its last sign-in. The auth service ignores a token that is not valid.
fn device_token(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut cookies = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|cookie| {
        let (name, value) = cookie.trim().split_once('=')?;
        (name == DEVICE_COOKIE).then_some(value)
    });
    let header = headers.get(DEVICE_TOKEN).and_then(|value| value.to_str().ok());
    header.or_else(|| cookies.next()).filter(|token| token.len() <= MAX_DEVICE_TOKEN_LEN).map(str::to_owned)
}

/// Builds the headers that store the device token at the client.
fn device_headers(token: &str, secure: bool) -> HeaderMap {
    let secure = if secure { "; Secure" } else { "" };
    let cookie = format!(
        "{DEVICE_COOKIE}={token}; Path=/api/v1/auth; Max-Age={DEVICE_COOKIE_MAX_AGE}; HttpOnly; \
         SameSite=Strict{secure}"
    );
    let headers = [(SET_COOKIE, HeaderValue::try_from(cookie)), (DEVICE_TOKEN, HeaderValue::try_from(token))];
    headers.into_iter().filter_map(|(name, value)| Some((name, value.ok()?))).collect()
}

pub async fn refresh(
    upstream: Upstream,
    _: IdempotencyKey,
    Json(token): Json<RefreshRequest>,
) -> Result<Json<Tokens>, Problem> {
    Ok(Json(upstream.call(&Anonymous, token).await?))
}

pub async fn logout(
    user: User,
    upstream: Upstream,
    _: IdempotencyKey,
    _: EmptyBody,
) -> Result<StatusCode, Problem> {
    upstream.call(&user, LogoutRequest {}).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn logout_all(
    user: User,
    upstream: Upstream,
    _: IdempotencyKey,
    _: EmptyBody,
) -> Result<StatusCode, Problem> {
    upstream.call(&user, LogoutAllRequest {}).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn get_current_user(user: User, upstream: Upstream) -> Result<Json<Account>, Problem> {
    Ok(Json(upstream.call(&user, GetUserInfoRequest {}).await?))
}

pub async fn change_password(
    user: User,
    upstream: Upstream,
    Json(change): Json<ChangePasswordRequest>,
) -> Result<StatusCode, Problem> {
    upstream.call(&user, change).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn list_sessions(
    user: User,
    upstream: Upstream,
    Query(Page { limit, cursor }): Query<Page>,
) -> Result<Json<ListSessionsResponse>, Problem> {
    check_limit(limit)?;
    Ok(Json(upstream.call(&user, ListSessionsRequest { limit, cursor }).await.map_err(as_query_error)?))
}

pub async fn revoke_session(
    user: User,
    upstream: Upstream,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, Problem> {
    upstream.call(&user, RevokeSessionRequest { id: id.into() }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn create_ws_ticket(
    user: User,
    upstream: Upstream,
    _: IdempotencyKey,
    _: EmptyBody,
) -> Result<(StatusCode, Json<WsTicket>), Problem> {
    Ok((StatusCode::CREATED, Json(upstream.call(&user, CreateWsTicketRequest {}).await?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_token_is_read_from_the_header_or_the_cookie() {
        let device = |headers: &[(HeaderName, &str)]| {
            let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
            device_token(&headers.collect())
        };
        assert_eq!(device(&[]), None);
        assert_eq!(device(&[(COOKIE, "a=b; shoppee_device=xyz; c=d")]).as_deref(), Some("xyz"));
        assert_eq!(device(&[(DEVICE_TOKEN, "abc"), (COOKIE, "shoppee_device=xyz")]).as_deref(), Some("abc"));
        for other in ["shoppee_device", "xshoppee_device=1", "shoppee_devices=1", "shoppee_device x=1"] {
            assert_eq!(device(&[(COOKIE, other)]), None, "{other}");
        }
        let long = format!("shoppee_device={}", "x".repeat(257));
        assert_eq!(device(&[(COOKIE, &long)]), None);
    }

    #[test]
    fn a_user_agent_that_is_not_ascii_is_decoded() {
        let read = |bytes: &[u8]| user_agent(&HeaderValue::from_bytes(bytes).unwrap());
        assert_eq!(read(b"curl/8"), "curl/8");
        assert_eq!(read("Büro-Kasse/1".as_bytes()), "Büro-Kasse/1");
        assert_eq!(read(b"B\xfcro/1"), "B\u{fffd}ro/1");
        assert_eq!(read("é".repeat(300).as_bytes()).chars().count(), MAX_USER_AGENT_LEN);
    }

    #[test]
    fn the_device_cookie_is_limited_to_the_path_of_auth() {
        let headers = device_headers("xyz", true);
        assert_eq!(headers[DEVICE_TOKEN], "xyz");
        assert_eq!(
            headers[SET_COOKIE],
            "shoppee_device=xyz; Path=/api/v1/auth; Max-Age=15552000; HttpOnly; SameSite=Strict; Secure"
        );
        assert!(!device_headers("xyz", false)[SET_COOKIE].to_str().unwrap().contains("Secure"));
    }
}
