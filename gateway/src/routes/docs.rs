//! The API's documentation: `/openapi.json`, `/asyncapi.json`, and `/docs`, a page that shows them and calls operations.
//! Its security policy allows no other host.

use axum::{
    extract::{Path, State},
    response::Response,
};
use http::{HeaderMap, HeaderValue, header::CONTENT_SECURITY_POLICY};

use crate::{error::Problem, extract::IfNoneMatch, state::AppState};

/// Allows only the gateway's files and responses. Scalar adds inline styles, which cannot all have a hash or a nonce; its
/// icons are `data:` URLs.
const SECURITY_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

pub async fn openapi(
    State(state): State<AppState>,
    request: HeaderMap,
    if_none_match: IfNoneMatch,
) -> Response {
    state.docs.openapi().respond(&request, &if_none_match)
}

pub async fn asyncapi(
    State(state): State<AppState>,
    request: HeaderMap,
    if_none_match: IfNoneMatch,
) -> Response {
    state.docs.asyncapi().respond(&request, &if_none_match)
}

pub async fn page(State(state): State<AppState>, request: HeaderMap, if_none_match: IfNoneMatch) -> Response {
    let mut response = state.docs.page().respond(&request, &if_none_match);
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, SECURITY_POLICY);
    response
}

pub async fn file(
    State(state): State<AppState>,
    Path(name): Path<String>,
    request: HeaderMap,
    if_none_match: IfNoneMatch,
) -> Result<Response, Problem> {
    let file = state.docs.file(&name);
    file.map(|file| file.respond(&request, &if_none_match)).ok_or_else(Problem::not_found)
}
