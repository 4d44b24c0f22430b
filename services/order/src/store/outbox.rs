//! The outbox: pending events of each user, and dead letters.
//!
//! Statements that change events name their users, so that a database distributed by `user_id` runs them on the nodes of
//! these.

use sqlx::PgConnection;
use time::OffsetDateTime;

/// A pending event.
#[derive(Clone, Debug)]
pub struct OutboxRow {
    pub user_id: i64,
    pub seq: i64,
    /// True if the fan-out stream has the event and only the user's history lacks it.
    pub fanned_out: bool,
    /// The number of times that the user's history rejected the event.
    pub attempts: i16,
    /// The encoded event; `None` in a row of the previous version.
    pub message: Option<Vec<u8>>,
}

/// The state of the outbox beyond its pending events.
#[derive(Clone, Copy, Debug)]
pub struct OutboxStats {
    /// The time of the database's clock.
    pub now: OffsetDateTime,
    /// The number of events that only the user's history in Redis lacks.
    pub owed: i64,
    pub owed_since: Option<OffsetDateTime>,
    pub dead_letters: i64,
}

/// Returns the due rows of a user in order, and locks them until the transaction ends.
///
/// A second relay waits for these locks, from the user's first row on, and then finds the rest. So one relay at a time
/// publishes the events of a user.
pub async fn lock_due(conn: &mut PgConnection, user_id: i64, limit: i64) -> sqlx::Result<Vec<OutboxRow>> {
    sqlx::query_as!(
        OutboxRow,
        r#"select user_id, seq, retry_at is not null as "fanned_out!", attempts, message from orders.outbox
           where user_id = $1 and (retry_at is null or retry_at <= clock_timestamp())
           order by seq limit $2 for update"#,
        user_id,
        limit
    )
    .fetch_all(conn)
    .await
}

/// Like [`lock_due`], for several users in one statement: returns the due rows by user and in order, and locks them. It
/// leaves out each user whose first row another relay has locked.
pub async fn lock_due_unlocked(
    conn: &mut PgConnection,
    user_ids: &[i64],
    limit: i64,
) -> sqlx::Result<Vec<OutboxRow>> {
    // The first row is found before it is locked: `skip locked` in one step would return the second one.
    sqlx::query_as!(
        OutboxRow,
        r#"with first as materialized (
               select u.user_id,
                      (select min(seq) from orders.outbox as o
                       where o.user_id = u.user_id and (retry_at is null or retry_at <= clock_timestamp())) as seq
               from unnest($1::bigint[]) as u (user_id)
           ), locked as materialized (
               select o.user_id from first
               join orders.outbox as o on o.user_id = first.user_id and o.seq = first.seq
               for update of o skip locked
           )
           select o.user_id, o.seq, retry_at is not null as "fanned_out!", attempts, message from locked
           join orders.outbox as o on o.user_id = locked.user_id
           where retry_at is null or retry_at <= clock_timestamp()
           order by o.user_id, o.seq limit $2 for update of o"#,
        user_ids,
        limit
    )
    .fetch_all(conn)
    .await
}

/// Deletes published events: the users and the numbers of each.
pub async fn delete(conn: &mut PgConnection, user_ids: &[i64], seqs: &[i64]) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from orders.outbox as o using unnest($1::bigint[], $2::bigint[]) as published (user_id, seq)
         where o.user_id = published.user_id and o.seq = published.seq",
        user_ids,
        seqs
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Records that the fan-out stream has these events and the user's history does not. If `is_rejected`, counts an
/// attempt. The delay to the next attempt is `seconds`, doubled with each attempt.
pub async fn schedule_history_retry(
    conn: &mut PgConnection,
    user_id: i64,
    seqs: &[i64],
    is_rejected: bool,
    seconds: f64,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update orders.outbox
         set attempts = attempts + $3::int, retry_at = clock_timestamp() + make_interval(secs => $4 * 2 ^ attempts)
         where user_id = $1 and seq = any($2)",
        user_id,
        seqs,
        i32::from(is_rejected),
        seconds
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Moves events from the outbox to the dead letters, with the reason.
pub async fn move_to_dead_letters(
    conn: &mut PgConnection,
    user_id: i64,
    seqs: &[i64],
    reason: &str,
) -> sqlx::Result<()> {
    sqlx::query!(
        "with given_up as (
             delete from orders.outbox where user_id = $1 and seq = any($2)
             returning user_id, seq, attempts, created_at
         )
         insert into orders.outbox_dead_letter (user_id, seq, reason, attempts, created_at)
         select given_up.user_id, given_up.seq, $3, given_up.attempts + 1, given_up.created_at from given_up
         on conflict (user_id, seq) do update
         set reason = excluded.reason, attempts = excluded.attempts, dead_at = excluded.dead_at",
        user_id,
        seqs,
        reason
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Lists up to `limit` unpublished events that were created at `since` or later, oldest first: the user and the time of
/// each.
pub async fn list_pending(
    conn: &mut PgConnection,
    since: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<Vec<(i64, OffsetDateTime)>> {
    let rows = sqlx::query!(
        "select user_id, created_at from orders.outbox
         where retry_at is null and created_at >= $1 order by created_at limit $2",
        since,
        limit
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.user_id, row.created_at)).collect())
}

/// Counts the same events, up to `limit`.
pub async fn count_pending(conn: &mut PgConnection, since: OffsetDateTime, limit: i64) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "count!"
         from (select from orders.outbox where retry_at is null and created_at >= $1 limit $2) as waiting"#,
        since,
        limit
    )
    .fetch_one(conn)
    .await
}

/// Lists users whose history in Redis is due for a retry.
pub async fn list_due_retries(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<i64>> {
    sqlx::query_scalar!(
        "select user_id from orders.outbox where retry_at is not null and retry_at <= clock_timestamp()
         order by retry_at limit $1",
        limit
    )
    .fetch_all(conn)
    .await
}

/// Reads the statistics, each count up to `limit`. The `order by` makes PostgreSQL read the small index, and not the
/// table with its deleted rows.
pub async fn read_stats(conn: &mut PgConnection, limit: i64) -> sqlx::Result<OutboxStats> {
    sqlx::query_as!(
        OutboxStats,
        r#"select clock_timestamp() as "now!", owed.number as "owed!", owed.oldest as owed_since,
                  (select count(*) from (select from orders.outbox_dead_letter limit $1) as dead)
                      as "dead_letters!"
         from (select count(*) as number, min(created_at) as oldest
               from (select created_at from orders.outbox where retry_at is not null
                     order by retry_at limit $1) as rows) as owed"#,
        limit
    )
    .fetch_one(conn)
    .await
}
