//! The audit that joins finds what does not fit together, and nothing in a shop that works.

use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use shoppee_kit::testing::eventually;
use shoppee_proto::order::v1::Order;
use sqlx::{AssertSqlSafe, PgPool};
use tonic::{Code, Status};

use crate::shop::{Person, Shop, wish};

/// Asks until it is answered: on a machine at its limits a service may say that it cannot right now.
async fn answered<T>(ask: impl AsyncFn() -> Result<T, Status>) -> T {
    loop {
        match ask().await {
            Err(status) if status.code() == Code::Unavailable => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            answer => return answer.expect("done"),
        }
    }
}

struct Audited {
    shop: Shop,
    metrics: PrometheusHandle,
    orders: PgPool,
    stock: PgPool,
    admin: Person,
    product: i64,
}

impl Audited {
    async fn open() -> Self {
        let metrics = PrometheusBuilder::new().install_recorder().expect("the only one of this process");
        let shop = Shop::open().await;
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

    /// Waits for the metric, while the grace of what was found passes at once.
    async fn wait_for(&self, name: &str, value: f64) {
        eventually(&format!("{name} is {value}"), || async {
            self.let_grace_pass().await;
            (self.metric(name) - value).abs() < f64::EPSILON
        })
        .await;
    }

    async fn let_grace_pass(&self) {
        let sql = "update orders.audit_mismatch set seen_at = seen_at - interval '1 minute'";
        self.execute(&self.orders, sql).await;
    }

    /// Waits until each pass has gone round once more.
    async fn wait_for_rounds(&self) {
        let now = "select clock_timestamp()";
        let now: time::OffsetDateTime =
            sqlx::query_scalar(now).fetch_one(&self.orders).await.expect("a time");
        eventually("each pass has gone round", || async {
            let ended: i64 = sqlx::query_scalar("select count(*) from orders.audit_pass where ended_at > $1")
                .bind(now)
                .fetch_one(&self.orders)
                .await
                .expect("counted");
            ended == 4
        })
        .await;
    }

    async fn bought(&self, customer: &Person, quantity: i64) -> Order {
        let key = uuid::Uuid::now_v7().to_string();
        let ask = async || {
            let mut order = wish(&[(self.product, quantity)]);
            order.idempotency_key = Some(key.clone());
            customer.orders(order).await
        };
        answered(ask).await.into_inner()
    }

    /// An order that is paid, whose goods are sold.
    async fn paid(&self, customer: &Person) -> String {
        let id = self.bought(customer, 2).await.id;
        answered(async || customer.pays_with(&id, "tok_ok", Some("pay")).await).await;
        eventually("its goods are sold", || async {
            let sold = format!(
                "select count(*) from product.stock_hold where order_id = '{id}' and state = 'committed'"
            );
            let sold: i64 =
                sqlx::query_scalar(AssertSqlSafe(sold)).fetch_one(&self.stock).await.expect("counted");
            sold == 1
        })
        .await;
        id
    }
}

const KINDS: [&str; 4] =
    ["order_stock_mismatches", "paid_without_hold", "held_without_order", "order_payment_mismatches"];

#[tokio::test(flavor = "multi_thread")]
async fn a_shop_that_works_has_no_mismatch_in_any_state_of_an_order() {
    let audited = Audited::open().await;
    let ann = audited.shop.customer("ann").await;
    audited.bought(&ann, 1).await;
    let cancelled = audited.bought(&ann, 1).await;
    answered(async || ann.cancels(&cancelled.id).await).await;
    audited.paid(&ann).await;
    let refunded = audited.paid(&ann).await;
    answered(async || audited.admin.cancels(&refunded).await).await;
    let completed = audited.paid(&ann).await;
    answered(async || audited.admin.ships(&completed).await).await;
    answered(async || ann.completes(&completed).await).await;
    audited.wait_for_rounds().await;
    audited.let_grace_pass().await;
    audited.wait_for_rounds().await;
    for kind in KINDS {
        assert!(audited.metric(kind) == 0.0, "{kind}");
    }
    for pass in ["recent-orders", "all-orders", "recent-holds", "all-holds"] {
        let age = audited.metric(&format!("order_audit_age_seconds{{pass=\"{pass}\"}}"));
        assert!(age < 30.0, "{pass} is {age} s old");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mismatch_is_found_and_forgotten_once_it_is_put_right() {
    let audited = Audited::open().await;
    let ann = audited.shop.customer("ann").await;
    let (sold, open, unpaid, gone) = (
        audited.paid(&ann).await,
        audited.bought(&ann, 3).await.id,
        audited.paid(&ann).await,
        audited.paid(&ann).await,
    );
    let state = |id: &str, state: &str| {
        format!("update product.stock_hold set state = '{state}' where order_id = '{id}'")
    };
    // A paid order whose goods went back, as after a release that came too late.
    audited.execute(&audited.stock, &state(&sold, "released")).await;
    audited
        .execute(
            &audited.stock,
            &format!(
                "insert into product.stock_ledger (product_id, kind, quantity, order_id, at)
                 values ({}, 'return', 2, '{sold}', now())",
                audited.product
            ),
        )
        .await;
    // An order of which less is held than was ordered.
    let line =
        |quantity| format!("update orders.order_line set quantity = {quantity} where order_id = '{open}'");
    audited.execute(&audited.orders, &line(4)).await;
    // A paid order whose payment is not there.
    let attempt =
        |to: &str| format!("update orders.payment_attempt set state = '{to}' where order_id = '{unpaid}'");
    audited.execute(&audited.orders, &attempt("refunded")).await;
    // Goods that were sold to an order that does not exist.
    let rename = |from: &str, to: &str| {
        [
            format!("update product.stock_hold set order_id = '{to}' where order_id = '{from}'"),
            format!("update product.hold_line set order_id = '{to}' where order_id = '{from}'"),
            format!("update product.stock_ledger set order_id = '{to}' where order_id = '{from}'"),
        ]
    };
    let nobodys = uuid::Uuid::now_v7().to_string();
    for sql in rename(&gone, &nobodys) {
        assert!(audited.execute(&audited.stock, &sql).await > 0);
    }
    audited.wait_for("held_without_order", 1.0).await;
    // The order of those goods is the second that is paid without them.
    audited.wait_for("paid_without_hold", 2.0).await;
    audited.wait_for("order_stock_mismatches", 1.0).await;
    audited.wait_for("order_payment_mismatches", 1.0).await;

    audited.execute(&audited.stock, &state(&sold, "committed")).await;
    audited
        .execute(
            &audited.stock,
            &format!("delete from product.stock_ledger where kind = 'return' and order_id = '{sold}'"),
        )
        .await;
    audited.execute(&audited.orders, &line(3)).await;
    audited.execute(&audited.orders, &attempt("captured")).await;
    for sql in rename(&nobodys, &gone) {
        audited.execute(&audited.stock, &sql).await;
    }
    for kind in KINDS {
        audited.wait_for(kind, 0.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_whose_movements_were_lost_is_found() {
    let audited = Audited::open().await;
    let ann = audited.shop.customer("ann").await;
    let order = audited.paid(&ann).await;
    // The state alone, as a repair by hand might change it: the ledger says that the goods are sold.
    audited
        .execute(
            &audited.stock,
            &format!("delete from product.stock_ledger where kind = 'sale' and order_id = '{order}'"),
        )
        .await;
    audited.wait_for("order_stock_mismatches", 1.0).await;
}
