//! The log of what changed in the catalogue: product.change, and the ledger of the stock.

use std::collections::BTreeSet;

use sqlx::PgConnection;
use time::OffsetDateTime;

/// Returns the transactions that may have taken a number and not committed yet: those that hold a lock for writing on a
/// table of the log. A transaction takes that lock before its first number and keeps it until its end is visible. So of
/// the numbers given before this call those of other transactions can be read after it.
///
/// That is true of the locks of one PostgreSQL server, which has one list of them. An engine that spreads the tables over
/// several servers would answer for one of them: [`crate::engine`] refuses to start there.
pub async fn writers(conn: &mut PgConnection) -> sqlx::Result<BTreeSet<String>> {
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

/// The highest number that was given so far.
pub async fn newest(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select case when is_called then last_value else 0 end as "newest!" from product.stock_ledger_id_seq"#
    )
    .fetch_one(conn)
    .await
}

/// A product that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub product_id: i64,
    /// What it is now.
    pub revision: i64,
    /// When the last of its changes was made.
    pub at: OffsetDateTime,
}

/// A part of the log: the numbers behind `after`, up to `upto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub after: i64,
    pub upto: i64,
}

/// Some entries of the log.
#[derive(Debug, Default)]
pub struct Page {
    /// Each product once.
    pub changes: Vec<Change>,
    /// The numbers of the entries, in order.
    pub numbers: Vec<i64>,
}

/// Returns the first `limit` entries in the ranges, which are in order and do not overlap.
pub async fn page(conn: &mut PgConnection, ranges: &[Range], limit: i64) -> sqlx::Result<Page> {
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
        page.numbers.extend(row.numbers);
        // An entry about a product that does not exist changes nothing that is shown.
        if let Some(revision) = row.revision {
            page.changes.push(Change { product_id: row.product_id, revision, at: row.at });
        }
    }
    page.numbers.sort_unstable();
    Ok(page)
}

/// Deletes the next `most` entries of product.change that are older than `before`; how many there were.
pub async fn forget(conn: &mut PgConnection, before: OffsetDateTime, most: i64) -> sqlx::Result<u64> {
    let deleted = sqlx::query!(
        "delete from product.change
         where at < $1 and id in (select id from product.change order by id limit $2)",
        before,
        most,
    )
    .execute(conn)
    .await?;
    Ok(deleted.rows_affected())
}
