//! The outbox: events on their way to Redis, by user, and those that were given up.
//!
//! Every statement but the looks names one user, so that an engine that distributes by `user_id` runs it in one place.

use sqlx::PgConnection;
use time::OffsetDateTime;

/// An event that waits.
#[derive(Clone, Debug)]
pub struct Waiting {
    pub seq: i64,
    /// True once the fan-out stream has it, so that only the user's history is owed.
    pub fanned_out: bool,
    /// Times that the user's history refused it.
    pub attempts: i16,
    /// The event as it travels; `None` in a row of the version before.
    pub message: Option<Vec<u8>>,
}

/// A look for what waits.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// By the clock of the database.
    pub now: OffsetDateTime,
    /// Events that only the user's history in Redis lacks.
    pub owed: i64,
    pub owed_since: Option<OffsetDateTime>,
    pub dead_letters: i64,
}

/// Returns what waits of a user and is due, in order, each row with its lock until the transaction ends.
///
/// Of two relays the second waits for the first one's locks, from the user's first row on, and then finds what is left.
/// So one relay at a time publishes a user's events.
pub async fn claim(conn: &mut PgConnection, user_id: i64, limit: i64) -> sqlx::Result<Vec<Waiting>> {
    sqlx::query_as!(
        Waiting,
        r#"select seq, retry_at is not null as "fanned_out!", attempts, message from orders.outbox
           where user_id = $1 and (retry_at is null or retry_at <= clock_timestamp())
           order by seq limit $2 for update"#,
        user_id,
        limit
    )
    .fetch_all(conn)
    .await
}

/// Crosses off what was published.
pub async fn remove(conn: &mut PgConnection, user_id: i64, seqs: &[i64]) -> sqlx::Result<()> {
    sqlx::query!("delete from orders.outbox where user_id = $1 and seq = any($2)", user_id, seqs)
        .execute(conn)
        .await?;
    Ok(())
}

/// Notes that the fan-out stream has these events and the user's history does not. `refused` counts an attempt; the wait
/// for the next, `seconds` at first, doubles with each.
pub async fn owe_history(
    conn: &mut PgConnection,
    user_id: i64,
    seqs: &[i64],
    refused: bool,
    seconds: f64,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update orders.outbox
         set attempts = attempts + $3::int, retry_at = clock_timestamp() + make_interval(secs => $4 * 2 ^ attempts)
         where user_id = $1 and seq = any($2)",
        user_id,
        seqs,
        i32::from(refused),
        seconds
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Gives events up: they leave the outbox for the dead letters, with the reason.
pub async fn give_up(conn: &mut PgConnection, user_id: i64, seqs: &[i64], reason: &str) -> sqlx::Result<()> {
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

/// Returns users with events that no relay has published, created at `since` or later, oldest first. Each comes with
/// the time of the event; at most `limit` events.
pub async fn waiting(
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

/// The number of those events, up to `limit`.
pub async fn count_waiting(conn: &mut PgConnection, since: OffsetDateTime, limit: i64) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "count!"
         from (select from orders.outbox where retry_at is null and created_at >= $1 limit $2) as waiting"#,
        since,
        limit
    )
    .fetch_one(conn)
    .await
}

/// Users whose history in Redis is owed events and due to be tried again.
pub async fn due(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<i64>> {
    sqlx::query_scalar!(
        "select user_id from orders.outbox where retry_at is not null and retry_at <= clock_timestamp()
         order by retry_at limit $1",
        limit
    )
    .fetch_all(conn)
    .await
}

/// The time by the clock of the database, and what is out of the ordinary, each counted up to `limit`. The order has the
/// small index read, and not the table with its deleted rows.
pub async fn look(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Look> {
    sqlx::query_as!(
        Look,
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
