//! Writes the history, while no service runs: set by set, into the tables with their indexes.

use std::fmt::Write as _;

use anyhow::Context as _;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::time::Instant;

use crate::{demo::address, screen::done};

/// Orders for each user beside the customers, on average.
const ORDERS_PER_SHOPPER: u32 = 10;
/// Of so many orders one waits for payment.
const ORDERS_PER_OPEN: u32 = 1_000;

const PREPARE: &str = include_str!("prepare.sql");
const CLOSED: &str = include_str!("closed.sql");
const OPEN: &str = include_str!("open.sql");
const DROP_INDEXES: &str = include_str!("drop_indexes.sql");
const CREATE_INDEXES: &str = include_str!("create_indexes.sql");
const WRITE: &str = include_str!("write.sql");
const BALANCE: &str = include_str!("balance.sql");
/// For the session that writes: a crash costs no more than the run.
const SESSION: &str =
    "set synchronous_commit = off; set work_mem = '256MB'; set maintenance_work_mem = '512MB';
    set jit = off; select setseed(0.5);";
/// The server writes one long checkpoint instead of many.
const LONG_CHECKPOINTS: [&str; 2] = ["alter system set max_wal_size = '16GB'", "select pg_reload_conf()"];
const USUAL_CHECKPOINTS: [&str; 3] =
    ["alter system reset max_wal_size", "select pg_reload_conf()", "checkpoint"];
/// As autovacuum leaves tables that are years old.
const VACUUM: &str = "vacuum (freeze, analyze) auth.account, orders.cart, orders.orders, orders.order_line,
    orders.event, orders.event_cursor, orders.payment_attempt, orders.sandbox_charge, product.stock_hold,
    product.hold_line, product.stock_ledger, product.stock_balance, product.stock";

/// Writes `orders` orders: most of them old, some that wait for payment. `customers` are the users who shop later; the
/// first four of them have many orders.
pub async fn run(postgres_url: &str, orders: u32, customers: &[i64]) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(postgres_url).await?;
    let open = orders / ORDERS_PER_OPEN;
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
        done(name, &format!("written, {:.1} s", began.elapsed().as_secs_f64()));
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
