//! Writes the history by set-based SQL while no service runs.

use std::fmt::Write as _;

use anyhow::Context as _;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::time::Instant;

use crate::{demo::address, output::print_step};

/// The average number of orders of each user besides the customers.
const ORDERS_PER_SHOPPER: u32 = 10;
/// One in so many orders waits for payment.
const ORDERS_PER_OPEN_ORDER: u32 = 1_000;

const PREPARE: &str = include_str!("prepare.sql");
const CLOSED: &str = include_str!("closed.sql");
const OPEN: &str = include_str!("open.sql");
const DROP_INDEXES: &str = include_str!("drop_indexes.sql");
const CREATE_INDEXES: &str = include_str!("create_indexes.sql");
const WRITE: &str = include_str!("write.sql");
const BALANCE: &str = include_str!("balance.sql");
/// The settings of the session that writes. A crash may lose the run. Triggers are off: the history is older than the log
/// of events.
const SESSION: &str =
    "set session_replication_role = replica; set synchronous_commit = off; set work_mem = '256MB';
    set maintenance_work_mem = '512MB'; set jit = off; select setseed(0.5);";
/// Makes the server write one long checkpoint instead of many.
const LONG_CHECKPOINTS: [&str; 2] = ["alter system set max_wal_size = '16GB'", "select pg_reload_conf()"];
const USUAL_CHECKPOINTS: [&str; 3] =
    ["alter system reset max_wal_size", "select pg_reload_conf()", "checkpoint"];
/// Leaves the tables as autovacuum does over years.
const VACUUM: &str = "vacuum (freeze, analyze) auth.account, orders.cart, orders.orders, orders.order_line,
    orders.event, orders.event_cursor, orders.payment_attempt, orders.sandbox_charge, product.stock_hold,
    product.hold_line, product.stock_ledger, product.stock_balance, product.stock";

/// Writes `orders` orders: most are old, some wait for payment. `customers` are the users of the load; the first four of
/// them have many orders.
pub async fn run(postgres_url: &str, orders: u32, customers: &[i64]) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(postgres_url).await?;
    let open = orders / ORDERS_PER_OPEN_ORDER;
    let shoppers = (orders / ORDERS_PER_SHOPPER).to_string();
    let ids = customers.iter().fold(String::new(), |mut text, id| {
        let separator = if text.is_empty() { "" } else { ", " };
        // Writing to a string does not fail.
        let _ = write!(text, "{separator}{id}");
        text
    });
    let fill = |script: &str, orders: u32| {
        script
            .replace(":orders", &orders.to_string())
            .replace(":shoppers", &shoppers)
            .replace(":customers", &format!("array[{ids}]::bigint[]"))
            .replace(":address", &format!("'{}'", address()))
    };
    execute(&mut connection, "the session", SESSION.to_owned()).await?;
    for statement in LONG_CHECKPOINTS {
        execute(&mut connection, "checkpoints", statement.to_owned()).await?;
    }
    for (name, script) in [
        ("users and products", fill(PREPARE, orders)),
        ("drafts", fill(CLOSED, orders - open)),
        ("orders", [DROP_INDEXES.to_owned(), fill(WRITE, orders)].concat()),
        ("indexes", CREATE_INDEXES.to_owned()),
        ("balances", BALANCE.to_owned()),
        ("vacuum", VACUUM.to_owned()),
        ("orders that wait for payment", [fill(OPEN, open), fill(WRITE, open)].concat()),
        ("removal of the drafts", "drop schema history cascade".to_owned()),
    ] {
        let began = Instant::now();
        execute(&mut connection, name, script).await?;
        print_step(name, &format!("written, {:.1} s", began.elapsed().as_secs_f64()));
    }
    for statement in USUAL_CHECKPOINTS {
        execute(&mut connection, "checkpoints", statement.to_owned()).await?;
    }
    connection.close().await?;
    Ok(())
}

async fn execute(connection: &mut PgConnection, name: &str, script: String) -> anyhow::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(script)).execute(connection).await.with_context(|| name.to_owned())?;
    Ok(())
}
