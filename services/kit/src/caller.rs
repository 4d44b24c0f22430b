//! Who calls: the claims of a verified access token (contract §3), and what a handler may ask of them.
//!
//! A handler begins with one of [`user`], [`admin`], [`service`], [`anyone`]: who may call stands in its first line.

use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use tonic::{Code, Request, Status};
use uuid::Uuid;

use crate::status::Refusal;
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

/// What a token is for, as its header's `typ` says (RFC 9068 names the first).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Access,
    /// A token that the auth service exchanges, once and within seconds, for one of the next kind. No other service
    /// accepts it.
    WsTicket,
    /// A token that reads the events of its user, for as long as a socket that was opened with a ticket lives.
    Socket,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Access, Self::WsTicket, Self::Socket];

    pub const fn typ(self) -> &'static str {
        match self {
            Self::Access => "at+jwt",
            Self::WsTicket => "ws-ticket+jwt",
            Self::Socket => "ws-socket+jwt",
        }
    }
}

/// The claims of a token, all of them required but for the last two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub iss: String,
    pub aud: String,
    pub sub: String,
    pub user_id: i64,
    pub username: String,
    pub role: Role,
    /// The session; of a service token, an id of its own.
    pub sid: Uuid,
    pub jti: Uuid,
    /// Unix seconds.
    pub iat: i64,
    /// Unix seconds.
    pub exp: i64,
    /// The time before which the token is refused. Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<i64>,
    /// The end of the socket that a ticket opens; in tickets alone. Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_exp: Option<i64>,
}

/// A caller whose token was verified, with the token, to be passed on.
#[derive(Clone, Debug)]
pub struct Caller {
    pub claims: Arc<Claims>,
    pub kind: Kind,
    pub token: Arc<SecretString>,
    /// The public key that the token was verified with.
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

/// Why a token is not accepted.
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
    /// Nothing can be verified yet: the keys have not arrived.
    #[error("signing in is not possible right now; try again")]
    NoKeys,
}

impl TokenError {
    /// The REST code, in upper case.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Missing | Self::Invalid => "UNAUTHENTICATED",
            Self::Expired => "TOKEN_EXPIRED",
            Self::Revoked => "SESSION_REVOKED",
            Self::NoKeys => "UNAVAILABLE",
        }
    }
}

impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Missing | TokenError::Invalid | TokenError::Expired | TokenError::Revoked => {
                Self::new(Code::Unauthenticated, error.reason(), error.to_string())
            }
            TokenError::NoKeys => crate::status::unavailable(),
        }
    }
}

/// What the server's layer found in the call's metadata.
#[derive(Clone, Debug)]
pub struct Identity(pub Result<Caller, TokenError>);

/// The token of an `authorization: Bearer …` value (RFC 6750; the scheme is case-insensitive).
pub fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim_start_matches(' '))
        .filter(|token| !token.is_empty())
}

fn identity<T>(request: &Request<T>) -> Result<Caller, TokenError> {
    request.extensions().get::<Identity>().map_or(Err(TokenError::Missing), |identity| identity.0.clone())
}

/// A person: a customer or an admin.
pub fn user<T>(request: &Request<T>) -> Result<Caller, Status> {
    person(request, &[Kind::Access])
}

/// An admin.
pub fn admin<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = user(request)?;
    if caller.is_admin() { Ok(caller) } else { Err(forbidden()) }
}

/// One of our own services.
pub fn service<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = identity(request).map_err(Refusal::from)?;
    match (caller.claims.role, caller.kind) {
        (Role::Service, Kind::Access) => Ok(caller),
        (Role::Service, Kind::WsTicket | Kind::Socket) | (Role::User | Role::Admin, _) => Err(forbidden()),
    }
}

/// A person, or the socket a person opened.
pub fn user_or_socket<T>(request: &Request<T>) -> Result<Caller, Status> {
    person(request, &[Kind::Access, Kind::Socket])
}

/// Returns the person that presents a ticket for a socket.
pub fn ticket<T>(request: &Request<T>) -> Result<Caller, Status> {
    person(request, &[Kind::WsTicket])
}

fn person<T>(request: &Request<T>, kinds: &[Kind]) -> Result<Caller, Status> {
    let caller = identity(request).map_err(Refusal::from)?;
    match caller.claims.role {
        Role::User | Role::Admin if kinds.contains(&caller.kind) => Ok(caller),
        Role::User | Role::Admin | Role::Service => Err(forbidden()),
    }
}

/// Whoever it is; `None` without a token, an error with a bad one.
pub fn anyone<T>(request: &Request<T>) -> Result<Option<Caller>, Status> {
    match identity(request) {
        Ok(caller) if caller.kind == Kind::Access => Ok(Some(caller)),
        Ok(_) => Err(forbidden()),
        Err(TokenError::Missing) => Ok(None),
        Err(error) => Err(Refusal::from(error).into()),
    }
}

fn forbidden() -> Status {
    Refusal::new(Code::PermissionDenied, "FORBIDDEN", "your role does not allow this").into()
}

/// Adds the caller's token to an outgoing call.
pub fn authorize<T>(request: &mut Request<T>, token: &SecretString) {
    if let Ok(value) = format!("Bearer {}", token.expose_secret()).parse() {
        request.metadata_mut().insert("authorization", value);
    }
}
