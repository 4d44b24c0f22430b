//! The ledger of a product, page by page, with the available stock after each change.

use serde::{Deserialize, Serialize};
use shoppee_kit::{cursor, pg::PgPool};

use crate::{
    error::Error,
    store::stock_ledger::{self as store, LedgerRow},
};

/// A change of the available stock.
#[derive(Clone, Debug)]
pub struct StockChange {
    pub row: LedgerRow,
    /// The available stock after the change.
    pub available: i64,
}

/// The start of a page: the change before it, and the available stock before that change.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Position {
    id: i64,
    available: i64,
}

/// Returns a page of the changes of a product, the newest first, and the cursor of the next page.
pub async fn list(
    pool: &PgPool,
    product_id: i64,
    limit: i64,
    cursor: Option<&str>,
) -> Result<(Vec<StockChange>, Option<String>), Error> {
    let list = cursor::List::new(&("stock changes", product_id));
    let position =
        cursor.map(|cursor| list.decode::<Position>(cursor)).transpose().map_err(Error::Malformed)?;
    let mut conn = pool.acquire().await?;
    // One more than the page, to detect whether there is a next page.
    let before = position.map_or(i64::MAX, |position| position.id);
    let page = store::fetch_page(&mut conn, product_id, before, limit + 1).await?;
    let (available, mut rows) = page.ok_or(Error::NotFound)?;
    let page_size = usize::try_from(limit).unwrap_or_default();
    let is_last = rows.len() <= page_size;
    rows.truncate(page_size);
    let mut available = position.map_or(available, |position| position.available);
    let mut changes = Vec::with_capacity(rows.len());
    for row in rows {
        let units = row.kind.available_units(row.quantity);
        let change = StockChange { row, available };
        // A client may send a cursor with any number.
        available = available.wrapping_sub(units);
        changes.push(change);
    }
    let next = changes.last().filter(|_| !is_last).map(|last| Position { id: last.row.id, available });
    Ok((changes, next.map(|next| list.encode(&next))))
}
