//! The log of what changed in the catalogue: product.change, and the ledger of the stock.

use sqlx::PgConnection;
use time::OffsetDateTime;

/// Which transactions were running at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// All before this one have ended.
    pub oldest: i64,
    /// This one and all after it had not begun.
    pub next: i64,
}

/// A snapshot says only up to where transactions have ended: one that runs may be behind that. So this takes a number
/// itself, the next that there is.
pub async fn running(conn: &mut PgConnection) -> sqlx::Result<Running> {
    sqlx::query_as!(
        Running,
        r#"select pg_snapshot_xmin(pg_current_snapshot())::text::bigint as "oldest!",
                  pg_current_xact_id()::text::bigint as "next!""#
    )
    .fetch_one(conn)
    .await
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

/// Some entries of the log.
#[derive(Debug, Default)]
pub struct Page {
    /// Each product once.
    pub changes: Vec<Change>,
    /// The number of the last entry, where there may be more behind it.
    pub more_after: Option<i64>,
}

/// The next `most` entries behind number `after`.
pub async fn page(conn: &mut PgConnection, after: i64, most: i64) -> sqlx::Result<Page> {
    let rows = sqlx::query!(
        r#"select changed.product_id as "product_id!", changed.at as "at!", changed.last as "last!",
                  changed.entries as "entries!", p.version + s.revision + tree.revision as "revision!"
           from (
               select product_id, max(at) as at, max(id) as last, count(*) as entries
               from (
                   (select id, product_id, at from product.stock_ledger where id > $1 order by id limit $2)
                   union all
                   (select id, product_id, at from product.change where id > $1 order by id limit $2)
                   order by id limit $2
               ) log
               group by product_id
           ) changed
           join product.product p on p.id = changed.product_id
           join product.stock s on s.product_id = changed.product_id
           cross join product.tree"#,
        after,
        most,
    )
    .fetch_all(conn)
    .await?;
    let entries: i64 = rows.iter().map(|row| row.entries).sum();
    let last = rows.iter().map(|row| row.last).max();
    let changes = rows
        .into_iter()
        .map(|row| Change { product_id: row.product_id, revision: row.revision, at: row.at })
        .collect();
    Ok(Page { changes, more_after: last.filter(|_| entries >= most) })
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
