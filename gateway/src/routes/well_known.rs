//! `/.well-known`: the public keys for verifying access tokens.

use axum::extract::State;
use http::{HeaderName, HeaderValue, header::CACHE_CONTROL};
use serde::Serialize;
use shoppee_proto::auth::v1::Jwk;

use crate::{error::Problem, extract::Json, state::AppState};

/// Keys change rarely, and a new one is published before it is used.
const MAX_AGE: HeaderValue = HeaderValue::from_static("public, max-age=300");

/// A JSON Web Key Set (RFC 7517 §5).
#[derive(Debug, Serialize)]
pub struct Jwks {
    keys: Vec<Jwk>,
}

pub async fn jwks(
    State(state): State<AppState>,
) -> Result<([(HeaderName, HeaderValue); 1], Json<Jwks>), Problem> {
    let keys = state.verifier.jwks();
    if keys.is_empty() {
        Err(Problem::unavailable())
    } else {
        Ok(([(CACHE_CONTROL, MAX_AGE)], Json(Jwks { keys })))
    }
}
