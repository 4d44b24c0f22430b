//! Tests of the stock audit: violations are found, independently of the length of the history.

use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use shoppee_kit::testing::eventually;
use sqlx::AssertSqlSafe;

use crate::test_shop::{TestShop, order};

/// A shop with readable metrics.
struct AuditedShop {
    shop: TestShop,
    metrics: PrometheusHandle,
}

impl AuditedShop {
    async fn open() -> Self {
        let metrics = PrometheusBuilder::new().install_recorder().expect("the only one of this process");
        Self { shop: TestShop::start().await, metrics }
    }

    /// Returns the value of a metric, by its name with labels; `None` if it is not exported.
    fn metric(&self, name: &str) -> Option<f64> {
        let rendered = self.metrics.render();
        let line = rendered.lines().find(|line| line.rsplit_once(' ').is_some_and(|(is, _)| is == name))?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    fn violations(&self) -> f64 {
        self.metric("stock_invariant_violations").expect("exported")
    }

    async fn wait_for_violations(&self, expected: f64) {
        eventually(&format!("{expected} violations"), || async {
            (self.violations() - expected).abs() < f64::EPSILON
        })
        .await;
    }

    async fn execute(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.shop.pool).await.expect("executed");
    }

    /// Waits until the balances include the whole ledger.
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

    /// Waits for some rounds of the audit.
    async fn wait_for_rounds(&self, rounds: usize) {
        let success = || self.metric("worker_last_success_seconds{worker=\"stock-audit\"}");
        for _ in 0..rounds {
            let before = success();
            eventually("the audit has looked", || async { success() != before }).await;
        }
    }

    /// Returns the blocks of the ledger and its indexes that were read so far. The statistics of index scans
    /// count only returned entries, so blocks are counted instead.
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
async fn a_violation_is_reported_until_it_is_corrected() {
    let audited = AuditedShop::open().await;
    let (one, other) = (audited.shop.product("a", 10).await.id, audited.shop.product("b", 10).await.id);
    audited.shop.hold(order(), [(other, 3)]).await.expect("held");
    audited.wait_until_folded().await;
    audited
        .execute(&format!("update product.stock set available = available + 1 where product_id = {one}"))
        .await;
    audited.wait_for_violations(1.0).await;
    // A hold line with more units than were taken.
    audited.execute(&format!("update product.hold_line set quantity = 4 where product_id = {other}")).await;
    audited.wait_for_violations(2.0).await;
    audited
        .execute(&format!("update product.stock set available = available - 1 where product_id = {one}"))
        .await;
    audited.execute("update product.hold_line set quantity = 3").await;
    audited.wait_for_violations(0.0).await;
    let age = audited.metric("audit_age_seconds{audit=\"stock\"}").expect("exported");
    assert!(age < 20.0, "{age}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_round_does_not_read_the_history() {
    let audited = AuditedShop::open().await;
    let ids = [audited.shop.product("a", 0).await.id, audited.shop.product("b", 0).await.id];
    // 200 000 rows, half of them of one product, and the matching stock.
    audited
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
    audited.wait_until_folded().await;
    // PostgreSQL counts the blocks of folded rows up to a second later. A round that reads the history reads
    // more: the entries of one product in one index have 400 blocks.
    eventually("four rounds read fewer than 200 blocks of the ledger", || async {
        let before = audited.ledger_blocks_read().await;
        audited.wait_for_rounds(4).await;
        audited.ledger_blocks_read().await - before < 200
    })
    .await;
    assert!(audited.violations() == 0.0);
    audited.execute("update product.stock set available = available + 1").await;
    audited.wait_for_violations(2.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recount_finds_a_ledger_row_that_was_changed_later() {
    let audited = AuditedShop::open().await;
    let id = audited.shop.product("a", 10).await.id;
    audited.shop.product("b", 5).await;
    audited.wait_until_folded().await;
    let recount = "update product.stock_checkpoint set recounted_at = now() - interval '2 hours'";
    audited.execute(&format!("update product.stock_ledger set quantity = 11 where product_id = {id}")).await;
    audited.wait_for_rounds(2).await;
    assert!(audited.violations() == 0.0, "the balances have what was there");
    audited.execute(recount).await;
    audited.wait_for_violations(1.0).await;
    audited.execute(&format!("update product.stock_ledger set quantity = 10 where product_id = {id}")).await;
    audited.execute(recount).await;
    audited.wait_for_violations(0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_movement_that_commits_late_is_folded() {
    let audited = AuditedShop::open().await;
    let (late, early) = (audited.shop.product("a", 10).await.id, audited.shop.product("b", 10).await.id);
    let mut open = audited.shop.pool.begin().await.expect("begun");
    let supply =
        "insert into product.stock_ledger (product_id, kind, quantity, at) values ($1, 'supply', 5, now())";
    sqlx::query(supply).bind(late).execute(&mut *open).await.expect("written");
    for _ in 0..3 {
        audited.shop.adjust(early, 1).await.expect("adjusted");
    }
    audited.wait_for_rounds(2).await;
    sqlx::query("update product.stock set available = available + 5 where product_id = $1")
        .bind(late)
        .execute(&mut *open)
        .await
        .expect("written");
    open.commit().await.expect("committed");
    audited.wait_until_folded().await;
    let balance = format!("select available from product.stock_balance where product_id = {late}");
    assert_eq!(audited.shop.count(&balance).await, 15);
    audited.wait_for_rounds(2).await;
    assert!(audited.violations() == 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_audit_counts_failures_and_its_age_grows() {
    let audited = AuditedShop::open().await;
    audited.shop.product("a", 10).await;
    let failures = || audited.metric("worker_failures_total{worker=\"stock-audit\"}").unwrap_or_default();
    let age = || audited.metric("audit_age_seconds{audit=\"stock\"}").unwrap_or_default();
    eventually("a round has ended", || async { age() < 2.0 }).await;
    let mut blocker = audited.shop.pool.begin().await.expect("begun");
    sqlx::query("lock table product.stock_balance in access exclusive mode")
        .execute(&mut *blocker)
        .await
        .expect("locked");
    eventually("a failure is counted", || async { failures() >= 1.0 }).await;
    eventually("the age grows", || async { age() > 3.0 }).await;
    blocker.rollback().await.expect("rolled back");
    eventually("the audit goes on", || async { age() < Duration::from_secs(2).as_secs_f64() }).await;
}
