//! Fault injection: lost and delayed calls to the product service, and broken connections to PostgreSQL. Under every
//! combination no unit is sold twice, and paid goods stay sold.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use shoppee_kit::{client, testing::eventually};
use shoppee_proto::product::v1::{
    CommitRequest, CommitResponse, HoldRequest, HoldResponse, ReleaseRequest, ReleaseResponse,
    stock_service_client::StockServiceClient,
    stock_service_server::{StockService, StockServiceServer},
};
use sqlx::PgPool;
use tonic::{
    Extensions, Request, Response, Status,
    transport::{
        Channel,
        server::{Server, TcpIncoming},
    },
};
use uuid::Uuid;

use crate::shop::{Person, TestShop, expect_error, order_request};

/// Returns the state and the units of each hold.
async fn holds(product: &PgPool) -> BTreeMap<Uuid, (String, i64)> {
    let rows: Vec<(Uuid, String, i64)> = sqlx::query_as(
        "select hold.order_id, hold.state, coalesce(sum(line.quantity), 0)::bigint
         from product.stock_hold hold left join product.hold_line line on line.order_id = hold.order_id
         group by hold.order_id, hold.state",
    )
    .fetch_all(product)
    .await
    .expect("read");
    rows.into_iter().map(|(id, state, units)| (id, (state, units))).collect()
}

#[tokio::test]
async fn a_late_release_does_not_release_the_order_of_a_retry() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    let (orders, product) = (shop.db().await, shop.service_db("product").await);
    ann.cancels(&ann.buys(tea, 1).await.id).await.unwrap();
    eventually("the first order's stock is released", || async { admin.stock(tea).await == 10 }).await;

    // This lock blocks the order's transaction until its statement times out …
    let mut cursor = orders.begin().await.unwrap();
    sqlx::query("select seq from orders.event_cursor where user_id = $1 for update")
        .bind(ann.id)
        .execute(&mut *cursor)
        .await
        .unwrap();
    let mut request = order_request(&[(tea, 5)]);
    request.idempotency_key = Some("torn".to_owned());
    let placing = tokio::spawn({
        let (ann, request) = (ann.clone(), request.clone());
        async move { ann.orders(request).await }
    });
    eventually("the stock is held", || async { admin.stock(tea).await == 5 }).await;
    // … and this one blocks the release of its hold, until its backend is terminated.
    let mut hold = product.begin().await.unwrap();
    let first: Uuid =
        sqlx::query_scalar("select order_id from product.stock_hold where state = 'held' for update")
            .fetch_one(&mut *hold)
            .await
            .unwrap();
    assert_eq!(expect_error(placing.await.unwrap()), "unavailable");
    eventually("the release is interrupted", || async {
        let terminated: i64 = sqlx::query_scalar(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity
             where datname = current_database() and usename = 'shoppee_product' and wait_event_type = 'Lock'",
        )
        .fetch_one(&product)
        .await
        .unwrap();
        terminated > 0
    })
    .await;
    cursor.rollback().await.unwrap();
    hold.rollback().await.unwrap();

    let placed = ann.orders(request).await.unwrap().into_inner();
    ann.pays(&placed.id).await.unwrap();
    let id: Uuid = placed.id.parse().unwrap();
    eventually("the late release has arrived", || async { holds(&product).await[&first].0 == "released" })
        .await;
    eventually("the paid goods are sold", || async { holds(&product).await[&id].0 == "committed" }).await;
    assert_eq!(admin.stock(tea).await, 5, "10 units, of which 5 are paid");
}

/// A deterministic pseudo-random number generator (xorshift64).
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// A proxy of the stock service that loses and delays calls.
struct FaultyStockService {
    stock: StockServiceClient<Channel>,
    rng: Mutex<Rng>,
    faulty: Arc<AtomicBool>,
}

impl FaultyStockService {
    /// Starts a proxy of the stock service at `stock`, which injects faults while `faulty` is true.
    async fn start(stock: &str, seed: u64, faulty: Arc<AtomicBool>) -> SocketAddr {
        let incoming = TcpIncoming::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let addr = incoming.local_addr().expect("bound");
        let (health, health_server) = tonic_health::server::health_reporter();
        health.set_service_status("", tonic_health::ServingStatus::Serving).await;
        let stock = StockServiceClient::new(client::channel(stock).expect("a URL"));
        let service = Self { stock, rng: Mutex::new(Rng(seed)), faulty };
        let server =
            Server::builder().add_service(health_server).add_service(StockServiceServer::new(service));
        tokio::spawn(server.serve_with_incoming(incoming));
        addr
    }

    async fn forward<M, R, Fut>(
        &self,
        request: Request<M>,
        send: impl FnOnce(StockServiceClient<Channel>, Request<M>) -> Fut,
    ) -> Result<Response<R>, Status>
    where
        R: Send + 'static,
        Fut: Future<Output = Result<Response<R>, Status>> + Send + 'static,
    {
        let (mut metadata, _, message) = request.into_parts();
        // A delayed call is still carried out.
        metadata.remove("grpc-timeout");
        let call = send(self.stock.clone(), Request::from_parts(metadata, Extensions::default(), message));
        let (roll, delay) = {
            let mut rng = self.rng.lock().expect("not poisoned");
            (rng.below(10), Duration::from_millis(rng.below(700)))
        };
        if !self.faulty.load(Ordering::Relaxed) {
            return call.await;
        }
        match roll {
            // The call is lost, its response is lost, or the call arrives after its caller got an error.
            0 => {}
            1 | 2 => drop(call.await),
            3 | 4 => drop(tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                call.await
            })),
            5 => {
                tokio::time::sleep(delay / 4).await;
                return call.await;
            }
            _ => return call.await,
        }
        Err(Status::unavailable("lost on purpose"))
    }
}

#[tonic::async_trait]
impl StockService for FaultyStockService {
    async fn hold(&self, request: Request<HoldRequest>) -> Result<Response<HoldResponse>, Status> {
        self.forward(request, |mut stock, request| async move { stock.hold(request).await }).await
    }

    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        self.forward(request, |mut stock, request| async move { stock.commit(request).await }).await
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        self.forward(request, |mut stock, request| async move { stock.release(request).await }).await
    }
}

const CUSTOMERS: u64 = 4;
const ORDERS_EACH: u64 = 6;
/// The initial stock, less than the customers order.
const INITIAL_STOCK: i64 = 40;
const SEED: u64 = 0x5eed_0b1a_c0de_0001;

/// Places orders, each with a key that is reused until the outcome is known, and pays or cancels most of them.
async fn trade(customer: Person, tea: i64, mut rng: Rng) {
    for number in 0..ORDERS_EACH {
        let mut request = order_request(&[(tea, i64::try_from(rng.below(3) + 1).expect("small"))]);
        request.idempotency_key = Some(format!("order-{number}"));
        let placed = loop {
            match customer.orders(request.clone()).await {
                Ok(order) => break Some(order.into_inner().id),
                outcome => match expect_error(outcome).as_str() {
                    "out_of_stock" => break None,
                    "unavailable" | "request_in_progress" => {}
                    reason => panic!("{reason}"),
                },
            }
            tokio::time::sleep(Duration::from_millis(rng.below(50))).await;
        };
        let Some(id) = placed else { continue };
        let roll = rng.below(4);
        // A payment may stay open until recovery completes it.
        for _ in 0..4 {
            let answer = match roll {
                0 => return,
                1 => customer.cancels(&id).await,
                _ => customer.pays_with(&id, "tok_ok", Some("pay")).await.map(Response::into_inner),
            };
            match answer {
                Ok(_) => break,
                outcome => match expect_error(outcome).as_str() {
                    "unavailable" | "request_in_progress" | "invalid_transition" => {}
                    reason => panic!("{reason}"),
                },
            }
            tokio::time::sleep(Duration::from_millis(rng.below(100))).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paid_goods_are_sold_once_despite_lost_and_delayed_calls() {
    println!("seed {SEED:#x}");
    let faulty = Arc::new(AtomicBool::new(true));
    let shop = TestShop::start_behind(async |product| {
        FaultyStockService::start(product, SEED, faulty.clone()).await.to_string()
    })
    .await;
    let admin = shop.admin().await;
    let tea = admin.sells("tea", 450, INITIAL_STOCK).await;
    let (orders, product) = (shop.db().await, shop.service_db("product").await);
    let mut traders = Vec::new();
    for number in 0..CUSTOMERS {
        let customer = shop.customer(&format!("customer-{number}")).await;
        traders.push(tokio::spawn(trade(customer, tea, Rng(SEED.wrapping_mul(2 * number + 3)))));
    }
    let breaking = {
        let (orders, faulty) = (orders.clone(), faulty.clone());
        tokio::spawn(async move {
            let mut broken: i64 = 0;
            while faulty.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(150)).await;
                broken += sqlx::query_scalar::<_, i64>(
                    "select count(pg_terminate_backend(pid)) from (
                         select pid from pg_stat_activity
                         where datname = current_database() and application_name = 'shoppee-order'
                         order by random() limit 1) as any_one",
                )
                .fetch_one(&orders)
                .await
                .unwrap();
            }
            broken
        })
    };
    for trader in traders {
        trader.await.unwrap();
    }
    faulty.store(false, Ordering::Relaxed);
    assert!(breaking.await.unwrap() > 3, "connections were terminated");

    // Open attempts are recovered, and delayed calls arrive.
    shop.advance_clock(Duration::from_secs(31));
    eventually("no work is pending", || async {
        let open: i64 = sqlx::query_scalar(
            "select (select count(*) from orders.stock_task)
                  + (select count(*) from orders.payment_attempt where state in ('charging', 'refunding'))",
        )
        .fetch_one(&orders)
        .await
        .unwrap();
        open == 0
    })
    .await;
    tokio::time::sleep(Duration::from_millis(700)).await;

    let holds = holds(&product).await;
    let rows: Vec<(Uuid, String, i64)> = sqlx::query_as(
        "select o.id, o.status, sum(line.quantity)::bigint
         from orders.orders o join orders.order_line line on line.user_id = o.user_id and line.order_id = o.id
         group by o.id, o.status",
    )
    .fetch_all(&orders)
    .await
    .unwrap();
    let mut paid = 0;
    for (id, status, units) in &rows {
        let (state, units_held) =
            holds.get(id).unwrap_or_else(|| panic!("{status} order {id} without a hold"));
        let expected = match status.as_str() {
            "pending" => "held",
            "paid" => "committed",
            _ => "released",
        };
        assert_eq!((state.as_str(), units_held), (expected, units), "order {id}, {status}");
        paid += if status == "paid" { *units } else { 0 };
    }
    assert!(paid > 0, "some were paid");
    let held_or_sold: i64 =
        holds.values().filter(|(state, _)| state == "held" || state == "committed").map(|h| h.1).sum();
    assert_eq!(admin.stock(tea).await, INITIAL_STOCK - held_or_sold, "initial = available + held + sold");
    assert!(holds.iter().all(|(id, (state, _))| state != "committed" || rows.iter().any(|row| row.0 == *id)));
}
