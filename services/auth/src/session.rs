//! Sessions: their tokens and lifetimes, their list and revocation, and tickets for sockets.

use secrecy::SecretString;
use shoppee_kit::{
    caller::{AUDIENCE, Caller, Claims, ISSUER, Role, TokenType},
    cursor,
    status::Violations,
};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::{
    AuthContext,
    account::Role as AccountRole,
    error::Error,
    store::{
        account::Account,
        session::{self, Session},
    },
    token::RefreshToken,
};

/// Bounds the active sessions of a user. One more revokes the least recently used one.
pub const MAX_SESSIONS_PER_USER: i64 = 100;
/// The lifetime of a ticket.
const TICKET_TTL_SECONDS: i64 = 30;
/// The time for which a used ticket is stored after its expiry, as the clocks of replicas may differ.
pub const USED_TICKET_TTL: Duration = Duration::minutes(5);
/// Bounds a stored user agent.
const MAX_USER_AGENT_CHARS: usize = 256;

/// The lifetimes of tokens.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    pub access: Duration,
    pub refresh: Duration,
}

impl From<(Duration, Duration)> for Lifetimes {
    fn from((access, refresh): (Duration, Duration)) -> Self {
        Self { access, refresh }
    }
}

/// The tokens that a sign-in or a refresh issues.
#[derive(Debug)]
pub struct IssuedTokens {
    pub account: Account,
    pub access_token: SecretString,
    pub access_expires_in: Duration,
    pub refresh_token: SecretString,
    pub refresh_expires_in: Duration,
    /// The token of the device, present only after a sign-in.
    pub device_token: Option<SecretString>,
}

/// Issues the tokens of a session at `now`.
pub fn issue_tokens(
    context: &AuthContext,
    account: Account,
    sid: Uuid,
    refresh_token: &RefreshToken,
    refresh_expires_in: Duration,
    now: OffsetDateTime,
) -> Result<IssuedTokens, Error> {
    let access_token =
        context.signer.sign(TokenType::Access, &claims(&account, sid, now, context.lifetimes.access))?;
    let refresh_token = refresh_token.text();
    let access_expires_in = context.lifetimes.access;
    Ok(IssuedTokens {
        account,
        access_token,
        access_expires_in,
        refresh_token,
        refresh_expires_in,
        device_token: None,
    })
}

fn claims(account: &Account, sid: Uuid, now: OffsetDateTime, lifetime: Duration) -> Claims {
    let iat = now.unix_timestamp();
    Claims {
        iss: ISSUER.to_owned(),
        aud: AUDIENCE.to_owned(),
        sub: account.id.to_string(),
        user_id: account.id,
        username: account.username.clone(),
        role: match account.role {
            AccountRole::User => Role::User,
            AccountRole::Admin => Role::Admin,
        },
        sid,
        jti: Uuid::new_v4(),
        iat,
        exp: iat + lifetime.whole_seconds(),
        nbf: None,
        socket_exp: None,
        scope: None,
        client_id: None,
    }
}

/// Sanitizes the user agent of a client for storage and display.
pub fn sanitize_user_agent(text: &str) -> String {
    text.chars().filter(|char| !char.is_control()).take(MAX_USER_AGENT_CHARS).collect()
}

/// Returns a page of the caller's active sessions, newest first, and the cursor of the next page.
#[tracing::instrument(name = "auth.sessions", skip_all)]
pub async fn list(
    context: &AuthContext,
    caller: &Caller,
    limit: i64,
    cursor: Option<&str>,
) -> Result<(Vec<Session>, Option<String>), Error> {
    let list = cursor::List::new(&("sessions", caller.user_id()));
    let before = cursor.map(|cursor| parse_cursor(list, cursor)).transpose()?;
    let mut conn = context.pool.acquire().await?;
    // One more row than requested shows whether there is another page.
    let mut page = session::list(&mut conn, caller.user_id(), context.clock.now(), before, limit + 1).await?;
    let size = usize::try_from(limit).unwrap_or_default();
    let is_last = page.len() <= size;
    page.truncate(size);
    let next = page.last().filter(|_| !is_last).map(|last| {
        let micros = last.created_at.unix_timestamp_nanos() / 1000;
        list.encode(&(i64::try_from(micros).unwrap_or(i64::MAX), last.id))
    });
    Ok((page, next))
}

/// Decodes the position of a cursor.
fn parse_cursor(list: cursor::List, cursor: &str) -> Result<(OffsetDateTime, Uuid), Error> {
    let (micros, id): (i64, Uuid) = list.decode(cursor).map_err(Error::Malformed)?;
    let created_at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000);
    let malformed = |_| Error::Malformed(Violations::from(("cursor", "is not a cursor of this list")));
    Ok((created_at.map_err(malformed)?, id))
}

/// Revokes a session of the caller. A session of another user is not found.
#[tracing::instrument(name = "auth.revoke_session", skip_all)]
pub async fn revoke(context: &AuthContext, caller: &Caller, id: &str) -> Result<(), Error> {
    let id: Uuid = id.parse().map_err(|_| Error::NotFound("session"))?;
    let mut conn = context.pool.acquire().await?;
    let revoked = session::revoke(&mut conn, caller.user_id(), id, context.clock.now()).await?;
    let revoked = revoked.ok_or(Error::NotFound("session"))?;
    context.revocations.apply(&[revoked]);
    Ok(())
}

/// Revokes the caller's own session. A session that has already ended is no error.
#[tracing::instrument(name = "auth.logout", skip_all)]
pub async fn logout(context: &AuthContext, caller: &Caller) -> Result<(), Error> {
    let mut conn = context.pool.acquire().await?;
    let revoked =
        session::revoke(&mut conn, caller.user_id(), caller.claims.sid, context.clock.now()).await?;
    context.revocations.apply(revoked.as_slice());
    Ok(())
}

/// Revokes all sessions of the caller.
#[tracing::instrument(name = "auth.logout_all", skip_all)]
pub async fn logout_all(context: &AuthContext, caller: &Caller) -> Result<(), Error> {
    let mut conn = context.pool.acquire().await?;
    let revoked = session::revoke_all(&mut conn, caller.user_id(), None).await?;
    context.revocations.apply(&revoked);
    Ok(())
}

/// Issues a ticket for one socket, and returns it with its lifetime in seconds. The socket may stay open as long as the
/// caller's access token is valid.
#[tracing::instrument(name = "auth.ws_ticket", skip_all)]
pub fn create_ticket(context: &AuthContext, caller: &Caller) -> Result<(SecretString, i64), Error> {
    let (now, socket_exp) = (context.clock.unix(), caller.claims.exp);
    let exp = socket_exp.min(now + TICKET_TTL_SECONDS);
    let claims = Claims { exp, socket_exp: Some(socket_exp), ..copy_claims(caller, now) };
    Ok((context.signer.sign(TokenType::WsTicket, &claims)?, exp - now))
}

/// Exchanges a ticket, once, for a token that may read its user's events. Also returns the token's lifetime in seconds.
/// The database decides, so that all replicas reject a used ticket.
#[tracing::instrument(name = "auth.redeem_ws_ticket", skip_all)]
pub async fn redeem_ticket(context: &AuthContext, ticket: &Caller) -> Result<(SecretString, i64), Error> {
    let now = context.clock.now();
    let exp = ticket.claims.socket_exp.unwrap_or_default();
    if exp <= now.unix_timestamp() {
        return Err(Error::SessionExpired);
    }
    let mut conn = context.pool.acquire().await?;
    // The ticket is valid now, so it expires at the latest after its whole lifetime.
    let expires_at = now + Duration::seconds(TICKET_TTL_SECONDS);
    if !session::mark_ticket_used(&mut conn, ticket.claims.jti, expires_at).await? {
        return Err(Error::TicketUsed);
    }
    let iat = now.unix_timestamp();
    let claims = Claims { exp, socket_exp: None, ..copy_claims(ticket, iat) };
    Ok((context.signer.sign(TokenType::Socket, &claims)?, exp - iat))
}

/// Copies the claims of a caller into a new token.
fn copy_claims(caller: &Caller, iat: i64) -> Claims {
    Claims { iat, jti: Uuid::new_v4(), nbf: None, ..(*caller.claims).clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_agent_is_sanitized_to_one_short_line() {
        assert_eq!(sanitize_user_agent("Mozilla/5.0 (X11)"), "Mozilla/5.0 (X11)");
        assert_eq!(sanitize_user_agent("a\r\nb\0c\u{7f}"), "abc");
        assert_eq!(sanitize_user_agent(&"ß".repeat(1000)).chars().count(), MAX_USER_AGENT_CHARS);
    }
}
