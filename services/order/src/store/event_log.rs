//! The log of the events of all users: its queue, its entries and its head.

use sqlx::PgConnection;

use super::event::EventRow;

/// An event with its position in the log.
#[derive(Clone, Debug)]
pub struct LogRow {
    pub position: i64,
    pub event: EventRow,
}

/// The positions of the oldest entry and of the newest; `oldest` is above `head` in an empty log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogBounds {
    pub oldest: i64,
    pub head: i64,
}

/// Returns the position of the newest entry, and locks it until the transaction ends. The holder of the lock is the only
/// writer of the log.
pub async fn lock_head(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar!("select position from orders.event_log_head where id = 1 for update")
        .fetch_one(conn)
        .await
}

/// Moves up to `limit` queued events of these users to the log, after the position `head`, and returns their number. The
/// caller holds the lock of the head since an earlier statement, so that this one sees the queue as other writers left it.
///
/// The numbers of a user commit in order, and the limit cuts a user's numbers at the end. So the log has the events of a
/// user in order, without a gap.
pub async fn append(conn: &mut PgConnection, head: i64, users: &[i64], limit: i64) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"with taken as (
               delete from orders.event_queue
               where (user_id, seq) in (
                   select user_id, seq from orders.event_queue where user_id = any($1)
                   order by user_id, seq limit $2
               )
               returning user_id, seq
           ), appended as (
               insert into orders.event_log (position, user_id, seq)
               select $3 + row_number() over (order by taken.user_id, taken.seq), taken.user_id, taken.seq from taken
               returning position
           ), moved as (
               update orders.event_log_head set position = $3 + (select count(*) from appended)
               where id = 1 and exists (select from appended)
           )
           select count(*) as "count!" from appended"#,
        users,
        limit,
        head
    )
    .fetch_one(conn)
    .await
}

/// Lists the users of the first `limit` queued events.
pub async fn list_queued_users(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<i64>> {
    sqlx::query_scalar!(
        r#"select distinct user_id as "user_id!"
           from (select user_id from orders.event_queue order by user_id, seq limit $1) as queued"#,
        limit
    )
    .fetch_all(conn)
    .await
}

/// Counts queued events, up to `limit`.
pub async fn count_queued(conn: &mut PgConnection, limit: i64) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "count!"
           from (select from orders.event_queue order by user_id, seq limit $1) as queued"#,
        limit
    )
    .fetch_one(conn)
    .await
}

/// Returns the position of the newest entry.
pub async fn head(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar!("select position from orders.event_log_head where id = 1").fetch_one(conn).await
}

/// Returns the positions between which the log has entries.
pub async fn bounds(conn: &mut PgConnection) -> sqlx::Result<LogBounds> {
    sqlx::query_as!(
        LogBounds,
        r#"select coalesce((select position from orders.event_log order by position limit 1), position + 1)
                      as "oldest!",
                  position as head
           from orders.event_log_head where id = 1"#
    )
    .fetch_one(conn)
    .await
}

/// Lists the events after the position `after`, up to the position `until`, in order. Without `statuses` lists all, else
/// those with one of these statuses.
pub async fn list(
    conn: &mut PgConnection,
    after: i64,
    until: i64,
    statuses: &[String],
) -> sqlx::Result<Vec<LogRow>> {
    // With `offset 0` each event is found by its key: a join would be planned for the whole log.
    let rows = sqlx::query!(
        "select event_log.position, details.*
         from orders.event_log
         cross join lateral (
             select user_id, seq, order_id, status, previous_status, total, currency, version, actor, reason, at,
                    traceparent
             from orders.event
             where event.user_id = event_log.user_id and event.seq = event_log.seq
             offset 0
         ) as details
         where event_log.position > $1 and event_log.position <= $2
           and (cardinality($3::text[]) = 0 or details.status = any($3))
         order by event_log.position",
        after,
        until,
        statuses
    )
    .fetch_all(conn)
    .await?;
    let rows = rows.into_iter().map(|row| LogRow {
        position: row.position,
        event: EventRow {
            user_id: row.user_id,
            seq: row.seq,
            order_id: row.order_id,
            status: row.status,
            previous_status: row.previous_status,
            total: row.total,
            currency: row.currency,
            version: row.version,
            actor: row.actor,
            reason: row.reason,
            at: row.at,
            traceparent: row.traceparent,
        },
    });
    Ok(rows.collect())
}
