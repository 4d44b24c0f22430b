//! Counts of orders by the time of their ids.

use sqlx::PgConnection;
use uuid::Uuid;

/// Bounds the orders that are counted in one range.
const MAX_COUNTED: i64 = 100_000;

/// Returns the number of orders in each range of ids, from the first id to before the second.
pub async fn count_in_ranges(conn: &mut PgConnection, ranges: &[(Uuid, Uuid)]) -> sqlx::Result<Vec<i64>> {
    let (first, next): (Vec<Uuid>, Vec<Uuid>) = ranges.iter().copied().unzip();
    sqlx::query_scalar!(
        r#"select (select count(*)
                   from (select from orders.orders where id >= r.first and id < r.next limit $3) as counted) as "count!"
           from unnest($1::uuid[], $2::uuid[]) with ordinality as r (first, next, number)
           order by r.number"#,
        &first,
        &next,
        MAX_COUNTED
    )
    .fetch_all(conn)
    .await
}
