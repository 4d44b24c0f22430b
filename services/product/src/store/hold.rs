//! Holds and their lines.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::stock::{HeldLine, Hold, HoldState};

/// Locks the holds of these orders and returns them with their lines.
pub async fn lock(conn: &mut PgConnection, order_ids: &[Uuid]) -> sqlx::Result<BTreeMap<Uuid, Hold>> {
    let rows = sqlx::query!(
        "select order_id, state, expires_at, fence
         from product.stock_hold
         where order_id = any($1)
         order by order_id
         for update",
        order_ids,
    )
    .fetch_all(&mut *conn)
    .await?;
    if rows.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut holds: BTreeMap<Uuid, Hold> = rows
        .into_iter()
        .map(|row| {
            let hold = Hold {
                state: HoldState::from_stored(&row.state),
                expires_at: row.expires_at,
                fence: row.fence,
                lines: Vec::new(),
            };
            (row.order_id, hold)
        })
        .collect();
    for (order_id, line) in fetch_lines(conn, order_ids).await? {
        if let Some(hold) = holds.get_mut(&order_id) {
            hold.lines.push(line);
        }
    }
    Ok(holds)
}

/// Returns the lines of these orders, in the order of product ids. Lines are immutable, so nothing is locked.
pub async fn fetch_lines(conn: &mut PgConnection, order_ids: &[Uuid]) -> sqlx::Result<Vec<(Uuid, HeldLine)>> {
    let rows = sqlx::query!(
        "select order_id, product_id, sku, name, unit_price, quantity
         from product.hold_line
         where order_id = any($1)
         order by product_id",
        order_ids,
    )
    .fetch_all(conn)
    .await?;
    let lines = rows.into_iter().map(|row| {
        let line = HeldLine {
            product_id: row.product_id,
            sku: row.sku,
            name: row.name,
            unit_price: row.unit_price,
            quantity: row.quantity,
            available: 0,
        };
        (row.order_id, line)
    });
    Ok(lines.collect())
}

/// Inserts holds with their lines, except where a hold or a tombstone exists. Returns the number of inserted
/// holds.
pub async fn insert(
    conn: &mut PgConnection,
    holds: &[(Uuid, Hold)],
    now: OffsetDateTime,
) -> sqlx::Result<u64> {
    let (order_ids, expiries): (Vec<Uuid>, Vec<OffsetDateTime>) =
        holds.iter().map(|(order_id, hold)| (*order_id, hold.expires_at)).unzip();
    let written = sqlx::query!(
        "insert into product.stock_hold (order_id, state, expires_at, created_at, updated_at)
         select order_id, 'held', expires_at, $3, $3
         from unnest($1::uuid[], $2::timestamptz[]) as h (order_id, expires_at)
         order by order_id
         on conflict (order_id) do nothing",
        &order_ids,
        &expiries,
        now,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();

    let (mut orders, mut products, mut quantities) = (Vec::new(), Vec::new(), Vec::new());
    let (mut skus, mut names, mut prices) = (Vec::new(), Vec::new(), Vec::new());
    for (order_id, hold) in holds {
        for line in &hold.lines {
            orders.push(*order_id);
            products.push(line.product_id);
            quantities.push(line.quantity);
            skus.push(line.sku.clone());
            names.push(line.name.clone());
            prices.push(line.unit_price);
        }
    }
    sqlx::query!(
        "insert into product.hold_line (order_id, product_id, quantity, sku, name, unit_price)
         select order_id, product_id, quantity, sku, name, unit_price
         from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::bigint[])
              as l (order_id, product_id, quantity, sku, name, unit_price)
         on conflict (order_id, product_id) do nothing",
        &orders,
        &products,
        &quantities,
        &skus,
        &names,
        &prices,
    )
    .execute(conn)
    .await?;
    Ok(written)
}

/// Updates the expiry and the fencing token of locked holds.
pub async fn extend(
    conn: &mut PgConnection,
    holds: &[(Uuid, Hold)],
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let (order_ids, expiries): (Vec<Uuid>, Vec<OffsetDateTime>) =
        holds.iter().map(|(order_id, hold)| (*order_id, hold.expires_at)).unzip();
    let fences: Vec<i64> = holds.iter().map(|(_, hold)| hold.fence).collect();
    sqlx::query!(
        "update product.stock_hold hold
         set expires_at = h.expires_at, fence = h.fence, updated_at = $3
         from unnest($1::uuid[], $2::timestamptz[], $4::bigint[]) as h (order_id, expires_at, fence)
         where hold.order_id = h.order_id",
        &order_ids,
        &expiries,
        now,
        &fences,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Commits an unexpired hold and writes its sales to the ledger, in one statement. Returns whether there was
/// one. Stock rows do not change, because held units were not available before either.
pub async fn commit(conn: &mut PgConnection, order_id: Uuid, now: OffsetDateTime) -> sqlx::Result<bool> {
    let rows = sqlx::query!(
        "with sold as (
             update product.stock_hold
             set state = 'committed', updated_at = $2
             where order_id = $1 and state = 'held' and expires_at > $2
             returning order_id
         )
         insert into product.stock_ledger (product_id, kind, quantity, order_id, at)
         select line.product_id, 'sale', - line.quantity, line.order_id, $2
         from product.hold_line line
         join sold on sold.order_id = line.order_id",
        order_id,
        now,
    )
    .execute(conn)
    .await?
    .rows_affected();
    Ok(rows > 0)
}

/// Returns the state of an order's hold, whether it has expired or not.
pub async fn fetch_state(conn: &mut PgConnection, order_id: Uuid) -> sqlx::Result<Option<HoldState>> {
    let state = sqlx::query_scalar!("select state from product.stock_hold where order_id = $1", order_id)
        .fetch_optional(conn)
        .await?;
    Ok(state.as_deref().map(HoldState::from_stored))
}

/// Inserts a tombstone: the order was released before it was held. Returns whether it is new.
pub async fn insert_tombstone(
    conn: &mut PgConnection,
    order_id: Uuid,
    now: OffsetDateTime,
) -> sqlx::Result<bool> {
    let written = sqlx::query!(
        "insert into product.stock_hold (order_id, state, expires_at, created_at, updated_at)
         values ($1, 'released', $2, $2, $2)
         on conflict (order_id) do nothing",
        order_id,
        now,
    )
    .execute(conn)
    .await?
    .rows_affected();
    Ok(written > 0)
}

/// Locks those of the holds that have expired; skips those that another transaction has locked.
pub async fn lock_expired(
    conn: &mut PgConnection,
    order_ids: &[Uuid],
    now: OffsetDateTime,
) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "select order_id
         from product.stock_hold
         where order_id = any($1) and state = 'held' and expires_at <= $2
         order by order_id
         for update skip locked",
        order_ids,
        now,
    )
    .fetch_all(conn)
    .await
}

/// Returns expired holds, the oldest first, without locks: their stock rows have to be locked before them.
pub async fn fetch_expired(
    conn: &mut PgConnection,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "select order_id
         from product.stock_hold
         where state = 'held' and expires_at <= $1
         order by expires_at
         limit $2",
        now,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// Returns the largest share of a product's units that is held and unpaid, over products with at least
/// `min_stock` units.
pub async fn fetch_max_held_share(conn: &mut PgConnection, min_stock: i64) -> sqlx::Result<f64> {
    sqlx::query_scalar!(
        r#"with held as (
               select line.product_id, sum(line.quantity) as units
               from product.stock_hold hold
               join product.hold_line line on line.order_id = hold.order_id
               where hold.state = 'held'
               group by line.product_id
           )
           select coalesce(max(held.units / (held.units + stock.available)), 0)::float8 as "share!"
           from held join product.stock stock on stock.product_id = held.product_id
           where held.units + stock.available >= $1::bigint"#,
        min_stock,
    )
    .fetch_one(conn)
    .await
}

/// Sets the state of locked holds.
pub async fn set_state(
    conn: &mut PgConnection,
    order_ids: &[Uuid],
    state: HoldState,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update product.stock_hold set state = $2, updated_at = $3 where order_id = any($1)",
        order_ids,
        state.as_str(),
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}
