//! Signing in, and trying passwords at all.
//!
//! A try is counted before anything is hashed, and under the account, however its owner is spelt. An unknown name is
//! counted and hashed like any other, so that no answer tells whether it exists. A device that has signed in to the
//! account before has tries of its own ([`crate::device`]): wrong passwords from elsewhere do not lock it out.

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
    Auth,
    account::{LoginName, Password},
    device::DeviceToken,
    error::Error,
    password::Verdict,
    session::{self, Grant},
    store::{
        account::{self, Credentials},
        password_try::{self, Counted},
        session as sessions,
    },
    token::RefreshToken,
};

/// Tries of an account's password within [`WINDOW`]: by all devices together that never signed in to it, and by each
/// device that did (contract §3).
pub const MAX_TRIES: i64 = 10;
pub const WINDOW: Duration = Duration::from_mins(1);
/// The attempts to give back a try that was not made: for a part of [`WINDOW`], in which it counts.
const GIVE_BACK_ATTEMPTS: u32 = 10;
const GIVE_BACK_DELAY: Duration = Duration::from_secs(1);

/// Begins a session. `device_token` is what an earlier sign-in gave this device.
#[tracing::instrument(name = "auth.login", skip_all)]
pub async fn sign_in(
    auth: &Auth,
    name: &LoginName,
    password: Password,
    user_agent: &str,
    device_token: Option<&str>,
) -> Result<Grant, Error> {
    let presented = device_token.and_then(|text| auth.devices.verify(text));
    let (known, device, tried) = {
        let mut conn = auth.pool.acquire().await?;
        let known = account::credentials_of(&mut conn, name).await?;
        let device = presented
            .filter(|token| known.as_ref().is_some_and(|known| token.is_valid_for(known, auth.clock.now())))
            .map(|token| token.device);
        let subject = match (&known, device) {
            (Some(known), Some(device)) => Subject::device(known.id, device),
            (Some(known), None) => Subject::account(known.id),
            (None, _) => Subject::unknown(name),
        };
        let tried = Try::count(&mut conn, subject).await?;
        (known, device, tried)
    };
    let stored = known.as_ref().map(|known| known.password_hash.clone());
    let verdict = tried.verify(auth, password, stored).await?;
    let (known, rehashed) = match (known, verdict) {
        (Some(known), Verdict::Right) => (known, None),
        (Some(known), Verdict::RightButWeak(anew)) => (known, Some(anew)),
        (_, Verdict::Wrong) | (None, _) => return Err(Error::InvalidCredentials),
    };
    // A device stays the same one: signing in often earns it no more tries.
    let device = device.unwrap_or_else(Uuid::new_v4);
    admit(auth, &known, &tried, rehashed.as_deref(), user_agent, device).await
}

/// Counts a try of the caller's own password, then makes it. Returns the checked credentials, where the password was
/// right, and the try to give back. A caller that is signed in has ten tries apart from those of sign-ins.
pub async fn try_own(auth: &Auth, user_id: i64, password: Password) -> Result<(Credentials, Try), Error> {
    let (known, tried) = {
        let mut conn = auth.pool.acquire().await?;
        let tried = Try::count(&mut conn, Subject::signed_in(user_id)).await?;
        (account::credentials(&mut conn, user_id).await?.ok_or(Error::NotFound("user"))?, tried)
    };
    match tried.verify(auth, password, Some(known.password_hash.clone())).await? {
        Verdict::Right | Verdict::RightButWeak(_) => Ok((known, tried)),
        Verdict::Wrong => Err(Error::InvalidCredentials),
    }
}

/// Reports whether `password` is the one of an account, for a caller that is not signed in here. The try counts as one
/// to sign in.
pub async fn is_password_of(
    auth: &Auth,
    user_id: i64,
    password: Password,
    stored: String,
) -> Result<bool, Error> {
    let tried = Try::count(auth.pool.acquire().await?.as_mut(), Subject::account(user_id)).await?;
    match tried.verify(auth, password, Some(stored)).await? {
        Verdict::Right | Verdict::RightButWeak(_) => {
            let mut tx = auth.pool.begin().await?;
            tried.give_back(&mut tx).await?;
            tx.commit().await?;
            Ok(true)
        }
        Verdict::Wrong => Ok(false),
    }
}

/// A try that was counted.
#[derive(Clone, Debug)]
pub struct Try {
    subject: Subject,
    at: OffsetDateTime,
}

impl Try {
    async fn count(conn: &mut PgConnection, subject: Subject) -> Result<Self, Error> {
        match password_try::count(conn, &subject.0, MAX_TRIES, WINDOW).await? {
            Counted::Let(at) => Ok(Self { subject, at }),
            Counted::Refused(retry_after) => Err(Error::TooManyAttempts { retry_after }),
        }
    }

    /// Compares the password. A try that never came to be hashed, because too many were or the caller left, does not
    /// count.
    async fn verify(
        &self,
        auth: &Auth,
        password: Password,
        stored: Option<String>,
    ) -> Result<Verdict, Error> {
        let made = Arc::new(AtomicBool::new(false));
        let _given_back =
            GiveBackUnlessMade { made: made.clone(), tried: self.clone(), pool: auth.pool.clone() };
        Ok(auth.hasher.verify(password, stored, made).await?)
    }

    /// Gives back a try with the right password, in a transaction.
    pub async fn give_back(&self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        password_try::give_back(conn, &self.subject.0, self.at).await
    }
}

/// Gives a try back when dropped before it was made, also where the caller hung up.
struct GiveBackUnlessMade {
    made: Arc<AtomicBool>,
    tried: Try,
    pool: PgPool,
}

impl Drop for GiveBackUnlessMade {
    fn drop(&mut self) {
        if self.made.load(Ordering::Acquire) {
            return;
        }
        let (pool, tried) = (self.pool.clone(), self.tried.clone());
        // The caller does not wait for this: a cause that sheds a hash may keep the database busy too.
        tokio::spawn(async move {
            for _ in 0..GIVE_BACK_ATTEMPTS {
                let given_back = async {
                    let mut tx = pool.begin().await?;
                    tried.give_back(&mut tx).await?;
                    tx.commit().await
                };
                match given_back.await {
                    Ok(()) => return,
                    Err(error) => tracing::debug!(%error, "a try that was not made is not given back yet"),
                }
                tokio::time::sleep(GIVE_BACK_DELAY).await;
            }
        });
    }
}

/// The subject whose tries are counted together.
#[derive(Clone, Copy, Debug)]
struct Subject([u8; 32]);

impl Subject {
    /// Names the devices that never signed in to the account, all of them together.
    fn account(user_id: i64) -> Self {
        Self::of(&format!("account {user_id}"))
    }

    /// Names a device that did.
    fn device(user_id: i64, device: Uuid) -> Self {
        Self::of(&format!("device {user_id} {device}"))
    }

    /// Names all sessions of the account.
    fn signed_in(user_id: i64) -> Self {
        Self::of(&format!("signed in {user_id}"))
    }

    /// Names the tries of a name that no account has.
    fn unknown(name: &LoginName) -> Self {
        Self::of(&format!("name {}", name.as_str()))
    }

    fn of(text: &str) -> Self {
        Self(Sha256::digest(text).into())
    }
}

/// Begins the session of somebody whose password was right, unless the account has changed since it was read.
async fn admit(
    auth: &Auth,
    known: &Credentials,
    tried: &Try,
    rehashed: Option<&str>,
    user_agent: &str,
    device: Uuid,
) -> Result<Grant, Error> {
    let now = auth.clock.now();
    let (sid, refresh_token) = (Uuid::now_v7(), RefreshToken::random()?);
    let mut tx = auth.pool.begin().await?;
    let account = account::get_to_admit(&mut tx, known.id).await?.ok_or(Error::InvalidCredentials)?;
    if account.password_version != known.password_version {
        return Err(Error::InvalidCredentials);
    }
    if account.disabled {
        return Err(Error::AccountDisabled);
    }
    let new = sessions::New {
        id: sid,
        user_id: account.id,
        user_agent,
        at: now,
        expires_at: now + auth.lifetimes.refresh,
        access_expires_at: now + auth.lifetimes.access,
    };
    sessions::insert(&mut tx, &new).await?;
    sessions::insert_token(&mut tx, sid, &refresh_token.hash()).await?;
    let surplus = sessions::end_surplus(&mut tx, account.id, session::MOST).await?;
    tried.give_back(&mut tx).await?;
    tx.commit().await?;
    auth.revocations.note(&surplus);
    if let Some(password_hash) = rehashed {
        let mut conn = auth.pool.acquire().await?;
        account::rehash(&mut conn, known.id, known.password_version, password_hash).await?;
    }
    let device_token = auth.devices.sign(&DeviceToken {
        user_id: account.id,
        password_version: account.password_version,
        issued_at: now.unix_timestamp(),
        device,
    });
    let grant = session::grant(auth, account, sid, &refresh_token, auth.lifetimes.refresh, now)?;
    Ok(Grant { device_token: Some(device_token), ..grant })
}
