//! Products as the search index has them.

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{product::micros, search::Entry};

struct Row {
    id: i64,
    sku: String,
    name: String,
    name_key: String,
    description: String,
    category_id: Option<i64>,
    price: i64,
    in_stock: bool,
    created_at: OffsetDateTime,
}

impl From<Row> for Entry {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            sku: row.sku,
            name: row.name,
            name_key: row.name_key,
            description: row.description,
            category_id: row.category_id,
            price: row.price,
            in_stock: row.in_stock,
            created_at: micros::of(row.created_at),
        }
    }
}

/// The active products behind an id, by id; up to `limit`.
pub async fn page(conn: &mut PgConnection, after: i64, limit: i64) -> sqlx::Result<Vec<Entry>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select id, sku, name, name_key as "name_key!", description, category_id, price, in_stock, created_at
           from product.product
           where status = 'active' and id > $1
           order by id
           limit $2"#,
        after,
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Entry::from).collect())
}

/// Those of the products that are active, in no order.
pub async fn entries(conn: &mut PgConnection, ids: &[i64]) -> sqlx::Result<Vec<Entry>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select id, sku, name, name_key as "name_key!", description, category_id, price, in_stock, created_at
           from product.product
           where status = 'active' and id = any($1)"#,
        ids,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Entry::from).collect())
}

/// What tells that something has changed, though the change log may not.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// The number of changes of the category tree so far.
    pub tree_revision: i64,
    /// The highest id of a product; 0 where there is none.
    pub newest_id: i64,
}

pub async fn state(conn: &mut PgConnection) -> sqlx::Result<State> {
    sqlx::query_as!(
        State,
        r#"select revision as tree_revision, coalesce((select max(id) from product.product), 0) as "newest_id!"
           from product.tree"#
    )
    .fetch_one(conn)
    .await
}
