//! What is not part of the shop: the keys that tokens are verified with, and where no route leads.

use axum::extract::State;
use http::{HeaderName, HeaderValue, header::CACHE_CONTROL};
use serde::Serialize;
use shoppee_proto::auth::v1::Jwk;

use crate::{error::Problem, extract::Json, state::AppState};

/// Keys change rarely, and a new one is published before it signs.
const KEPT: HeaderValue = HeaderValue::from_static("public, max-age=300");

/// RFC 7517 §5.
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
        Ok(([(CACHE_CONTROL, KEPT)], Json(Jwks { keys })))
    }
}

pub async fn not_found() -> Problem {
    Problem::not_found()
}

/// axum adds `Allow`.
pub async fn method_not_allowed() -> Problem {
    Problem::method_not_allowed()
}
