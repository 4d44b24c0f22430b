//! The outbox: pending events of each user, and dead letters.
//!
//! Every statement except those of the poll names one user, so that a database distributed by `user_id` runs it on one
//! node.

use sqlx::PgConnection;
use time::OffsetDateTime;

/// A pending event.
#[derive(Clone, Debug)]
pub struct OutboxRow {
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
        r#"select seq, retry_at is not null as "fanned_out!", attempts, message from orders.outbox
           where user_id = $1 and (retry_at is null or retry_at <= clock_timestamp())
           order by seq limit $2 for update"#,
        user_id,
        limit
    )
    .fetch_all(conn)
    .await
}

/// Deletes published events.
pub async fn delete(conn: &mut PgConnection, user_id: i64, seqs: &[i64]) -> sqlx::Result<()> {
    sqlx::query!("delete from orders.outbox where user_id = $1 and seq = any($2)", user_id, seqs)
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
