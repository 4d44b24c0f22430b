//! The audit of the stock finds what does not balance, however long the history is.

use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use shoppee_kit::testing::eventually;
use sqlx::AssertSqlSafe;

use crate::shop::{Shop, order};

/// A shop whose metrics can be read.
struct Watched {
    shop: Shop,
    metrics: PrometheusHandle,
}

impl Watched {
    async fn open() -> Self {
        let metrics = PrometheusBuilder::new().install_recorder().expect("the only one of this process");
        Self { shop: Shop::open().await, metrics }
    }

    /// The value of a metric, labels included in its name; `None` while it is not exported.
    fn metric(&self, name: &str) -> Option<f64> {
        let rendered = self.metrics.render();
        let line = rendered.lines().find(|line| line.rsplit_once(' ').is_some_and(|(is, _)| is == name))?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    fn violations(&self) -> f64 {
        self.metric("stock_invariant_violations").expect("exported")
    }

    async fn wait_for_violations(&self, number: f64) {
        eventually(&format!("{number} violations"), || async {
            (self.violations() - number).abs() < f64::EPSILON
        })
        .await;
    }

    async fn execute(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.shop.pool).await.expect("executed");
    }

    /// Waits until the whole ledger is in the balances.
    async fn wait_until_folded(&self) {
        eventually("the ledger is in the balances", || async {
            self.shop
                .count(
                    "select count(*) from product.stock_checkpoint
                     where ledger_id >= (select max(id) from product.stock_ledger)",
                )
                .await
                == 1
        })
        .await;
    }

    /// Lets the audit look at all products a few times.
    async fn wait_for_rounds(&self, rounds: usize) {
        let success = || self.metric("worker_last_success_seconds{worker=\"stock-audit\"}");
        for _ in 0..rounds {
            let before = success();
            eventually("the audit has looked", || async { success() != before }).await;
        }
    }

    /// Blocks of the ledger and its indexes that were read so far. An index scan counts only the entries that it returns,
    /// and not those that it passes.
    async fn ledger_blocks_read(&self) -> i64 {
        self.shop
            .count(
                "select heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit
                 from pg_statio_user_tables where schemaname = 'product' and relname = 'stock_ledger'",
            )
            .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_too_many_is_found_in_the_next_round_and_forgotten_once_it_is_put_right() {
    let watched = Watched::open().await;
    let (one, other) = (watched.shop.product("a", 10).await.id, watched.shop.product("b", 10).await.id);
    watched.shop.hold(order(), [(other, 3)]).await.expect("held");
    watched.wait_until_folded().await;
    watched
        .execute(&format!("update product.stock set available = available + 1 where product_id = {one}"))
        .await;
    watched.wait_for_violations(1.0).await;
    // A hold that is longer than what was taken.
    watched.execute(&format!("update product.hold_line set quantity = 4 where product_id = {other}")).await;
    watched.wait_for_violations(2.0).await;
    watched
        .execute(&format!("update product.stock set available = available - 1 where product_id = {one}"))
        .await;
    watched.execute("update product.hold_line set quantity = 3").await;
    watched.wait_for_violations(0.0).await;
    let age = watched.metric("audit_age_seconds{audit=\"stock\"}").expect("exported");
    assert!(age < 20.0, "{age}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_reads_what_is_new_in_the_ledger_and_not_the_history() {
    let watched = Watched::open().await;
    let ids = [watched.shop.product("a", 0).await.id, watched.shop.product("b", 0).await.id];
    // 200 000 rows, half of them of one product, and the stock that they sum up to.
    watched
        .execute(&format!(
            "begin;
             insert into product.stock_ledger (product_id, kind, quantity, at)
             select case when n % 2 = 0 then {} else {} end, 'supply', 1, now() from generate_series(1, 200000) n;
             update product.stock set available = 100000, revision = revision + 1;
             update product.product set in_stock = true;
             commit;",
            ids[0], ids[1]
        ))
        .await;
    watched.wait_until_folded().await;
    // PostgreSQL counts the blocks that were folded up to a second later. A round that reads the history never reads so
    // few: the entries of one product in one index have 400.
    eventually("four rounds read fewer than 200 blocks of the ledger", || async {
        let before = watched.ledger_blocks_read().await;
        watched.wait_for_rounds(4).await;
        watched.ledger_blocks_read().await - before < 200
    })
    .await;
    assert!(watched.violations() == 0.0);
    watched.execute("update product.stock set available = available + 1").await;
    watched.wait_for_violations(2.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_the_ledger_that_was_changed_later_is_found_by_the_recount() {
    let watched = Watched::open().await;
    let id = watched.shop.product("a", 10).await.id;
    watched.shop.product("b", 5).await;
    watched.wait_until_folded().await;
    let recount = "update product.stock_checkpoint set recounted_at = now() - interval '2 hours'";
    watched.execute(&format!("update product.stock_ledger set quantity = 11 where product_id = {id}")).await;
    watched.wait_for_rounds(2).await;
    assert!(watched.violations() == 0.0, "the balances have what was there");
    watched.execute(recount).await;
    watched.wait_for_violations(1.0).await;
    watched.execute(&format!("update product.stock_ledger set quantity = 10 where product_id = {id}")).await;
    watched.execute(recount).await;
    watched.wait_for_violations(0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_movement_that_commits_after_later_ones_is_in_the_balances() {
    let watched = Watched::open().await;
    let (late, early) = (watched.shop.product("a", 10).await.id, watched.shop.product("b", 10).await.id);
    let mut open = watched.shop.pool.begin().await.expect("begun");
    let supply =
        "insert into product.stock_ledger (product_id, kind, quantity, at) values ($1, 'supply', 5, now())";
    sqlx::query(supply).bind(late).execute(&mut *open).await.expect("written");
    for _ in 0..3 {
        watched.shop.adjust(early, 1).await.expect("adjusted");
    }
    watched.wait_for_rounds(2).await;
    sqlx::query("update product.stock set available = available + 5 where product_id = $1")
        .bind(late)
        .execute(&mut *open)
        .await
        .expect("written");
    open.commit().await.expect("committed");
    watched.wait_until_folded().await;
    let balance = format!("select available from product.stock_balance where product_id = {late}");
    assert_eq!(watched.shop.count(&balance).await, 15);
    watched.wait_for_rounds(2).await;
    assert!(watched.violations() == 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_that_cannot_look_counts_its_failures_and_grows_old() {
    let watched = Watched::open().await;
    watched.shop.product("a", 10).await;
    let failures = || watched.metric("worker_failures_total{worker=\"stock-audit\"}").unwrap_or_default();
    let age = || watched.metric("audit_age_seconds{audit=\"stock\"}").unwrap_or_default();
    eventually("a round has ended", || async { age() < 2.0 }).await;
    let mut holding = watched.shop.pool.begin().await.expect("begun");
    sqlx::query("lock table product.stock_balance in access exclusive mode")
        .execute(&mut *holding)
        .await
        .expect("locked");
    eventually("a failure is counted", || async { failures() >= 1.0 }).await;
    eventually("the age grows", || async { age() > 3.0 }).await;
    holding.rollback().await.expect("rolled back");
    eventually("the audit goes on", || async { age() < Duration::from_secs(2).as_secs_f64() }).await;
}
