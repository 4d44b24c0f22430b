//! The caller of a gRPC call, from the claims of a verified token. [`crate::access`] decides which callers a method
//! admits; a handler gets the admitted caller by [`require`] or [`find`]. [`Verifier`] verifies the tokens.

pub(crate) mod verifier;

use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use tonic::{Code, Request, Status};
use uuid::Uuid;

use crate::status::ServiceError;
pub use verifier::{MAX_TOKEN_LIFETIME, Verifier, install_crypto};

pub const ISSUER: &str = "shoppee";
pub const AUDIENCE: &str = "shoppee-api";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    User,
    Admin,
    Service,
}

/// The type of a token, from the `typ` of its header (RFC 9068 §2.1 for access tokens).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenType {
    Access,
    /// A one-time ticket, valid for seconds, that the auth service exchanges for a socket token. No other service accepts
    /// it.
    WsTicket,
    /// A token of a WebSocket that was opened with a ticket: reads the events of its user while the socket lives.
    Socket,
}

impl TokenType {
    pub(crate) const ALL: [Self; 3] = [Self::Access, Self::WsTicket, Self::Socket];

    pub const fn typ(self) -> &'static str {
        match self {
            Self::Access => "at+jwt",
            Self::WsTicket => "ws-ticket+jwt",
            Self::Socket => "ws-socket+jwt",
        }
    }
}

/// The claims of a token; all but the last four are required.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub iss: String,
    pub aud: String,
    pub sub: String,
    pub user_id: i64,
    pub username: String,
    pub role: Role,
    /// The session id; in a service token, the id of the service account, or a random id.
    pub sid: Uuid,
    pub jti: Uuid,
    /// Unix seconds.
    pub iat: i64,
    /// Unix seconds.
    pub exp: i64,
    /// The time before which the token is invalid. Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<i64>,
    /// In tickets only: the end of the socket that the ticket opens. Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_exp: Option<i64>,
    /// In tokens of services only (RFC 9068 §2.2.3): the scopes, separated by spaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// In tokens of services only: the id of the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
}

/// The scope of a service token without the claim: the previous version of the auth service issues such tokens.
const LEGACY_SCOPE: &str = "stock:hold";

/// A caller with a verified token, which is passed on to other services.
#[derive(Clone, Debug)]
pub struct Caller {
    pub claims: Arc<Claims>,
    pub token_type: TokenType,
    pub token: Arc<SecretString>,
    /// The public key that verified the token.
    pub(crate) key: Arc<str>,
}

impl Caller {
    pub fn is_admin(&self) -> bool {
        self.claims.role == Role::Admin
    }

    /// Reports whether the caller acts for the shop: an admin, or a service that the rule of the method admits.
    pub fn is_staff(&self) -> bool {
        self.is_admin() || self.is_service()
    }

    pub fn is_service(&self) -> bool {
        self.claims.role == Role::Service
    }

    /// Reports whether the caller is a service with this scope. The claim has no effect in the token of a user.
    pub fn has_scope(&self, scope: &str) -> bool {
        let scopes = self.claims.scope.as_deref().unwrap_or(LEGACY_SCOPE);
        self.is_service() && !scope.is_empty() && scopes.split(' ').any(|own| own == scope)
    }

    /// Returns the id of a service's client; none of a user.
    pub fn client_id(&self) -> Option<&str> {
        self.is_service().then(|| self.claims.client_id.as_deref().unwrap_or(&self.claims.username))
    }

    /// Returns the id of the user; 0 of a service.
    pub fn user_id(&self) -> i64 {
        self.claims.user_id
    }
}

/// The reasons for which a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("sign in to do this")]
    Missing,
    #[error("the access token is not valid")]
    Invalid,
    #[error("the access token has expired")]
    Expired,
    #[error("the session has ended")]
    Revoked,
    /// The keys have not been fetched yet.
    #[error("signing in is not possible right now; try again")]
    NoKeys,
}

impl TokenError {
    /// Returns the REST code in upper case.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Missing | Self::Invalid => "UNAUTHENTICATED",
            Self::Expired => "TOKEN_EXPIRED",
            Self::Revoked => "SESSION_REVOKED",
            Self::NoKeys => "UNAVAILABLE",
        }
    }
}

impl From<TokenError> for ServiceError {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Missing | TokenError::Invalid | TokenError::Expired | TokenError::Revoked => {
                Self::new(Code::Unauthenticated, error.reason(), error.to_string())
            }
            TokenError::NoKeys => crate::status::unavailable(),
        }
    }
}

/// The outcome of the authentication of a request, a request extension of the gateway.
#[derive(Clone, Debug)]
pub struct Identity(pub Result<Caller, TokenError>);

/// Returns the token of an `authorization: Bearer …` value (RFC 6750; the scheme is case-insensitive).
pub fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim_start_matches(' '))
        .filter(|token| !token.is_empty())
}

/// Returns the caller that the server admitted; `None` for a call without a token.
pub fn find<T>(request: &Request<T>) -> Option<Caller> {
    request.extensions().get::<Caller>().cloned()
}

/// Returns the caller that the server admitted. Its method admits no call without a token.
pub fn require<T>(request: &Request<T>) -> Result<Caller, Status> {
    find(request).ok_or_else(|| ServiceError::from(TokenError::Missing).into())
}

/// Adds a token to an outgoing call.
pub fn authorize<T>(request: &mut Request<T>, token: &SecretString) {
    if let Ok(value) = format!("Bearer {}", token.expose_secret()).parse() {
        request.metadata_mut().insert("authorization", value);
    }
}
