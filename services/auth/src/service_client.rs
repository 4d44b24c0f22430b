//! Service clients: credentials and access tokens of internal callers, with the role `service`.
//!
//! Their secrets are long and random, so attempts are not limited.

use std::collections::HashMap;

use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use shoppee_kit::caller::{AUDIENCE, Claims, ISSUER, Role, TokenType};
use subtle::ConstantTimeEq as _;
use time::Duration;
use uuid::Uuid;

use crate::{AuthContext, error::Error};

/// The lifetime of a service token, short so that a rotated secret soon has no effect. Clients renew at half of it.
const TOKEN_TTL: Duration = Duration::hours(1);

/// The clients by id, with the hashes of their secrets, which are compared because they have one length.
#[derive(Debug)]
pub struct ServiceClients(HashMap<String, [u8; 32]>);

impl ServiceClients {
    pub const MAX_ID_BYTES: usize = 64;

    pub fn new(secrets: &HashMap<String, SecretString>) -> Self {
        Self(secrets.iter().map(|(id, secret)| (id.clone(), digest(secret))).collect())
    }

    /// Reports whether this is the client's secret, in constant time, also for an unknown client.
    fn verify(&self, id: &str, secret: &SecretString) -> bool {
        let expected = self.0.get(id);
        let is_equal = expected.unwrap_or(&[0; 32]).ct_eq(&digest(secret));
        expected.is_some() && bool::from(is_equal)
    }
}

fn digest(secret: &SecretString) -> [u8; 32] {
    Sha256::digest(secret.expose_secret()).into()
}

/// Issues a token to a client, and returns it with its lifetime in seconds.
pub fn issue(context: &AuthContext, id: &str, secret: &SecretString) -> Result<(SecretString, i64), Error> {
    if !context.clients.verify(id, secret) {
        return Err(Error::InvalidCredentials);
    }
    let now = context.clock.unix();
    let claims = Claims {
        iss: ISSUER.to_owned(),
        aud: AUDIENCE.to_owned(),
        // The token acts for no user.
        sub: "0".to_owned(),
        user_id: 0,
        username: id.to_owned(),
        role: Role::Service,
        sid: Uuid::new_v4(),
        jti: Uuid::new_v4(),
        iat: now,
        exp: now + TOKEN_TTL.whole_seconds(),
        nbf: None,
        socket_exp: None,
    };
    Ok((context.signer.sign(TokenType::Access, &claims)?, TOKEN_TTL.whole_seconds()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_verified_by_its_own_secret_only() {
        let secrets = [("order", "one"), ("other", "two")]
            .map(|(id, secret)| (id.to_owned(), SecretString::from(secret)));
        let clients = ServiceClients::new(&HashMap::from(secrets));
        for (id, secret, is_valid) in [
            ("order", "one", true),
            ("other", "two", true),
            ("order", "two", false),
            ("order", "", false),
            ("Order", "one", false),
            ("", "", false),
            ("nobody", "one", false),
        ] {
            assert_eq!(clients.verify(id, &SecretString::from(secret)), is_valid, "{id} {secret}");
        }
    }
}
