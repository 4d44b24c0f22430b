//! Device tokens: a token identifies a device that has signed in to an account before. The device has a limit of login
//! attempts of its own, so that wrong passwords from elsewhere do not lock it out.
//!
//! A token alone does not authenticate a client. It belongs to one account, one version of its password and one device.
//! A change of the password invalidates all of them. A sign-in renews the token with the same device id.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::Sha256;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::{store::account::Credentials, token::hkdf_sha256};

/// The lifetime of a token after the last sign-in of its device.
pub const DEVICE_TOKEN_TTL: Duration = Duration::days(180);
const KEY_INFO: &[u8] = b"shoppee-device-token";
/// The size of the content: account, password version and time of issue have eight bytes each, the device id sixteen.
const CONTENT_BYTES: usize = 40;
const MAC_BYTES: usize = 32;
/// The length of a token in base64.
const TEXT_LEN: usize = (CONTENT_BYTES + MAC_BYTES) / 3 * 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceToken {
    pub user_id: i64,
    pub password_version: i64,
    /// The time of issue. Unix seconds.
    pub issued_at: i64,
    pub device: Uuid,
}

impl DeviceToken {
    /// Reports whether the token was issued for this account and its current password, and has not expired.
    pub fn is_valid_for(&self, account: &Credentials, now: OffsetDateTime) -> bool {
        self.user_id == account.id
            && self.password_version == account.password_version
            && self.issued_at > (now - DEVICE_TOKEN_TTL).unix_timestamp()
    }

    fn content(&self) -> Vec<u8> {
        let numbers = [self.user_id, self.password_version, self.issued_at].map(i64::to_be_bytes);
        [numbers.concat().as_slice(), self.device.as_bytes()].concat()
    }

    fn parse(content: &[u8]) -> Option<Self> {
        let (numbers, rest) = content.as_chunks::<8>();
        let [user_id, password_version, issued_at, high, low] = numbers else { return None };
        let device = Uuid::from_u64_pair(u64::from_be_bytes(*high), u64::from_be_bytes(*low));
        let [user_id, password_version, issued_at] =
            [user_id, password_version, issued_at].map(|bytes| i64::from_be_bytes(*bytes));
        rest.is_empty().then_some(Self { user_id, password_version, issued_at, device })
    }
}

/// The keys of device tokens. Tokens are signed with the current key; tokens of the previous key are accepted.
pub struct DeviceKeys {
    current: [u8; 32],
    previous: Option<[u8; 32]>,
}

impl std::fmt::Debug for DeviceKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceKeys").finish_non_exhaustive()
    }
}

impl DeviceKeys {
    pub fn new(secret: &SecretString, previous: Option<&SecretString>) -> Self {
        let derive = |secret: &SecretString| hkdf_sha256(None, secret.expose_secret().as_bytes(), KEY_INFO);
        Self { current: derive(secret), previous: previous.map(derive) }
    }

    pub fn sign(&self, token: &DeviceToken) -> SecretString {
        let mut bytes = token.content();
        if let Some(mac) = mac(&self.current, &bytes) {
            bytes.extend(mac.finalize().into_bytes());
        }
        URL_SAFE_NO_PAD.encode(bytes).into()
    }

    /// Verifies and decodes a token; `None` if the text is no valid token.
    pub fn verify(&self, text: &str) -> Option<DeviceToken> {
        let bytes = (text.len() == TEXT_LEN).then(|| URL_SAFE_NO_PAD.decode(text).ok()).flatten()?;
        let (content, tag) = bytes.split_at_checked(CONTENT_BYTES)?;
        let is_signed = |key: &[u8; 32]| mac(key, content).is_some_and(|mac| mac.verify_slice(tag).is_ok());
        [Some(&self.current), self.previous.as_ref()]
            .into_iter()
            .flatten()
            .any(is_signed)
            .then(|| DeviceToken::parse(content))
            .flatten()
    }
}

fn mac(key: &[u8; 32], content: &[u8]) -> Option<Hmac<Sha256>> {
    // HMAC accepts keys of any length.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    mac.update(content);
    Some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(secret: &str, previous: Option<&str>) -> DeviceKeys {
        DeviceKeys::new(&secret.into(), previous.map(SecretString::from).as_ref())
    }

    fn token() -> DeviceToken {
        DeviceToken { user_id: 7, password_version: 2, issued_at: 1_702_886_400, device: Uuid::new_v4() }
    }

    #[test]
    fn only_the_text_of_a_token_is_verified() {
        let (keys, token) = (keys("secret", None), token());
        let signed = keys.sign(&token);
        let text = signed.expose_secret();
        assert_eq!(keys.verify(text), Some(token));
        for place in 0..text.len() {
            let mut forged = text.as_bytes().to_vec();
            forged[place] = if forged[place] == b'A' { b'B' } else { b'A' };
            assert_eq!(keys.verify(std::str::from_utf8(&forged).unwrap()), None, "{place}");
        }
        for invalid in ["", "x", &text[1..], &format!("{text}A"), &"A".repeat(96), &"!".repeat(96)] {
            assert_eq!(keys.verify(invalid), None, "{invalid}");
        }
    }

    #[test]
    fn a_token_of_the_previous_secret_is_valid_and_of_an_older_one_is_not() {
        let token = token();
        let signed = keys("old", None).sign(&token);
        assert_eq!(keys("new", Some("old")).verify(signed.expose_secret()), Some(token));
        assert_eq!(keys("newer", Some("new")).verify(signed.expose_secret()), None);
    }

    #[test]
    fn a_token_is_valid_for_one_account_one_password_and_a_bounded_time() {
        let token = token();
        let account =
            |id, password_version| Credentials { id, password_hash: String::new(), password_version };
        let issued_at = OffsetDateTime::from_unix_timestamp(token.issued_at).unwrap();
        let last = issued_at + DEVICE_TOKEN_TTL - Duration::seconds(1);
        assert!(token.is_valid_for(&account(7, 2), issued_at) && token.is_valid_for(&account(7, 2), last));
        assert!(!token.is_valid_for(&account(7, 2), issued_at + DEVICE_TOKEN_TTL));
        assert!(!token.is_valid_for(&account(8, 2), issued_at));
        assert!(!token.is_valid_for(&account(7, 3), issued_at));
    }
}
