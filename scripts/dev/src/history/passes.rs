//! The slow audit passes, which scan everything in hours. A short run completes none of them, so that their rate is measured.

use std::time::Duration;

use anyhow::Context as _;
use sqlx::{Connection as _, PgConnection};

use super::bounds::{MIN_LEDGER_RATE, MIN_ORDER_RATE};

/// The passes: name, minimum rate, and a query of the total rows and the rows compared so far. A pass at its beginning has
/// completed a round.
const PASSES: [(&str, f64, &str); 3] = [
    (
        "orders",
        MIN_ORDER_RATE,
        "select (select count(*) from orders.orders),
                (select count(*) from orders.orders o
                 where o.id <= pass.order_id or pass.order_id = '00000000-0000-0000-0000-000000000000')
         from orders.audit_pass pass where name = 'all-orders'",
    ),
    (
        "holds",
        MIN_ORDER_RATE,
        "select (select count(*) from product.stock_hold),
                (select count(*) from product.stock_hold hold
                 where hold.order_id <= pass.order_id
                    or pass.order_id = '00000000-0000-0000-0000-000000000000')
         from orders.audit_pass pass where name = 'all-holds'",
    ),
    (
        "rows of the ledger",
        MIN_LEDGER_RATE,
        "select (select count(*) from product.stock_ledger),
                (select count(*) from product.stock_ledger
                 where (product_id, id) <= (recount_product_id, recount_ledger_id)
                    or (recount_product_id, recount_ledger_id) = (0, 0))
         from product.stock_checkpoint",
    ),
];

/// The progress of a pass in the run.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    pub name: &'static str,
    pub total: i64,
    /// Rows per second.
    pub rate: f64,
    min_rate: f64,
    is_complete: bool,
}

impl Pass {
    /// Returns the duration of a round in hours.
    pub fn round_hours(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        let total = self.total as f64;
        total / self.rate / 3600.0
    }

    pub fn violation(&self) -> Option<String> {
        let Self { name, rate, min_rate, is_complete, .. } = self;
        (!is_complete && rate < min_rate)
            .then(|| format!("the audit compares {rate:.0} {name} a second, of {min_rate} at least"))
    }
}

/// Measures the passes, which started `time` ago.
pub async fn measure(postgres_url: &str, time: Duration) -> anyhow::Result<Vec<Pass>> {
    let mut connection = PgConnection::connect(postgres_url).await?;
    let mut passes = Vec::new();
    for (name, min_rate, query) in PASSES {
        let (total, compared): (i64, i64) =
            sqlx::query_as(query).fetch_one(&mut connection).await.context(name)?;
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        let rate = compared as f64 / time.as_secs_f64();
        passes.push(Pass { name, total, rate, min_rate, is_complete: compared >= total });
    }
    connection.close().await?;
    Ok(passes)
}
