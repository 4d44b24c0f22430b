//! Tokens: the Ed25519 signing keys, which are derived from `JWT_SECRET`, and refresh tokens. `docs/API.md` describes
//! the access tokens.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{SigningKey, pkcs8::EncodePrivateKey as _};
use hkdf::Hkdf;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rand::{TryRngCore as _, rngs::OsRng};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use shoppee_kit::caller::{Claims, TokenType, install_crypto};
use shoppee_proto::auth::v1::Jwk;

/// The `info` of the key derivation. A change invalidates all tokens.
const JWT_KEY_INFO: &[u8] = b"shoppee-jwt-ed25519";
const SUCCESSOR_INFO: &[u8] = b"shoppee-refresh-successor";

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("signing: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
    #[error("key: {0}")]
    Key(#[from] ed25519_dalek::pkcs8::Error),
    #[error("random source of the operating system failed")]
    RandomSource,
}

/// A signer with the current key. It also publishes the previous key, so that older tokens stay valid.
pub struct Signer {
    current: EncodingKey,
    kid: String,
    jwks: Vec<Jwk>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl Signer {
    pub fn new(secret: &SecretString, previous: Option<&SecretString>) -> Result<Self, TokenError> {
        install_crypto();
        let key = derive_key(secret);
        let mut jwks = vec![jwk(&key)];
        jwks.extend(previous.map(|previous| jwk(&derive_key(previous))));
        jwks.dedup();
        Ok(Self {
            current: EncodingKey::from_ed_der(key.to_pkcs8_der()?.as_bytes()),
            kid: jwks[0].kid.clone(),
            jwks,
        })
    }

    pub fn sign(&self, kind: TokenType, claims: &Claims) -> Result<SecretString, TokenError> {
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(kind.typ().to_owned());
        header.kid = Some(self.kid.clone());
        Ok(jsonwebtoken::encode(&header, claims, &self.current)?.into())
    }

    /// Returns the public keys, the current one first.
    pub fn jwks(&self) -> &[Jwk] {
        &self.jwks
    }
}

fn derive_key(secret: &SecretString) -> SigningKey {
    SigningKey::from_bytes(&hkdf_sha256(None, secret.expose_secret().as_bytes(), JWT_KEY_INFO))
}

/// Derives 32 bytes by HKDF-SHA256 (RFC 5869).
pub fn hkdf_sha256(salt: Option<&[u8]>, secret: &[u8], info: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    // HKDF fails only for outputs of more than 255 hash lengths.
    let result = Hkdf::<Sha256>::new(salt, secret).expand(info, &mut out);
    debug_assert!(result.is_ok(), "32 bytes are one block");
    out
}

/// Encodes the public key by RFC 8037, with its thumbprint (RFC 7638) as the key id.
fn jwk(key: &SigningKey) -> Jwk {
    let x = URL_SAFE_NO_PAD.encode(key.verifying_key().as_bytes());
    let thumbprint = Sha256::digest(format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#));
    Jwk {
        kty: "OKP".to_owned(),
        crv: "Ed25519".to_owned(),
        alg: "EdDSA".to_owned(),
        r#use: "sig".to_owned(),
        kid: URL_SAFE_NO_PAD.encode(thumbprint),
        x,
    }
}

/// A refresh token of 256 random or derived bits. It is valid for one use, and only its hash is stored.
#[derive(Clone)]
pub struct RefreshToken([u8; 32]);

impl RefreshToken {
    pub fn random() -> Result<Self, TokenError> {
        random_bytes().map(Self)
    }

    /// Decodes a token; `None` if the text is no token.
    pub fn parse(text: &str) -> Option<Self> {
        // A token has 43 characters; other lengths are not decoded.
        let bytes = (text.len() == 43).then(|| URL_SAFE_NO_PAD.decode(text).ok()).flatten()?;
        bytes.try_into().map(Self).ok()
    }

    pub fn text(&self) -> SecretString {
        URL_SAFE_NO_PAD.encode(self.0).into()
    }

    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0).into()
    }

    /// Derives the successor of this token. It takes both the token and the salt, so that the successor can be issued
    /// again without being stored.
    #[must_use]
    pub fn successor(&self, salt: &[u8]) -> Self {
        Self(hkdf_sha256(Some(salt), &self.0, SUCCESSOR_INFO))
    }
}

/// Returns 256 random bits from the operating system.
pub fn random_bytes() -> Result<[u8; 32], TokenError> {
    let mut bytes = [0; 32];
    OsRng.try_fill_bytes(&mut bytes).map_err(|_| TokenError::RandomSource)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_derived_key_matches_an_independent_implementation() {
        // RFC 5869's algorithm and RFC 8032's public key, computed independently in Python.
        let signer = Signer::new(&SecretString::from("0123456789abcdef0123456789abcdef"), None).unwrap();
        let [key] = signer.jwks() else { panic!("one key") };
        assert_eq!(key.x, "LL2DqRKQIX4JZEgdwCp8Oegtcs8eKXULeYPJ4515Jdo");
        assert_eq!(key.kid, "XhbLJnOGUHC1Ap1AlJs4_61jPlL_uqFk84dA9MWxs6g");
    }

    #[test]
    fn the_previous_key_is_published_after_the_current_one() {
        let (new, old) = (SecretString::from("n".repeat(32)), SecretString::from("o".repeat(32)));
        let signer = Signer::new(&new, Some(&old)).unwrap();
        let kids: Vec<&str> = signer.jwks().iter().map(|key| key.kid.as_str()).collect();
        assert_eq!(kids, [signer.kid.as_str(), Signer::new(&old, None).unwrap().kid.as_str()]);
        assert_eq!(Signer::new(&new, Some(&new)).unwrap().jwks().len(), 1);
    }

    #[test]
    fn a_refresh_token_parses_from_its_text_only() {
        let token = RefreshToken::random().unwrap();
        let text = token.text();
        assert_eq!(RefreshToken::parse(text.expose_secret()).unwrap().hash(), token.hash());
        for invalid in
            ["", "x", &"A".repeat(42), &"A".repeat(44), &"!".repeat(43), &format!("{}=", "A".repeat(42))]
        {
            assert!(RefreshToken::parse(invalid).is_none(), "{invalid}");
        }
    }

    #[test]
    fn a_successor_depends_on_the_token_and_the_salt() {
        let (token, salt) = (RefreshToken::random().unwrap(), random_bytes().unwrap());
        let successor = token.successor(&salt);
        assert_eq!(successor.hash(), token.successor(&salt).hash());
        assert_ne!(successor.hash(), token.successor(&random_bytes().unwrap()).hash());
        assert_ne!(successor.hash(), RefreshToken::random().unwrap().successor(&salt).hash());
        assert_ne!(successor.hash(), token.hash());
    }
}
