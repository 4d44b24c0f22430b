//! The reconciliation audit finds each kind of mismatch, and none in a consistent shop.

use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use shoppee_kit::testing::eventually;
use shoppee_proto::order::v1::Order;
use sqlx::{AssertSqlSafe, PgPool};
use tonic::{Code, Status};

use crate::shop::{Person, TestShop, order_request};

/// Retries a call while the service is unavailable, as on an overloaded machine.
async fn retry<T>(call: impl AsyncFn() -> Result<T, Status>) -> T {
    loop {
        match call().await {
            Err(status) if status.code() == Code::Unavailable => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            outcome => return outcome.expect("succeeds"),
        }
    }
}

struct AuditFixture {
    shop: TestShop,
    metrics: PrometheusHandle,
    orders: PgPool,
    stock: PgPool,
    admin: Person,
    product: i64,
}

impl AuditFixture {
    async fn start() -> Self {
        let metrics = PrometheusBuilder::new().install_recorder().expect("the only one of this process");
        let shop = TestShop::start().await;
        let connect = |service: &str| PgPool::connect_lazy(&shop.database.url(service)).expect("a URL");
        let (orders, stock) = (connect("order"), connect("product"));
        let admin = shop.admin().await;
        let product = admin.sells("lamp", 1000, 100).await;
        Self { shop, metrics, orders, stock, admin, product }
    }

    fn metric(&self, name: &str) -> f64 {
        let rendered = self.metrics.render();
        let value = rendered.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{name} is exported")).parse().expect("a number")
    }

    async fn execute(&self, pool: &PgPool, sql: &str) -> u64 {
        let done = sqlx::query(AssertSqlSafe(sql.to_owned())).execute(pool).await;
        done.expect("executed").rows_affected()
    }

    /// Waits for the metric, and expires the grace of recorded mismatches.
    async fn wait_for(&self, name: &str, value: f64) {
        eventually(&format!("{name} is {value}"), || async {
            self.expire_grace().await;
            (self.metric(name) - value).abs() < f64::EPSILON
        })
        .await;
    }

    async fn expire_grace(&self) {
        let sql = "update orders.audit_mismatch set seen_at = seen_at - interval '1 minute'";
        self.execute(&self.orders, sql).await;
    }

    /// Waits until each pass has completed another round.
    async fn wait_for_rounds(&self) {
        let now = "select clock_timestamp()";
        let now: time::OffsetDateTime =
            sqlx::query_scalar(now).fetch_one(&self.orders).await.expect("a time");
        eventually("each pass has completed a round", || async {
            let ended: i64 = sqlx::query_scalar("select count(*) from orders.audit_pass where ended_at > $1")
                .bind(now)
                .fetch_one(&self.orders)
                .await
                .expect("counted");
            ended == 4
        })
        .await;
    }

    async fn place_order(&self, customer: &Person, quantity: i64) -> Order {
        let key = uuid::Uuid::now_v7().to_string();
        let place = async || {
            let mut order = order_request(&[(self.product, quantity)]);
            order.idempotency_key = Some(key.clone());
            customer.orders(order).await
        };
        retry(place).await.into_inner()
    }

    /// Places and pays an order, and waits until its hold is committed.
    async fn place_paid_order(&self, customer: &Person) -> String {
        let id = self.place_order(customer, 2).await.id;
        retry(async || customer.pays_with(&id, "tok_ok", Some("pay")).await).await;
        eventually("its hold is committed", || async {
            let count = format!(
                "select count(*) from product.stock_hold where order_id = '{id}' and state = 'committed'"
            );
            let committed: i64 =
                sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&self.stock).await.expect("counted");
            committed == 1
        })
        .await;
        id
    }
}

const KINDS: [&str; 4] =
    ["order_stock_mismatches", "paid_without_hold", "held_without_order", "order_payment_mismatches"];

#[tokio::test(flavor = "multi_thread")]
async fn a_consistent_shop_has_no_mismatch_in_any_order_status() {
    let fixture = AuditFixture::start().await;
    let ann = fixture.shop.customer("ann").await;
    fixture.place_order(&ann, 1).await;
    let cancelled = fixture.place_order(&ann, 1).await;
    retry(async || ann.cancels(&cancelled.id).await).await;
    fixture.place_paid_order(&ann).await;
    let refunded = fixture.place_paid_order(&ann).await;
    retry(async || fixture.admin.cancels(&refunded).await).await;
    let completed = fixture.place_paid_order(&ann).await;
    retry(async || fixture.admin.ships(&completed).await).await;
    retry(async || ann.completes(&completed).await).await;
    fixture.wait_for_rounds().await;
    fixture.expire_grace().await;
    fixture.wait_for_rounds().await;
    for kind in KINDS {
        assert!(fixture.metric(kind) == 0.0, "{kind}");
    }
    for pass in ["recent-orders", "all-orders", "recent-holds", "all-holds"] {
        let age = fixture.metric(&format!("order_audit_age_seconds{{pass=\"{pass}\"}}"));
        assert!(age < 30.0, "{pass} is {age} s old");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mismatch_is_counted_until_it_is_repaired() {
    let fixture = AuditFixture::start().await;
    let ann = fixture.shop.customer("ann").await;
    let (released, open, unpaid, renamed) = (
        fixture.place_paid_order(&ann).await,
        fixture.place_order(&ann, 3).await.id,
        fixture.place_paid_order(&ann).await,
        fixture.place_paid_order(&ann).await,
    );
    let state = |id: &str, state: &str| {
        format!("update product.stock_hold set state = '{state}' where order_id = '{id}'")
    };
    // A paid order whose hold was released, as by a late release.
    fixture.execute(&fixture.stock, &state(&released, "released")).await;
    fixture
        .execute(
            &fixture.stock,
            &format!(
                "insert into product.stock_ledger (product_id, kind, quantity, order_id, at)
                 values ({}, 'return', 2, '{released}', now())",
                fixture.product
            ),
        )
        .await;
    // An order whose hold has fewer units than its line.
    let line =
        |quantity| format!("update orders.order_line set quantity = {quantity} where order_id = '{open}'");
    fixture.execute(&fixture.orders, &line(4)).await;
    // A paid order without a captured payment.
    let attempt =
        |to: &str| format!("update orders.payment_attempt set state = '{to}' where order_id = '{unpaid}'");
    fixture.execute(&fixture.orders, &attempt("refunded")).await;
    // A committed hold of an order that does not exist.
    let rename = |from: &str, to: &str| {
        [
            format!("update product.stock_hold set order_id = '{to}' where order_id = '{from}'"),
            format!("update product.hold_line set order_id = '{to}' where order_id = '{from}'"),
            format!("update product.stock_ledger set order_id = '{to}' where order_id = '{from}'"),
        ]
    };
    let unknown = uuid::Uuid::now_v7().to_string();
    for sql in rename(&renamed, &unknown) {
        assert!(fixture.execute(&fixture.stock, &sql).await > 0);
    }
    fixture.wait_for("held_without_order", 1.0).await;
    // The order of the renamed hold is the second paid order without a hold.
    fixture.wait_for("paid_without_hold", 2.0).await;
    fixture.wait_for("order_stock_mismatches", 1.0).await;
    fixture.wait_for("order_payment_mismatches", 1.0).await;

    fixture.execute(&fixture.stock, &state(&released, "committed")).await;
    fixture
        .execute(
            &fixture.stock,
            &format!("delete from product.stock_ledger where kind = 'return' and order_id = '{released}'"),
        )
        .await;
    fixture.execute(&fixture.orders, &line(3)).await;
    fixture.execute(&fixture.orders, &attempt("captured")).await;
    for sql in rename(&unknown, &renamed) {
        fixture.execute(&fixture.stock, &sql).await;
    }
    for kind in KINDS {
        fixture.wait_for(kind, 0.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_without_ledger_movements_is_a_mismatch() {
    let fixture = AuditFixture::start().await;
    let ann = fixture.shop.customer("ann").await;
    let order = fixture.place_paid_order(&ann).await;
    // The hold is committed, but the ledger lacks the sale.
    fixture
        .execute(
            &fixture.stock,
            &format!("delete from product.stock_ledger where kind = 'sale' and order_id = '{order}'"),
        )
        .await;
    fixture.wait_for("order_stock_mismatches", 1.0).await;
}
