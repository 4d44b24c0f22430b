//! A JWT verifier (RFC 7519, RFC 8725): checks signature, claims and revocation in memory, without a call to another
//! service.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use moka::sync::Cache;
use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use shoppee_proto::auth::v1::{EndedSession, GetJwksResponse};
use uuid::Uuid;

use super::{AUDIENCE, Caller, Claims, ISSUER, Role, TokenError, TokenType};
use crate::{clock::Clock, revocation_list::RevocationList, token_header::TokenHeader};

/// Bounds the cache of verified tokens, of about 300 bytes each. A cached token costs a hash and a look-up instead of
/// 60 µs of Ed25519.
const MAX_CACHED_TOKENS: u64 = 50_000;
/// Bounds the length of a token, above that of every token that auth signs.
const MAX_TOKEN_BYTES: usize = 2048;
/// The tolerated clock skew of the machine that signs. Seconds.
const CLOCK_LEEWAY: i64 = 5;
/// Bounds the time from `iat` to `exp` of every token, which limits the use of a stolen signing key. The auth service
/// rejects a longer `ACCESS_TOKEN_TTL` at its start. Seconds.
pub const MAX_TOKEN_LIFETIME: i64 = 7 * 24 * 60 * 60;
/// The same bound for a ticket, with room for the clocks of two machines. Seconds.
const MAX_TICKET_LIFETIME: i64 = 60;

/// A verifier of tokens; [`crate::verifier_sync`] keeps its keys and revocations up to date.
#[derive(Debug)]
pub struct Verifier {
    clock: Clock,
    keys: ArcSwap<KeySet>,
    /// Serialises replacements of the key set.
    update_lock: Mutex<()>,
    revoked: RevocationList,
    /// Service accounts. A full list of sessions must not reject the tokens of services, which are short-lived.
    revoked_services: RevocationList,
    verified: Cache<[u8; 32], Verified>,
}

/// The claims of a token, valid for as long as the key that signed it is in the key set.
#[derive(Clone, Debug)]
struct Verified {
    claims: Arc<Claims>,
    token_type: TokenType,
    /// The public key, in the encoding of its JWK.
    key: Arc<str>,
}

#[derive(Default)]
struct KeySet {
    /// The key set as received, to detect changes.
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
        let token_type = TokenType::ALL.into_iter().find(|token_type| header.typ == token_type.typ());
        let token_type = token_type.ok_or(TokenError::Invalid)?;
        let key = self.keys.iter().find(|key| key.kid == header.kid).ok_or(TokenError::Invalid)?;

        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        // Times are compared with the process's clock: `exp` at every use, the others below.
        validation.validate_exp = false;
        let claims = jsonwebtoken::decode::<Claims>(token, &key.decoding, &validation)
            .map_err(|_| TokenError::Invalid)?
            .claims;
        if !is_valid(&claims, token_type, now) {
            return Err(TokenError::Invalid);
        }
        Ok(Verified { claims: Arc::new(claims), token_type, key: key.x.clone() })
    }
}

/// Returns whether the claims of a correctly signed token are valid now.
fn is_valid(claims: &Claims, token_type: TokenType, now: i64) -> bool {
    let lifetime = claims.exp.checked_sub(claims.iat);
    let is_ticket = token_type == TokenType::WsTicket;
    claims.sub == claims.user_id.to_string()
        && claims.user_id >= 0
        && claims.iat <= now + CLOCK_LEEWAY
        && claims.nbf.is_none_or(|nbf| nbf <= now + CLOCK_LEEWAY)
        && lifetime.is_some_and(|lifetime| (1..=max_lifetime(token_type)).contains(&lifetime))
        && claims.socket_exp.is_some() == is_ticket
}

const fn max_lifetime(token_type: TokenType) -> i64 {
    match token_type {
        TokenType::Access | TokenType::Socket => MAX_TOKEN_LIFETIME,
        TokenType::WsTicket => MAX_TICKET_LIFETIME,
    }
}

impl Verifier {
    pub fn new(clock: Clock) -> Arc<Self> {
        install_crypto();
        // The counter is exported as 0 before its first event.
        metrics::counter!("revocation_list_sheds_total").increment(0);
        Arc::new(Self {
            clock,
            keys: ArcSwap::default(),
            update_lock: Mutex::default(),
            revoked: RevocationList::default(),
            revoked_services: RevocationList::default(),
            verified: Cache::new(MAX_CACHED_TOKENS),
        })
    }

    /// Applies a response of the auth service. Returns the newly revoked sessions.
    pub fn update(&self, response: GetJwksResponse) -> Vec<Uuid> {
        {
            let _guard = self.update_lock.lock().unwrap_or_else(PoisonError::into_inner);
            if self.keys.load().source != response.keys {
                self.keys.store(Arc::new(KeySet::new(response.keys)));
            }
        }
        self.revoke_sessions(response.ended_sessions)
    }

    /// Revokes sessions and service accounts. Returns the sessions that were not revoked before.
    pub fn revoke_sessions(&self, sessions: Vec<EndedSession>) -> Vec<Uuid> {
        let (services, sessions): (Vec<_>, Vec<_>) =
            sessions.into_iter().partition(|session| session.service);
        let now = self.clock.unix();
        let entries = |ended: Vec<EndedSession>| {
            ended.into_iter().filter_map(|ended| Some((ended.sid.parse().ok()?, ended.forget_at)))
        };
        self.revoked_services.extend(entries(services), now);
        let added = self.revoked.extend(entries(sessions), now);
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        metrics::gauge!("revoked_sessions").set(self.revoked.len() as f64);
        added
    }

    /// Returns the public keys of the auth service.
    pub fn jwks(&self) -> Vec<shoppee_proto::auth::v1::Jwk> {
        self.keys.load().source.clone()
    }

    /// Verifies a token of the given type. Returns its caller.
    pub fn verify(&self, token: &str, expected: TokenType) -> Result<Caller, TokenError> {
        let caller = self.verify_signature(token)?;
        if caller.token_type != expected {
            return Err(TokenError::Invalid);
        }
        self.check_active(&caller)?;
        Ok(caller)
    }

    /// Verifies a token of any type. Returns its caller.
    pub fn verify_any(&self, token: &str) -> Result<Caller, TokenError> {
        let caller = self.verify_signature(token)?;
        self.check_active(&caller)?;
        Ok(caller)
    }

    /// Returns the caller of a correctly signed token, which may have expired or been revoked.
    fn verify_signature(&self, token: &str) -> Result<Caller, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Invalid);
        }
        let hash: [u8; 32] = Sha256::digest(token).into();
        let cached = self.verified.get(&hash);
        let keys = self.keys.load();
        // An entry of a removed key may enter the cache at any time, even after the key set was replaced.
        let verified = if let Some(verified) = cached.filter(|cached| keys.contains(&cached.key)) {
            verified
        } else {
            let verified = keys.verify(token, self.clock.unix())?;
            self.verified.insert(hash, verified.clone());
            verified
        };
        let Verified { claims, token_type, key } = verified;
        Ok(Caller { claims, token_type, token: Arc::new(SecretString::from(token)), key })
    }

    /// Checks that a caller is still active: the token has not expired, the session is not revoked, and the key is in
    /// the key set.
    pub fn check_active(&self, caller: &Caller) -> Result<(), TokenError> {
        let claims = &caller.claims;
        if claims.exp <= self.clock.unix() {
            return Err(TokenError::Expired);
        }
        let revoked = if claims.role == Role::Service { &self.revoked_services } else { &self.revoked };
        if revoked.contains(&claims.sid) {
            return Err(TokenError::Revoked);
        }
        if revoked.rejects_expiry(claims.exp) {
            return Err(TokenError::Expired);
        }
        if self.keys.load().contains(&caller.key) { Ok(()) } else { Err(TokenError::Invalid) }
    }
}

/// Installs jsonwebtoken's crypto provider for this process; idempotent.
pub fn install_crypto() {
    let _ = jsonwebtoken::crypto::rust_crypto::DEFAULT_PROVIDER.install_default();
}

#[cfg(test)]
pub(crate) mod tests {
    use shoppee_proto::auth::v1::Jwk;

    use super::*;

    /// The seeds and public keys of RFC 8032 §7.1, tests 1 and 2.
    pub(crate) const FIRST: (&str, &str) = (
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

    pub(crate) fn key_set(keys: &[(&str, &str)]) -> GetJwksResponse {
        use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
        let jwk = |key: &(&str, &str)| Jwk {
            kid: key.1.to_owned(),
            x: URL_SAFE_NO_PAD.encode(bytes(key.1)),
            ..Jwk::default()
        };
        GetJwksResponse { keys: keys.iter().map(jwk).collect(), ..GetJwksResponse::default() }
    }

    pub(crate) fn claims(now: i64) -> Claims {
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
            scope: None,
            client_id: None,
        }
    }

    pub(crate) fn sign(key: (&str, &str), token_type: TokenType, claims: &Claims) -> String {
        install_crypto();
        let mut header = jsonwebtoken::Header::new(Algorithm::EdDSA);
        header.typ = Some(token_type.typ().to_owned());
        header.kid = Some(key.1.to_owned());
        // A private key of 32 bytes in PKCS #8 (RFC 8410).
        let der = [bytes("302e020100300506032b657004220420"), bytes(key.0)].concat();
        jsonwebtoken::encode(&header, claims, &jsonwebtoken::EncodingKey::from_ed_der(&der)).unwrap()
    }

    #[test]
    fn a_token_that_is_cached_after_its_key_was_removed_is_rejected() {
        let clock = Clock::default();
        let verifier = Verifier::new(clock.clone());
        verifier.update(key_set(&[FIRST]));
        let token = sign(FIRST, TokenType::Access, &claims(clock.unix()));

        // One thread verifies the token with the old keys; another removes the key; the first fills the cache.
        let old_keys = verifier.keys.load_full();
        let outdated = old_keys.verify(&token, clock.unix()).unwrap();
        verifier.update(key_set(&[SECOND]));
        verifier.verified.insert(Sha256::digest(&token).into(), outdated);

        assert_eq!(verifier.verify(&token, TokenType::Access).unwrap_err(), TokenError::Invalid);
        assert!(
            verifier
                .verify(&sign(SECOND, TokenType::Access, &claims(clock.unix())), TokenType::Access)
                .is_ok()
        );
    }

    #[test]
    fn a_caller_is_inactive_once_its_key_is_removed() {
        let clock = Clock::default();
        let verifier = Verifier::new(clock.clone());
        verifier.update(key_set(&[FIRST]));
        let token = sign(FIRST, TokenType::Access, &claims(clock.unix()));
        let caller = verifier.verify(&token, TokenType::Access).unwrap();
        verifier.update(key_set(&[SECOND, FIRST]));
        assert_eq!(verifier.check_active(&caller), Ok(()), "its key is the previous one");
        verifier.update(key_set(&[SECOND]));
        assert_eq!(verifier.check_active(&caller), Err(TokenError::Invalid));
    }

    #[test]
    fn a_token_with_a_longer_lifetime_than_the_maximum_is_rejected() {
        let clock = Clock::default();
        let verifier = Verifier::new(clock.clone());
        verifier.update(key_set(&[FIRST]));
        let now = clock.unix();
        let verify = |token_type: TokenType, claims: &Claims| {
            verifier.verify(&sign(FIRST, token_type, claims), token_type).map(drop)
        };
        let lives = |from: i64, until: i64| Claims { iat: from, exp: until, ..claims(now) };
        for (iat, exp, accepted) in [
            (now, now + MAX_TOKEN_LIFETIME, true),
            (now, now + MAX_TOKEN_LIFETIME + 1, false),
            (now - MAX_TOKEN_LIFETIME, now + 1, false),
            (now, i64::MAX, false),
            (i64::MIN, i64::MAX, false),
            (now + CLOCK_LEEWAY + 2, now + 3600, false),
        ] {
            for token_type in [TokenType::Access, TokenType::Socket] {
                let outcome = verify(token_type, &lives(iat, exp));
                assert_eq!(outcome.is_ok(), accepted, "{token_type:?} {iat} {exp}");
            }
        }
        let service = Claims { role: Role::Service, ..lives(now, now + MAX_TOKEN_LIFETIME + 1) };
        assert!(verify(TokenType::Access, &service).is_err());
        let ticket = |exp: i64, socket_exp| Claims { socket_exp, ..lives(now, exp) };
        assert!(verify(TokenType::WsTicket, &ticket(now + 30, Some(now + 3600))).is_ok());
        assert!(verify(TokenType::WsTicket, &ticket(now + 61, Some(now + 3600))).is_err(), "lives too long");
        assert!(verify(TokenType::WsTicket, &ticket(now + 30, None)).is_err(), "opens no socket");
        assert!(verify(TokenType::Access, &ticket(now + 30, Some(now + 3600))).is_err(), "is a ticket");
    }

    #[test]
    fn a_token_is_rejected_before_its_nbf() {
        let clock = Clock::default();
        let verifier = Verifier::new(clock.clone());
        verifier.update(key_set(&[FIRST]));
        let now = clock.unix();
        let token = sign(FIRST, TokenType::Access, &Claims { nbf: Some(now + 60), ..claims(now) });
        assert_eq!(verifier.verify(&token, TokenType::Access).unwrap_err(), TokenError::Invalid);
        clock.advance(std::time::Duration::from_mins(1));
        assert!(verifier.verify(&token, TokenType::Access).is_ok());
    }
}
