//! The tombstones of order ids whose checkout ended without an order.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

/// Lists up to `limit` orders after the id `after`, up to `until`, in the order of their ids.
pub async fn list_orders(
    conn: &mut PgConnection,
    after: Uuid,
    until: Uuid,
    limit: i64,
) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "select id from orders.orders where id > $1 and id <= $2 order by id limit $3",
        after,
        until,
        limit
    )
    .fetch_all(conn)
    .await
}

/// Inserts tombstones for those of the ids that have no order.
pub async fn insert(conn: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into orders.voided_order (order_id)
         select id from unnest($1::uuid[]) as orphan (id)
         where not exists (select from orders.orders where orders.id = orphan.id)
         order by id
         on conflict (order_id) do nothing",
        ids
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Lists up to `limit` tombstones whose hold is not released.
pub async fn list_pending(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "select order_id from orders.voided_order where released_at is null order by order_id limit $1",
        limit
    )
    .fetch_all(conn)
    .await
}

/// Lists the transactions that have locked the orders for writing.
pub async fn list_writers(conn: &mut PgConnection) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"select distinct virtualtransaction as "transaction!" from pg_catalog.pg_locks
           where locktype = 'relation' and relation = 'orders.orders'::regclass
             and database = (select oid from pg_catalog.pg_database where datname = current_database())
             and mode = 'RowExclusiveLock' and granted"#
    )
    .fetch_all(conn)
    .await
}

/// Deletes the tombstones of the ids that have an order after all, and returns these ids.
pub async fn delete_written(conn: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        r#"delete from orders.voided_order as voided using orders.orders as written
           where written.id = voided.order_id and written.id = any($1)
           returning voided.order_id as "order_id!""#,
        ids
    )
    .fetch_all(conn)
    .await
}

/// Records that the holds of these tombstones are released, and returns the number of those that were not before.
pub async fn set_released(conn: &mut PgConnection, ids: &[Uuid], now: OffsetDateTime) -> sqlx::Result<u64> {
    let result = sqlx::query!(
        "update orders.voided_order set released_at = $2 where order_id = any($1) and released_at is null",
        ids,
        now
    )
    .execute(conn)
    .await?;
    Ok(result.rows_affected())
}

/// Deletes up to `limit` tombstones whose hold was released before `before`, and returns their number.
pub async fn delete_released(
    conn: &mut PgConnection,
    before: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<u64> {
    let result = sqlx::query!(
        "delete from orders.voided_order where order_id = any(array(
             select order_id from orders.voided_order where released_at < $1
             order by released_at limit $2 for update skip locked))",
        before,
        limit
    )
    .execute(conn)
    .await?;
    Ok(result.rows_affected())
}
