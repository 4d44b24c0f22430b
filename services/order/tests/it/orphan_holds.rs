//! Orphan holds: the stock of a checkout that ends between its hold and its order returns, and an order whose hold was
//! returned is never written.

use std::{net::SocketAddr, time::Duration};

use rustix::process::Signal;
use shoppee_kit::testing::eventually;
use shoppee_proto::product::v1::{
    CommitRequest, CommitResponse, HoldRequest, HoldResponse, ReleaseRequest, ReleaseResponse, StockLine,
    stock_service_client::StockServiceClient,
    stock_service_server::{StockService, StockServiceServer},
};
use sqlx::{PgConnection, PgPool};
use tokio::{sync::watch, task::JoinHandle};
use tonic::{
    Extensions, Request, Response, Status,
    transport::{
        Channel,
        server::{Server, TcpIncoming},
    },
};
use uuid::Uuid;

use crate::shop::{Person, TestShop, order_request};

const STOCK: i64 = 10;
/// Beyond the age of the ids that the first pass of the sweep looks at.
const SWEPT_AGE: Duration = Duration::from_secs(21);

struct Fixture {
    shop: TestShop,
    orders: PgPool,
    product: PgPool,
    admin: Person,
    ann: Person,
    tea: i64,
}

impl Fixture {
    async fn start() -> Self {
        let shop = TestShop::start().await;
        let (orders, product) = (shop.service_db("order").await, shop.service_db("product").await);
        let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
        let tea = admin.sells("tea", 450, STOCK).await;
        Self { shop, orders, product, admin, ann, tea }
    }

    /// Places an order in the background.
    fn place(&self, customer: &Person, quantity: i64) -> JoinHandle<()> {
        let (customer, request) = (customer.clone(), order_request(&[(self.tea, quantity)]));
        tokio::spawn(async move { drop(customer.orders(request).await) })
    }

    /// Waits for the hold of the order that is being placed, and returns its order id.
    async fn wait_for_hold(&self, known: &[Uuid]) -> Uuid {
        eventually("the stock is held", || async { self.holds(known).await.len() == 1 }).await;
        self.holds(known).await[0].0
    }

    /// Returns the holds and their states, except those of `known` orders.
    async fn holds(&self, known: &[Uuid]) -> Vec<(Uuid, String)> {
        sqlx::query_as(
            "select order_id, state from product.stock_hold where not order_id = any($1) order by 1",
        )
        .bind(known)
        .fetch_all(&self.product)
        .await
        .expect("read")
    }

    async fn hold_state(&self, order_id: Uuid) -> String {
        sqlx::query_scalar("select state from product.stock_hold where order_id = $1")
            .bind(order_id)
            .fetch_one(&self.product)
            .await
            .expect("a hold")
    }

    async fn order_ids(&self) -> Vec<Uuid> {
        sqlx::query_scalar("select id from orders.orders order by id")
            .fetch_all(&self.orders)
            .await
            .expect("read")
    }

    /// Returns the tombstones, and for each of them true if its hold is released.
    async fn tombstones(&self) -> Vec<(Uuid, bool)> {
        sqlx::query_as("select order_id, released_at is not null from orders.voided_order order by 1")
            .fetch_all(&self.orders)
            .await
            .expect("read")
    }

    /// Waits for `count` further rounds of the sweep.
    async fn wait_for_rounds(&self, count: usize) {
        let position = async || -> Option<Uuid> {
            sqlx::query_scalar("select order_id from orders.audit_pass where name = 'orphan-holds'")
                .fetch_optional(&self.orders)
                .await
                .expect("read")
        };
        for _ in 0..count {
            let before = position().await;
            eventually("the sweep makes a round", || async { position().await != before }).await;
        }
    }

    /// Waits until a statement waits for a lock of the orders.
    async fn wait_for_blocked_writer(&self) {
        eventually("an order waits for the lock", || async {
            let waiting: i64 = sqlx::query_scalar(
                "select count(*) from pg_locks where relation = 'orders.orders'::regclass and not granted",
            )
            .fetch_one(&self.orders)
            .await
            .expect("read");
            waiting == 1
        })
        .await;
    }

    /// Pays an order, with retries while the machine is busy.
    async fn assert_can_be_paid(&self, id: &str) {
        eventually("the order is paid", || async {
            self.ann.pays_with(id, "tok_ok", Some("pay")).await.is_ok()
        })
        .await;
    }

    /// Asserts that each order has its hold, and that no other units are held.
    async fn assert_consistent(&self) {
        let (orders, holds) = (self.order_ids().await, self.holds(&[]).await);
        let held: Vec<Uuid> =
            holds.iter().filter(|(_, state)| state == "held").map(|(order_id, _)| *order_id).collect();
        assert_eq!(orders, held, "each order has a hold, and each hold an order");
    }
}

#[tokio::test]
async fn an_orphan_hold_returns_its_units_and_a_hold_of_another_service_stays() {
    let fixture = Fixture::start().await;
    let (order_service, warehouse) =
        (fixture.shop.order_service().await, fixture.shop.service("stock:hold").await);
    let mut stock = StockServiceClient::new(fixture.shop.product_channel());
    let (orphan, foreign) = (Uuid::now_v7(), Uuid::now_v7());
    for (id, quantity, service) in [(orphan, 3, &order_service), (foreign, 2, &warehouse)] {
        let request = HoldRequest {
            order_id: id.to_string(),
            lines: vec![StockLine { product_id: fixture.tea, quantity }],
            ttl_seconds: 900,
            ..HoldRequest::default()
        };
        stock.hold(service.request(request)).await.expect("held");
    }
    let order = fixture.ann.buys(fixture.tea, 1).await;
    assert_eq!(fixture.admin.stock(fixture.tea).await, STOCK - 6);

    fixture.shop.advance_clock(SWEPT_AGE);
    eventually("the units return", || async { fixture.admin.stock(fixture.tea).await == STOCK - 3 }).await;
    assert_eq!(fixture.hold_state(orphan).await, "released");
    assert_eq!(fixture.hold_state(foreign).await, "held");
    eventually("the release is recorded", || async { fixture.tombstones().await == [(orphan, true)] }).await;
    fixture.assert_can_be_paid(&order.id).await;

    // No order can be written any more with the id of the tombstone.
    fixture.shop.advance_clock(Duration::from_hours(1) + SWEPT_AGE);
    eventually("the tombstone is deleted", || async { fixture.tombstones().await.is_empty() }).await;
}

#[tokio::test]
async fn an_order_whose_commit_stalls_keeps_its_hold() {
    let fixture = Fixture::start().await;
    // A deferred trigger runs at the commit. This one waits until the lock is free.
    for statement in [
        "create function orders.stall() returns trigger language plpgsql set lock_timeout = 0 as
         $$ begin perform pg_advisory_xact_lock(4711); return null; end $$",
        "create constraint trigger stall after insert on orders.orders deferrable initially deferred
         for each row execute function orders.stall()",
    ] {
        sqlx::query(statement).execute(&fixture.orders).await.expect("created");
    }
    let mut stalling: PgConnection = fixture.orders.acquire().await.expect("a connection").detach();
    sqlx::query("select pg_advisory_lock(4711)").execute(&mut stalling).await.expect("locked");
    let placing = fixture.place(&fixture.ann, 4);
    let id = fixture.wait_for_hold(&[]).await;
    eventually("the commit stalls", || async {
        let waiting: i64 = sqlx::query_scalar(
            "select count(*) from pg_locks where locktype = 'advisory' and objid = 4711 and not granted",
        )
        .fetch_one(&fixture.orders)
        .await
        .expect("read");
        waiting == 1
    })
    .await;

    fixture.shop.advance_clock(SWEPT_AGE);
    eventually("the order id is void", || async { fixture.tombstones().await == [(id, false)] }).await;
    fixture.wait_for_rounds(2).await;
    assert_eq!(fixture.tombstones().await, [(id, false)], "the sweep waits for the commit");
    assert_eq!(fixture.hold_state(id).await, "held");

    sqlx::query("select pg_advisory_unlock(4711)").execute(&mut stalling).await.expect("unlocked");
    eventually("the sweep finds the order", || async { fixture.tombstones().await.is_empty() }).await;
    assert_eq!(fixture.order_ids().await, [id]);
    fixture.wait_for_rounds(1).await;
    fixture.assert_consistent().await;
    placing.await.expect("ends");
    fixture.assert_can_be_paid(&id.to_string()).await;
}

#[tokio::test]
async fn an_order_that_arrives_after_its_hold_was_returned_is_written_under_another_id() {
    let fixture = Fixture::start().await;
    let mut known = Vec::new();
    // The statement waits for the lock for 1.5 s, which may pass on a busy machine.
    for attempt in 0.. {
        let mut lock = fixture.orders.begin().await.expect("begins");
        sqlx::query("lock table orders.orders in share mode").execute(&mut *lock).await.expect("locked");
        let placing = fixture.place(&fixture.ann, 4);
        let id = fixture.wait_for_hold(&known).await;
        fixture.wait_for_blocked_writer().await;
        sqlx::query("insert into orders.voided_order (order_id) values ($1)")
            .bind(id)
            .execute(&fixture.orders)
            .await
            .expect("inserted");
        lock.rollback().await.expect("ends");
        placing.await.expect("ends");
        eventually("the hold is released", || async { fixture.hold_state(id).await == "released" }).await;
        let ids = fixture.order_ids().await;
        assert!(!ids.contains(&id), "an order was written with a void id");
        if ids.len() == 1 {
            break;
        }
        assert!(attempt < 5, "the order was never written");
        known = fixture.holds(&[]).await.into_iter().map(|(order_id, _)| order_id).collect();
    }
    fixture.assert_consistent().await;
    assert_eq!(fixture.admin.stock(fixture.tea).await, STOCK - 4);
}

#[tokio::test]
async fn the_units_of_a_process_that_is_killed_between_hold_and_order_return() {
    let fixture = Fixture::start().await;
    let gate = Gate::start(fixture.shop.product_channel()).await;
    let victim = fixture.shop.start_binary(&gate.url()).await;
    gate.close();
    let placing = fixture.place(&fixture.ann.at(&victim.channel), 4);
    let id = fixture.wait_for_hold(&[]).await;
    victim.signal(Signal::KILL);
    placing.await.expect("ends");
    assert_eq!(fixture.admin.stock(fixture.tea).await, STOCK - 4);

    fixture.shop.advance_clock(SWEPT_AGE);
    eventually("the units return", || async { fixture.admin.stock(fixture.tea).await == STOCK }).await;
    assert_eq!(fixture.hold_state(id).await, "released");
}

#[tokio::test]
async fn a_process_that_is_frozen_between_hold_and_order_writes_no_order_without_its_hold() {
    let fixture = Fixture::start().await;
    let gate = Gate::start(fixture.shop.product_channel()).await;
    let mut victim = fixture.shop.start_binary(&gate.url()).await;
    gate.close();
    let placing = fixture.place(&fixture.ann.at(&victim.channel), 4);
    let id = fixture.wait_for_hold(&[]).await;
    victim.signal(Signal::STOP);
    // The response of the hold waits in the socket of the frozen process.
    gate.open();
    fixture.shop.advance_clock(SWEPT_AGE);
    eventually("the hold is released", || async { fixture.hold_state(id).await == "released" }).await;
    victim.signal(Signal::CONT);
    placing.await.expect("ends");
    // The client may have hung up before the process has placed the order under another id.
    victim.stop().await;
    fixture.shop.advance_clock(SWEPT_AGE);
    assert!(!fixture.order_ids().await.contains(&id), "an order was written with a void id");
    // The process may have ended before it released the hold of another id, which the sweep then releases.
    let orders = fixture.order_ids().await.len();
    eventually("each hold has an order", || async {
        let held = fixture.holds(&[]).await.into_iter().filter(|(_, state)| state == "held").count();
        held == orders
    })
    .await;
    fixture.assert_consistent().await;
}

/// A proxy of the stock service that holds back the responses of holds while it is closed.
struct Gate {
    addr: SocketAddr,
    is_open: watch::Sender<bool>,
}

impl Gate {
    async fn start(product: Channel) -> Self {
        let incoming = TcpIncoming::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let addr = incoming.local_addr().expect("bound");
        let (is_open, opening) = watch::channel(true);
        let (health, health_server) = tonic_health::server::health_reporter();
        health.set_service_status("", tonic_health::ServingStatus::Serving).await;
        let service = GatedStockService { stock: StockServiceClient::new(product), opening };
        let server =
            Server::builder().add_service(health_server).add_service(StockServiceServer::new(service));
        tokio::spawn(server.serve_with_incoming(incoming));
        Self { addr, is_open }
    }

    fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    fn close(&self) {
        self.is_open.send_replace(false);
    }

    fn open(&self) {
        self.is_open.send_replace(true);
    }
}

struct GatedStockService {
    stock: StockServiceClient<Channel>,
    opening: watch::Receiver<bool>,
}

/// Returns the request as the proxy sends it.
fn forwarded<M>(request: Request<M>) -> Request<M> {
    let (metadata, _, message) = request.into_parts();
    Request::from_parts(metadata, Extensions::default(), message)
}

#[tonic::async_trait]
impl StockService for GatedStockService {
    async fn hold(&self, request: Request<HoldRequest>) -> Result<Response<HoldResponse>, Status> {
        let (mut stock, mut opening) = (self.stock.clone(), self.opening.clone());
        let response = stock.hold(forwarded(request)).await;
        let _ = opening.wait_for(|is_open| *is_open).await;
        response
    }

    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        self.stock.clone().commit(forwarded(request)).await
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        self.stock.clone().release(forwarded(request)).await
    }
}
