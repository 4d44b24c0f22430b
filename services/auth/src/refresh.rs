//! Refresh token rotation with reuse detection. Each refresh token is valid for one use and yields its successor. The
//! reuse of a token indicates theft, and revokes the session. A retry within a few seconds, after a lost response, gets
//! the same successor again.

use time::{Duration, OffsetDateTime};

use crate::{
    AuthContext,
    error::Error,
    session::{self, IssuedTokens},
    store::{
        account,
        session::{self as sessions, TokenUsage},
    },
    token::{self, RefreshToken},
};

/// The time within which a used token may be sent again, if its successor is unused.
const REUSE_GRACE: Duration = Duration::seconds(10);

/// The state of a refresh token of an active session.
enum RefreshTokenState {
    Unused,
    /// The token was used within the grace period.
    GraceRetry {
        successor: RefreshToken,
    },
    Reused,
}

fn classify(token: &RefreshToken, usage: &TokenUsage, now: OffsetDateTime) -> RefreshTokenState {
    match (usage.used_at, &usage.successor_salt) {
        (Some(used_at), Some(salt)) if now - used_at <= REUSE_GRACE => {
            RefreshTokenState::GraceRetry { successor: token.successor(salt) }
        }
        (None, None) => RefreshTokenState::Unused,
        (Some(_), _) | (None, Some(_)) => RefreshTokenState::Reused,
    }
}

/// Issues new tokens for a refresh token, with the current name and role of the account.
#[tracing::instrument(name = "auth.refresh", skip_all)]
pub async fn refresh(context: &AuthContext, presented: &str) -> Result<IssuedTokens, Error> {
    let presented = RefreshToken::parse(presented).ok_or(Error::UnknownRefreshToken)?;
    let now = context.clock.now();
    let mut tx = context.pool.begin().await?;
    let family =
        sessions::find_family(&mut tx, &presented.hash()).await?.ok_or(Error::UnknownRefreshToken)?;
    let sid = family.session_id;
    let account = account::get_for_share(&mut tx, family.user_id).await?.ok_or(Error::UnknownRefreshToken)?;
    let state = sessions::get_for_update(&mut tx, sid).await?.ok_or(Error::UnknownRefreshToken)?;
    if state.ended_at.is_some() || account.disabled {
        return Err(Error::SessionEnded);
    }
    if state.expires_at <= now {
        return Err(Error::SessionExpired);
    }
    // Read under the lock: of two concurrent requests, the second sees the effect of the first.
    let usage =
        sessions::find_token_usage(&mut tx, &presented.hash()).await?.ok_or(Error::UnknownRefreshToken)?;
    let (next, expires_at) = match classify(&presented, &usage, now) {
        RefreshTokenState::Unused => {
            let salt = token::random_bytes()?;
            let next = presented.successor(&salt);
            sessions::use_token(&mut tx, &presented.hash(), &salt, now).await?;
            sessions::insert_token(&mut tx, sid, &next.hash()).await?;
            (next, now + context.lifetimes.refresh)
        }
        // The token is the immediate predecessor: its successor is unused.
        RefreshTokenState::GraceRetry { successor } if is_unused(&mut tx, &successor).await? => {
            (successor, state.expires_at)
        }
        RefreshTokenState::GraceRetry { .. } | RefreshTokenState::Reused => {
            let revoked = sessions::revoke(&mut tx, account.id, sid, now).await?;
            tx.commit().await?;
            context.revocations.apply(revoked.as_slice());
            tracing::warn!(user.id = account.id, session.id = %sid, "refresh token reused, session revoked");
            return Err(Error::SessionEnded);
        }
    };
    sessions::extend(&mut tx, sid, now, expires_at, now + context.lifetimes.access).await?;
    tx.commit().await?;
    session::issue_tokens(context, account, sid, &next, expires_at - now, now)
}

async fn is_unused(conn: &mut sqlx::PgConnection, token: &RefreshToken) -> Result<bool, sqlx::Error> {
    let usage = sessions::find_token_usage(conn, &token.hash()).await?;
    Ok(usage.is_some_and(|usage| usage.used_at.is_none()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_used_token_may_be_retried_for_ten_seconds() {
        let token = RefreshToken::random().unwrap();
        let used_at = OffsetDateTime::from_unix_timestamp(1_702_886_400).unwrap();
        let used = TokenUsage { used_at: Some(used_at), successor_salt: Some(vec![7; 32]) };
        let after = |seconds| classify(&token, &used, used_at + Duration::seconds(seconds));
        let successor = token.successor(&[7; 32]).hash();
        assert!(matches!(after(0), RefreshTokenState::GraceRetry { successor: s } if s.hash() == successor));
        assert!(matches!(after(10), RefreshTokenState::GraceRetry { .. }));
        assert!(matches!(after(11), RefreshTokenState::Reused));
        let unused = TokenUsage { used_at: None, successor_salt: None };
        assert!(matches!(classify(&token, &unused, used_at), RefreshTokenState::Unused));
    }
}
