//! Who calls: the claims of a verified access token (contract §3), and what a handler may ask of them.
//!
//! A handler begins with one of [`user`], [`admin`], [`service`], [`anyone`]: who may call stands in its first line.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use moka::sync::Cache;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use shoppee_proto::auth::v1::{EndedSession, GetJwksResponse};
use tonic::{Code, Request, Status};
use uuid::Uuid;

use crate::{clock::Clock, status::Refusal};

pub const ISSUER: &str = "shoppee";
pub const AUDIENCE: &str = "shoppee-api";

/// A token verified before costs a hash and a look-up instead of 60 µs of Ed25519. About 300 bytes each.
const CACHED_TOKENS: u64 = 50_000;
/// Longer than any token we sign; nothing longer is looked at.
const LONGEST_TOKEN: usize = 2048;
/// How far another machine's clock may run ahead when it signs. Seconds.
const LEEWAY: i64 = 5;

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
    /// Opens one socket, and reads the events of its user.
    WsTicket,
}

impl Kind {
    pub const fn typ(self) -> &'static str {
        match self {
            Self::Access => "at+jwt",
            Self::WsTicket => "ws-ticket+jwt",
        }
    }
}

/// The claims of a token, all of them required.
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
}

/// A caller whose token was verified, with the token, to be passed on.
#[derive(Clone, Debug)]
pub struct Caller {
    pub claims: Arc<Claims>,
    pub kind: Kind,
    pub token: Arc<SecretString>,
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

/// Verifies tokens without asking anybody; [`crate::keys`] keeps it up to date.
#[derive(Debug)]
pub struct Verifier {
    clock: Clock,
    keys: ArcSwap<Keys>,
    /// Sessions that ended before their tokens did, and when to forget them (Unix seconds).
    ended: ArcSwap<HashMap<Uuid, i64>>,
    verified: Cache<[u8; 32], (Arc<Claims>, Kind)>,
}

#[derive(Default)]
struct Keys {
    /// As they came, to see whether they changed.
    source: Vec<shoppee_proto::auth::v1::Jwk>,
    by_kid: HashMap<String, DecodingKey>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.by_kid.keys()).finish()
    }
}

impl Verifier {
    pub fn new(clock: Clock) -> Arc<Self> {
        install_crypto();
        Arc::new(Self {
            clock,
            keys: ArcSwap::default(),
            ended: ArcSwap::default(),
            verified: Cache::new(CACHED_TOKENS),
        })
    }

    /// Takes in what the auth service says; the sessions that ended since the last time, for those who hold sockets.
    pub fn update(&self, told: GetJwksResponse) -> Vec<Uuid> {
        if self.keys.load().source != told.keys {
            let by_kid = told
                .keys
                .iter()
                .filter_map(|key| Some((key.kid.clone(), DecodingKey::from_ed_components(&key.x).ok()?)))
                .collect();
            self.keys.store(Arc::new(Keys { source: told.keys, by_kid }));
            // A token of a key that is gone must not live on in here.
            self.verified.invalidate_all();
        }
        self.end(told.ended_sessions)
    }

    /// Refuses these sessions from now on; those of them that were not known yet.
    fn end(&self, sessions: Vec<EndedSession>) -> Vec<Uuid> {
        let known = self.ended.load();
        let fresh: Vec<(Uuid, i64)> = sessions
            .into_iter()
            .filter_map(|session| Some((session.sid.parse().ok()?, session.forget_at)))
            .filter(|(sid, _)| !known.contains_key(sid))
            .collect();
        if !fresh.is_empty() {
            let now = self.clock.unix();
            let mut ended: HashMap<Uuid, i64> = known.iter().map(|(sid, at)| (*sid, *at)).collect();
            ended.retain(|_, forget_at| *forget_at + LEEWAY >= now);
            ended.extend(fresh.iter().copied());
            self.ended.store(Arc::new(ended));
        }
        fresh.into_iter().map(|(sid, _)| sid).collect()
    }

    /// The public keys, as the auth service gave them.
    pub fn jwks(&self) -> Vec<shoppee_proto::auth::v1::Jwk> {
        self.keys.load().source.clone()
    }

    /// Whether a session was ended.
    pub fn has_ended(&self, sid: &Uuid) -> bool {
        self.ended.load().contains_key(sid)
    }

    /// The caller a token of this kind speaks for.
    pub fn verify(&self, token: &str, wanted: Kind) -> Result<Caller, TokenError> {
        if token.len() > LONGEST_TOKEN {
            return Err(TokenError::Invalid);
        }
        let hash: [u8; 32] = Sha256::digest(token).into();
        let (claims, kind) = if let Some(verified) = self.verified.get(&hash) {
            verified
        } else {
            let verified = self.verify_signature(token)?;
            self.verified.insert(hash, verified.clone());
            verified
        };
        if kind != wanted {
            return Err(TokenError::Invalid);
        }
        let caller = Caller { claims, kind, token: Arc::new(SecretString::from(token)) };
        self.holds(&caller)?;
        Ok(caller)
    }

    /// Whether a caller may still call: a token ends, and so does a session.
    pub fn holds(&self, caller: &Caller) -> Result<(), TokenError> {
        if caller.claims.exp <= self.clock.unix() {
            return Err(TokenError::Expired);
        }
        if self.has_ended(&caller.claims.sid) {
            return Err(TokenError::Revoked);
        }
        Ok(())
    }

    fn verify_signature(&self, token: &str) -> Result<(Arc<Claims>, Kind), TokenError> {
        let keys = self.keys.load();
        if keys.by_kid.is_empty() {
            return Err(TokenError::NoKeys);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Invalid)?;
        let kind = [Kind::Access, Kind::WsTicket]
            .into_iter()
            .find(|kind| header.typ.as_deref() == Some(kind.typ()))
            .ok_or(TokenError::Invalid)?;
        let key = header.kid.and_then(|kid| keys.by_kid.get(&kid)).ok_or(TokenError::Invalid)?;

        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        // Times are compared with our own clock, at every use.
        validation.validate_exp = false;
        let claims =
            jsonwebtoken::decode::<Claims>(token, key, &validation).map_err(|_| TokenError::Invalid)?.claims;
        let sound = claims.sub == claims.user_id.to_string()
            && claims.user_id >= 0
            && claims.iat < claims.exp
            && claims.iat <= self.clock.unix() + LEEWAY;
        if sound { Ok((Arc::new(claims), kind)) } else { Err(TokenError::Invalid) }
    }
}

/// Chooses jsonwebtoken's cryptography for this process; the second time changes nothing.
pub fn install_crypto() {
    let _ = jsonwebtoken::crypto::rust_crypto::DEFAULT_PROVIDER.install_default();
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
    let caller = identity(request).map_err(Refusal::from)?;
    match (caller.claims.role, caller.kind) {
        (Role::User | Role::Admin, Kind::Access) => Ok(caller),
        (Role::Service, _) | (_, Kind::WsTicket) => Err(forbidden()),
    }
}

/// An admin.
pub fn admin<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = user(request)?;
    if caller.is_admin() { Ok(caller) } else { Err(forbidden()) }
}

/// One of our own services.
pub fn service<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = identity(request).map_err(Refusal::from)?;
    if caller.claims.role == Role::Service { Ok(caller) } else { Err(forbidden()) }
}

/// A person, or the socket a person opened.
pub fn user_or_socket<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = identity(request).map_err(Refusal::from)?;
    if caller.claims.role == Role::Service { Err(forbidden()) } else { Ok(caller) }
}

/// Whoever it is; `None` without a token, an error with a bad one.
pub fn anyone<T>(request: &Request<T>) -> Result<Option<Caller>, Status> {
    match identity(request) {
        Ok(caller) => Ok(Some(caller)),
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
