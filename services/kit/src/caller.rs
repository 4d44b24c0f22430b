//! Authorization of gRPC calls: the caller, from the claims of a verified token, and guards for handlers.
//!
//! A handler calls one of the guards [`user`], [`admin`], [`service`], [`optional`], [`user_or_socket`], [`ticket`] in
//! its first line. [`Verifier`] verifies the tokens.

use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use tonic::{Code, Request, Status};
use uuid::Uuid;

use crate::status::ServiceError;
pub use crate::verifier::{MAX_TOKEN_LIFETIME, Verifier, install_crypto};

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

/// The claims of a token; all but the last two are required.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub iss: String,
    pub aud: String,
    pub sub: String,
    pub user_id: i64,
    pub username: String,
    pub role: Role,
    /// The session id; in a service token, a random id.
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
}

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

/// The outcome of the authentication of a call, a request extension that the server's layer sets.
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

fn caller_from_extensions<T>(request: &Request<T>) -> Result<Caller, TokenError> {
    request.extensions().get::<Identity>().map_or(Err(TokenError::Missing), |identity| identity.0.clone())
}

/// Requires a signed-in user: a customer or an admin.
pub fn user<T>(request: &Request<T>) -> Result<Caller, Status> {
    human(request, &[TokenType::Access])
}

/// Requires an admin.
pub fn admin<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = user(request)?;
    if caller.is_admin() { Ok(caller) } else { Err(forbidden()) }
}

/// Requires a service.
pub fn service<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = caller_from_extensions(request).map_err(ServiceError::from)?;
    match (caller.claims.role, caller.token_type) {
        (Role::Service, TokenType::Access) => Ok(caller),
        (Role::Service, TokenType::WsTicket | TokenType::Socket) | (Role::User | Role::Admin, _) => {
            Err(forbidden())
        }
    }
}

/// Requires a signed-in user, or the token of a socket that a user opened.
pub fn user_or_socket<T>(request: &Request<T>) -> Result<Caller, Status> {
    human(request, &[TokenType::Access, TokenType::Socket])
}

/// Requires the ticket of a user.
pub fn ticket<T>(request: &Request<T>) -> Result<Caller, Status> {
    human(request, &[TokenType::WsTicket])
}

fn human<T>(request: &Request<T>, token_types: &[TokenType]) -> Result<Caller, Status> {
    let caller = caller_from_extensions(request).map_err(ServiceError::from)?;
    match caller.claims.role {
        Role::User | Role::Admin if token_types.contains(&caller.token_type) => Ok(caller),
        Role::User | Role::Admin | Role::Service => Err(forbidden()),
    }
}

/// Accepts any caller: returns `None` without a token, and an error with an invalid one.
pub fn optional<T>(request: &Request<T>) -> Result<Option<Caller>, Status> {
    match caller_from_extensions(request) {
        Ok(caller) if caller.token_type == TokenType::Access => Ok(Some(caller)),
        Ok(_) => Err(forbidden()),
        Err(TokenError::Missing) => Ok(None),
        Err(error) => Err(ServiceError::from(error).into()),
    }
}

fn forbidden() -> Status {
    ServiceError::new(Code::PermissionDenied, "FORBIDDEN", "your role does not allow this").into()
}

/// Adds a token to an outgoing call.
pub fn authorize<T>(request: &mut Request<T>, token: &SecretString) {
    if let Ok(value) = format!("Bearer {}", token.expose_secret()).parse() {
        request.metadata_mut().insert("authorization", value);
    }
}
