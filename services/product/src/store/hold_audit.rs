//! Holds with their ledger entries, for the audit that compares them with the orders.

use std::collections::BTreeMap;

use shoppee_kit::pg::PgPool;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    hold_audit::{AuditedHold, AuditedLine},
    stock::HoldState,
};

/// Returns the holds of these orders, read in one snapshot.
pub async fn get(pool: &PgPool, order_ids: &[Uuid]) -> sqlx::Result<BTreeMap<Uuid, AuditedHold>> {
    let mut tx = pool.begin_with("begin isolation level repeatable read read only").await?;
    let holds = sqlx::query!(
        "select order_id, state, created_at from product.stock_hold where order_id = any($1)",
        order_ids,
    )
    .fetch_all(&mut *tx)
    .await?;
    let lines = sqlx::query!(
        r#"select order_id as "order_id!", product_id as "product_id!",
                  coalesce(line.quantity, 0) as "quantity!",
                  coalesce(entry.available, 0)::bigint as "available!", coalesce(entry.sold, 0)::bigint as "sold!"
           from (select order_id, product_id, quantity from product.hold_line where order_id = any($1)) line
           full join (
               select order_id, product_id,
                      sum(quantity) filter (where kind <> 'sale') as available,
                      sum(quantity) filter (where kind = 'sale') as sold
               from product.stock_ledger
               where order_id = any($1)
               group by order_id, product_id
           ) entry using (order_id, product_id)
           order by product_id"#,
        order_ids,
    )
    .fetch_all(&mut *tx)
    .await?;
    tx.rollback().await?;
    let hold = |state: &str, created_at: OffsetDateTime| AuditedHold {
        state: HoldState::from_stored(state),
        created_at,
        lines: Vec::new(),
    };
    let mut audited: BTreeMap<Uuid, AuditedHold> =
        holds.iter().map(|row| (row.order_id, hold(&row.state, row.created_at))).collect();
    for row in lines {
        if let Some(hold) = audited.get_mut(&row.order_id) {
            hold.lines.push(AuditedLine {
                product_id: row.product_id,
                quantity: row.quantity,
                available: row.available,
                sold: row.sold,
            });
        }
    }
    Ok(audited)
}

/// A hold in a list.
#[derive(Clone, Debug)]
pub struct ListedHold {
    pub order_id: Uuid,
    pub state: HoldState,
    /// The client that created it, if that is known.
    pub caller: Option<String>,
}

/// Returns the next `limit` holds after the order id `after`, up to `until`, in the order of order ids.
pub async fn list(
    conn: &mut PgConnection,
    after: Uuid,
    until: Uuid,
    limit: i64,
) -> sqlx::Result<Vec<ListedHold>> {
    let rows = sqlx::query!(
        "select order_id, state, caller from product.stock_hold
         where order_id > $1 and order_id <= $2
         order by order_id
         limit $3",
        after,
        until,
        limit,
    )
    .fetch_all(conn)
    .await?;
    let hold =
        |order_id, state: &str, caller| ListedHold { order_id, state: HoldState::from_stored(state), caller };
    Ok(rows.into_iter().map(|row| hold(row.order_id, &row.state, row.caller)).collect())
}
