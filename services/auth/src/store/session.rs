//! Sessions, and their refresh tokens and tickets.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

#[derive(Debug)]
pub struct Session {
    pub id: Uuid,
    pub user_agent: String,
    pub created_at: OffsetDateTime,
    pub last_used_at: OffsetDateTime,
}

/// A session to insert.
#[derive(Debug)]
pub struct NewSession<'a> {
    pub id: Uuid,
    pub user_id: i64,
    pub user_agent: &'a str,
    pub at: OffsetDateTime,
    pub expires_at: OffsetDateTime,
    pub access_expires_at: OffsetDateTime,
}

/// A revoked session, with the expiry of its last access token.
#[derive(Clone, Copy, Debug)]
pub struct RevokedSession {
    pub id: Uuid,
    pub access_expires_at: OffsetDateTime,
}

pub async fn insert(conn: &mut PgConnection, new: &NewSession<'_>) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into auth.session
             (id, user_id, user_agent, created_at, last_used_at, expires_at, access_expires_at)
         values ($1, $2, $3, $4, $4, $5, $6)",
        new.id,
        new.user_id,
        new.user_agent,
        new.at,
        new.expires_at,
        new.access_expires_at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Lists the active sessions of a user, newest first, that are older than `before`.
pub async fn list(
    conn: &mut PgConnection,
    user_id: i64,
    now: OffsetDateTime,
    before: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<Session>, sqlx::Error> {
    sqlx::query_as!(
        Session,
        "select id, user_agent, created_at, last_used_at from auth.session
         where user_id = $1 and ended_at is null and greatest(expires_at, access_expires_at) > $2
           and ($4::timestamptz is null or (created_at, id) < ($4, $5))
         order by created_at desc, id desc
         limit $3",
        user_id,
        now,
        limit,
        before.map(|(created_at, _)| created_at),
        before.map(|(_, id)| id),
    )
    .fetch_all(conn)
    .await
}

/// Revokes an active session of a user.
pub async fn revoke(
    conn: &mut PgConnection,
    user_id: i64,
    id: Uuid,
    now: OffsetDateTime,
) -> Result<Option<RevokedSession>, sqlx::Error> {
    sqlx::query_as!(
        RevokedSession,
        "update auth.session set ended_at = clock_timestamp()
         where id = $1 and user_id = $2 and ended_at is null
           and greatest(expires_at, access_expires_at) > $3
         returning id, access_expires_at",
        id,
        user_id,
        now,
    )
    .fetch_optional(conn)
    .await
}

/// Revokes all sessions of a user except one.
pub async fn revoke_all(
    conn: &mut PgConnection,
    user_id: i64,
    except: Option<Uuid>,
) -> Result<Vec<RevokedSession>, sqlx::Error> {
    sqlx::query_as!(
        RevokedSession,
        "update auth.session set ended_at = clock_timestamp()
         where id in (
             select id from auth.session
             where user_id = $1 and ended_at is null and ($2::uuid is null or id <> $2)
             order by id for no key update)
         returning id, access_expires_at",
        user_id,
        except,
    )
    .fetch_all(conn)
    .await
}

/// Revokes the least recently used sessions of a user beyond `max`.
pub async fn revoke_oldest_over(
    conn: &mut PgConnection,
    user_id: i64,
    max: i64,
) -> Result<Vec<RevokedSession>, sqlx::Error> {
    sqlx::query_as!(
        RevokedSession,
        "update auth.session set ended_at = clock_timestamp()
         where id in (
             select id from auth.session
             where ended_at is null and id in (
                 select id from auth.session where user_id = $1 and ended_at is null
                 order by last_used_at desc, id desc offset $2)
             order by id for no key update)
         returning id, access_expires_at",
        user_id,
        max,
    )
    .fetch_all(conn)
    .await
}

/// The session of a refresh token: all tokens of a session are one family.
#[derive(Debug)]
pub struct TokenFamily {
    pub session_id: Uuid,
    pub user_id: i64,
}

pub async fn find_family(
    conn: &mut PgConnection,
    token: &[u8; 32],
) -> Result<Option<TokenFamily>, sqlx::Error> {
    sqlx::query_as!(
        TokenFamily,
        "select session.id as session_id, session.user_id
         from auth.refresh_token token join auth.session session on session.id = token.session_id
         where token.hash = $1",
        token,
    )
    .fetch_optional(conn)
    .await
}

/// The expiry and revocation of a session.
#[derive(Debug)]
pub struct SessionState {
    pub expires_at: OffsetDateTime,
    pub ended_at: Option<OffsetDateTime>,
}

/// Returns the state of a session, and locks it until the transaction ends, so that refreshes of a session are
/// serialized.
pub async fn get_for_update(conn: &mut PgConnection, id: Uuid) -> Result<Option<SessionState>, sqlx::Error> {
    sqlx::query_as!(
        SessionState,
        "select expires_at, ended_at from auth.session where id = $1 for no key update",
        id,
    )
    .fetch_optional(conn)
    .await
}

/// The use of a refresh token. Both fields are `None` for an unused token.
#[derive(Debug)]
pub struct TokenUsage {
    pub used_at: Option<OffsetDateTime>,
    pub successor_salt: Option<Vec<u8>>,
}

pub async fn find_token_usage(
    conn: &mut PgConnection,
    token: &[u8; 32],
) -> Result<Option<TokenUsage>, sqlx::Error> {
    sqlx::query_as!(
        TokenUsage,
        "select used_at, successor_salt from auth.refresh_token where hash = $1",
        token
    )
    .fetch_optional(conn)
    .await
}

pub async fn insert_token(
    conn: &mut PgConnection,
    session_id: Uuid,
    token: &[u8; 32],
) -> Result<(), sqlx::Error> {
    sqlx::query!("insert into auth.refresh_token (hash, session_id) values ($1, $2)", token, session_id)
        .execute(conn)
        .await?;
    Ok(())
}

pub async fn use_token(
    conn: &mut PgConnection,
    token: &[u8; 32],
    successor_salt: &[u8],
    at: OffsetDateTime,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update auth.refresh_token set used_at = $2, successor_salt = $3 where hash = $1",
        token,
        at,
        successor_salt,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Records a use of the session, and extends its expiries.
pub async fn extend(
    conn: &mut PgConnection,
    id: Uuid,
    at: OffsetDateTime,
    expires_at: OffsetDateTime,
    access_expires_at: OffsetDateTime,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update auth.session
         set last_used_at = $2, expires_at = $3, access_expires_at = greatest(access_expires_at, $4)
         where id = $1",
        id,
        at,
        expires_at,
        access_expires_at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// A revoked session or service account, with the transaction of the revocation.
#[derive(Debug)]
pub struct Revocation {
    pub id: Uuid,
    pub access_expires_at: OffsetDateTime,
    pub tx: i64,
    pub is_service: bool,
}

/// A PostgreSQL snapshot: the transactions below `next_tx` that were not `running` had ended at that moment. It relies on
/// PostgreSQL's single counter of transaction ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub next_tx: i64,
    pub running: Vec<i64>,
}

impl Snapshot {
    /// The snapshot before all transactions.
    pub const EMPTY: Self = Self { next_tx: 0, running: Vec::new() };

    /// Parses PostgreSQL's text: the oldest running id, the next id, and the list of running ids.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':').skip(1);
        let (next_tx, running) = (parts.next()?.parse().ok()?, parts.next()?);
        let running = running.split(',').filter(|tx| !tx.is_empty()).map(str::parse);
        let running = running.collect::<Result<_, _>>().ok()?;
        parts.next().is_none().then_some(Self { next_tx, running })
    }
}

/// Returns the start time of the database server (microseconds since the Unix epoch) and the current snapshot as text.
/// Transaction ids of another server, or from before a failover, are not comparable.
pub async fn current_snapshot(conn: &mut PgConnection) -> Result<(i64, String), sqlx::Error> {
    let row = sqlx::query!(
        r#"select (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint as "server!",
                  pg_current_snapshot()::text as "snapshot!""#
    )
    .fetch_one(conn)
    .await?;
    Ok((row.server, row.snapshot))
}

/// Lists the next revocations after `after` (transaction and id) that are not visible in the snapshot `since`: those of
/// sessions and of service accounts. Skips those whose access tokens expired before `alive_at`.
pub async fn list_revoked_since(
    conn: &mut PgConnection,
    since: &Snapshot,
    after: (i64, Uuid),
    alive_at: OffsetDateTime,
    limit: i64,
) -> Result<Vec<Revocation>, sqlx::Error> {
    // Two ranges of each index: a transaction that runs for hours adds no cost.
    sqlx::query_as!(
        Revocation,
        r#"select id as "id!", access_expires_at as "access_expires_at!", tx as "tx!",
                  is_service as "is_service!"
           from (
               (select id, access_expires_at, ended_tx as tx, false as is_service from auth.session
                where ended_tx = any($1) and (ended_tx, id) > ($3, $4) and access_expires_at > $5
                order by ended_tx, id limit $6)
               union all
               (select id, access_expires_at, ended_tx, false from auth.session
                where ended_tx >= $2 and (ended_tx, id) > ($3, $4) and access_expires_at > $5
                order by ended_tx, id limit $6)
               union all
               (select id, tokens_expire_at, revoked_tx, true from auth.service_account
                where revoked_tx = any($1) and (revoked_tx, id) > ($3, $4) and tokens_expire_at > $5
                order by revoked_tx, id limit $6)
               union all
               (select id, tokens_expire_at, revoked_tx, true from auth.service_account
                where revoked_tx >= $2 and (revoked_tx, id) > ($3, $4) and tokens_expire_at > $5
                order by revoked_tx, id limit $6)
           ) ended
           order by tx, id
           limit $6"#,
        &since.running,
        since.next_tx,
        after.0,
        after.1,
        alive_at,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// Marks a ticket as used. Returns `false` if it was used before.
pub async fn mark_ticket_used(
    conn: &mut PgConnection,
    id: Uuid,
    expires_at: OffsetDateTime,
) -> Result<bool, sqlx::Error> {
    let result = sqlx::query!(
        "insert into auth.used_ticket (id, expires_at) values ($1, $2) on conflict do nothing",
        id,
        expires_at,
    )
    .execute(conn)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Deletes up to `limit` tickets that expired before `before`, and returns their number.
pub async fn delete_used_tickets(
    conn: &mut PgConnection,
    before: OffsetDateTime,
    limit: i64,
) -> Result<u64, sqlx::Error> {
    let deleted = sqlx::query!(
        "delete from auth.used_ticket
         where id in (
             select id from auth.used_ticket where expires_at < $1
             order by expires_at limit $2 for update skip locked)",
        before,
        limit,
    )
    .execute(conn)
    .await?;
    Ok(deleted.rows_affected())
}

/// Deletes up to `limit` sessions that were revoked before `before` and have no valid access token at `now`.
pub async fn delete_revoked(
    conn: &mut PgConnection,
    before: OffsetDateTime,
    now: OffsetDateTime,
    limit: i64,
) -> Result<u64, sqlx::Error> {
    let deleted = sqlx::query!(
        "delete from auth.session
         where id in (
             select id from auth.session
             where ended_at < $1 and access_expires_at < $2
             order by ended_at limit $3 for update skip locked)",
        before,
        now,
        limit,
    )
    .execute(conn)
    .await?;
    Ok(deleted.rows_affected())
}

/// Deletes up to `limit` sessions that expired before `before` and have no valid access token at `now`.
pub async fn delete_expired(
    conn: &mut PgConnection,
    before: OffsetDateTime,
    now: OffsetDateTime,
    limit: i64,
) -> Result<u64, sqlx::Error> {
    let deleted = sqlx::query!(
        "delete from auth.session
         where id in (
             select id from auth.session
             where expires_at < $1 and access_expires_at < $2
             order by expires_at limit $3 for update skip locked)",
        before,
        now,
        limit,
    )
    .execute(conn)
    .await?;
    Ok(deleted.rows_affected())
}

/// Deletes up to `limit` refresh tokens that were used before `before`.
pub async fn delete_used_tokens(
    conn: &mut PgConnection,
    before: OffsetDateTime,
    limit: i64,
) -> Result<u64, sqlx::Error> {
    let deleted = sqlx::query!(
        "delete from auth.refresh_token
         where hash in (
             select hash from auth.refresh_token where used_at < $1 limit $2 for update skip locked)",
        before,
        limit,
    )
    .execute(conn)
    .await?;
    Ok(deleted.rows_affected())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_parses_from_the_text_of_postgresql_only() {
        let snapshot = |next_tx, running: &[i64]| Some(Snapshot { next_tx, running: running.to_vec() });
        assert_eq!(Snapshot::parse("743:743:"), snapshot(743, &[]));
        assert_eq!(Snapshot::parse("743:750:743,746"), snapshot(750, &[743, 746]));
        for invalid in
            ["", "743", "743:750", "743:x:", "743:750:x", "743:750:743:", "743:750:99999999999999999999"]
        {
            assert_eq!(Snapshot::parse(invalid), None, "{invalid}");
        }
    }
}
