//! The audit after a fault run: compares the tables of the services with each other and with the buyers' record.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, bail};
use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::time::{Instant, sleep};

use super::buyers::Acknowledged;

/// The query of the rows that violate an invariant.
const INVARIANTS: &str = include_str!("invariants.sql");
/// Bounds the wait for the work of the workers: after an outage, a refund is repeated within its age.
const MAX_SETTLE_TIME: Duration = Duration::from_mins(1);
/// The work of the workers that is left.
const PENDING: &str = "select (select count(*) from orders.stock_task)
    + (select count(*) from orders.voided_order where released_at is null)
    + (select count(*) from orders.payment_attempt where state in ('charging', 'refunding'))
    + (select count(*) from orders.outbox)";
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Checks every invariant, and that each acknowledged order has the acknowledged state. Returns the violations.
pub async fn run(
    postgres_url: &str,
    buyers: &[i64],
    acknowledged: &BTreeMap<String, Acknowledged>,
) -> anyhow::Result<Vec<String>> {
    let pool = PgPool::connect(postgres_url).await.context("the audit's connection")?;
    let rows: Vec<(String, String)> =
        sqlx::query_as(INVARIANTS).fetch_all(&pool).await.context("the invariants")?;
    let mut violated: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (invariant, id) in rows {
        violated.entry(invariant).or_default().push(id);
    }
    let mut violations: Vec<String> = violated
        .into_iter()
        .map(|(invariant, ids)| format!("{invariant}: broken by {} rows, as {}", ids.len(), ids[0]))
        .collect();
    let rows: Vec<(String, String)> =
        sqlx::query_as("select id::text, status from orders.orders where user_id = any($1)")
            .bind(buyers)
            .fetch_all(&pool)
            .await
            .context("the buyers' orders")?;
    let stored: BTreeMap<String, String> = rows.into_iter().collect();
    for (id, state) in acknowledged {
        let expected = match state {
            // The buyer was stopped before it knew the outcome of the next step.
            Acknowledged::Placed => &["pending", "paid", "cancelled"][..],
            Acknowledged::Paid => &["paid"],
            Acknowledged::Cancelled => &["cancelled"],
        };
        match stored.get(id) {
            Some(status) if expected.contains(&status.as_str()) => {}
            Some(status) => violations.push(format!("order {id} is {status}, acknowledged was {state:?}")),
            None => violations.push(format!("order {id} was acknowledged ({state:?}) and is lost")),
        }
    }
    for id in stored.keys().filter(|id| !acknowledged.contains_key(*id)) {
        violations.push(format!("order {id} exists and was acknowledged to no buyer"));
    }
    Ok(violations)
}

/// Waits until the workers have nothing left to do.
pub async fn wait_until_settled(postgres_url: &str) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(postgres_url).await?;
    let deadline = Instant::now() + MAX_SETTLE_TIME;
    loop {
        let pending: i64 = sqlx::query_scalar(PENDING).fetch_one(&mut connection).await?;
        if pending == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{pending} stock tasks, payments, refunds and events are left after {MAX_SETTLE_TIME:?}");
        }
        sleep(POLL_INTERVAL).await;
    }
}
