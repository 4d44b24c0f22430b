//! Sessions: how long they live, what they hand out, how they are listed and ended, tickets for sockets.

use secrecy::SecretString;
use shoppee_kit::{
    caller::{AUDIENCE, Caller, Claims, ISSUER, Kind, Role},
    cursor,
    status::Violations,
};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::{
    Auth,
    account::Role as AccountRole,
    error::Error,
    store::{
        account::Account,
        session::{self, Session},
    },
    token::RefreshToken,
};

/// Active sessions of one user; one more ends the one that was not used for the longest time.
pub const MOST: i64 = 100;
/// Bounds the time until a ticket is used. Seconds.
const TICKET_LIFETIME: i64 = 30;
/// The time for which a used ticket is remembered after its end: the clocks of replicas may differ.
pub const USED_TICKET_TTL: Duration = Duration::minutes(5);
/// What is kept of a user agent. Characters.
const LONGEST_USER_AGENT: usize = 256;

/// How long tokens are good.
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

/// What a sign-in or a refresh hands out.
#[derive(Debug)]
pub struct Grant {
    pub account: Account,
    pub access_token: SecretString,
    pub access_for: Duration,
    pub refresh_token: SecretString,
    pub refresh_for: Duration,
    /// The token of the device, present after a sign-in alone.
    pub device_token: Option<SecretString>,
}

/// Signs what `account` has earned at `now` in this session.
pub fn grant(
    auth: &Auth,
    account: Account,
    sid: Uuid,
    refresh_token: &RefreshToken,
    refresh_for: Duration,
    now: OffsetDateTime,
) -> Result<Grant, Error> {
    let access_token = auth.signer.sign(Kind::Access, &claims(&account, sid, now, auth.lifetimes.access))?;
    let refresh_token = refresh_token.text();
    let access_for = auth.lifetimes.access;
    Ok(Grant { account, access_token, access_for, refresh_token, refresh_for, device_token: None })
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
    }
}

/// What a client calls itself, as far as it can be shown and stored.
pub fn user_agent(text: &str) -> String {
    text.chars().filter(|char| !char.is_control()).take(LONGEST_USER_AGENT).collect()
}

/// One page of the caller's active sessions, newest first, and the cursor of the next.
#[tracing::instrument(name = "auth.sessions", skip_all)]
pub async fn list(
    auth: &Auth,
    caller: &Caller,
    limit: i64,
    cursor: Option<&str>,
) -> Result<(Vec<Session>, Option<String>), Error> {
    let before = cursor.map(position).transpose()?;
    let mut conn = auth.pool.acquire().await?;
    // One more than asked for tells whether there is a next page.
    let mut page = session::list(&mut conn, caller.user_id(), auth.clock.now(), before, limit + 1).await?;
    let asked_for = usize::try_from(limit).unwrap_or_default();
    let is_last = page.len() <= asked_for;
    page.truncate(asked_for);
    let next = page.last().filter(|_| !is_last).map(|last| {
        let micros = last.created_at.unix_timestamp_nanos() / 1000;
        cursor::encode(&(i64::try_from(micros).unwrap_or(i64::MAX), last.id))
    });
    Ok((page, next))
}

/// The place in the list that a cursor stands for.
fn position(cursor: &str) -> Result<(OffsetDateTime, Uuid), Error> {
    let (micros, id): (i64, Uuid) = cursor::decode(cursor).map_err(Error::Malformed)?;
    let created_at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000);
    let malformed = |_| Error::Malformed(Violations::from(("cursor", "is not a cursor of this list")));
    Ok((created_at.map_err(malformed)?, id))
}

/// Ends one session of the caller; another's is as unknown as none.
#[tracing::instrument(name = "auth.revoke_session", skip_all)]
pub async fn revoke(auth: &Auth, caller: &Caller, id: &str) -> Result<(), Error> {
    let id: Uuid = id.parse().map_err(|_| Error::NotFound("session"))?;
    let mut conn = auth.pool.acquire().await?;
    let ended = session::end(&mut conn, caller.user_id(), id, auth.clock.now()).await?;
    let ended = ended.ok_or(Error::NotFound("session"))?;
    auth.revocations.note(&[ended]);
    Ok(())
}

/// Ends the caller's own session. One that has just ended otherwise is ended.
#[tracing::instrument(name = "auth.logout", skip_all)]
pub async fn logout(auth: &Auth, caller: &Caller) -> Result<(), Error> {
    let mut conn = auth.pool.acquire().await?;
    let ended = session::end(&mut conn, caller.user_id(), caller.claims.sid, auth.clock.now()).await?;
    auth.revocations.note(ended.as_slice());
    Ok(())
}

/// Ends every session of the caller.
#[tracing::instrument(name = "auth.logout_all", skip_all)]
pub async fn logout_all(auth: &Auth, caller: &Caller) -> Result<(), Error> {
    let mut conn = auth.pool.acquire().await?;
    let ended = session::end_all(&mut conn, caller.user_id(), None).await?;
    auth.revocations.note(&ended);
    Ok(())
}

/// Returns a ticket for one socket, which may live as long as the caller's access token, and the ticket's lifetime in
/// seconds.
#[tracing::instrument(name = "auth.ws_ticket", skip_all)]
pub fn ticket(auth: &Auth, caller: &Caller) -> Result<(SecretString, i64), Error> {
    let (now, socket_exp) = (auth.clock.unix(), caller.claims.exp);
    let exp = socket_exp.min(now + TICKET_LIFETIME);
    let claims = Claims { exp, socket_exp: Some(socket_exp), ..reissued(caller, now) };
    Ok((auth.signer.sign(Kind::WsTicket, &claims)?, exp - now))
}

/// Exchanges a ticket, once, for a token that reads its user's events; returns also the token's lifetime in seconds.
/// The database decides: a ticket that was used anywhere is refused everywhere.
#[tracing::instrument(name = "auth.redeem_ws_ticket", skip_all)]
pub async fn redeem_ticket(auth: &Auth, ticket: &Caller) -> Result<(SecretString, i64), Error> {
    let now = auth.clock.now();
    let exp = ticket.claims.socket_exp.unwrap_or_default();
    if exp <= now.unix_timestamp() {
        return Err(Error::SessionExpired);
    }
    let mut conn = auth.pool.acquire().await?;
    // The ticket was good a moment ago, and is not for longer than this.
    let expires_at = now + Duration::seconds(TICKET_LIFETIME);
    if !session::use_ticket(&mut conn, ticket.claims.jti, expires_at).await? {
        return Err(Error::TicketUsed);
    }
    let iat = now.unix_timestamp();
    let claims = Claims { exp, socket_exp: None, ..reissued(ticket, iat) };
    Ok((auth.signer.sign(Kind::Socket, &claims)?, exp - iat))
}

/// The claims of a caller in another token.
fn reissued(caller: &Caller, iat: i64) -> Claims {
    Claims { iat, jti: Uuid::new_v4(), nbf: None, ..(*caller.claims).clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_agent_is_one_short_line() {
        assert_eq!(user_agent("Mozilla/5.0 (X11)"), "Mozilla/5.0 (X11)");
        assert_eq!(user_agent("a\r\nb\0c\u{7f}"), "abc");
        assert_eq!(user_agent(&"ß".repeat(1000)).chars().count(), LONGEST_USER_AGENT);
    }
}
