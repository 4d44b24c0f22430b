//! The consumer's positions in the streams of other services.

use sqlx::PgConnection;

/// Returns the id of the last entry that was read; `None` before the first.
pub async fn position(conn: &mut PgConnection, stream: &str) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!("select id from orders.stream_position where stream = $1", stream)
        .fetch_optional(conn)
        .await
}

pub async fn set_position(conn: &mut PgConnection, stream: &str, id: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into orders.stream_position (stream, id) values ($1, $2)
         on conflict (stream) do update set id = excluded.id",
        stream,
        id
    )
    .execute(conn)
    .await?;
    Ok(())
}
