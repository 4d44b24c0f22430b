//! Faults in the middle of an order: calls to product that get lost or come late, and connections to PostgreSQL that
//! break. However they fall together, no unit is sold twice, and what is paid stays sold.

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

use crate::shop::{Person, Shop, refused, wish};

/// The state of each hold, with its units.
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
async fn a_release_that_comes_late_frees_nothing_of_the_order_placed_by_the_retry() {
    let shop = Shop::open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    let (orders, product) = (shop.look().await, shop.look_at("product").await);
    ann.cancels(&ann.buys(tea, 1).await.id).await.unwrap();
    eventually("the first order's stock is back", || async { admin.stock(tea).await == 10 }).await;

    // The order's transaction waits here until its statement times out …
    let mut cursor = orders.begin().await.unwrap();
    sqlx::query("select seq from orders.event_cursor where user_id = $1 for update")
        .bind(ann.id)
        .execute(&mut *cursor)
        .await
        .unwrap();
    let mut request = wish(&[(tea, 5)]);
    request.idempotency_key = Some("torn".to_owned());
    let placing = tokio::spawn({
        let (ann, request) = (ann.clone(), request.clone());
        async move { ann.orders(request).await }
    });
    eventually("the stock is held", || async { admin.stock(tea).await == 5 }).await;
    // … and the release of its hold here, until its backend is terminated.
    let mut hold = product.begin().await.unwrap();
    let first: Uuid =
        sqlx::query_scalar("select order_id from product.stock_hold where state = 'held' for update")
            .fetch_one(&mut *hold)
            .await
            .unwrap();
    assert_eq!(refused(placing.await.unwrap()), "unavailable");
    eventually("the release is broken off", || async {
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
    assert_eq!(admin.stock(tea).await, 5, "supplied 10, paid for 5");
}

/// A small generator of numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// The stock service behind an unreliable network.
struct Unreliable {
    stock: StockServiceClient<Channel>,
    dice: Mutex<Dice>,
    faulty: Arc<AtomicBool>,
}

impl Unreliable {
    /// Listens before the stock service at `stock`, for as long as `faulty` is shared.
    async fn start(stock: &str, seed: u64, faulty: Arc<AtomicBool>) -> SocketAddr {
        let incoming = TcpIncoming::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let addr = incoming.local_addr().expect("bound");
        let (health, health_server) = tonic_health::server::health_reporter();
        health.set_service_status("", tonic_health::ServingStatus::Serving).await;
        let stock = StockServiceClient::new(client::channel(stock).expect("a URL"));
        let unreliable = Self { stock, dice: Mutex::new(Dice(seed)), faulty };
        let server =
            Server::builder().add_service(health_server).add_service(StockServiceServer::new(unreliable));
        tokio::spawn(server.serve_with_incoming(incoming));
        addr
    }

    async fn pass<M, R, Fut>(
        &self,
        request: Request<M>,
        send: impl FnOnce(StockServiceClient<Channel>, Request<M>) -> Fut,
    ) -> Result<Response<R>, Status>
    where
        R: Send + 'static,
        Fut: Future<Output = Result<Response<R>, Status>> + Send + 'static,
    {
        let (mut metadata, _, message) = request.into_parts();
        // A call that comes late is still carried out.
        metadata.remove("grpc-timeout");
        let call = send(self.stock.clone(), Request::from_parts(metadata, Extensions::default(), message));
        let (fate, delay) = {
            let mut dice = self.dice.lock().expect("not poisoned");
            (dice.roll(10), Duration::from_millis(dice.roll(700)))
        };
        if !self.faulty.load(Ordering::Relaxed) {
            return call.await;
        }
        match fate {
            // The call gets lost, its answer gets lost, or it arrives after its caller was told of a failure.
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
impl StockService for Unreliable {
    async fn hold(&self, request: Request<HoldRequest>) -> Result<Response<HoldResponse>, Status> {
        self.pass(request, |mut stock, request| async move { stock.hold(request).await }).await
    }

    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        self.pass(request, |mut stock, request| async move { stock.commit(request).await }).await
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        self.pass(request, |mut stock, request| async move { stock.release(request).await }).await
    }
}

const CUSTOMERS: u64 = 4;
const ORDERS_EACH: u64 = 6;
/// Less than they want.
const SUPPLIED: i64 = 40;
const SEED: u64 = 0x5eed_0b1a_c0de_0001;

/// Places orders, each with a key that is used until the outcome is known, and pays or cancels most of them.
async fn trade(customer: Person, tea: i64, mut dice: Dice) {
    for number in 0..ORDERS_EACH {
        let mut request = wish(&[(tea, i64::try_from(dice.roll(3) + 1).expect("small"))]);
        request.idempotency_key = Some(format!("order-{number}"));
        let placed = loop {
            match customer.orders(request.clone()).await {
                Ok(order) => break Some(order.into_inner().id),
                refusal => match refused(refusal).as_str() {
                    "out_of_stock" => break None,
                    "unavailable" | "request_in_progress" => {}
                    reason => panic!("{reason}"),
                },
            }
            tokio::time::sleep(Duration::from_millis(dice.roll(50))).await;
        };
        let Some(id) = placed else { continue };
        let fate = dice.roll(4);
        // A payment may stay open until the shop recovers it.
        for _ in 0..4 {
            let answer = match fate {
                0 => return,
                1 => customer.cancels(&id).await,
                _ => customer.pays_with(&id, "tok_ok", Some("pay")).await.map(Response::into_inner),
            };
            match answer {
                Ok(_) => break,
                refusal => match refused(refusal).as_str() {
                    "unavailable" | "request_in_progress" | "invalid_transition" => {}
                    reason => panic!("{reason}"),
                },
            }
            tokio::time::sleep(Duration::from_millis(dice.roll(100))).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_gets_lost_or_comes_late_paid_goods_are_sold_once() {
    println!("seed {SEED:#x}");
    let faulty = Arc::new(AtomicBool::new(true));
    let shop =
        Shop::open_behind(async |product| Unreliable::start(product, SEED, faulty.clone()).await.to_string())
            .await;
    let admin = shop.admin().await;
    let tea = admin.sells("tea", 450, SUPPLIED).await;
    let (orders, product) = (shop.look().await, shop.look_at("product").await);
    let mut traders = Vec::new();
    for number in 0..CUSTOMERS {
        let customer = shop.customer(&format!("customer-{number}")).await;
        traders.push(tokio::spawn(trade(customer, tea, Dice(SEED.wrapping_mul(2 * number + 3)))));
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
    assert!(breaking.await.unwrap() > 3, "connections broke meanwhile");

    // The attempts left open are recovered, and the delayed calls have arrived.
    shop.let_pass(Duration::from_secs(31));
    eventually("all is settled", || async {
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
    let away: i64 =
        holds.values().filter(|(state, _)| state == "held" || state == "committed").map(|h| h.1).sum();
    assert_eq!(admin.stock(tea).await, SUPPLIED - away, "supplied = available + held + sold");
    assert!(holds.iter().all(|(id, (state, _))| state != "committed" || rows.iter().any(|row| row.0 == *id)));
}
