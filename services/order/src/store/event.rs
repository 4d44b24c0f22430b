//! Events: the transitions of a user's orders, numbered per user without gaps.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

/// An event. Its status and actor are texts: during an upgrade a newer version writes names that this version does not
/// know. They are published unchanged.
#[derive(Clone, Debug)]
pub struct EventRow {
    pub user_id: i64,
    pub seq: i64,
    pub order_id: Uuid,
    pub status: String,
    pub previous_status: Option<String>,
    pub total: i64,
    pub currency: String,
    pub version: i64,
    pub actor: String,
    pub reason: Option<String>,
    pub at: OffsetDateTime,
    pub traceparent: String,
}

/// Returns the next number of a user. Its lock is held until the transaction ends, so that numbers follow the order of
/// commits.
pub async fn next_seq(conn: &mut PgConnection, user_id: i64) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        "insert into orders.event_cursor as cursor (user_id, seq) values ($1, 1)
         on conflict (user_id) do update set seq = cursor.seq + 1
         returning seq",
        user_id
    )
    .fetch_one(conn)
    .await
}

/// Inserts an event, and its encoded `message` into the outbox, in one statement.
pub async fn insert(conn: &mut PgConnection, event: &EventRow, message: &[u8]) -> sqlx::Result<()> {
    // Relays of the previous version, which may run during an upgrade, read the column `lane`.
    sqlx::query!(
        "with happened as (
             insert into orders.event (user_id, seq, order_id, status, previous_status, total, currency, version,
                                       actor, reason, at, traceparent)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
             returning user_id, seq
         )
         insert into orders.outbox (lane, user_id, seq, message)
         select mod(happened.user_id, 8)::smallint, happened.user_id, happened.seq, $13 from happened",
        event.user_id,
        event.seq,
        event.order_id,
        event.status,
        event.previous_status.as_deref(),
        event.total,
        event.currency,
        event.version,
        event.actor,
        event.reason.as_deref(),
        event.at,
        event.traceparent,
        message
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Returns the user's newest number; 0 without events.
pub async fn last_seq(conn: &mut PgConnection, user_id: i64) -> sqlx::Result<i64> {
    let seq = sqlx::query_scalar!("select seq from orders.event_cursor where user_id = $1", user_id)
        .fetch_optional(conn)
        .await?;
    Ok(seq.unwrap_or_default())
}

/// Returns the newest number of each user, in the order of `user_ids`; 0 without events.
pub async fn last_seqs(conn: &mut PgConnection, user_ids: &[i64]) -> sqlx::Result<Vec<i64>> {
    sqlx::query_scalar!(
        r#"select coalesce(cursor.seq, 0) as "seq!"
           from unnest($1::bigint[]) with ordinality as u (user_id, index)
           left join orders.event_cursor as cursor on cursor.user_id = u.user_id
           order by u.index"#,
        user_ids
    )
    .fetch_all(conn)
    .await
}

/// Lists the events of a user after a number, in order.
pub async fn list_after(
    conn: &mut PgConnection,
    user_id: i64,
    seq: i64,
    limit: i64,
) -> sqlx::Result<Vec<EventRow>> {
    sqlx::query_as!(
        EventRow,
        "select user_id, seq, order_id, status, previous_status, total, currency, version, actor, reason, at,
                traceparent
         from orders.event where user_id = $1 and seq > $2 order by seq limit $3",
        user_id,
        seq,
        limit
    )
    .fetch_all(conn)
    .await
}

/// Returns the events of a user with these numbers.
pub async fn find_by_seqs(
    conn: &mut PgConnection,
    user_id: i64,
    seqs: &[i64],
) -> sqlx::Result<Vec<EventRow>> {
    sqlx::query_as!(
        EventRow,
        "select user_id, seq, order_id, status, previous_status, total, currency, version, actor, reason, at,
                traceparent
         from orders.event where user_id = $1 and seq = any($2)",
        user_id,
        seqs
    )
    .fetch_all(conn)
    .await
}

/// Lists the events of an order, oldest first.
pub async fn list_by_order(
    conn: &mut PgConnection,
    user_id: i64,
    order_id: Uuid,
) -> sqlx::Result<Vec<EventRow>> {
    sqlx::query_as!(
        EventRow,
        "select user_id, seq, order_id, status, previous_status, total, currency, version, actor, reason, at,
                traceparent
         from orders.event where user_id = $1 and order_id = $2 order by seq",
        user_id,
        order_id
    )
    .fetch_all(conn)
    .await
}
