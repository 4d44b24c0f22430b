//! How far behind a read replica is, in bytes of the write-ahead log.

use sqlx::PgConnection;

/// What a primary has written.
pub async fn written(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint as "written!""#)
        .fetch_one(conn)
        .await
}

/// What a replica shows; of a primary, what it has written.
pub async fn replayed(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select pg_wal_lsn_diff(
               case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, '0/0'
           )::bigint as "replayed!""#
    )
    .fetch_one(conn)
    .await
}
