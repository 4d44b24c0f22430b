//! The backlog of the workers: its size and its age.

use sqlx::PgConnection;
use time::OffsetDateTime;

/// Bounds the rows that are counted of each kind. A larger backlog needs no exact number.
const MAX_COUNTED: i64 = 10_000;

#[derive(Clone, Copy, Debug)]
pub struct Backlog {
    pub charging: i64,
    pub charging_since: Option<OffsetDateTime>,
    pub refunding: i64,
    pub refunding_since: Option<OffsetDateTime>,
    pub refunds_failed: i64,
    pub stock_tasks: i64,
    pub stock_tasks_since: Option<OffsetDateTime>,
    pub overdue: i64,
    pub overdue_since: Option<OffsetDateTime>,
}

pub async fn read(conn: &mut PgConnection, now: OffsetDateTime) -> sqlx::Result<Backlog> {
    sqlx::query_as!(
        Backlog,
        r#"with attempt as (
               select state, coalesce(refund_requested_at, started_at) as since
               from orders.payment_attempt where state in ('charging', 'refunding')
               order by started_at limit $2
           ), failed as (
               select from orders.payment_attempt where state = 'refund_failed' limit $2
           ), task as (
               select created_at from orders.stock_task order by created_at limit $2
           ), overdue as (
               select expires_at from orders.orders
               where status = 'pending' and expires_at <= $1 order by expires_at limit $2
           )
           select (select count(*) from attempt where state = 'charging') as "charging!",
                  (select min(since) from attempt where state = 'charging') as charging_since,
                  (select count(*) from attempt where state = 'refunding') as "refunding!",
                  (select min(since) from attempt where state = 'refunding') as refunding_since,
                  (select count(*) from failed) as "refunds_failed!",
                  (select count(*) from task) as "stock_tasks!",
                  (select min(created_at) from task) as stock_tasks_since,
                  (select count(*) from overdue) as "overdue!",
                  (select min(expires_at) from overdue) as overdue_since"#,
        now,
        MAX_COUNTED
    )
    .fetch_one(conn)
    .await
}
