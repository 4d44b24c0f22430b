//! Holds and their lines.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::stock::{HeldLine, Hold, HoldState, Withdrawal};

/// Locks the holds of these orders and returns them with their lines.
pub async fn lock(conn: &mut PgConnection, order_ids: &[Uuid]) -> sqlx::Result<BTreeMap<Uuid, Hold>> {
    let rows = sqlx::query!(
        "select order_id, state, expires_at, fence, caller
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
                caller: row.caller,
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

/// The columns of the lines of some holds.
#[derive(Debug, Default)]
struct LineColumns {
    orders: Vec<Uuid>,
    products: Vec<i64>,
    quantities: Vec<i64>,
    skus: Vec<String>,
    names: Vec<String>,
    prices: Vec<i64>,
}

impl LineColumns {
    fn new(holds: &[(Uuid, Hold)]) -> Self {
        let mut columns = Self::default();
        for (order_id, line) in
            holds.iter().flat_map(|(order_id, hold)| hold.lines.iter().map(move |line| (order_id, line)))
        {
            columns.orders.push(*order_id);
            columns.products.push(line.product_id);
            columns.quantities.push(line.quantity);
            columns.skus.push(line.sku.clone());
            columns.names.push(line.name.clone());
            columns.prices.push(line.unit_price);
        }
        columns
    }
}

/// The columns of some holds.
struct HoldColumns {
    orders: Vec<Uuid>,
    expiries: Vec<OffsetDateTime>,
    callers: Vec<Option<String>>,
}

impl HoldColumns {
    fn new(holds: &[(Uuid, Hold)]) -> Self {
        Self {
            orders: holds.iter().map(|(order_id, _)| *order_id).collect(),
            expiries: holds.iter().map(|(_, hold)| hold.expires_at).collect(),
            callers: holds.iter().map(|(_, hold)| hold.caller.clone()).collect(),
        }
    }
}

/// Inserts holds with their lines, except where a hold or a tombstone exists. Returns the number of inserted
/// holds.
pub async fn insert(
    conn: &mut PgConnection,
    holds: &[(Uuid, Hold)],
    now: OffsetDateTime,
) -> sqlx::Result<u64> {
    let columns = HoldColumns::new(holds);
    let written = sqlx::query!(
        "insert into product.stock_hold (order_id, state, expires_at, caller, created_at, updated_at)
         select order_id, 'held', expires_at, caller, $4, $4
         from unnest($1::uuid[], $2::timestamptz[], $3::text[]) as h (order_id, expires_at, caller)
         order by order_id
         on conflict (order_id) do nothing",
        &columns.orders,
        &columns.expiries,
        &columns.callers as &[Option<String>],
        now,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();

    let lines = LineColumns::new(holds);
    sqlx::query!(
        "insert into product.hold_line (order_id, product_id, quantity, sku, name, unit_price)
         select order_id, product_id, quantity, sku, name, unit_price
         from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::bigint[])
              as l (order_id, product_id, quantity, sku, name, unit_price)
         on conflict (order_id, product_id) do nothing",
        &lines.orders,
        &lines.products,
        &lines.quantities,
        &lines.skus,
        &lines.names,
        &lines.prices,
    )
    .execute(conn)
    .await?;
    Ok(written)
}

/// Takes units that were decided on a snapshot of the stock, and inserts their holds: in one statement, all or none.
/// Returns `false` if the decisions do not hold any more, or if one of the orders has a hold or a tombstone.
///
/// PostgreSQL checks the stock again after it waits for a row lock. The version of a product is that of the statement's
/// snapshot. The steps depend on each other's rows, so that rows are locked in the global order.
pub async fn insert_decided(
    conn: &mut PgConnection,
    withdrawals: &[Withdrawal],
    holds: &[(Uuid, Hold)],
    now: OffsetDateTime,
) -> sqlx::Result<bool> {
    let products: Vec<i64> = withdrawals.iter().map(|withdrawal| withdrawal.product_id).collect();
    let units: Vec<i64> = withdrawals.iter().map(|withdrawal| withdrawal.units).collect();
    let versions: Vec<i64> = withdrawals.iter().map(|withdrawal| withdrawal.version).collect();
    let revisions: Vec<Option<i64>> = withdrawals.iter().map(|withdrawal| withdrawal.revision).collect();
    let (columns, lines) = (HoldColumns::new(holds), LineColumns::new(holds));
    let written = sqlx::query_file_scalar!(
        "src/store/hold/insert_decided.sql",
        &products,
        &units,
        &versions,
        &revisions as &[Option<i64>],
        &columns.orders,
        &columns.expiries,
        &columns.callers as &[Option<String>],
        &lines.orders,
        &lines.products,
        &lines.quantities,
        &lines.skus,
        &lines.names,
        &lines.prices,
        now,
    )
    .fetch_one(conn)
    .await;
    match written {
        Err(sqlx::Error::Database(error)) if error.constraint() == Some("stock_hold_pkey") => Ok(false),
        written => written,
    }
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

/// Releases the holds of some orders. Those that are sold stay, unless the flag of their order is set. Returns the states
/// before, of the orders that have a hold or a tombstone.
pub async fn release(
    conn: &mut PgConnection,
    orders: &BTreeMap<Uuid, bool>,
    now: OffsetDateTime,
) -> sqlx::Result<BTreeMap<Uuid, HoldState>> {
    let (order_ids, returns_sold): (Vec<Uuid>, Vec<bool>) = orders.iter().unzip();
    let rows = sqlx::query_file!("src/store/hold/release.sql", &order_ids, &returns_sold, now)
        .fetch_all(conn)
        .await?;
    Ok(rows.into_iter().map(|row| (row.order_id, HoldState::from_stored(&row.state))).collect())
}

/// Inserts tombstones: the orders were released before they were held. Returns those that are new.
pub async fn insert_tombstones(
    conn: &mut PgConnection,
    order_ids: &[Uuid],
    now: OffsetDateTime,
) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "insert into product.stock_hold (order_id, state, expires_at, created_at, updated_at)
         select order_id, 'released', $2, $2, $2
         from unnest($1::uuid[]) as t (order_id)
         order by order_id
         on conflict (order_id) do nothing
         returning order_id",
        order_ids,
        now,
    )
    .fetch_all(conn)
    .await
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
