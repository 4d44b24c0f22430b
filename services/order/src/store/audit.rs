//! The audit: its passes, the orders that it compares, and its mismatches. Holds have the order's id and no user, so
//! these statements find orders by the id alone.

use std::{collections::BTreeMap, time::Duration};

use sqlx::{PgConnection, postgres::types::PgInterval};
use uuid::Uuid;

use crate::mismatch::{Kind, Mismatch, Order};

fn interval(duration: Duration) -> PgInterval {
    let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    PgInterval { months: 0, days: 0, microseconds }
}

/// Inserts the row of a pass if it does not exist.
pub async fn insert_pass(conn: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    sqlx::query!("insert into orders.audit_pass (name) values ($1) on conflict (name) do nothing", name)
        .execute(conn)
        .await?;
    Ok(())
}

/// Leases a pass and returns its position; `None` if another replica holds the lease.
pub async fn lease_pass(conn: &mut PgConnection, name: &str, lease: Duration) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar!(
        "update orders.audit_pass set leased_until = clock_timestamp() + $2::interval
         where name = $1 and leased_until < clock_timestamp()
         returning order_id",
        name,
        interval(lease)
    )
    .fetch_optional(conn)
    .await
}

/// Releases a pass at the position `order_id`, or, if that is `None`, at the end of its round.
pub async fn release_pass(
    conn: &mut PgConnection,
    name: &str,
    order_id: Option<Uuid>,
    first: Uuid,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update orders.audit_pass
         set order_id = coalesce($2::uuid, $3::uuid), leased_until = clock_timestamp(),
             ended_at = case when $2::uuid is null then began_at else ended_at end,
             began_at = case when $2::uuid is null then clock_timestamp() else began_at end
         where name = $1",
        name,
        order_id,
        first
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Returns the time since the last complete round of a pass began, in seconds.
pub async fn pass_age(conn: &mut PgConnection, name: &str) -> sqlx::Result<Option<f64>> {
    sqlx::query_scalar!(
        r#"select extract(epoch from clock_timestamp() - ended_at)::double precision as "age!"
           from orders.audit_pass where name = $1"#,
        name
    )
    .fetch_optional(conn)
    .await
}

/// Lists the next `limit` orders after `after`, sorted by id.
pub async fn list_ids(conn: &mut PgConnection, after: Uuid, limit: i64) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!("select id from orders.orders where id > $1 order by id limit $2", after, limit)
        .fetch_all(conn)
        .await
}

/// Returns the orders that exist, each with its lines and payments from one snapshot.
pub async fn find_orders(conn: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<BTreeMap<Uuid, Order>> {
    let rows = sqlx::query!(
        r#"select o.id, o.status, o.expires_at,
                  array(select l.product_id from orders.order_line l
                        where l.user_id = o.user_id and l.order_id = o.id order by l.product_id) as "products!",
                  array(select l.quantity from orders.order_line l
                        where l.user_id = o.user_id and l.order_id = o.id order by l.product_id) as "quantities!",
                  (select count(*) from orders.payment_attempt p
                   where p.user_id = o.user_id and p.order_id = o.id and p.state = 'captured') as "captured!",
                  exists (select from orders.stock_task t
                          where t.user_id = o.user_id and t.order_id = o.id) as "is_settling!"
           from orders.orders o
           where o.id = any($1)"#,
        ids
    )
    .fetch_all(conn)
    .await?;
    let orders = rows.into_iter().map(|row| {
        let order = Order {
            status: row.status,
            expires_at: row.expires_at,
            lines: row.products.into_iter().zip(row.quantities).collect(),
            captured: row.captured,
            is_settling: row.is_settling,
        };
        (row.id, order)
    });
    Ok(orders.collect())
}

/// Records the result for `ids`: inserts or updates the mismatches, and deletes those of all other orders. Returns the
/// orders whose mismatch this call confirms.
pub async fn record(
    conn: &mut PgConnection,
    ids: &[Uuid],
    mismatches: &[(Uuid, Mismatch)],
    grace: Duration,
) -> sqlx::Result<Vec<Uuid>> {
    let orders: Vec<Uuid> = mismatches.iter().map(|(id, _)| *id).collect();
    let kinds: Vec<String> =
        mismatches.iter().map(|(_, mismatch)| mismatch.kind.as_str().to_owned()).collect();
    let details: Vec<String> = mismatches.iter().map(|(_, mismatch)| mismatch.detail.clone()).collect();
    sqlx::query!(
        "delete from orders.audit_mismatch where order_id = any($1) and not order_id = any($2)",
        ids,
        &orders
    )
    .execute(&mut *conn)
    .await?;
    if orders.is_empty() {
        return Ok(Vec::new());
    }
    sqlx::query_scalar!(
        r#"with confirmed as (
               select order_id from orders.audit_mismatch where confirmed and order_id = any($1)
           ),
           noted as (
               insert into orders.audit_mismatch as known (order_id, kind, detail)
               select order_id, kind, detail
               from unnest($1::uuid[], $2::text[], $3::text[]) as m (order_id, kind, detail)
               order by order_id
               on conflict (order_id) do update
               set confirmed = known.kind = excluded.kind
                               and (known.confirmed or known.seen_at < clock_timestamp() - $4::interval),
                   seen_at = case when known.kind = excluded.kind then known.seen_at else clock_timestamp() end,
                   kind = excluded.kind, detail = excluded.detail
               returning order_id, confirmed
           )
           select order_id as "order_id!" from noted
           where confirmed and order_id not in (select order_id from confirmed)"#,
        &orders,
        &kinds,
        &details,
        interval(grace)
    )
    .fetch_all(conn)
    .await
}

/// Lists up to `limit` orders with a mismatch older than `grace`, unconfirmed and oldest first.
pub async fn list_mismatched(
    conn: &mut PgConnection,
    grace: Duration,
    limit: i64,
) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "select order_id from orders.audit_mismatch
         where seen_at < clock_timestamp() - $1::interval
         order by confirmed, seen_at
         limit $2",
        interval(grace),
        limit
    )
    .fetch_all(conn)
    .await
}

/// Counts the confirmed mismatches of each kind.
pub async fn count_confirmed(conn: &mut PgConnection) -> sqlx::Result<Vec<(Kind, i64)>> {
    let rows = sqlx::query!(
        r#"select kind, count(*) as "count!" from orders.audit_mismatch where confirmed group by kind"#
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().filter_map(|row| Some((row.kind.parse().ok()?, row.count))).collect())
}
