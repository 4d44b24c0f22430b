//! Tests of holds in batches: contention of replicas, stock that changes between a decision and its write, a lost commit,
//! and the number of statements.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::future::join_all;
use secrecy::SecretString;
use shoppee_kit::testing::eventually;
use shoppee_proto::product::v1::{HoldResponse, ReleaseReason};
use sqlx::{AssertSqlSafe, Postgres, Transaction};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tonic::Status;
use tracing::{
    Event, Subscriber,
    span::{Attributes, Id},
};
use tracing_subscriber::{Layer, layer::Context, layer::SubscriberExt as _, registry::LookupSpan};
use uuid::Uuid;

use crate::test_shop::{Replica, TestShop, hold_request, order, reason};

impl TestShop {
    async fn hold_at(
        &self,
        replica: &Replica,
        order: Uuid,
        lines: &[(i64, i64)],
    ) -> Result<HoldResponse, Status> {
        let request = self.service(hold_request(order, lines.iter().copied(), 60));
        replica.stock.clone().hold(request).await.map(tonic::Response::into_inner)
    }

    /// Runs `sql` in a transaction, which is left open.
    async fn begin_with(&self, sql: &str) -> Transaction<'static, Postgres> {
        let mut transaction = self.pool.begin().await.expect("begun");
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut *transaction).await.expect("executed");
        transaction
    }

    /// Waits until a statement that writes holds waits for a lock.
    async fn wait_until_a_hold_is_blocked(&self) {
        let blocked = "select count(*) from pg_stat_activity
                       where datname = current_database() and wait_event_type = 'Lock' and query like '%withdrawal%'";
        eventually("a hold waits for a lock", || async { self.count(blocked).await > 0 }).await;
    }

    async fn assert_no_deadlock(&self) {
        let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
        assert_eq!(self.count(deadlocks).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_sell_exactly_the_stock_of_one_product() {
    let shop = TestShop::start().await;
    let replica = shop.replica().await;
    let product = shop.product("hot", 500).await.id;
    let hold = async |number: usize| match number % 2 {
        0 => shop.hold(order(), [(product, 1)]).await,
        _ => shop.hold_at(&replica, order(), &[(product, 1)]).await,
    };
    let outcomes = join_all((0..1200).map(hold)).await;
    let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    for outcome in outcomes.into_iter().filter(Result::is_err) {
        assert_eq!(reason(outcome), "OUT_OF_STOCK");
    }
    assert_eq!(won, 500);
    assert_eq!(shop.stock_of(product).await, 0);
    shop.assert_stock_invariant().await;
    shop.assert_no_deadlock().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_hold_release_and_correct_baskets_without_deadlock() {
    let shop = TestShop::start().await;
    let replica = shop.replica().await;
    let mut products = Vec::new();
    for number in 0..4 {
        products.push(shop.product(&format!("p{number}"), 3).await.id);
    }
    let (shop_ref, replica_ref, products_ref) = (&shop, &replica, &products);
    let buyer = |number: usize| async move {
        for round in 0..25 {
            let (a, b) = (products_ref[(number + round) % 4], products_ref[(number * 3 + round + 1) % 4]);
            let lines = if a == b { vec![(a, 1)] } else { vec![(a, 1), (b, 2)] };
            let id = order();
            let held = match number % 2 {
                0 => shop_ref.hold(id, lines).await,
                _ => shop_ref.hold_at(replica_ref, id, &lines).await,
            };
            match held {
                Ok(_) if round % 3 == 0 => shop_ref.commit(id).await.expect("commits"),
                Ok(_) => shop_ref.release(id).await.expect("releases"),
                Err(status) => assert_eq!(reason(Err::<(), _>(status)), "OUT_OF_STOCK"),
            }
            if round % 5 == 0 {
                shop_ref.adjust(a, 2).await.expect("corrects");
            }
        }
    };
    tokio::join!(join_all((0..24).map(buyer)), async {
        for _ in 0..10 {
            shop.assert_stock_invariant().await;
        }
    });
    shop.assert_stock_invariant().await;
    shop.assert_no_deadlock().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_whose_stock_was_taken_after_its_decision_is_refused() {
    let shop = TestShop::start().await;
    let product = shop.product("last", 2).await.id;
    // Another process takes the units; its transaction is still open when the hold is decided.
    let taken = format!(
        "update product.stock set available = 1, revision = revision + 1 where product_id = {product};
         insert into product.stock_ledger (product_id, kind, quantity, at) values ({product}, 'adjustment', -1, now())"
    );
    let transaction = shop.begin_with(&taken).await;
    let (enough, too_much) = (order(), order());
    let (held, refused, ()) =
        tokio::join!(shop.hold(enough, [(product, 1)]), shop.hold(too_much, [(product, 2)]), async {
            shop.wait_until_a_hold_is_blocked().await;
            transaction.commit().await.expect("committed");
        });
    // Either may come first, but one unit is left for both.
    if held.is_err() {
        assert_eq!(reason(held), "OUT_OF_STOCK");
    }
    assert_eq!(reason(refused), "OUT_OF_STOCK");
    shop.assert_stock_invariant().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_is_written_on_stock_that_changed_but_suffices() {
    let shop = TestShop::start().await;
    let product = shop.product("some", 10).await.id;
    let taken = format!(
        "update product.stock set available = 3, revision = revision + 1 where product_id = {product};
         insert into product.stock_ledger (product_id, kind, quantity, at) values ({product}, 'adjustment', -7, now())"
    );
    let transaction = shop.begin_with(&taken).await;
    let (held, ()) = tokio::join!(shop.hold(order(), [(product, 3)]), async {
        shop.wait_until_a_hold_is_blocked().await;
        transaction.commit().await.expect("committed");
    });
    held.expect("three units are left");
    assert_eq!(
        shop.count(&format!("select available from product.stock where product_id = {product}")).await,
        0
    );
    // The sold-out product is shown as such.
    shop.assert_stock_invariant().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_held_or_released_by_another_process_is_not_held_again() {
    let shop = TestShop::start().await;
    let product = shop.product("a", 10).await.id;
    for state in ["released", "expired"] {
        let id = order();
        let insert = format!(
            "insert into product.stock_hold (order_id, state, expires_at, created_at, updated_at)
             values ('{id}', '{state}', now(), now(), now())"
        );
        let transaction = shop.begin_with(&insert).await;
        let (other, late) = (order(), shop.hold(id, [(product, 1)]));
        let (late, ()) = tokio::join!(late, async {
            shop.wait_until_a_hold_is_blocked().await;
            transaction.commit().await.expect("committed");
        });
        assert_eq!(reason(late), "ORDER_EXPIRED");
        shop.hold(other, [(product, 1)]).await.expect("another order is held");
    }
    eventually("two units are held", || async { shop.stock_of(product).await == 8 }).await;
    shop.assert_stock_invariant().await;
}

/// Forwards connections to `server`; while `swallows` is true, responses are lost.
async fn lossy_proxy(server: SocketAddr, swallows: watch::Receiver<bool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let swallows = swallows.clone();
            tokio::spawn(async move {
                let server = TcpStream::connect(server).await?;
                let ((mut requests, mut client), (mut responses, mut server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(async move { tokio::io::copy(&mut requests, &mut server).await });
                let mut buffer = vec![0; 65_536];
                loop {
                    let length = tokio::io::AsyncReadExt::read(&mut responses, &mut buffer).await?;
                    if length == 0 || *swallows.borrow() {
                        // The connection ends with the response.
                        return std::io::Result::Ok(());
                    }
                    tokio::io::AsyncWriteExt::write_all(&mut client, &buffer[..length]).await?;
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_after_a_lost_commit_returns_the_hold() {
    let shop = TestShop::start().await;
    let product = shop.product("a", 10).await.id;
    let (swallow, swallows) = watch::channel(false);
    let proxy = lossy_proxy(shop.database.address().await, swallows).await;
    let url = shop.database.url_at("product", &proxy.to_string());
    let replica =
        shop.replica_with(|settings| settings.postgres.database_url = SecretString::from(url)).await;

    let id = order();
    let lock = format!("select from product.stock where product_id = {product} for update");
    let transaction = shop.begin_with(&lock).await;
    let lines = [(product, 3)];
    let (unknown, ()) = tokio::join!(shop.hold_at(&replica, id, &lines), async {
        shop.wait_until_a_hold_is_blocked().await;
        swallow.send_replace(true);
        transaction.rollback().await.expect("rolled back");
    });
    assert_eq!(reason(unknown), "UNAVAILABLE");
    let held = "select count(*) from product.stock_hold where state = 'held'";
    assert_eq!(shop.count(held).await, 1, "the statement was committed");
    swallow.send_replace(false);
    eventually("a repeat returns the hold", || async { shop.hold_at(&replica, id, &lines).await.is_ok() })
        .await;
    assert_eq!(shop.count(held).await, 1);
    shop.assert_stock_invariant().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_product_is_sold_to_its_last_unit() {
    let shop = TestShop::start().await;
    let product = shop.product("hot", 400).await.id;
    let outcomes = join_all((0..600).map(|_| shop.hold(order(), [(product, 1)]))).await;
    let won: Vec<i64> = outcomes.iter().flatten().map(|hold| hold.lines[0].available).collect();
    assert_eq!(won.len(), 400);
    // Each hold reports what it left.
    let mut left: Vec<i64> = won.clone();
    left.sort_unstable();
    assert_eq!(left.first(), Some(&0));
    shop.assert_stock_invariant().await;
    let ledger = "select count(*) from product.stock_ledger where kind = 'hold' and quantity = -1";
    assert_eq!(shop.count(ledger).await, 400, "one movement an order");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_orders_are_released_at_once() {
    let shop = TestShop::start().await;
    let (a, b) = (shop.product("a", 150).await.id, shop.product("b", 300).await.id);
    let orders: Vec<Uuid> = (0..150).map(|_| order()).collect();
    for held in join_all(orders.iter().map(|id| shop.hold(*id, [(a, 1), (b, 2)]))).await {
        held.expect("held");
    }
    shop.assert_stock_invariant().await;
    for id in &orders[..20] {
        shop.commit(*id).await.expect("committed");
    }
    // Orders that are sold, held, released twice, and unknown.
    let unknown: Vec<Uuid> = (0..10).map(|_| order()).collect();
    let abandoned = orders.iter().chain(&orders[..]).chain(&unknown);
    let outcomes =
        join_all(abandoned.map(|id| shop.release_for(*id, ReleaseReason::CheckoutAbandoned))).await;
    let refused = outcomes.into_iter().filter(Result::is_err).map(reason).collect::<Vec<_>>();
    assert_eq!(refused, vec!["HOLD_COMMITTED"; 40]);
    let available = |id: i64| format!("select available from product.stock where product_id = {id}");
    assert_eq!((shop.count(&available(a)).await, shop.count(&available(b)).await), (130, 260));
    for released in join_all(orders.iter().map(|id| shop.release(*id))).await {
        released.expect("released");
    }
    assert_eq!((shop.count(&available(a)).await, shop.count(&available(b)).await), (150, 300));
    assert_eq!(reason(shop.hold(unknown[0], [(a, 1)]).await), "ORDER_EXPIRED");
    let kinds = "select count(*) from product.stock_ledger where kind = 'return'";
    assert_eq!(shop.count(kinds).await, 40, "two lines of each sold order");
    shop.assert_stock_invariant().await;
}

/// Counts the spans of a name, and the statements that are executed in them.
#[derive(Clone, Debug)]
struct StatementCounter {
    span: &'static str,
    spans: Arc<AtomicUsize>,
    statements: Arc<AtomicUsize>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for StatementCounter {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        if attributes.metadata().name() == self.span {
            self.spans.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if event.metadata().target() == "sqlx::query"
            && let Some(mut spans) = context.event_scope(event)
            && spans.any(|span| span.name() == self.span)
        {
            self.statements.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_takes_two_statements_and_a_release_two() {
    const HOLDS: usize = 256;
    let counter = |span| StatementCounter { span, spans: Arc::default(), statements: Arc::default() };
    let (holds, releases) = (counter("stock.hold_batch"), counter("stock.release_batch"));
    let requests = counter("stock.hold");
    let subscriber =
        tracing_subscriber::registry().with(holds.clone()).with(releases.clone()).with(requests.clone());
    tracing::subscriber::set_global_default(subscriber).expect("the only one of this process");
    let shop = TestShop::start().await;
    let (product, last) = (shop.product("a", 1000).await.id, shop.product("last", 1).await.id);
    let count = |counter: &StatementCounter| counter.statements.swap(0, Ordering::Relaxed);

    let id = order();
    shop.hold(id, [(product, 1)]).await.expect("held");
    assert_eq!(count(&holds), 2);
    // The statement counts also include `in_stock` of a product that sells out.
    shop.hold(order(), [(product, 1), (last, 1)]).await.expect("held");
    assert_eq!(count(&holds), 2);
    shop.hold(order(), [(last, 1)]).await.expect_err("refused");
    assert_eq!(count(&holds), 1);
    shop.release(id).await.expect("released");
    assert_eq!(count(&releases), 2);
    shop.release(order()).await.expect("a tombstone");
    assert_eq!(count(&releases), 3);

    // However large a batch is, it takes no more. While two batches wait for a lock, all other holds are queued.
    let lock = format!("select from product.stock where product_id = {product} for update");
    let lock = shop.begin_with(&lock).await;
    requests.spans.store(0, Ordering::Relaxed);
    let held = join_all((0..HOLDS).map(|_| shop.hold(order(), [(product, 1)])));
    let (held, ()) = tokio::join!(held, async {
        eventually("all holds are queued", async || requests.spans.load(Ordering::Relaxed) == HOLDS).await;
        lock.rollback().await.expect("rolled back");
    });
    assert!(held.iter().all(Result::is_ok));
    let statements = count(&holds);
    assert!(statements <= 8, "{statements} statements for {HOLDS} holds: at most four batches");
    shop.assert_stock_invariant().await;
}
