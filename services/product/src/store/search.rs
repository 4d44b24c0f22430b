//! Products as the search index needs them.

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::product::micros;

/// An active product as it is indexed.
#[derive(Clone, Debug, Hash)]
pub struct IndexEntry {
    pub id: i64,
    pub sku: String,
    pub name: String,
    /// The key of `sort=name`.
    pub name_key: String,
    pub description: String,
    pub category_id: Option<i64>,
    pub price: i64,
    pub in_stock: bool,
    /// Microseconds since the Unix epoch.
    pub created_at: i64,
}

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

impl From<Row> for IndexEntry {
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
            created_at: micros::from_time(row.created_at),
        }
    }
}

/// Returns up to `limit` active products behind an id, in the order of ids.
pub async fn fetch_page(conn: &mut PgConnection, after: i64, limit: i64) -> sqlx::Result<Vec<IndexEntry>> {
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
    Ok(rows.into_iter().map(IndexEntry::from).collect())
}

/// Returns those of the products that are active, in no order.
pub async fn fetch(conn: &mut PgConnection, ids: &[i64]) -> sqlx::Result<Vec<IndexEntry>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select id, sku, name, name_key as "name_key!", description, category_id, price, in_stock, created_at
           from product.product
           where status = 'active' and id = any($1)"#,
        ids,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(IndexEntry::from).collect())
}

/// Indicators of changes that may be missing from the change log.
#[derive(Clone, Copy, Debug)]
pub struct CatalogueState {
    /// The revision of the category tree: the number of its changes.
    pub tree_revision: i64,
    /// The highest id of a product; 0 if there is none.
    pub newest_id: i64,
}

pub async fn fetch_state(conn: &mut PgConnection) -> sqlx::Result<CatalogueState> {
    sqlx::query_as!(
        CatalogueState,
        r#"select revision as tree_revision, coalesce((select max(id) from product.product), 0) as "newest_id!"
           from product.tree"#
    )
    .fetch_one(conn)
    .await
}
