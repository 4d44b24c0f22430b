//! Sessions, and the refresh tokens that go on with them.

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

/// A session that begins.
#[derive(Debug)]
pub struct New<'a> {
    pub id: Uuid,
    pub user_id: i64,
    pub user_agent: &'a str,
    pub at: OffsetDateTime,
    pub expires_at: OffsetDateTime,
    pub access_expires_at: OffsetDateTime,
}

/// One that ended, and when the last of its access tokens runs out.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    pub id: Uuid,
    pub access_expires_at: OffsetDateTime,
}

pub async fn insert(conn: &mut PgConnection, new: &New<'_>) -> Result<(), sqlx::Error> {
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

/// The active sessions of a user, newest first, of those that are older than `before`.
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

/// Ends one active session of this user.
pub async fn end(
    conn: &mut PgConnection,
    user_id: i64,
    id: Uuid,
    now: OffsetDateTime,
) -> Result<Option<Ended>, sqlx::Error> {
    sqlx::query_as!(
        Ended,
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

/// Ends all sessions of a user, but for the one to spare.
pub async fn end_all(
    conn: &mut PgConnection,
    user_id: i64,
    spared: Option<Uuid>,
) -> Result<Vec<Ended>, sqlx::Error> {
    sqlx::query_as!(
        Ended,
        "update auth.session set ended_at = clock_timestamp()
         where id in (
             select id from auth.session
             where user_id = $1 and ended_at is null and ($2::uuid is null or id <> $2)
             order by id for no key update)
         returning id, access_expires_at",
        user_id,
        spared,
    )
    .fetch_all(conn)
    .await
}

/// Ends the sessions of a user that were not used for the longest time, until `kept` are left.
pub async fn end_surplus(
    conn: &mut PgConnection,
    user_id: i64,
    kept: i64,
) -> Result<Vec<Ended>, sqlx::Error> {
    sqlx::query_as!(
        Ended,
        "update auth.session set ended_at = clock_timestamp()
         where id in (
             select id from auth.session
             where ended_at is null and id in (
                 select id from auth.session where user_id = $1 and ended_at is null
                 order by last_used_at desc, id desc offset $2)
             order by id for no key update)
         returning id, access_expires_at",
        user_id,
        kept,
    )
    .fetch_all(conn)
    .await
}

/// The session that a refresh token belongs to.
#[derive(Debug)]
pub struct Family {
    pub session_id: Uuid,
    pub user_id: i64,
}

pub async fn family(conn: &mut PgConnection, token: &[u8; 32]) -> Result<Option<Family>, sqlx::Error> {
    sqlx::query_as!(
        Family,
        "select session.id as session_id, session.user_id
         from auth.refresh_token token join auth.session session on session.id = token.session_id
         where token.hash = $1",
        token,
    )
    .fetch_optional(conn)
    .await
}

/// How a session stands.
#[derive(Debug)]
pub struct State {
    pub expires_at: OffsetDateTime,
    pub ended_at: Option<OffsetDateTime>,
}

/// As it will stay until the transaction ends: refreshes of one session come one after the other.
pub async fn lock(conn: &mut PgConnection, id: Uuid) -> Result<Option<State>, sqlx::Error> {
    sqlx::query_as!(
        State,
        "select expires_at, ended_at from auth.session where id = $1 for no key update",
        id,
    )
    .fetch_optional(conn)
    .await
}

/// What became of a refresh token: both are absent for one that was not used.
#[derive(Debug)]
pub struct Use {
    pub used_at: Option<OffsetDateTime>,
    pub successor_salt: Option<Vec<u8>>,
}

pub async fn token_use(conn: &mut PgConnection, token: &[u8; 32]) -> Result<Option<Use>, sqlx::Error> {
    sqlx::query_as!(Use, "select used_at, successor_salt from auth.refresh_token where hash = $1", token)
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

/// Notes that the session was used; its ends move on and never back.
pub async fn prolong(
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

/// A session that ended and could still be met in a token.
#[derive(Debug)]
pub struct EndedIn {
    pub id: Uuid,
    pub access_expires_at: OffsetDateTime,
    /// The transaction that ended it.
    pub tx: i64,
}

/// The set of transactions that had ended at one moment. PostgreSQL numbers them with one counter; an engine with
/// several has no such snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The first number that had not been given.
    pub next_tx: i64,
    /// The smaller numbers whose transactions were running.
    pub running: Vec<i64>,
}

impl Snapshot {
    /// The snapshot before all transactions.
    pub const EMPTY: Self = Self { next_tx: 0, running: Vec::new() };

    /// Reads the text of PostgreSQL: the oldest that was running, the next one, and a list of those that were.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':').skip(1);
        let (next_tx, running) = (parts.next()?.parse().ok()?, parts.next()?);
        let running = running.split(',').filter(|tx| !tx.is_empty()).map(str::parse);
        let running = running.collect::<Result<_, _>>().ok()?;
        parts.next().is_none().then_some(Self { next_tx, running })
    }
}

/// Returns the run of the database server and the snapshot of this moment, as text. The run is the time at which the
/// server was started (microseconds since the Unix epoch). Numbers of transactions of another server, or of the one
/// that was there before a failover, mean nothing here.
pub async fn snapshot(conn: &mut PgConnection) -> Result<(i64, String), sqlx::Error> {
    let row = sqlx::query!(
        r#"select (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint as "server!",
                  pg_current_snapshot()::text as "snapshot!""#
    )
    .fetch_one(conn)
    .await?;
    Ok((row.server, row.snapshot))
}

/// Returns the next sessions behind `after` (transaction and session) that a reader of `since` could not see. Only
/// sessions with access tokens which are good after `alive_at` count.
pub async fn ended_since(
    conn: &mut PgConnection,
    since: &Snapshot,
    after: (i64, Uuid),
    alive_at: OffsetDateTime,
    limit: i64,
) -> Result<Vec<EndedIn>, sqlx::Error> {
    // Two ranges of one index, whatever else is in it: a transaction that runs for hours costs nothing.
    sqlx::query_as!(
        EndedIn,
        r#"select id as "id!", access_expires_at as "access_expires_at!", tx as "tx!"
           from (
               (select id, access_expires_at, ended_tx as tx from auth.session
                where ended_tx = any($1) and (ended_tx, id) > ($3, $4) and access_expires_at > $5
                order by ended_tx, id limit $6)
               union all
               (select id, access_expires_at, ended_tx as tx from auth.session
                where ended_tx >= $2 and (ended_tx, id) > ($3, $4) and access_expires_at > $5
                order by ended_tx, id limit $6)
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

/// Marks a ticket as used; `false` where it was used before.
pub async fn use_ticket(
    conn: &mut PgConnection,
    id: Uuid,
    expires_at: OffsetDateTime,
) -> Result<bool, sqlx::Error> {
    let used = sqlx::query!(
        "insert into auth.used_ticket (id, expires_at) values ($1, $2) on conflict do nothing",
        id,
        expires_at,
    )
    .execute(conn)
    .await?;
    Ok(used.rows_affected() == 1)
}

/// Deletes some of the tickets that expired before `before`.
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

/// Deletes some of the sessions that ended before `before`, when no token of theirs is good any more.
pub async fn forget_ended(
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

/// Deletes some of the sessions that ran out before `before`, when no token of theirs is good any more.
pub async fn forget_expired(
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

/// Deletes some of the refresh tokens used before `before`.
pub async fn forget_used_tokens(
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
    fn a_snapshot_is_read_as_postgresql_writes_it() {
        let snapshot = |next_tx, running: &[i64]| Some(Snapshot { next_tx, running: running.to_vec() });
        assert_eq!(Snapshot::parse("743:743:"), snapshot(743, &[]));
        assert_eq!(Snapshot::parse("743:750:743,746"), snapshot(750, &[743, 746]));
        for odd in
            ["", "743", "743:750", "743:x:", "743:750:x", "743:750:743:", "743:750:99999999999999999999"]
        {
            assert_eq!(Snapshot::parse(odd), None, "{odd}");
        }
    }
}
