//! Replication lag, in bytes of the write-ahead log.

use sqlx::PgConnection;

/// Returns the write position of a primary.
pub async fn fetch_written_lsn(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint as "written!""#)
        .fetch_one(conn)
        .await
}

/// Returns the replay position of a replica, or the write position of a primary.
pub async fn fetch_replayed_lsn(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select pg_wal_lsn_diff(
               case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, '0/0'
           )::bigint as "replayed!""#
    )
    .fetch_one(conn)
    .await
}
