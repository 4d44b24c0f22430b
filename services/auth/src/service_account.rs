//! Service accounts: their administration. [`crate::service_client`] issues their tokens.

use prost::Message as _;
use secrecy::ExposeSecret as _;
use serde_json::json;
use shoppee_kit::{
    access::SCOPES,
    audit_log::{Actor, Change, Record, store::Store as _},
    caller::Caller,
    cursor,
    idempotency::{KEY_TTL, KeyReused, fingerprint},
    pg,
};
use shoppee_proto::{Timestamp, auth::v1 as wire};
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::{
    AuthContext,
    client_secret::NewSecret,
    error::Error,
    service_client::TOKEN_TTL,
    store::{
        audit_log::AuditLog,
        service_account::{self as store, NewServiceAccount, RequestKey, ServiceAccount, StoredRequest},
    },
};

/// The time for which the previous secret stays valid after a rotation: enough to deploy the new one to every process.
const PREVIOUS_SECRET_TTL: Duration = Duration::days(7);
/// Bounds the time from the check of an account to the signature of its token, with a margin. So a token that is issued
/// during a revocation expires before the revocation is deleted.
const MAX_ISSUE_DURATION: Duration = Duration::minutes(1);
const MAX_NAME_LEN: usize = 64;
/// The lifetime of an account, in seconds: a minute to ten years.
const LIFETIME_SECONDS: std::ops::RangeInclusive<i64> = 60..=10 * 366 * 24 * 60 * 60;

/// The name of a service account: 1..64 of `A-Z a-z 0-9 _ . -`.
#[derive(Clone, Debug)]
pub struct Name(String);

impl Name {
    pub fn parse(text: String) -> Result<Self, &'static str> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let is_valid = (1..=MAX_NAME_LEN).contains(&text.len()) && text.bytes().all(is_allowed);
        if is_valid { Ok(Self(text)) } else { Err("must be 1 to 64 of A-Z a-z 0-9 _ . -") }
    }
}

/// The scopes of a service account: one or more, each once, in alphabetical order.
#[derive(Clone, Debug)]
pub struct Scopes(Vec<String>);

impl Scopes {
    pub fn parse(mut scopes: Vec<String>) -> Result<Self, &'static str> {
        if scopes.is_empty() || scopes.len() > SCOPES.len() {
            return Err("must be one or more scopes, each once");
        }
        if scopes.iter().any(|scope| !SCOPES.contains(&scope.as_str())) {
            return Err("has an unknown scope");
        }
        scopes.sort_unstable();
        let len = scopes.len();
        scopes.dedup();
        if scopes.len() == len { Ok(Self(scopes)) } else { Err("has a scope twice") }
    }
}

/// Validates the lifetime of an account.
pub fn parse_lifetime(seconds: Option<i64>) -> Result<Option<Duration>, &'static str> {
    match seconds {
        Some(seconds) if !LIFETIME_SECONDS.contains(&seconds) => Err("must be 60 seconds to 10 years"),
        seconds => Ok(seconds.map(Duration::seconds)),
    }
}

/// The request for a new account.
#[derive(Debug)]
pub struct CreateServiceAccount {
    pub name: Name,
    pub scopes: Scopes,
    pub lifetime: Option<Duration>,
}

/// Creates an account. Returns it with its secret, and whether the request is a repeat.
#[tracing::instrument(name = "auth.create_service_account", skip_all)]
pub async fn create(
    context: &AuthContext,
    admin: &Caller,
    request: CreateServiceAccount,
    key: Option<String>,
) -> Result<(wire::ServiceAccount, bool), Error> {
    let CreateServiceAccount { name: Name(name), scopes: Scopes(scopes), lifetime } = request;
    let fingerprint = fingerprint(&(&name, &scopes, lifetime.map(Duration::whole_seconds)));
    let now = context.clock.now();
    let request =
        SecretRequest { admin_id: admin.user_id(), scope: "create".to_owned(), key, fingerprint, now };
    let secret = context.secret_keys.generate()?;
    let mut tx = context.pool.begin().await?;
    if let Some(answer) = request.claim(context, &mut tx, &secret).await? {
        return Ok((answer, true));
    }
    let new = NewServiceAccount {
        id: Uuid::now_v7(),
        name: &name,
        scopes: &scopes,
        secret_hash: &secret.hash,
        created_at: now,
        expires_at: lifetime.map(|lifetime| now + lifetime),
    };
    let account = message(store::insert(&mut tx, &new).await?);
    let fields = json!({"name": account.name, "scopes": account.scopes, "expires_at": account.expires_at});
    record(&mut tx, admin, "service_account.create", &account.id, Change::creation(fields), now).await?;
    request.save(&mut tx, &account).await?;
    tx.commit().await?;
    tracing::info!(service_account.id = account.id, "service account created");
    Ok((with_secret(account, &secret), false))
}

/// Gives an account another secret. Returns the account with it, and whether the request is a repeat.
#[tracing::instrument(name = "auth.rotate_service_account", skip_all, fields(service_account.id = id))]
pub async fn rotate(
    context: &AuthContext,
    admin: &Caller,
    id: &str,
    key: Option<String>,
) -> Result<(wire::ServiceAccount, bool), Error> {
    let id = parse_id(id)?;
    let now = context.clock.now();
    let (scope, fingerprint) = (format!("rotate/{id}"), fingerprint(&()));
    let request = SecretRequest { admin_id: admin.user_id(), scope, key, fingerprint, now };
    let secret = context.secret_keys.generate()?;
    let mut tx = context.pool.begin().await?;
    if let Some(answer) = request.claim(context, &mut tx, &secret).await? {
        return Ok((answer, true));
    }
    let before = store::get_for_update(&mut tx, id).await?.ok_or(Error::NotFound("service account"))?;
    let rotated = store::rotate(&mut tx, id, &secret.hash, now + PREVIOUS_SECRET_TTL).await?;
    let account = message(rotated.ok_or(Error::NotFound("service account"))?);
    let fields = |account: &wire::ServiceAccount| json!({"previous_secret_expires_at": account.previous_secret_expires_at});
    let change = Change::between(fields(&message(before)), fields(&account));
    record(&mut tx, admin, "service_account.rotate", &account.id, change, now).await?;
    request.save(&mut tx, &account).await?;
    tx.commit().await?;
    tracing::info!("service account rotated");
    Ok((with_secret(account, &secret), false))
}

/// Revokes an account with its secrets and tokens. A revoked account is no error.
#[tracing::instrument(name = "auth.revoke_service_account", skip_all, fields(service_account.id = id))]
pub async fn revoke(context: &AuthContext, admin: &Caller, id: &str) -> Result<(), Error> {
    let id = parse_id(id)?;
    let now = context.clock.now();
    let mut tx = context.pool.begin().await?;
    let Some(revoked) = store::revoke(&mut tx, id, now, now + TOKEN_TTL + MAX_ISSUE_DURATION).await? else {
        return store::get(&mut tx, id).await?.map(drop).ok_or(Error::NotFound("service account"));
    };
    let revoked_at = json!({"revoked_at": Timestamp::from(now)});
    let change = Change::between(json!({"revoked_at": null}), revoked_at);
    record(&mut tx, admin, "service_account.revoke", &id.to_string(), change, now).await?;
    tx.commit().await?;
    context.revocations.apply_to_service(revoked);
    tracing::info!("service account revoked");
    Ok(())
}

/// Records an act on an account in its transaction.
async fn record(
    tx: &mut PgConnection,
    admin: &Caller,
    action: &'static str,
    id: &str,
    change: Change,
    now: OffsetDateTime,
) -> Result<(), Error> {
    let (actor, target) = (Actor::from_caller(admin), format!("service_account:{id}"));
    Ok(AuditLog::insert(tx, &[Record::new(&actor, action, target, change)], now).await?)
}

pub async fn get(context: &AuthContext, id: &str) -> Result<wire::ServiceAccount, Error> {
    let id = parse_id(id)?;
    let mut conn = context.pool.acquire().await?;
    store::get(&mut conn, id).await?.map(message).ok_or(Error::NotFound("service account"))
}

/// Returns a page of accounts, newest first, and the cursor of the next page.
pub async fn list(
    context: &AuthContext,
    limit: i64,
    cursor: Option<&str>,
) -> Result<(Vec<wire::ServiceAccount>, Option<String>), Error> {
    let list = cursor::List::new(&"service accounts");
    let before = cursor.map(|cursor| list.decode::<Uuid>(cursor)).transpose().map_err(Error::Malformed)?;
    let mut conn = context.pool.acquire().await?;
    // One more row than requested shows whether there is another page.
    let mut accounts = store::list(&mut conn, before, limit + 1).await?;
    let size = usize::try_from(limit).unwrap_or_default();
    let has_more = accounts.len() > size;
    accounts.truncate(size);
    let next = accounts.last().filter(|_| has_more).map(|last| list.encode(&last.id));
    Ok((accounts.into_iter().map(message).collect(), next))
}

/// Parses the id of an account. An invalid id names no account.
fn parse_id(id: &str) -> Result<Uuid, Error> {
    id.parse().map_err(|_| Error::NotFound("service account"))
}

/// A request that gives an account a secret, with its optional idempotency key.
#[derive(Debug)]
struct SecretRequest {
    admin_id: i64,
    /// The operation and its object.
    scope: String,
    key: Option<String>,
    /// The hash of the content.
    fingerprint: Vec<u8>,
    now: OffsetDateTime,
}

impl SecretRequest {
    fn request_key(&self) -> Option<RequestKey<'_>> {
        let key = self.key.as_deref()?;
        Some(RequestKey { admin_id: self.admin_id, scope: &self.scope, key })
    }

    /// Claims the key in the transaction of the effect, or returns the response to the first request with its secret.
    async fn claim(
        &self,
        context: &AuthContext,
        tx: &mut PgConnection,
        secret: &NewSecret,
    ) -> Result<Option<wire::ServiceAccount>, Error> {
        let Some(key) = self.request_key() else { return Ok(None) };
        let request = StoredRequest {
            fingerprint: self.fingerprint.clone(),
            answer: Vec::new(),
            secret_salt: secret.salt.to_vec(),
            secret_hash: secret.hash.to_vec(),
        };
        match store::claim_key(tx, key, &request, self.now, self.now - KEY_TTL).await {
            Ok(true) => return Ok(None),
            Ok(false) => {}
            Err(error) if pg::is_lock_timeout(&error) => return Err(Error::InProgress),
            Err(error) => return Err(error.into()),
        }
        let stored = store::find_key(tx, key).await?.ok_or(Error::InProgress)?;
        if stored.fingerprint != self.fingerprint {
            return Err(KeyReused.into());
        }
        let account = wire::ServiceAccount::decode(stored.answer.as_slice());
        // The keys of the process were changed twice since: the secret is lost, and the client takes another key.
        let secret =
            context.secret_keys.recover(&stored.secret_salt, &stored.secret_hash).ok_or(KeyReused)?;
        let account = account.map_err(|_| Error::Internal("an undecodable stored response"))?;
        Ok(Some(wire::ServiceAccount { client_secret: Some(secret.expose_secret().to_owned()), ..account }))
    }

    /// Saves the response, which has no secret, in the transaction of the effect.
    async fn save(&self, tx: &mut PgConnection, account: &wire::ServiceAccount) -> Result<(), Error> {
        if let Some(key) = self.request_key() {
            store::save_answer(tx, key, &account.encode_to_vec()).await?;
        }
        Ok(())
    }
}

fn message(account: ServiceAccount) -> wire::ServiceAccount {
    wire::ServiceAccount {
        id: account.id.to_string(),
        name: account.name,
        scopes: account.scopes,
        created_at: Some(account.created_at.into()),
        expires_at: account.expires_at.map(Into::into),
        last_used_at: account.last_used_at.map(Into::into),
        previous_secret_expires_at: account.previous_secret_expires_at.map(Into::into),
        revoked_at: account.revoked_at.map(Into::into),
        client_secret: None,
    }
}

fn with_secret(account: wire::ServiceAccount, secret: &NewSecret) -> wire::ServiceAccount {
    wire::ServiceAccount { client_secret: Some(secret.text.expose_secret().to_owned()), ..account }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_valid_names_parse() {
        for good in ["warehouse", "W-1_x.y", &"x".repeat(64)] {
            assert!(Name::parse(good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", "a b", "é", "a\n", "a/b", &"x".repeat(65)] {
            assert!(Name::parse(bad.to_owned()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn scopes_are_known_and_each_once() {
        let parse = |scopes: &[&str]| {
            Scopes::parse(scopes.iter().map(|scope| (*scope).to_owned()).collect()).map(|scopes| scopes.0)
        };
        assert_eq!(parse(&["stock:hold", "orders:read"]).unwrap(), ["orders:read", "stock:hold"]);
        assert_eq!(parse(&SCOPES).unwrap(), SCOPES);
        for bad in
            [&[][..], &["orders:write"], &["orders:read", "orders:read"], &[""], &["orders:read stock:hold"]]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_lifetime_is_a_minute_to_ten_years() {
        assert_eq!(parse_lifetime(None), Ok(None));
        assert_eq!(parse_lifetime(Some(60)), Ok(Some(Duration::minutes(1))));
        for bad in [i64::MIN, -1, 0, 59, 400_000_000, i64::MAX] {
            assert!(parse_lifetime(Some(bad)).is_err(), "{bad}");
        }
    }
}
