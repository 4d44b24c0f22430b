//! The audit after a fault run: compares the tables of the services with each other and with the buyers' record.

use std::collections::BTreeMap;

use anyhow::Context as _;
use sqlx::PgPool;

use super::buyers::Acknowledged;

/// The invariants over all tables, each with a query of the rows that violate it.
const INVARIANTS: [(&str, &str); 11] = [
    (
        "supplied = available + held + sold",
        "select product_id::text from product.conservation where supplied <> available + held + sold",
    ),
    (
        "available equals the sum of the ledger without sales",
        "select s.product_id::text from product.stock s
         join (select product_id, sum(quantity) as sum from product.stock_ledger where kind <> 'sale' group by 1) l
         on l.product_id = s.product_id where l.sum <> s.available",
    ),
    (
        "total = sum of price × quantity",
        "select o.id::text from orders.orders o
         join (select user_id, order_id, sum(unit_price * quantity) as sum from orders.order_line group by 1, 2) l
         on l.user_id = o.user_id and l.order_id = o.id where l.sum <> o.total",
    ),
    (
        "event numbers have no gap and end at the cursor",
        "select c.user_id::text from orders.event_cursor c
         join (select user_id, count(*) as count, max(seq) as max, min(seq) as min from orders.event group by 1) e
         on e.user_id = c.user_id where e.count <> c.seq or e.max <> c.seq or e.min <> 1",
    ),
    (
        "the event log has each event once, in the order of its user",
        "select c.user_id::text from orders.event_cursor c
         left join (select user_id, count(*) as count, bool_and(seq = coalesce(previous, 0) + 1) as in_order
                    from (select user_id, seq, lag(seq) over (partition by user_id order by position) as previous
                          from orders.event_log) entries group by 1) l
         on l.user_id = c.user_id where coalesce(l.count, 0) <> c.seq or not l.in_order",
    ),
    (
        "each step of an order is one event",
        "select o.id::text from orders.orders o
         join (select user_id, order_id, count(*) as count from orders.event group by 1, 2) e
         on e.user_id = o.user_id and e.order_id = o.id where e.count <> o.version",
    ),
    (
        "histories are legal paths",
        "select order_id::text from orders.event where (coalesce(previous_status, ''), status) not in
         (('', 'pending'), ('pending', 'paid'), ('pending', 'cancelled'), ('paid', 'shipped'), ('paid', 'cancelled'),
          ('shipped', 'completed'))",
    ),
    (
        "an unpaid order has its stock",
        "select o.id::text from orders.orders o left join product.stock_hold h on h.order_id = o.id
         where o.status = 'pending' and o.expires_at > now() and h.state is distinct from 'held'",
    ),
    (
        "a paid order has its stock",
        "select o.id::text from orders.orders o left join product.stock_hold h on h.order_id = o.id
         where o.status in ('paid', 'shipped', 'completed') and h.state is distinct from 'committed'",
    ),
    (
        "a cancelled order has no stock",
        "select o.id::text from orders.orders o join product.stock_hold h on h.order_id = o.id
         where o.status = 'cancelled' and h.state in ('held', 'committed')",
    ),
    (
        "what is sold belongs to an order of the same lines",
        "select h.order_id::text from product.stock_hold h
         join product.hold_line l on l.order_id = h.order_id
         left join orders.order_line o on o.order_id = l.order_id and o.product_id = l.product_id
         where h.state = 'committed' and o.quantity is distinct from l.quantity",
    ),
];

/// Checks every invariant, and that each acknowledged order has the acknowledged state. Returns the violations.
pub async fn run(
    postgres_url: &str,
    buyers: &[i64],
    acknowledged: &BTreeMap<String, Acknowledged>,
) -> anyhow::Result<Vec<String>> {
    let pool = PgPool::connect(postgres_url).await.context("the audit's connection")?;
    let mut violations = Vec::new();
    for (invariant, query) in INVARIANTS {
        let rows: Vec<String> = sqlx::query_scalar(query).fetch_all(&pool).await.context(invariant)?;
        if !rows.is_empty() {
            violations.push(format!("{invariant}: broken by {} rows, as {}", rows.len(), rows[0]));
        }
    }
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
