//! What product has still to be told about the stock of an order.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::payment::Backoff;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StockStep {
    Commit,
    Release,
}

impl StockStep {
    pub const fn word(self) -> &'static str {
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
    pub step: StockStep,
}

/// Notes it down, for workers to do from `due_at` on. An order that is cancelled after it was paid gives its stock back, so
/// a commit that is still waiting goes.
pub async fn add(
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
        task.step.word(),
        now,
        due_at
    )
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn done(conn: &mut PgConnection, task: &StockTask) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from orders.stock_task where user_id = $1 and order_id = $2 and step = $3",
        task.user_id,
        task.order_id,
        task.step.word()
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Puts a task off that failed for a reason of its own: for `first`, doubled with each failure, up to `max`.
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
        task.step.word(),
        now,
        backoff.first.as_secs_f64(),
        backoff.max.as_secs_f64()
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Leases tasks that are due, which are due again at `again` unless they are done by then.
pub async fn take_due(
    conn: &mut PgConnection,
    now: OffsetDateTime,
    again: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<Vec<StockTask>> {
    let rows = sqlx::query!(
        "update orders.stock_task set due_at = $2
         where (user_id, order_id, step) in (
             select user_id, order_id, step from orders.stock_task where due_at <= $1
             order by due_at limit $3 for update skip locked)
         returning user_id, order_id, step",
        now,
        again,
        limit
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| StockTask {
            user_id: row.user_id,
            order_id: row.order_id,
            step: if row.step == StockStep::Commit.word() { StockStep::Commit } else { StockStep::Release },
        })
        .collect())
}
