//! Who calls: the claims of a verified access token (contract §3), and what a handler may ask of them.
//!
//! A handler begins with one of [`user`], [`admin`], [`service`], [`anyone`]: who may call stands in its first line.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use moka::sync::Cache;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use shoppee_proto::auth::v1::{EndedSession, GetJwksResponse};
use tonic::{Code, Request, Status};
use uuid::Uuid;

use crate::{clock::Clock, revocation_list::RevocationList, status::Refusal, token_header::TokenHeader};

pub const ISSUER: &str = "shoppee";
pub const AUDIENCE: &str = "shoppee-api";

/// A token verified before costs a hash and a look-up instead of 60 µs of Ed25519. About 300 bytes each.
const MAX_CACHED_TOKENS: u64 = 50_000;
/// Longer than any token we sign; nothing longer is looked at.
const MAX_TOKEN_BYTES: usize = 2048;
/// How far another machine's clock may run ahead when it signs. Seconds.
const LEEWAY: i64 = 5;
/// From `iat` to `exp` of any token, whatever its claims say: a stolen signature is of no use for longer, and the auth
/// service refuses a longer `ACCESS_TOKEN_TTL` at its start. Seconds.
pub const MAX_TOKEN_LIFETIME: i64 = 7 * 24 * 60 * 60;
/// The same of a ticket, with room for the clocks of two machines. Seconds.
const MAX_TICKET_LIFETIME: i64 = 60;

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
    /// Exchanged at the auth service, once and within seconds, for a token of the next kind. Nothing else accepts it.
    WsTicket,
    /// Reads the events of its user, for as long as a socket that was opened with a ticket lives.
    Socket,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Access, Self::WsTicket, Self::Socket];

    pub const fn typ(self) -> &'static str {
        match self {
            Self::Access => "at+jwt",
            Self::WsTicket => "ws-ticket+jwt",
            Self::Socket => "ws-socket+jwt",
        }
    }

    const fn max_lifetime(self) -> i64 {
        match self {
            Self::Access | Self::Socket => MAX_TOKEN_LIFETIME,
            Self::WsTicket => MAX_TICKET_LIFETIME,
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
    /// The token is refused before this time. Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<i64>,
    /// Of a ticket alone: until when the socket may live that it opens. Unix seconds.
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
    key: Arc<str>,
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
    keys: ArcSwap<KeySet>,
    /// Held while the key set is replaced.
    replacing: Mutex<()>,
    revoked: RevocationList,
    verified: Cache<[u8; 32], Verified>,
}

/// The claims of a token, valid for as long as the key that signed it is in the key set.
#[derive(Clone, Debug)]
struct Verified {
    claims: Arc<Claims>,
    kind: Kind,
    /// The public key, as its JWK has it.
    key: Arc<str>,
}

#[derive(Default)]
struct KeySet {
    /// As they came, to see whether they changed.
    source: Vec<shoppee_proto::auth::v1::Jwk>,
    keys: Vec<Key>,
}

struct Key {
    kid: String,
    x: Arc<str>,
    decoding: DecodingKey,
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.keys.iter().map(|key| &key.kid)).finish()
    }
}

impl KeySet {
    fn new(source: Vec<shoppee_proto::auth::v1::Jwk>) -> Self {
        let keys = source.iter().filter_map(|jwk| {
            let decoding = DecodingKey::from_ed_components(&jwk.x).ok()?;
            Some(Key { kid: jwk.kid.clone(), x: jwk.x.as_str().into(), decoding })
        });
        Self { keys: keys.collect(), source }
    }

    fn contains(&self, x: &str) -> bool {
        self.keys.iter().any(|key| *key.x == *x)
    }

    /// Verifies a token with the key that its header names.
    fn verify(&self, token: &str, now: i64) -> Result<Verified, TokenError> {
        if self.keys.is_empty() {
            return Err(TokenError::NoKeys);
        }
        let header = TokenHeader::parse(token).ok_or(TokenError::Invalid)?;
        let kind = Kind::ALL.into_iter().find(|kind| header.typ == kind.typ()).ok_or(TokenError::Invalid)?;
        let key = self.keys.iter().find(|key| key.kid == header.kid).ok_or(TokenError::Invalid)?;

        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        // Times are compared with our own clock: `exp` at every use, the others below.
        validation.validate_exp = false;
        let claims = jsonwebtoken::decode::<Claims>(token, &key.decoding, &validation)
            .map_err(|_| TokenError::Invalid)?
            .claims;
        if !is_valid(&claims, kind, now) {
            return Err(TokenError::Invalid);
        }
        Ok(Verified { claims: Arc::new(claims), kind, key: key.x.clone() })
    }
}

/// Whether the claims of a token that was signed by us make sense now.
fn is_valid(claims: &Claims, kind: Kind, now: i64) -> bool {
    let lifetime = claims.exp.checked_sub(claims.iat);
    let is_ticket = kind == Kind::WsTicket;
    claims.sub == claims.user_id.to_string()
        && claims.user_id >= 0
        && claims.iat <= now + LEEWAY
        && claims.nbf.is_none_or(|nbf| nbf <= now + LEEWAY)
        && lifetime.is_some_and(|lifetime| (1..=kind.max_lifetime()).contains(&lifetime))
        && claims.socket_exp.is_some() == is_ticket
}

impl Verifier {
    pub fn new(clock: Clock) -> Arc<Self> {
        install_crypto();
        Arc::new(Self {
            clock,
            keys: ArcSwap::default(),
            replacing: Mutex::default(),
            revoked: RevocationList::default(),
            verified: Cache::new(MAX_CACHED_TOKENS),
        })
    }

    /// Takes in what the auth service says. Returns the sessions that ended since the last time.
    pub fn update(&self, told: GetJwksResponse) -> Vec<Uuid> {
        {
            let _replacing = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
            if self.keys.load().source != told.keys {
                self.keys.store(Arc::new(KeySet::new(told.keys)));
            }
        }
        self.end_sessions(told.ended_sessions)
    }

    /// Refuses these sessions from now on. Returns those that were not known yet.
    pub fn end_sessions(&self, sessions: Vec<EndedSession>) -> Vec<Uuid> {
        let sessions =
            sessions.into_iter().filter_map(|session| Some((session.sid.parse().ok()?, session.forget_at)));
        self.revoked.extend(sessions, self.clock.unix())
    }

    /// The public keys, as the auth service gave them.
    pub fn jwks(&self) -> Vec<shoppee_proto::auth::v1::Jwk> {
        self.keys.load().source.clone()
    }

    /// The caller a token of this kind speaks for.
    pub fn verify(&self, token: &str, wanted: Kind) -> Result<Caller, TokenError> {
        let caller = self.identify(token)?;
        if caller.kind != wanted {
            return Err(TokenError::Invalid);
        }
        self.holds(&caller)?;
        Ok(caller)
    }

    /// The caller a token of any kind speaks for.
    pub fn verify_any(&self, token: &str) -> Result<Caller, TokenError> {
        let caller = self.identify(token)?;
        self.holds(&caller)?;
        Ok(caller)
    }

    /// The caller of a signed token, which may have expired.
    fn identify(&self, token: &str) -> Result<Caller, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Invalid);
        }
        let hash: [u8; 32] = Sha256::digest(token).into();
        let cached = self.verified.get(&hash);
        let keys = self.keys.load();
        // Claims of a key that is gone may enter the cache at any time, also after the key set was replaced.
        let verified = if let Some(verified) = cached.filter(|cached| keys.contains(&cached.key)) {
            verified
        } else {
            let verified = keys.verify(token, self.clock.unix())?;
            self.verified.insert(hash, verified.clone());
            verified
        };
        let Verified { claims, kind, key } = verified;
        Ok(Caller { claims, kind, token: Arc::new(SecretString::from(token)), key })
    }

    /// Whether a caller may still call: a token ends, a session does, and a key may be removed.
    pub fn holds(&self, caller: &Caller) -> Result<(), TokenError> {
        let claims = &caller.claims;
        if claims.exp <= self.clock.unix() {
            return Err(TokenError::Expired);
        }
        // A service has no session that could end.
        if claims.role != Role::Service {
            if self.revoked.contains(&claims.sid) {
                return Err(TokenError::Revoked);
            }
            if self.revoked.refuses_expiry(claims.exp) {
                return Err(TokenError::Expired);
            }
        }
        if self.keys.load().contains(&caller.key) { Ok(()) } else { Err(TokenError::Invalid) }
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

/// A person who presents a ticket for a socket.
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

#[cfg(test)]
mod tests {
    use shoppee_proto::auth::v1::Jwk;

    use super::*;

    /// The seeds and public keys of RFC 8032 §7.1, tests 1 and 2.
    const FIRST: (&str, &str) = (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    );
    const SECOND: (&str, &str) = (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
    );

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    fn key_set(keys: &[(&str, &str)]) -> GetJwksResponse {
        use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
        let jwk = |key: &(&str, &str)| Jwk {
            kid: key.1.to_owned(),
            x: URL_SAFE_NO_PAD.encode(bytes(key.1)),
            ..Jwk::default()
        };
        GetJwksResponse { keys: keys.iter().map(jwk).collect(), ..GetJwksResponse::default() }
    }

    fn claims(now: i64) -> Claims {
        Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: "7".to_owned(),
            user_id: 7,
            username: "ann".to_owned(),
            role: Role::Admin,
            sid: Uuid::now_v7(),
            jti: Uuid::now_v7(),
            iat: now,
            exp: now + 3600,
            nbf: None,
            socket_exp: None,
        }
    }

    fn sign(key: (&str, &str), kind: Kind, claims: &Claims) -> String {
        install_crypto();
        let mut header = jsonwebtoken::Header::new(Algorithm::EdDSA);
        header.typ = Some(kind.typ().to_owned());
        header.kid = Some(key.1.to_owned());
        // A private key of 32 bytes in PKCS #8 (RFC 8410).
        let der = [bytes("302e020100300506032b657004220420"), bytes(key.0)].concat();
        jsonwebtoken::encode(&header, claims, &jsonwebtoken::EncodingKey::from_ed_der(&der)).unwrap()
    }

    #[test]
    fn a_token_that_is_verified_while_its_key_is_removed_is_refused_afterwards() {
        let clock = Clock::default();
        let verifier = Verifier::new(clock.clone());
        verifier.update(key_set(&[FIRST]));
        let token = sign(FIRST, Kind::Access, &claims(clock.unix()));

        // One thread has verified the token with the old keys; another removes the key; the first fills the cache.
        let old_keys = verifier.keys.load_full();
        let verified = old_keys.verify(&token, clock.unix()).unwrap();
        verifier.update(key_set(&[SECOND]));
        verifier.verified.insert(Sha256::digest(&token).into(), verified);

        assert_eq!(verifier.verify(&token, Kind::Access).unwrap_err(), TokenError::Invalid);
        assert!(verifier.verify(&sign(SECOND, Kind::Access, &claims(clock.unix())), Kind::Access).is_ok());
    }

    #[test]
    fn a_caller_whose_key_is_removed_holds_no_longer() {
        let clock = Clock::default();
        let verifier = Verifier::new(clock.clone());
        verifier.update(key_set(&[FIRST]));
        let token = sign(FIRST, Kind::Access, &claims(clock.unix()));
        let caller = verifier.verify(&token, Kind::Access).unwrap();
        verifier.update(key_set(&[SECOND, FIRST]));
        assert_eq!(verifier.holds(&caller), Ok(()), "its key is the previous one");
        verifier.update(key_set(&[SECOND]));
        assert_eq!(verifier.holds(&caller), Err(TokenError::Invalid));
    }

    #[test]
    fn no_claims_make_a_token_valid_for_longer_than_the_maximum() {
        let clock = Clock::default();
        let verifier = Verifier::new(clock.clone());
        verifier.update(key_set(&[FIRST]));
        let now = clock.unix();
        let verify =
            |kind: Kind, claims: &Claims| verifier.verify(&sign(FIRST, kind, claims), kind).map(drop);
        let lives = |from: i64, until: i64| Claims { iat: from, exp: until, ..claims(now) };
        for (iat, exp, accepted) in [
            (now, now + MAX_TOKEN_LIFETIME, true),
            (now, now + MAX_TOKEN_LIFETIME + 1, false),
            (now - MAX_TOKEN_LIFETIME, now + 1, false),
            (now, i64::MAX, false),
            (i64::MIN, i64::MAX, false),
            (now + LEEWAY + 2, now + 3600, false),
        ] {
            for kind in [Kind::Access, Kind::Socket] {
                assert_eq!(verify(kind, &lives(iat, exp)).is_ok(), accepted, "{kind:?} {iat} {exp}");
            }
        }
        let service = Claims { role: Role::Service, ..lives(now, now + MAX_TOKEN_LIFETIME + 1) };
        assert!(verify(Kind::Access, &service).is_err());
        let ticket = |exp: i64, socket_exp| Claims { socket_exp, ..lives(now, exp) };
        assert!(verify(Kind::WsTicket, &ticket(now + 30, Some(now + 3600))).is_ok());
        assert!(verify(Kind::WsTicket, &ticket(now + 61, Some(now + 3600))).is_err(), "lives too long");
        assert!(verify(Kind::WsTicket, &ticket(now + 30, None)).is_err(), "opens no socket");
        assert!(verify(Kind::Access, &ticket(now + 30, Some(now + 3600))).is_err(), "is a ticket");
    }

    #[test]
    fn a_token_is_refused_before_its_time() {
        let clock = Clock::default();
        let verifier = Verifier::new(clock.clone());
        verifier.update(key_set(&[FIRST]));
        let now = clock.unix();
        let token = sign(FIRST, Kind::Access, &Claims { nbf: Some(now + 60), ..claims(now) });
        assert_eq!(verifier.verify(&token, Kind::Access).unwrap_err(), TokenError::Invalid);
        clock.advance(std::time::Duration::from_secs(60));
        assert!(verifier.verify(&token, Kind::Access).is_ok());
    }
}
