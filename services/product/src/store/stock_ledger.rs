//! Pages of the ledger of a product.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::stock::MovementKind;

/// A row of the ledger.
#[derive(Clone, Debug)]
pub struct LedgerRow {
    pub id: i64,
    pub kind: MovementKind,
    pub quantity: i64,
    pub order_id: Option<Uuid>,
    pub reason: Option<String>,
    pub at: OffsetDateTime,
}

/// Returns the available stock of a product with up to `limit` rows of its ledger before `before`, the newest first, in one
/// snapshot. `None` without such a product.
pub async fn fetch_page(
    conn: &mut PgConnection,
    product_id: i64,
    before: i64,
    limit: i64,
) -> sqlx::Result<Option<(i64, Vec<LedgerRow>)>> {
    let rows = sqlx::query!(
        r#"select s.available, l.id as "id?", l.kind as "kind?", l.quantity as "quantity?", l.order_id, l.reason,
                  l.at as "at?"
           from product.stock s
           left join lateral (
               select id, kind, quantity, order_id, reason, at from product.stock_ledger
               where product_id = s.product_id and id < $2
               order by id desc limit $3
           ) l on true
           where s.product_id = $1
           order by l.id desc"#,
        product_id,
        before,
        limit,
    )
    .fetch_all(conn)
    .await?;
    let Some(available) = rows.first().map(|row| row.available) else {
        return Ok(None);
    };
    // A product without rows in its ledger has one row here, without a change.
    let changes = rows.into_iter().filter_map(|row| {
        Some(LedgerRow {
            id: row.id?,
            kind: MovementKind::from_stored(&row.kind?),
            quantity: row.quantity?,
            order_id: row.order_id,
            reason: row.reason,
            at: row.at?,
        })
    });
    Ok(Some((available, changes.collect())))
}
