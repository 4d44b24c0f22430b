//! The errors of the token endpoint (RFC 6749 §5.2), whose form OAuth 2 clients expect in place of problem details.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header::WWW_AUTHENTICATE};
use serde::Serialize;

use super::{Code, Problem};

const CHALLENGE: HeaderValue = HeaderValue::from_static(r#"Basic realm="shoppee""#);

/// An error of the token endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OAuthError {
    /// The request lacks a parameter, repeats one, or uses two ways to authenticate.
    InvalidRequest(&'static str),
    /// The client is unknown, or its secret is wrong. The response is the same for both.
    InvalidClient,
    /// The client does not have a requested scope.
    InvalidScope,
    UnsupportedGrantType,
    /// An error that RFC 6749 has no code for, such as an unavailable service.
    Other(Problem),
}

#[derive(Serialize)]
struct Body {
    error: &'static str,
    error_description: &'static str,
}

impl From<Problem> for OAuthError {
    fn from(problem: Problem) -> Self {
        if problem.code == Code::InvalidCredentials {
            Self::InvalidClient
        } else if problem.code == Code::ValidationFailed {
            Self::InvalidScope
        } else {
            Self::Other(problem)
        }
    }
}

impl IntoResponse for OAuthError {
    fn into_response(self) -> Response {
        let (error, error_description) = match self {
            Self::InvalidRequest(description) => ("invalid_request", description),
            Self::InvalidClient => ("invalid_client", "the client id or the client secret is wrong"),
            Self::InvalidScope => ("invalid_scope", "the client does not have a requested scope"),
            Self::UnsupportedGrantType => ("unsupported_grant_type", "the grant type is client_credentials"),
            Self::Other(problem) => return problem.into_response(),
        };
        let body = Json(Body { error, error_description });
        if error == "invalid_client" {
            (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, CHALLENGE)], body).into_response()
        } else {
            (StatusCode::BAD_REQUEST, body).into_response()
        }
    }
}
