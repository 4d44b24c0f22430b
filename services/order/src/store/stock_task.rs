//! Stock tasks: calls to the product service that are still to be made for an order.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::payment::Backoff;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StockOperation {
    Commit,
    Release,
}

impl StockOperation {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Release => "release",
        }
    }
}

#[derive(Clone, Debug)]
pub struct StockTask {
    pub user_id: i64,
    pub order_id: Uuid,
    pub operation: StockOperation,
}

/// Records a task that is due at `due_at`, and deletes a pending task of the other operation: a cancelled order must
/// not commit its stock.
pub async fn insert(
    conn: &mut PgConnection,
    task: &StockTask,
    now: OffsetDateTime,
    due_at: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "with outdated as (
             delete from orders.stock_task where user_id = $1 and order_id = $2 and step <> $3
         )
         insert into orders.stock_task (user_id, order_id, step, created_at, due_at) values ($1, $2, $3, $4, $5)
         on conflict (user_id, order_id, step) do nothing",
        task.user_id,
        task.order_id,
        task.operation.as_str(),
        now,
        due_at
    )
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn delete(conn: &mut PgConnection, task: &StockTask) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from orders.stock_task where user_id = $1 and order_id = $2 and step = $3",
        task.user_id,
        task.order_id,
        task.operation.as_str()
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Postpones a failed task: by `first`, doubled with each failure, up to `max`.
pub async fn postpone(
    conn: &mut PgConnection,
    task: &StockTask,
    now: OffsetDateTime,
    backoff: Backoff,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update orders.stock_task
         set tries = tries + 1,
             due_at = $4::timestamptz + make_interval(secs => least($5 * power(2::float8, least(tries, 20)), $6))
         where user_id = $1 and order_id = $2 and step = $3",
        task.user_id,
        task.order_id,
        task.operation.as_str(),
        now,
        backoff.first.as_secs_f64(),
        backoff.max.as_secs_f64()
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The maximum number of tasks that [`lease_due`] leases at once, so that each ends within its lease. The statement repeats
/// the number: for a parameter, a generic plan assumes a tenth of the table.
pub const LEASE_BATCH: i64 = 32;

/// Leases up to [`LEASE_BATCH`] tasks that are due until `leased_until`, when they are due again.
pub async fn lease_due(
    conn: &mut PgConnection,
    now: OffsetDateTime,
    leased_until: OffsetDateTime,
) -> sqlx::Result<Vec<StockTask>> {
    let rows = sqlx::query!(
        "update orders.stock_task set due_at = $2
         where (user_id, order_id, step) in (
             select user_id, order_id, step from orders.stock_task where due_at <= $1
             order by due_at limit 32 for update skip locked)
         returning user_id, order_id, step",
        now,
        leased_until
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| StockTask {
            user_id: row.user_id,
            order_id: row.order_id,
            operation: if row.step == StockOperation::Commit.as_str() {
                StockOperation::Commit
            } else {
                StockOperation::Release
            },
        })
        .collect())
}
