//! The change log of the catalogue: product.change and the stock ledger, which share one sequence of ids.

use std::collections::BTreeSet;

use sqlx::PgConnection;
use time::OffsetDateTime;

/// Returns the transactions that may have taken an id and not committed yet: those with a write lock on a
/// table of the log. A transaction takes that lock before its first id and releases it after its commit is
/// visible. So ids assigned before this call, by transactions that are not returned, are readable after it.
///
/// This holds for one PostgreSQL server, which has one lock table. An engine that distributes tables over
/// several servers would report the locks of only one: [`crate::engine`] refuses to start there.
pub async fn fetch_writers(conn: &mut PgConnection) -> sqlx::Result<BTreeSet<String>> {
    let writers = sqlx::query_scalar!(
        r#"select distinct virtualtransaction as "writer!"
           from pg_catalog.pg_locks
           where locktype = 'relation' and granted and mode = 'RowExclusiveLock'
             and database = (select oid from pg_catalog.pg_database where datname = current_database())
             and relation in ('product.stock_ledger'::regclass, 'product.change'::regclass)"#
    )
    .fetch_all(conn)
    .await?;
    Ok(writers.into_iter().collect())
}

/// Returns the last assigned id of the log.
pub async fn fetch_last_id(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select case when is_called then last_value else 0 end as "newest!" from product.stock_ledger_id_seq"#
    )
    .fetch_one(conn)
    .await
}

/// A change of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub product_id: i64,
    /// The current revision.
    pub revision: i64,
    /// The time of the last change.
    pub at: OffsetDateTime,
}

/// A range of the log: the ids behind `after`, up to `upto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub after: i64,
    pub upto: i64,
}

/// A page of the log.
#[derive(Debug, Default)]
pub struct Page {
    /// The changed products, each once.
    pub changes: Vec<Change>,
    /// The ids of the entries, in order.
    pub ids: Vec<i64>,
}

/// Returns the first `limit` entries in the ranges, which are in order and do not overlap.
pub async fn fetch_page(conn: &mut PgConnection, ranges: &[Range], limit: i64) -> sqlx::Result<Page> {
    let (afters, uptos): (Vec<i64>, Vec<i64>) = ranges.iter().map(|range| (range.after, range.upto)).unzip();
    let rows = sqlx::query!(
        r#"select changed.product_id as "product_id!", changed.at as "at!", changed.numbers as "numbers!",
                  p.version + s.revision + tree.revision as "revision?"
           from (
               select product_id, max(at) as at, array_agg(id) as numbers
               from (
                   select entry.id, entry.product_id, entry.at
                   from unnest($1::bigint[], $2::bigint[]) as part (after, upto)
                   cross join lateral (
                       (select id, product_id, at from product.stock_ledger
                        where id > part.after and id <= part.upto order by id limit $3)
                       union all
                       (select id, product_id, at from product.change
                        where id > part.after and id <= part.upto order by id limit $3)
                   ) entry
                   order by entry.id
                   limit $3
               ) log
               group by product_id
           ) changed
           left join product.product p on p.id = changed.product_id
           left join product.stock s on s.product_id = changed.product_id
           cross join product.tree"#,
        &afters,
        &uptos,
        limit,
    )
    .fetch_all(conn)
    .await?;
    let mut page = Page::default();
    for row in rows {
        page.ids.extend(row.numbers);
        // An entry of a product that does not exist changes nothing that is visible.
        if let Some(revision) = row.revision {
            page.changes.push(Change { product_id: row.product_id, revision, at: row.at });
        }
    }
    page.ids.sort_unstable();
    Ok(page)
}

/// Deletes up to `limit` entries of product.change that are older than `before`. Returns the number of
/// deleted entries.
pub async fn purge(conn: &mut PgConnection, before: OffsetDateTime, limit: i64) -> sqlx::Result<u64> {
    let deleted = sqlx::query!(
        "delete from product.change
         where at < $1 and id in (select id from product.change order by id limit $2)",
        before,
        limit,
    )
    .execute(conn)
    .await?;
    Ok(deleted.rows_affected())
}
