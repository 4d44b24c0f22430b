//! Service clients: the client credentials and access tokens of programs (RFC 6749 §4.4), with the role `service`. A
//! client is a service account, or one of the setting `SERVICE_CLIENTS`.
//!
//! Secrets are long and random, so that wrong ones are not counted: a limit would let strangers lock a service out.

use std::{collections::HashMap, time::Duration as StdDuration};

use secrecy::SecretString;
use shoppee_kit::caller::{AUDIENCE, Claims, ISSUER, Role, TokenType};
use subtle::ConstantTimeEq as _;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::{AuthContext, client_secret, error::Error, store::service_account as store};

/// The lifetime of a service token, short so that a rotated secret soon has no effect. Clients renew at half of it.
pub const TOKEN_TTL: Duration = Duration::minutes(15);
/// The scopes of the clients in `SERVICE_CLIENTS`.
const BOOTSTRAP_SCOPES: [&str; 1] = ["stock:hold"];
/// Bounds the tokens of an account: so many at once, then one in each interval. A process needs one in seven minutes.
const TOKEN_BURST: i32 = 60;
const TOKEN_INTERVAL: StdDuration = StdDuration::from_secs(1);
/// Bounds the text of requested scopes: all of them take about 100 bytes.
const MAX_SCOPE_BYTES: usize = 512;

/// The clients of the setting by id, with the hashes of their secrets, which are compared because they have one length.
#[derive(Debug)]
pub struct ServiceClients(HashMap<String, [u8; 32]>);

impl ServiceClients {
    pub const MAX_ID_BYTES: usize = 64;

    pub fn new(secrets: &HashMap<String, SecretString>) -> Self {
        Self(secrets.iter().map(|(id, secret)| (id.clone(), client_secret::hash(secret))).collect())
    }

    /// Reports whether this is the client's secret, in constant time, also for an unknown client.
    fn verify(&self, id: &str, secret_hash: &[u8; 32]) -> bool {
        let expected = self.0.get(id);
        let is_equal = expected.unwrap_or(&[0; 32]).ct_eq(secret_hash);
        expected.is_some() && bool::from(is_equal)
    }
}

/// An authenticated client.
#[derive(Debug)]
struct Client {
    id: String,
    /// `None` for a client of the setting.
    account_id: Option<Uuid>,
    name: String,
    /// The `sid` of its tokens, by which they are revoked.
    sid: Uuid,
    scopes: Vec<String>,
    expires_at: Option<OffsetDateTime>,
}

/// An issued access token.
#[derive(Debug)]
pub struct IssuedToken {
    pub token: SecretString,
    /// Seconds.
    pub expires_in: i64,
    /// Separated by spaces.
    pub scope: String,
}

/// Issues a token with the requested scopes of a client, or with all.
#[tracing::instrument(name = "auth.issue_service_token", skip_all)]
pub async fn issue(
    context: &AuthContext,
    id: &str,
    secret: &SecretString,
    scope: Option<&str>,
) -> Result<IssuedToken, Error> {
    let now = context.clock.now();
    let client = authenticate(context, id, secret, now).await?;
    let scope = narrow(&client.scopes, scope)?.join(" ");
    let iat = now.unix_timestamp();
    let exp = now + TOKEN_TTL;
    let exp = client.expires_at.map_or(exp, |expires_at| expires_at.min(exp)).unix_timestamp();
    if exp <= iat {
        // The account ends within this second.
        return Err(Error::InvalidCredentials);
    }
    if let Some(account_id) = client.account_id {
        record_token(context, account_id, now).await?;
    }
    let claims = Claims {
        iss: ISSUER.to_owned(),
        aud: AUDIENCE.to_owned(),
        // The token acts for no user.
        sub: "0".to_owned(),
        user_id: 0,
        username: client.name,
        role: Role::Service,
        sid: client.sid,
        jti: Uuid::new_v4(),
        iat,
        exp,
        nbf: None,
        socket_exp: None,
        scope: Some(scope.clone()),
        client_id: Some(client.id),
    };
    Ok(IssuedToken { token: context.signer.sign(TokenType::Access, &claims)?, expires_in: exp - iat, scope })
}

/// Returns the client with these credentials. An unknown, expired or revoked client and a wrong secret have the same
/// answer.
async fn authenticate(
    context: &AuthContext,
    id: &str,
    secret: &SecretString,
    now: OffsetDateTime,
) -> Result<Client, Error> {
    let secret_hash = client_secret::hash(secret);
    if context.clients.verify(id, &secret_hash) {
        let scopes = BOOTSTRAP_SCOPES.map(str::to_owned).to_vec();
        return Ok(Client {
            id: id.to_owned(),
            account_id: None,
            name: id.to_owned(),
            sid: Uuid::new_v4(),
            scopes,
            expires_at: None,
        });
    }
    let account_id: Uuid = id.parse().map_err(|_| Error::InvalidCredentials)?;
    let mut conn = context.pool.acquire().await?;
    let account = store::find_credentials(&mut conn, account_id).await?;
    let account = account.ok_or(Error::InvalidCredentials)?;
    let is_current = account.secret_hash.ct_eq(&secret_hash);
    let previous = account.previous_secret_hash.as_deref().unwrap_or(&[0; 32]).ct_eq(&secret_hash);
    let is_previous =
        bool::from(previous) && account.previous_secret_expires_at.is_some_and(|expires_at| now < expires_at);
    let is_active = account.expires_at.is_none_or(|expires_at| now < expires_at);
    if !is_active || !(bool::from(is_current) || is_previous) {
        return Err(Error::InvalidCredentials);
    }
    Ok(Client {
        id: account_id.to_string(),
        account_id: Some(account_id),
        name: account.name,
        sid: account_id,
        scopes: account.scopes,
        expires_at: account.expires_at,
    })
}

/// Counts a token of an account, and marks the account as used.
async fn record_token(context: &AuthContext, account_id: Uuid, now: OffsetDateTime) -> Result<(), Error> {
    let mut conn = context.pool.acquire().await?;
    let interval = TOKEN_INTERVAL.as_secs_f64();
    if store::record_token(&mut conn, account_id, now, TOKEN_BURST, interval).await? {
        Ok(())
    } else {
        Err(Error::TooManyTokens { retry_after: TOKEN_INTERVAL })
    }
}

/// Returns the requested scopes, which must be among those of the client, each once.
fn narrow<'a>(own: &'a [String], requested: Option<&str>) -> Result<Vec<&'a str>, Error> {
    let requested = requested.unwrap_or_default();
    let mut names: Vec<&str> = requested.split(' ').filter(|name| !name.is_empty()).collect();
    if requested.len() > MAX_SCOPE_BYTES || names.iter().any(|name| !own.iter().any(|own| own == name)) {
        return Err(Error::invalid("scope", "has a scope that the client does not have"));
    }
    if names.is_empty() {
        names.extend(own.iter().map(String::as_str));
    }
    Ok(own.iter().map(String::as_str).filter(|own| names.contains(own)).collect())
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
            let hash = client_secret::hash(&SecretString::from(secret));
            assert_eq!(clients.verify(id, &hash), is_valid, "{id} {secret}");
        }
    }

    #[test]
    fn requested_scopes_narrow_and_never_widen() {
        let own = ["orders:read".to_owned(), "orders:ship".to_owned()];
        let all = ["orders:read", "orders:ship"];
        assert_eq!(narrow(&own, None).unwrap(), all);
        assert_eq!(narrow(&own, Some("")).unwrap(), all);
        assert_eq!(narrow(&own, Some("orders:ship")).unwrap(), ["orders:ship"]);
        assert_eq!(narrow(&own, Some("orders:ship orders:read orders:ship")).unwrap(), all);
        let long = "orders:read ".repeat(50);
        for wide in [
            "stock:hold",
            "orders:read stock:hold",
            "orders",
            "*",
            "orders:read\tstock:hold",
            "ORDERS:READ",
            &long,
        ] {
            assert!(narrow(&own, Some(wide)).is_err(), "{wide}");
        }
    }
}
