//! The audit's passes, what they compare, and what they found. Holds are known by the order's id alone, so orders are found
//! by it here too.

use std::{collections::BTreeMap, time::Duration};

use sqlx::{PgConnection, postgres::types::PgInterval};
use uuid::Uuid;

use crate::audit::{Kind, Mismatch, Order};

fn interval(duration: Duration) -> PgInterval {
    let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    PgInterval { months: 0, days: 0, microseconds }
}

/// Makes sure that a pass has its row.
pub async fn add_pass(conn: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    sqlx::query!("insert into orders.audit_pass (name) values ($1) on conflict (name) do nothing", name)
        .execute(conn)
        .await?;
    Ok(())
}

/// Takes a pass for `lease` and returns where it is; `None` where another replica has it.
pub async fn take_pass(conn: &mut PgConnection, name: &str, lease: Duration) -> sqlx::Result<Option<Uuid>> {
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

/// Gives a pass back: behind `order_id`, or, where that is none, at the end of its round.
pub async fn give_pass_back(
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

/// The time since the last whole round of a pass began, in seconds.
pub async fn pass_age(conn: &mut PgConnection, name: &str) -> sqlx::Result<Option<f64>> {
    sqlx::query_scalar!(
        r#"select extract(epoch from clock_timestamp() - ended_at)::double precision as "age!"
           from orders.audit_pass where name = $1"#,
        name
    )
    .fetch_optional(conn)
    .await
}

/// The next `limit` orders behind `after`, in the order of their ids.
pub async fn ids(conn: &mut PgConnection, after: Uuid, limit: i64) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!("select id from orders.orders where id > $1 order by id limit $2", after, limit)
        .fetch_all(conn)
        .await
}

/// Returns those of the orders that exist, as one statement shows each with its lines and payments.
pub async fn orders(conn: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<BTreeMap<Uuid, Order>> {
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

/// Notes what was found among `ids`: mismatches, first seen or seen again, and all others as fitting. Returns those that
/// are confirmed by this.
pub async fn note(
    conn: &mut PgConnection,
    ids: &[Uuid],
    mismatches: &[(Uuid, Mismatch)],
    grace: Duration,
) -> sqlx::Result<Vec<Uuid>> {
    let orders: Vec<Uuid> = mismatches.iter().map(|(id, _)| *id).collect();
    let kinds: Vec<String> = mismatches.iter().map(|(_, found)| found.kind.word().to_owned()).collect();
    let details: Vec<String> = mismatches.iter().map(|(_, found)| found.detail.clone()).collect();
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

/// Returns up to `limit` orders that did not fit and are to be looked at again, the oldest first.
pub async fn suspects(conn: &mut PgConnection, grace: Duration, limit: i64) -> sqlx::Result<Vec<Uuid>> {
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

/// Returns the number of confirmed mismatches of each kind.
pub async fn confirmed(conn: &mut PgConnection) -> sqlx::Result<Vec<(Kind, i64)>> {
    let rows = sqlx::query!(
        r#"select kind, count(*) as "count!" from orders.audit_mismatch where confirmed group by kind"#
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().filter_map(|row| Some((Kind::of(&row.kind)?, row.count))).collect())
}
