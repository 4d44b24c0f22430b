//! The statements of the audit log. They are checked against the schema of the service that expands
//! [`audit_log_store!`](crate::audit_log_store) in its `store`.

use std::fmt::Debug;

use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::Record;
pub use super::query::{Index, Query};

/// A stored record.
#[derive(Debug)]
pub struct StoredRecord {
    pub id: Uuid,
    pub at: OffsetDateTime,
    pub actor: String,
    pub actor_name: Option<String>,
    pub action: String,
    pub target: String,
    pub before: Option<Value>,
    pub after: Option<Value>,
    pub request_id: Option<String>,
}

/// The audit log of a service.
pub trait Store: Debug + Send + Sync + 'static {
    /// The name of the service.
    const SERVICE: &'static str;

    /// Inserts records in the transaction of their effect.
    fn insert(
        conn: &mut PgConnection,
        records: &[Record<'_>],
        now: OffsetDateTime,
    ) -> impl Future<Output = sqlx::Result<()>> + Send;

    /// Returns the newest records that a query selects.
    fn fetch_page(
        conn: &mut PgConnection,
        query: &Query,
        limit: i64,
    ) -> impl Future<Output = sqlx::Result<Vec<StoredRecord>>> + Send;

    /// Returns the id of the record `count` places after the newest one that the index of a query selects; `None` if there
    /// are fewer.
    fn find_nth(
        conn: &mut PgConnection,
        query: &Query,
        count: i64,
    ) -> impl Future<Output = sqlx::Result<Option<Uuid>>> + Send;

    /// Deletes those of the `limit` oldest records that are older than `retention_seconds`, by the clock of the database.
    /// Returns their number.
    fn delete_expired(
        conn: &mut PgConnection,
        retention_seconds: f64,
        limit: i64,
    ) -> impl Future<Output = sqlx::Result<u64>> + Send;
}

/// Defines `AuditLog`, a [`Store`] of the service with this name and schema. Each index has a query of its own, which is
/// sorted like the index: once it plans for all parameters, PostgreSQL would search all records for a rare actor.
#[macro_export]
macro_rules! audit_log_store {
    ($service:literal, $schema:literal) => {
        /// The audit log of this service.
        #[derive(Debug)]
        pub struct AuditLog;

        impl $crate::audit_log::store::Store for AuditLog {
            const SERVICE: &'static str = $service;

            async fn insert(
                conn: &mut sqlx::PgConnection,
                records: &[$crate::audit_log::Record<'_>],
                now: time::OffsetDateTime,
            ) -> sqlx::Result<()> {
                let columns = $crate::audit_log::Columns::new(records, now);
                sqlx::query!(
                    "insert into " + $schema + ".audit_record
                         (id, at, actor, actor_name, action, target, before, after, request_id)
                     select id, $1, actor, actor_name, action, target, before::jsonb, after::jsonb, request_id
                     from unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                                 $9::text[])
                          as r (id, actor, actor_name, action, target, before, after, request_id)",
                    columns.at,
                    &columns.ids,
                    &columns.actors as &[&str],
                    &columns.actor_names as &[Option<&str>],
                    &columns.actions as &[&str],
                    &columns.targets as &[&str],
                    &columns.before as &[Option<&str>],
                    &columns.after as &[Option<&str>],
                    &columns.request_ids as &[Option<&str>],
                )
                .execute(conn)
                .await?;
                Ok(())
            }

            async fn fetch_page(
                conn: &mut sqlx::PgConnection,
                query: &$crate::audit_log::store::Query,
                limit: i64,
            ) -> sqlx::Result<Vec<$crate::audit_log::store::StoredRecord>> {
                use $crate::audit_log::store::{Index, StoredRecord};
                let (from, before) = (query.from, query.before);
                match query.index() {
                    Index::Target(target) => {
                        sqlx::query_as!(
                            StoredRecord,
                            "select id, at, actor, actor_name, action, target, before, after, request_id
                             from " + $schema + ".audit_record
                             where (target, id) >= ($1, $2) and (target, id) < ($1, $3)
                               and ($4::text is null or actor = $4) and ($5::text is null or action = $5)
                             order by target desc, id desc limit $6",
                            target,
                            from,
                            before,
                            query.actor,
                            query.action,
                            limit,
                        )
                        .fetch_all(conn)
                        .await
                    }
                    Index::Actor(actor) => {
                        sqlx::query_as!(
                            StoredRecord,
                            "select id, at, actor, actor_name, action, target, before, after, request_id
                             from " + $schema + ".audit_record
                             where (actor, id) >= ($1, $2) and (actor, id) < ($1, $3)
                               and ($4::text is null or action = $4)
                             order by actor desc, id desc limit $5",
                            actor,
                            from,
                            before,
                            query.action,
                            limit,
                        )
                        .fetch_all(conn)
                        .await
                    }
                    Index::Action(action) => {
                        sqlx::query_as!(
                            StoredRecord,
                            "select id, at, actor, actor_name, action, target, before, after, request_id
                             from " + $schema + ".audit_record
                             where (action, id) >= ($1, $2) and (action, id) < ($1, $3)
                             order by action desc, id desc limit $4",
                            action,
                            from,
                            before,
                            limit,
                        )
                        .fetch_all(conn)
                        .await
                    }
                    Index::Time => {
                        sqlx::query_as!(
                            StoredRecord,
                            "select id, at, actor, actor_name, action, target, before, after, request_id
                             from " + $schema + ".audit_record
                             where id >= $1 and id < $2 order by id desc limit $3",
                            from,
                            before,
                            limit,
                        )
                        .fetch_all(conn)
                        .await
                    }
                }
            }

            async fn find_nth(
                conn: &mut sqlx::PgConnection,
                query: &$crate::audit_log::store::Query,
                count: i64,
            ) -> sqlx::Result<Option<uuid::Uuid>> {
                use $crate::audit_log::store::Index;
                let (from, before) = (query.from, query.before);
                match query.index() {
                    Index::Target(target) => {
                        sqlx::query_scalar!(
                            "select id from " + $schema + ".audit_record
                             where (target, id) >= ($1, $2) and (target, id) < ($1, $3)
                             order by target desc, id desc offset $4 limit 1",
                            target,
                            from,
                            before,
                            count,
                        )
                        .fetch_optional(conn)
                        .await
                    }
                    Index::Actor(actor) => {
                        sqlx::query_scalar!(
                            "select id from " + $schema + ".audit_record
                             where (actor, id) >= ($1, $2) and (actor, id) < ($1, $3)
                             order by actor desc, id desc offset $4 limit 1",
                            actor,
                            from,
                            before,
                            count,
                        )
                        .fetch_optional(conn)
                        .await
                    }
                    // Their pages filter nothing.
                    Index::Action(_) | Index::Time => Ok(None),
                }
            }

            async fn delete_expired(
                conn: &mut sqlx::PgConnection,
                retention_seconds: f64,
                limit: i64,
            ) -> sqlx::Result<u64> {
                let result = sqlx::query!(
                    "with oldest as (
                         select id, at from " + $schema + ".audit_record order by id limit $2
                     )
                     delete from " + $schema + ".audit_record
                     where id = any(array(
                         select id from oldest where at < clock_timestamp() - make_interval(secs => $1)
                     ))",
                    retention_seconds,
                    limit,
                )
                .execute(conn)
                .await?;
                Ok(result.rows_affected())
            }
        }
    };
}
