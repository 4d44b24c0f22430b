//! Sign-in, and the limit of login attempts.
//!
//! An attempt is counted before the password is hashed, and under the account, for any spelling of its name. An unknown
//! name is counted and hashed in the same way, so that no response shows whether it exists. A device that has signed in
//! to the account before has a limit of its own ([`crate::device`]). So wrong passwords from elsewhere do not lock it out.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use shoppee_kit::pg::PgPool;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    AuthContext,
    account::{LoginName, Password},
    device::DeviceToken,
    error::Error,
    password::Verification,
    session::{self, IssuedTokens},
    store::{
        account::{self, Credentials},
        login_attempt::{self, Attempt},
        session as sessions,
    },
    token::RefreshToken,
};

/// Bounds the login attempts of an account within [`ATTEMPT_WINDOW`]: of all devices together that never signed in to
/// it, and of each device that did (`docs/API.md`).
pub const MAX_ATTEMPTS: i64 = 10;
pub const ATTEMPT_WINDOW: Duration = Duration::from_mins(1);
/// Bounds the retries of a refund to a part of [`ATTEMPT_WINDOW`], after which the attempt no longer counts.
const MAX_REFUND_RETRIES: u32 = 10;
const REFUND_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Verifies a password and starts a session. `device_token` is the token that an earlier sign-in issued to this device.
#[tracing::instrument(name = "auth.login", skip_all)]
pub async fn sign_in(
    context: &AuthContext,
    name: &LoginName,
    password: Password,
    user_agent: &str,
    device_token: Option<&str>,
) -> Result<IssuedTokens, Error> {
    let presented = device_token.and_then(|text| context.devices.verify(text));
    let (credentials, device, attempt) = {
        let mut conn = context.pool.acquire().await?;
        let credentials = account::find_credentials_by_name(&mut conn, name).await?;
        let device = presented
            .filter(|token| {
                credentials
                    .as_ref()
                    .is_some_and(|credentials| token.is_valid_for(credentials, context.clock.now()))
            })
            .map(|token| token.device);
        let subject = match (&credentials, device) {
            (Some(credentials), Some(device)) => Subject::device(credentials.id, device),
            (Some(credentials), None) => Subject::account(credentials.id),
            (None, _) => Subject::unknown(name),
        };
        let attempt = LoginAttempt::record(&mut conn, subject).await?;
        (credentials, device, attempt)
    };
    let stored = credentials.as_ref().map(|credentials| credentials.password_hash.clone());
    let verification = attempt.verify(context, password, stored).await?;
    let (credentials, new_hash) = match (credentials, verification) {
        (Some(credentials), Verification::Valid) => (credentials, None),
        (Some(credentials), Verification::ValidNeedsRehash(new_hash)) => (credentials, Some(new_hash)),
        (_, Verification::Invalid) | (None, _) => return Err(Error::InvalidCredentials),
    };
    // The device keeps its id, so that frequent sign-ins do not raise its limit.
    let device = device.unwrap_or_else(Uuid::new_v4);
    start_session(context, &credentials, &attempt, new_hash.as_deref(), user_agent, device).await
}

/// Verifies the caller's own password. Returns the credentials, and the attempt to refund. Attempts of signed-in
/// callers have a limit separate from sign-ins.
pub async fn verify_own_password(
    context: &AuthContext,
    user_id: i64,
    password: Password,
) -> Result<(Credentials, LoginAttempt), Error> {
    let (credentials, attempt) = {
        let mut conn = context.pool.acquire().await?;
        let attempt = LoginAttempt::record(&mut conn, Subject::signed_in(user_id)).await?;
        (account::find_credentials(&mut conn, user_id).await?.ok_or(Error::NotFound("user"))?, attempt)
    };
    match attempt.verify(context, password, Some(credentials.password_hash.clone())).await? {
        Verification::Valid | Verification::ValidNeedsRehash(_) => Ok((credentials, attempt)),
        Verification::Invalid => Err(Error::InvalidCredentials),
    }
}

/// Reports whether `password` is the password of an account, for an unauthenticated caller. The attempt counts as a
/// sign-in.
pub async fn verify_password_of(
    context: &AuthContext,
    user_id: i64,
    password: Password,
    stored: String,
) -> Result<bool, Error> {
    let attempt =
        LoginAttempt::record(context.pool.acquire().await?.as_mut(), Subject::account(user_id)).await?;
    match attempt.verify(context, password, Some(stored)).await? {
        Verification::Valid | Verification::ValidNeedsRehash(_) => {
            let mut tx = context.pool.begin().await?;
            attempt.refund(&mut tx).await?;
            tx.commit().await?;
            Ok(true)
        }
        Verification::Invalid => Ok(false),
    }
}

/// A counted login attempt.
#[derive(Clone, Debug)]
pub struct LoginAttempt {
    subject: Subject,
    at: OffsetDateTime,
}

impl LoginAttempt {
    async fn record(conn: &mut PgConnection, subject: Subject) -> Result<Self, Error> {
        match login_attempt::record(conn, &subject.0, MAX_ATTEMPTS, ATTEMPT_WINDOW).await? {
            Attempt::Allowed(at) => Ok(Self { subject, at }),
            Attempt::Limited(retry_after) => Err(Error::TooManyAttempts { retry_after }),
        }
    }

    /// Verifies the password. An attempt whose hash never started, because of load or because the caller left, is
    /// refunded.
    async fn verify(
        &self,
        context: &AuthContext,
        password: Password,
        stored: Option<String>,
    ) -> Result<Verification, Error> {
        let is_started = Arc::new(AtomicBool::new(false));
        let _guard =
            RefundGuard { is_started: is_started.clone(), attempt: self.clone(), pool: context.pool.clone() };
        Ok(context.hasher.verify(password, stored, is_started).await?)
    }

    /// Refunds an attempt with the right password, in a transaction.
    pub async fn refund(&self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        login_attempt::remove(conn, &self.subject.0, self.at).await
    }
}

/// A guard that refunds an attempt when it is dropped before the hash started, also if the caller left.
struct RefundGuard {
    is_started: Arc<AtomicBool>,
    attempt: LoginAttempt,
    pool: PgPool,
}

impl Drop for RefundGuard {
    fn drop(&mut self) {
        if self.is_started.load(Ordering::Acquire) {
            return;
        }
        let (pool, attempt) = (self.pool.clone(), self.attempt.clone());
        // Runs in the background: a cause that sheds a hash may keep the database busy too.
        tokio::spawn(async move {
            for _ in 0..MAX_REFUND_RETRIES {
                let refunding = async {
                    let mut tx = pool.begin().await?;
                    attempt.refund(&mut tx).await?;
                    tx.commit().await
                };
                match refunding.await {
                    Ok(()) => return,
                    Err(error) => tracing::debug!(%error, "refund of a login attempt failed, retried"),
                }
                tokio::time::sleep(REFUND_RETRY_DELAY).await;
            }
        });
    }
}

/// A subject, whose attempts are counted together.
#[derive(Clone, Copy, Debug)]
struct Subject([u8; 32]);

impl Subject {
    /// Names all devices that never signed in to the account, together.
    fn account(user_id: i64) -> Self {
        Self::hash(&format!("account {user_id}"))
    }

    /// Names a device that signed in to the account.
    fn device(user_id: i64, device: Uuid) -> Self {
        Self::hash(&format!("device {user_id} {device}"))
    }

    /// Names all sessions of the account.
    fn signed_in(user_id: i64) -> Self {
        Self::hash(&format!("signed in {user_id}"))
    }

    /// Names a login name without an account.
    fn unknown(name: &LoginName) -> Self {
        Self::hash(&format!("name {}", name.as_str()))
    }

    fn hash(text: &str) -> Self {
        Self(Sha256::digest(text).into())
    }
}

/// Starts the session of a verified account, unless the account has changed since its credentials were read.
async fn start_session(
    context: &AuthContext,
    credentials: &Credentials,
    attempt: &LoginAttempt,
    new_hash: Option<&str>,
    user_agent: &str,
    device: Uuid,
) -> Result<IssuedTokens, Error> {
    let now = context.clock.now();
    let (sid, refresh_token) = (Uuid::now_v7(), RefreshToken::random()?);
    let mut tx = context.pool.begin().await?;
    let account = account::get_for_share(&mut tx, credentials.id).await?.ok_or(Error::InvalidCredentials)?;
    if account.password_version != credentials.password_version {
        return Err(Error::InvalidCredentials);
    }
    if account.disabled {
        return Err(Error::AccountDisabled);
    }
    let new = sessions::NewSession {
        id: sid,
        user_id: account.id,
        user_agent,
        at: now,
        expires_at: now + context.lifetimes.refresh,
        access_expires_at: now + context.lifetimes.access,
    };
    sessions::insert(&mut tx, &new).await?;
    sessions::insert_token(&mut tx, sid, &refresh_token.hash()).await?;
    let revoked = sessions::revoke_oldest_over(&mut tx, account.id, session::MAX_SESSIONS_PER_USER).await?;
    attempt.refund(&mut tx).await?;
    tx.commit().await?;
    context.revocations.apply(&revoked);
    if let Some(password_hash) = new_hash {
        let mut conn = context.pool.acquire().await?;
        account::rehash(&mut conn, credentials.id, credentials.password_version, password_hash).await?;
    }
    let device_token = context.devices.sign(&DeviceToken {
        user_id: account.id,
        password_version: account.password_version,
        issued_at: now.unix_timestamp(),
        device,
    });
    let tokens =
        session::issue_tokens(context, account, sid, &refresh_token, context.lifetimes.refresh, now)?;
    Ok(IssuedTokens { device_token: Some(device_token), ..tokens })
}
