//! Signing in, and trying passwords at all.
//!
//! A try is counted before anything is hashed, and under the account, however its owner is spelt; an unknown
//! name is counted and hashed like any other, so that nothing tells whether it exists.

use std::time::Duration;

use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    Auth,
    account::{LoginName, Password},
    error::Error,
    password::Verdict,
    session::{self, Grant},
    store::{
        account::{self, Credentials},
        password_try::{self, Counted, Subject},
        session as sessions,
    },
    token::RefreshToken,
};

/// Tries of one account's password within [`WINDOW`] (contract §3).
pub const MOST_TRIES: i64 = 10;
pub const WINDOW: Duration = Duration::from_mins(1);

/// Begins a session.
#[tracing::instrument(name = "auth.login", skip_all)]
pub async fn sign_in(
    auth: &Auth,
    name: &LoginName,
    password: Password,
    user_agent: &str,
) -> Result<Grant, Error> {
    let (known, tried) = {
        let mut conn = auth.pool.acquire().await?;
        let known = account::credentials_of(&mut conn, name).await?;
        let subject = known.as_ref().map_or_else(|| nobody(name), |known| somebody(known.id));
        let tried = Try::count(&mut conn, subject).await?;
        (known, tried)
    };
    let stored = known.as_ref().map(|known| known.password_hash.clone());
    let verdict = auth.hasher.verify(password, stored).await?;
    match (known, verdict) {
        (Some(known), Verdict::Right) => admit(auth, &known, &tried, None, user_agent).await,
        (Some(known), Verdict::RightButWeak(anew)) => {
            admit(auth, &known, &tried, Some(&anew), user_agent).await
        }
        (_, Verdict::Wrong) | (None, _) => Err(Error::InvalidCredentials),
    }
}

/// Counts a try of the caller's own password, then makes it. What was checked, where it was right, and the
/// try to give back.
pub async fn try_own(auth: &Auth, user_id: i64, password: Password) -> Result<(Credentials, Try), Error> {
    let (known, tried) = {
        let mut conn = auth.pool.acquire().await?;
        let tried = Try::count(&mut conn, somebody(user_id)).await?;
        (account::credentials(&mut conn, user_id).await?.ok_or(Error::NotFound("user"))?, tried)
    };
    match auth.hasher.verify(password, Some(known.password_hash.clone())).await? {
        Verdict::Right | Verdict::RightButWeak(_) => Ok((known, tried)),
        Verdict::Wrong => Err(Error::InvalidCredentials),
    }
}

/// A try that was counted.
#[derive(Debug)]
pub struct Try {
    subject: Subject,
    at: OffsetDateTime,
}

impl Try {
    async fn count(conn: &mut PgConnection, subject: Subject) -> Result<Self, Error> {
        match password_try::count(conn, &subject, MOST_TRIES, WINDOW).await? {
            Counted::Let(at) => Ok(Self { subject, at }),
            Counted::Refused(retry_after) => Err(Error::TooManyAttempts { retry_after }),
        }
    }

    /// For one that was right.
    pub async fn give_back(&self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        password_try::give_back(conn, &self.subject, self.at).await
    }
}

fn somebody(user_id: i64) -> Subject {
    Sha256::digest(format!("account {user_id}")).into()
}

fn nobody(name: &LoginName) -> Subject {
    Sha256::digest(format!("name {}", name.as_str())).into()
}

/// Begins the session of somebody whose password was right, unless the account has changed since it was read.
async fn admit(
    auth: &Auth,
    known: &Credentials,
    tried: &Try,
    rehashed: Option<&str>,
    user_agent: &str,
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
    session::grant(auth, account, sid, &refresh_token, auth.lifetimes.refresh, now)
}
