//! Stock levels, and the ledger of every movement.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::stock::{MovementKind, StockLevel};

/// Locks the stock of these products, in the order of their ids, and returns the levels of those that exist.
pub async fn lock(conn: &mut PgConnection, ids: &[i64]) -> sqlx::Result<BTreeMap<i64, StockLevel>> {
    let rows = sqlx::query!(
        r#"select s.product_id, s.available, s.revision, p.version, p.sku, p.name, p.price,
                  p.status = 'active' as "on_sale!"
           from product.stock s
           join product.product p on p.id = s.product_id
           where s.product_id = any($1)
           order by s.product_id
           for no key update of s"#,
        ids,
    )
    .fetch_all(conn)
    .await?;
    let levels = rows.into_iter().map(|row| {
        let level = StockLevel {
            sku: row.sku,
            name: row.name,
            price: row.price,
            active: row.on_sale,
            version: row.version,
            available: row.available,
            revision: row.revision,
        };
        (row.product_id, level)
    });
    Ok(levels.collect())
}

/// The stock of some products as of one moment, without locks.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The levels of those of the products that exist.
    pub levels: BTreeMap<i64, StockLevel>,
    /// True if one of the orders has a hold or a tombstone. False if none of the products exists.
    pub is_held: bool,
}

/// Returns the stock of these products, and whether one of the orders has a hold.
///
/// The planner does not know the length of a parameter in a subquery, so that one plan serves all calls.
pub async fn fetch_snapshot(
    conn: &mut PgConnection,
    ids: &[i64],
    order_ids: &[Uuid],
) -> sqlx::Result<Snapshot> {
    let rows = sqlx::query!(
        r#"with s as materialized (
               select product_id, available, revision from product.stock
               where product_id = any ((select $1::bigint[])::bigint[])
           ),
           p as materialized (
               select id, version, sku, name, price, status from product.product
               where id = any ((select $1::bigint[])::bigint[])
           )
           select s.product_id, s.available, s.revision, p.version, p.sku, p.name, p.price,
                  p.status = 'active' as "on_sale!",
                  (select count(*) from product.stock_hold
                   where order_id = any ((select $2::uuid[])::uuid[])) > 0 as "is_held!"
           from s join p on p.id = s.product_id"#,
        ids,
        order_ids,
    )
    .fetch_all(conn)
    .await?;
    let is_held = rows.first().is_some_and(|row| row.is_held);
    let levels = rows.into_iter().map(|row| {
        let level = StockLevel {
            sku: row.sku,
            name: row.name,
            price: row.price,
            active: row.on_sale,
            version: row.version,
            available: row.available,
            revision: row.revision,
        };
        (row.product_id, level)
    });
    Ok(Snapshot { levels: levels.collect(), is_held })
}

/// Inserts the stock row of a new product.
pub async fn insert(conn: &mut PgConnection, product_id: i64) -> sqlx::Result<()> {
    sqlx::query!("insert into product.stock (product_id, available) values ($1, 0)", product_id)
        .execute(conn)
        .await?;
    Ok(())
}

/// One row of the ledger.
#[derive(Clone, Debug)]
pub struct Movement<'a> {
    pub product_id: i64,
    pub kind: MovementKind,
    /// The units added to the stock.
    pub quantity: i64,
    pub order_id: Option<Uuid>,
    pub reason: Option<&'a str>,
}

/// Applies movements to locked stock ([`lock`]) and writes them to the ledger. The revision of each moved stock grows by
/// one. Movements of 0 units are skipped.
pub async fn apply(
    conn: &mut PgConnection,
    movements: &[Movement<'_>],
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let mut sums = BTreeMap::<i64, i64>::new();
    for movement in movements.iter().filter(|movement| movement.quantity != 0) {
        *sums.entry(movement.product_id).or_default() += movement.quantity;
    }
    if !sums.is_empty() {
        let (ids, deltas): (Vec<i64>, Vec<i64>) = sums.into_iter().unzip();
        let toggled = sqlx::query_scalar!(
            r#"with moved as (
                   update product.stock s
                   set available = s.available + c.delta, revision = s.revision + 1
                   from unnest($1::bigint[], $2::bigint[]) as c (product_id, delta)
                   where s.product_id = c.product_id
                   returning s.product_id, s.available > 0 as now, s.available - c.delta > 0 as before
               )
               select product_id as "product_id!" from moved where now <> before order by product_id"#,
            &ids,
            &deltas,
        )
        .fetch_all(&mut *conn)
        .await?;
        update_in_stock(conn, &toggled).await?;
    }
    insert_ledger(conn, movements, now).await
}

/// Updates `in_stock` of products that have just sold out or become available again.
async fn update_in_stock(conn: &mut PgConnection, ids: &[i64]) -> sqlx::Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    super::product::lock(conn, ids).await?;
    sqlx::query!(
        "update product.product p
         set in_stock = s.available > 0
         from product.stock s
         where s.product_id = p.id and p.id = any($1)",
        ids,
    )
    .execute(conn)
    .await?;
    Ok(())
}

async fn insert_ledger(
    conn: &mut PgConnection,
    movements: &[Movement<'_>],
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let movements = movements.iter().filter(|movement| movement.quantity != 0);
    let (mut ids, mut kinds, mut quantities) = (Vec::new(), Vec::new(), Vec::new());
    let (mut orders, mut reasons) = (Vec::new(), Vec::new());
    for movement in movements {
        ids.push(movement.product_id);
        kinds.push(movement.kind.as_str().to_owned());
        quantities.push(movement.quantity);
        orders.push(movement.order_id);
        reasons.push(movement.reason.map(ToOwned::to_owned));
    }
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "insert into product.stock_ledger (product_id, kind, quantity, order_id, reason, at)
         select product_id, kind, quantity, order_id, reason, $6
         from unnest($1::bigint[], $2::text[], $3::bigint[], $4::uuid[], $5::text[])
              as m (product_id, kind, quantity, order_id, reason)",
        &ids,
        &kinds,
        &quantities,
        &orders as &[Option<Uuid>],
        &reasons as &[Option<String>],
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}
