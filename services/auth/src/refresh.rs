//! Going on with a session: each refresh token is good for one use and gives the next. One that comes back
//! later was stolen from its owner, or by its owner's thief: the session ends for both. Only who retries
//! within seconds, because the answer was lost, gets the same answer again.

use time::{Duration, OffsetDateTime};

use crate::{
    Auth,
    error::Error,
    session::{self, Grant},
    store::{
        account,
        session::{self as sessions, Use},
    },
    token::{self, RefreshToken},
};

/// How long the immediate predecessor may be sent again.
const RETRY: Duration = Duration::seconds(10);

/// What a token that belongs to a living session is worth.
enum Worth {
    Unused,
    /// Used, moments ago.
    Retried {
        successor: RefreshToken,
    },
    Reused,
}

fn worth(token: &RefreshToken, known: &Use, now: OffsetDateTime) -> Worth {
    match (known.used_at, &known.successor_salt) {
        (Some(used_at), Some(salt)) if now - used_at <= RETRY => {
            Worth::Retried { successor: token.successor(salt) }
        }
        (None, None) => Worth::Unused,
        (Some(_), _) | (None, Some(_)) => Worth::Reused,
    }
}

/// New tokens for a refresh token, with the name and the role that the account has now.
#[tracing::instrument(name = "auth.refresh", skip_all)]
pub async fn refresh(auth: &Auth, presented: &str) -> Result<Grant, Error> {
    let presented = RefreshToken::parse(presented).ok_or(Error::UnknownRefreshToken)?;
    let now = auth.clock.now();
    let mut tx = auth.pool.begin().await?;
    let family = sessions::family(&mut tx, &presented.hash()).await?.ok_or(Error::UnknownRefreshToken)?;
    let sid = family.session_id;
    let account = account::get_to_admit(&mut tx, family.user_id).await?.ok_or(Error::UnknownRefreshToken)?;
    let state = sessions::lock(&mut tx, sid).await?.ok_or(Error::UnknownRefreshToken)?;
    if state.ended_at.is_some() || account.disabled {
        return Err(Error::SessionEnded);
    }
    if state.expires_at <= now {
        return Err(Error::SessionExpired);
    }
    // Read under the lock: of two that come at once, the second finds what the first did.
    let known = sessions::token_use(&mut tx, &presented.hash()).await?.ok_or(Error::UnknownRefreshToken)?;
    let (next, expires_at) = match worth(&presented, &known, now) {
        Worth::Unused => {
            let salt = token::random()?;
            let next = presented.successor(&salt);
            sessions::use_token(&mut tx, &presented.hash(), &salt, now).await?;
            sessions::insert_token(&mut tx, sid, &next.hash()).await?;
            (next, now + auth.lifetimes.refresh)
        }
        // Still the immediate predecessor: its successor has not been used itself.
        Worth::Retried { successor } if is_unused(&mut tx, &successor).await? => {
            (successor, state.expires_at)
        }
        Worth::Retried { .. } | Worth::Reused => {
            let ended = sessions::end(&mut tx, account.id, sid, now).await?;
            tx.commit().await?;
            auth.revocations.note(ended.as_slice());
            tracing::warn!(user.id = account.id, session.id = %sid, "refresh token reused: session ended");
            return Err(Error::SessionEnded);
        }
    };
    sessions::prolong(&mut tx, sid, now, expires_at, now + auth.lifetimes.access).await?;
    tx.commit().await?;
    session::grant(auth, account, sid, &next, expires_at - now, now)
}

async fn is_unused(conn: &mut sqlx::PgConnection, token: &RefreshToken) -> Result<bool, sqlx::Error> {
    let known = sessions::token_use(conn, &token.hash()).await?;
    Ok(known.is_some_and(|known| known.used_at.is_none()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_used_token_may_come_back_for_ten_seconds() {
        let token = RefreshToken::random().unwrap();
        let used_at = OffsetDateTime::from_unix_timestamp(1_702_886_400).unwrap();
        let used = Use { used_at: Some(used_at), successor_salt: Some(vec![7; 32]) };
        let after = |seconds| worth(&token, &used, used_at + Duration::seconds(seconds));
        let successor = token.successor(&[7; 32]).hash();
        assert!(matches!(after(0), Worth::Retried { successor: s } if s.hash() == successor));
        assert!(matches!(after(10), Worth::Retried { .. }));
        assert!(matches!(after(11), Worth::Reused));
        let unused = Use { used_at: None, successor_salt: None };
        assert!(matches!(worth(&token, &unused, used_at), Worth::Unused));
    }
}
