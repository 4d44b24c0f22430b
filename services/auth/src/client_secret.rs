//! Client secrets of service accounts: 256 bits each, of which only the hash is stored.
//!
//! A secret is derived from a random salt with a key that only this process has (HKDF-SHA256). The salt is stored only
//! with an idempotency key: a repeat of the request then gets the same secret, which is in no table.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};

use crate::token::{TokenError, hkdf_sha256, random_bytes};

const KEY_INFO: &[u8] = b"shoppee-client-secret-key";
const SECRET_INFO: &[u8] = b"shoppee-client-secret";

/// Returns the hash under which a client secret is stored. The secret has 256 random bits, which no attacker can try, so
/// that a slow hash (argon2) would add cost and no protection.
pub fn hash(secret: &SecretString) -> [u8; 32] {
    Sha256::digest(secret.expose_secret()).into()
}

/// The keys that secrets are derived with: those of `JWT_SECRET` and `JWT_SECRET_PREVIOUS`.
pub struct SecretKeys {
    current: [u8; 32],
    previous: Option<[u8; 32]>,
}

impl std::fmt::Debug for SecretKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretKeys").finish_non_exhaustive()
    }
}

/// A new client secret.
#[derive(Debug)]
pub struct NewSecret {
    pub text: SecretString,
    pub salt: [u8; 32],
    pub hash: [u8; 32],
}

impl SecretKeys {
    pub fn new(secret: &SecretString, previous: Option<&SecretString>) -> Self {
        let derive = |secret: &SecretString| hkdf_sha256(None, secret.expose_secret().as_bytes(), KEY_INFO);
        Self { current: derive(secret), previous: previous.map(derive) }
    }

    pub fn generate(&self) -> Result<NewSecret, TokenError> {
        let salt = random_bytes()?;
        let text = derive_secret(&self.current, &salt);
        Ok(NewSecret { hash: hash(&text), text, salt })
    }

    /// Derives the secret with this salt and hash again; `None` if its key was removed since.
    pub fn recover(&self, salt: &[u8], expected_hash: &[u8]) -> Option<SecretString> {
        [Some(&self.current), self.previous.as_ref()]
            .into_iter()
            .flatten()
            .map(|key| derive_secret(key, salt))
            .find(|secret| hash(secret) == expected_hash)
    }
}

fn derive_secret(key: &[u8; 32], salt: &[u8]) -> SecretString {
    URL_SAFE_NO_PAD.encode(hkdf_sha256(Some(salt), key, SECRET_INFO)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(secret: &str, previous: Option<&str>) -> SecretKeys {
        SecretKeys::new(&SecretString::from(secret), previous.map(SecretString::from).as_ref())
    }

    #[test]
    fn a_secret_is_recovered_with_the_current_and_the_previous_key_only() {
        let new = keys("one", None).generate().unwrap();
        assert_eq!(new.text.expose_secret().len(), 43);
        for (keys, recovers) in [
            (keys("one", None), true),
            (keys("two", Some("one")), true),
            (keys("two", None), false),
            (keys("three", Some("two")), false),
        ] {
            let recovered = keys.recover(&new.salt, &new.hash);
            assert_eq!(recovered.is_some(), recovers);
            assert!(recovered.is_none_or(|text| text.expose_secret() == new.text.expose_secret()));
        }
        assert!(keys("one", None).recover(&[0; 32], &new.hash).is_none(), "another salt");
    }

    #[test]
    fn secrets_differ() {
        let keys = keys("one", None);
        let (one, two) = (keys.generate().unwrap(), keys.generate().unwrap());
        assert_ne!(one.text.expose_secret(), two.text.expose_secret());
        assert_ne!(one.hash, two.hash);
    }
}
