//! What is available of each product, and the ledger of every movement.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::stock::{Kind, Shelf};

/// Locks the stock of these products, in the order of their ids, and tells what is on the shelf. Those that
/// do not exist are left out.
pub async fn lock(conn: &mut PgConnection, ids: &[i64]) -> sqlx::Result<BTreeMap<i64, Shelf>> {
    let rows = sqlx::query!(
        r#"select s.product_id, s.available, p.sku, p.name, p.price, p.status = 'active' as "on_sale!"
           from product.stock s
           join product.product p on p.id = s.product_id
           where s.product_id = any($1)
           order by s.product_id
           for no key update of s"#,
        ids,
    )
    .fetch_all(conn)
    .await?;
    let shelves = rows.into_iter().map(|row| {
        let shelf = Shelf {
            sku: row.sku,
            name: row.name,
            price: row.price,
            on_sale: row.on_sale,
            available: row.available,
        };
        (row.product_id, shelf)
    });
    Ok(shelves.collect())
}

/// Gives a new product its row.
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
    pub kind: Kind,
    /// What is added to the stock.
    pub quantity: i64,
    pub order_id: Option<Uuid>,
    pub reason: Option<&'a str>,
}

/// Moves stock that [`lock`] has locked, and writes each movement down. A movement of nothing is none.
pub async fn apply(
    conn: &mut PgConnection,
    movements: &[Movement<'_>],
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let mut sums = BTreeMap::<i64, i64>::new();
    for movement in movements {
        *sums.entry(movement.product_id).or_default() += movement.quantity;
    }
    sums.retain(|_, sum| *sum != 0);
    if !sums.is_empty() {
        let (ids, deltas): (Vec<i64>, Vec<i64>) = sums.into_iter().unzip();
        let turned = sqlx::query_scalar!(
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
        turn(conn, &turned).await?;
    }
    write(conn, movements, now).await
}

/// Says of products that just sold out, or came back, which of the two it was.
async fn turn(conn: &mut PgConnection, ids: &[i64]) -> sqlx::Result<()> {
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

async fn write(conn: &mut PgConnection, movements: &[Movement<'_>], now: OffsetDateTime) -> sqlx::Result<()> {
    let movements = movements.iter().filter(|movement| movement.quantity != 0);
    let (mut ids, mut kinds, mut quantities) = (Vec::new(), Vec::new(), Vec::new());
    let (mut orders, mut reasons) = (Vec::new(), Vec::new());
    for movement in movements {
        ids.push(movement.product_id);
        kinds.push(movement.kind.word().to_owned());
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
