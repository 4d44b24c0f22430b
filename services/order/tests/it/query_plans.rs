//! Query plans: the cost of a query must depend on its result, not on the length of the history.

use std::{fs, path::Path};

use serde_json::Value;
use shoppee_kit::testing::Database;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};

/// Tables that grow with the orders or with the users.
const GROWING: [&str; 13] = [
    "orders",
    "order_line",
    "event",
    "event_cursor",
    "event_log",
    "event_queue",
    "outbox",
    "cart",
    "cart_line",
    "idempotency",
    "payment_attempt",
    "stock_task",
    "audit_record",
];

/// Tables with many rows per user: all columns of a condition must be in an index.
const UNFILTERED: [&str; 2] = ["order_line", "event"];

/// Inserts 20 000 orders, most of them completed, half of them of one user.
const HISTORY: &str = r"
create table orders.placed as
    select case when n % 2 = 0 then 1 else 2 + n / 20 end as user_id,
           -- The newest last, as in UUIDv7.
           (lpad(to_hex(n), 8, '0') || '00007000800000000000' || '0000')::uuid as id,
           case when n % 2000 = 0 then 'paid' when n % 4000 = 1 then 'pending' else 'completed' end as status
    from generate_series(1, 20000) as n;
insert into orders.orders (user_id, id, status, total, currency, shipping_address, version, expires_at, created_at,
                           updated_at)
    select user_id, id, status, 1, 'EUR', '{}', 1, now(), now(), now() from orders.placed;
insert into orders.order_line select user_id, id, 1, 'sku', 'name', 1, 1 from orders.placed;
insert into orders.event (user_id, seq, order_id, status, total, currency, version, actor, at, traceparent)
    select user_id, row_number() over (partition by user_id), id, status, 1, 'EUR', 1, 'customer', now(), ''
    from orders.placed;
insert into orders.event_cursor select user_id, count(*) from orders.placed group by user_id;
insert into orders.event_log select row_number() over (), user_id, seq from orders.event;
insert into orders.outbox (user_id, seq) select user_id, seq from orders.event;
insert into orders.cart select user_id, now() from orders.event_cursor;
insert into orders.cart_line select user_id, n, 1, now() from orders.cart, generate_series(1, 10) as n;
-- Users without orders.
insert into orders.event_cursor select user_id, 0 from generate_series(100000, 120000) as user_id;
insert into orders.cart select user_id, now() from generate_series(100000, 120000) as user_id;
insert into orders.idempotency (user_id, scope, key, fingerprint, order_id, claimed_until, answer, created_at)
    select user_id, 'create', id, '', id, now(), '', now() from orders.placed;
insert into orders.payment_attempt (user_id, order_id, id, state, started_at)
    select user_id, id, id, 'captured', now() from orders.placed;
insert into orders.stock_task (user_id, order_id, step, due_at)
    select user_id, id, 'commit', now() + interval '1 day' from orders.placed;
insert into orders.audit_record (id, at, actor, action, target)
    select id, now(), 'admin:' || user_id % 2, 'order.ship', 'order:' || id from orders.placed;
analyze;
";

/// Returns the query texts and parameter types of the service, from the compile-time checks.
fn queries() -> Vec<(String, Vec<String>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".sqlx");
    let files = fs::read_dir(folder).expect("the checked queries");
    files
        .map(|file| {
            let text = fs::read_to_string(file.expect("a file").path()).expect("reads");
            let checked: Value = serde_json::from_str(&text).expect("JSON");
            let types = checked["describe"]["parameters"]["Left"].as_array().expect("parameters");
            let types = types.iter().map(|kind| kind.as_str().unwrap_or("Jsonb").to_owned()).collect();
            (checked["query"].as_str().expect("a text").to_owned(), types)
        })
        .collect()
}

/// Returns a value of a type, for the first user. With a null PostgreSQL would skip all partitions.
fn value(kind: &str) -> &'static str {
    match kind {
        "Int2" | "Int4" | "Int8" | "Float8" => "1",
        "Bool" => "true",
        "Timestamptz" => "now()",
        "Interval" => "'1s'",
        "Uuid" => "'00000000-0000-7000-8000-000000000000'",
        "Text" | "Bytea" => "'paid'",
        "Json" | "Jsonb" => "'{}'",
        "Int8Array" => "'{1}'",
        "UuidArray" => "'{00000000-0000-7000-8000-000000000000}'",
        "TextArray" | "ByteaArray" => "'{paid}'",
        "BoolArray" => "'{true}'",
        "TimestamptzArray" => "'{now}'",
        "JsonArray" | "JsonbArray" => "array['{}'::jsonb]",
        other => panic!("a value of the type {other}"),
    }
}

/// Returns the generic plan of a query.
async fn generic_plan(conn: &mut PgConnection, query: &str, types: &[String]) -> Value {
    sqlx::raw_sql(AssertSqlSafe(format!("prepare this as {query}"))).execute(&mut *conn).await.expect(query);
    let values: Vec<_> = types.iter().map(|kind| value(kind)).collect();
    let arguments = if values.is_empty() { String::new() } else { format!("({})", values.join(", ")) };
    let explain = format!("explain (format json) execute this{arguments}");
    let plan = sqlx::query_scalar(AssertSqlSafe(explain)).fetch_one(&mut *conn).await.expect(query);
    sqlx::raw_sql("deallocate this").execute(conn).await.expect("deallocates");
    plan
}

/// Calls `visit` for each node of a plan.
fn walk(plan: &Value, visit: &mut impl FnMut(&Value)) {
    match plan {
        Value::Array(nodes) => nodes.iter().for_each(|node| walk(node, visit)),
        Value::Object(fields) => {
            if fields.contains_key("Node Type") {
                visit(plan);
            }
            fields.values().for_each(|field| walk(field, visit));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Returns the growing table that a node scans. A partition counts as its table.
fn growing(node: &Value) -> Option<&'static str> {
    let scanned = node["Relation Name"].as_str()?;
    let whole = scanned.trim_end_matches(|last: char| last.is_ascii_digit()).trim_end_matches('_');
    GROWING.into_iter().find(|table| *table == whole)
}

#[tokio::test]
async fn no_query_scans_a_growing_table_or_filters_a_list() {
    let database = Database::create().await;
    let pool = PgPool::connect(&database.url("order")).await.unwrap();
    sqlx::migrate!().run(&pool).await.unwrap();
    pool.close().await;
    let mut conn = PgConnection::connect(&database.url("order")).await.unwrap();
    sqlx::raw_sql(HISTORY).execute(&mut conn).await.unwrap();
    sqlx::raw_sql("set plan_cache_mode = force_generic_plan").execute(&mut conn).await.unwrap();

    let (mut broken, mut lists) = (Vec::new(), 0);
    for (query, types) in queries() {
        let list = query.contains("from orders.orders") && query.contains("id desc limit");
        lists += usize::from(list);
        let plan = generic_plan(&mut conn, &query, &types).await;
        walk(&plan, &mut |node| {
            let whole = node["Node Type"] == "Seq Scan" || node["Node Type"] == "Bitmap Heap Scan" && list;
            let is_filtered = |table| node.get("Filter").is_some() && (list || UNFILTERED.contains(&table));
            if let Some(table) = growing(node).filter(|table| whole || is_filtered(*table)) {
                broken.push(format!("{} of {table}, filter {}: {query}", node["Node Type"], node["Filter"]));
            }
        });
    }
    assert_eq!(lists, 4, "the lists of orders");
    broken.dedup();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
