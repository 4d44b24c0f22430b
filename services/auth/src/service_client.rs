//! Internal callers: who may have a token of the role `service`, and the token.
//!
//! Their secrets are random and long, so that tries need no counting.

use std::collections::HashMap;

use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use shoppee_kit::caller::{AUDIENCE, Claims, ISSUER, Kind, Role};
use subtle::ConstantTimeEq as _;
use time::Duration;
use uuid::Uuid;

use crate::{Auth, error::Error};

/// Short enough that a rotated secret is soon out of use; callers renew at half of it.
const LIFETIME: Duration = Duration::hours(1);

/// The clients by name, with the hashes of their secrets: what is compared has one length.
#[derive(Debug)]
pub struct ServiceClients(HashMap<String, [u8; 32]>);

impl ServiceClients {
    pub const LONGEST_ID: usize = 64;

    pub fn new(secrets: &HashMap<String, SecretString>) -> Self {
        Self(secrets.iter().map(|(id, secret)| (id.clone(), digest(secret))).collect())
    }

    /// Whether this is the client's secret; an unknown client is compared too.
    fn admit(&self, id: &str, secret: &SecretString) -> bool {
        let known = self.0.get(id);
        let same = known.unwrap_or(&[0; 32]).ct_eq(&digest(secret));
        known.is_some() && bool::from(same)
    }
}

fn digest(secret: &SecretString) -> [u8; 32] {
    Sha256::digest(secret.expose_secret()).into()
}

/// A token for a client, and how many seconds it is good.
pub fn issue(auth: &Auth, id: &str, secret: &SecretString) -> Result<(SecretString, i64), Error> {
    if !auth.clients.admit(id, secret) {
        return Err(Error::InvalidCredentials);
    }
    let now = auth.clock.unix();
    let claims = Claims {
        iss: ISSUER.to_owned(),
        aud: AUDIENCE.to_owned(),
        // It acts for no user.
        sub: "0".to_owned(),
        user_id: 0,
        username: id.to_owned(),
        role: Role::Service,
        sid: Uuid::new_v4(),
        jti: Uuid::new_v4(),
        iat: now,
        exp: now + LIFETIME.whole_seconds(),
        nbf: None,
        socket_exp: None,
    };
    Ok((auth.signer.sign(Kind::Access, &claims)?, LIFETIME.whole_seconds()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_its_own_secret() {
        let secrets = [("order", "one"), ("other", "two")]
            .map(|(id, secret)| (id.to_owned(), SecretString::from(secret)));
        let clients = ServiceClients::new(&HashMap::from(secrets));
        for (id, secret, admitted) in [
            ("order", "one", true),
            ("other", "two", true),
            ("order", "two", false),
            ("order", "", false),
            ("Order", "one", false),
            ("", "", false),
            ("nobody", "one", false),
        ] {
            assert_eq!(clients.admit(id, &SecretString::from(secret)), admitted, "{id} {secret}");
        }
    }
}
