//! The test fixture: a database, Redis, an auth service, a product service, and callers.

use std::{sync::Arc, time::Duration};

use secrecy::SecretString;
use shoppee_kit::{
    client,
    load_balancer::LoadBalancer,
    service_token::ServiceToken,
    status,
    testing::{Database, RedisServer, TestProcess, common, eventually, free_addr},
};
use shoppee_proto::{
    auth::v1::{LoginRequest, RegisterRequest, auth_service_client::AuthServiceClient},
    product::v1::{
        AdjustStockRequest, CommitRequest, CreateProductRequest, GetProductRequest, HoldRequest,
        HoldResponse, Product, RefusedLine, ReleaseReason, ReleaseRequest, StockLine,
        hold_audit_service_client::HoldAuditServiceClient,
        product_cache_service_client::ProductCacheServiceClient,
        product_service_client::ProductServiceClient, status_service_client::StatusServiceClient,
        stock_service_client::StockServiceClient,
    },
};
use sqlx::{AssertSqlSafe, PgPool};
use tonic::{Request, Status, transport::Channel};
use uuid::Uuid;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const PASSWORD: &str = "correct horse battery staple";

pub type Products = ProductServiceClient<Channel>;
pub type CachedProducts = ProductCacheServiceClient<Channel>;

/// A running shop, which stops when it is dropped.
pub struct TestShop {
    pub accounts: AuthServiceClient<Channel>,
    pub products: Products,
    pub cached_products: CachedProducts,
    pub stock: StockServiceClient<Channel>,
    pub audit: HoldAuditServiceClient<Channel>,
    pub status: StatusServiceClient<Channel>,
    pub admin: Arc<SecretString>,
    pub customer: Arc<SecretString>,
    pub service: Arc<SecretString>,
    pub pool: PgPool,
    pub process: TestProcess,
    pub redis: RedisServer,
    settings: shoppee_product::Settings,
    _auth: TestProcess,
    pub database: Database,
}

/// Another process of the product service, with the same database and Redis.
pub struct Replica {
    pub products: Products,
    pub cached_products: CachedProducts,
    pub stock: StockServiceClient<Channel>,
    _process: TestProcess,
}

impl TestShop {
    pub async fn start() -> Self {
        let (database, redis) = tokio::join!(Database::create(), RedisServer::start());
        let (auth, process) = (TestProcess::default(), TestProcess::default());
        let auth_addr = free_addr();
        let settings = shoppee_auth::Settings {
            common: common(),
            postgres: database.settings("auth"),
            redis: redis.settings(),
            listen_addr: auth_addr,
            metrics_addr: free_addr(),
            grpc_reflection: false,
            jwt_secret: SecretString::from(shoppee_auth::EXAMPLE_SECRET),
            jwt_secret_previous: None,
            access_token_ttl: Duration::from_hours(24),
            refresh_token_ttl: Duration::from_hours(24),
            admin_username: Some("boss".to_owned()),
            admin_email: Some("boss@shop.example".to_owned()),
            admin_password: Some(SecretString::from(PASSWORD)),
            service_clients: Some(SecretString::from("order=a secret of the order service")),
            password_hashes: None,
            audit_log: shoppee_kit::settings::AuditLog::default(),
        };
        shoppee_auth::start(settings, auth.process.clone()).await.expect("auth starts");
        let auth_url = format!("http://{auth_addr}");
        let (listen_addr, pool) = (free_addr(), database.url("product"));
        let settings = shoppee_product::Settings {
            common: common(),
            postgres: database.settings("product"),
            redis: redis.settings(),
            database_read_urls: Vec::new(),
            cache_l1_ttl: Duration::from_mins(5),
            cache_l2_ttl: Duration::from_hours(1),
            auth_url: auth_url.clone(),
            listen_addr,
            metrics_addr: free_addr(),
            grpc_reflection: true,
            shop_currency: "EUR".to_owned(),
            audit_log: shoppee_kit::settings::AuditLog::default(),
        };
        let (mut auth, mut process) = (auth, process);
        auth.wait_ready().await;
        shoppee_product::start(settings.clone(), process.process.clone()).await.expect("product starts");
        process.wait_ready().await;

        let channel = client::channel(&auth_url).expect("a URL");
        let mut accounts = AuthServiceClient::new(channel);
        let register = RegisterRequest {
            username: "ann".to_owned(),
            email: "ann@example.com".to_owned(),
            password: PASSWORD.to_owned(),
            ..RegisterRequest::default()
        };
        accounts.register(register).await.expect("ann registers");
        let customer = sign_in(&mut accounts, "ann").await;
        let admin = sign_in(&mut accounts, "boss").await;
        let secret = SecretString::from("a secret of the order service");
        let auth_pool = LoadBalancer::start("auth", &auth_url, &process.process).expect("a URL");
        let service =
            ServiceToken::new(auth_pool, "order".to_owned(), secret).get().await.expect("a service token");

        let channel = client::channel(&format!("http://{listen_addr}")).expect("a URL");
        Self {
            accounts,
            products: ProductServiceClient::new(channel.clone()),
            cached_products: ProductCacheServiceClient::new(channel.clone()),
            stock: StockServiceClient::new(channel.clone()),
            audit: HoldAuditServiceClient::new(channel.clone()),
            status: StatusServiceClient::new(channel),
            admin,
            customer,
            service,
            pool: PgPool::connect_lazy(&pool).expect("a URL"),
            process,
            redis,
            settings,
            _auth: auth,
            database,
        }
    }

    /// Returns the gRPC URL of the service.
    pub fn grpc_url(&self) -> String {
        format!("http://{}", self.settings.listen_addr)
    }

    pub async fn replica(&self) -> Replica {
        self.replica_with(|_| {}).await
    }

    pub async fn replica_with(&self, change: impl FnOnce(&mut shoppee_product::Settings)) -> Replica {
        let mut process = TestProcess::default();
        let listen_addr = free_addr();
        let mut settings =
            shoppee_product::Settings { listen_addr, metrics_addr: free_addr(), ..self.settings.clone() };
        change(&mut settings);
        shoppee_product::start(settings, process.process.clone()).await.expect("product starts");
        process.wait_ready().await;
        let channel = client::channel(&format!("http://{listen_addr}")).expect("a URL");
        Replica {
            products: ProductServiceClient::new(channel.clone()),
            cached_products: ProductCacheServiceClient::new(channel.clone()),
            stock: StockServiceClient::new(channel),
            _process: process,
        }
    }

    /// Creates a request by the admin.
    pub fn admin<T>(&self, message: T) -> Request<T> {
        client::request(message, Some(&self.admin), REQUEST_TIMEOUT)
    }

    /// Creates a request by the customer.
    pub fn customer<T>(&self, message: T) -> Request<T> {
        client::request(message, Some(&self.customer), REQUEST_TIMEOUT)
    }

    /// Creates a request by the order service.
    pub fn service<T>(&self, message: T) -> Request<T> {
        client::request(message, Some(&self.service), REQUEST_TIMEOUT)
    }

    /// Creates a product that costs 1000.
    pub async fn product(&self, sku: &str, stock: i64) -> Product {
        self.create(CreateProductRequest {
            sku: sku.to_owned(),
            name: format!("Product {sku}"),
            price: 1000,
            stock,
            ..CreateProductRequest::default()
        })
        .await
    }

    pub async fn create(&self, request: CreateProductRequest) -> Product {
        let created = self.products.clone().create_product(self.admin(request)).await;
        created.expect("created").into_inner()
    }

    /// Reads a product as the admin.
    pub async fn get(&self, id: i64) -> Product {
        let request = self.admin(GetProductRequest { id });
        self.products.clone().get_product(request).await.expect("exists").into_inner()
    }

    pub async fn stock_of(&self, id: i64) -> i64 {
        self.get(id).await.stock
    }

    pub async fn hold(
        &self,
        order: Uuid,
        lines: impl IntoIterator<Item = (i64, i64)>,
    ) -> Result<HoldResponse, Status> {
        self.hold_for(order, lines, 60).await
    }

    pub async fn hold_for(
        &self,
        order: Uuid,
        lines: impl IntoIterator<Item = (i64, i64)>,
        ttl_seconds: i64,
    ) -> Result<HoldResponse, Status> {
        self.hold_as(hold_request(order, lines, ttl_seconds)).await
    }

    pub async fn hold_as(&self, request: HoldRequest) -> Result<HoldResponse, Status> {
        self.stock.clone().hold(self.service(request)).await.map(tonic::Response::into_inner)
    }

    pub async fn commit(&self, order: Uuid) -> Result<(), Status> {
        let request = CommitRequest { order_id: order.to_string() };
        self.stock.clone().commit(self.service(request)).await.map(drop)
    }

    pub async fn release(&self, order: Uuid) -> Result<(), Status> {
        self.release_for(order, ReleaseReason::Unspecified).await
    }

    pub async fn release_for(&self, order: Uuid, reason: ReleaseReason) -> Result<(), Status> {
        let request = ReleaseRequest { order_id: order.to_string(), reason: reason.into() };
        self.stock.clone().release(self.service(request)).await.map(drop)
    }

    pub async fn adjust(&self, id: i64, delta: i64) -> Result<Product, Status> {
        let request = AdjustStockRequest { id, delta, reason: "count".to_owned(), idempotency_key: None };
        self.products.clone().adjust_stock(self.admin(request)).await.map(tonic::Response::into_inner)
    }

    /// Asserts the stock invariant for every product, and that the ledger agrees.
    pub async fn assert_stock_invariant(&self) {
        let violations: i64 = self
            .count("select count(*) from product.conservation where supplied <> available + held + sold")
            .await;
        assert_eq!(violations, 0, "supplied is not available + held + sold");
        let violations = self
            .count(
                "select count(*) from product.stock s where available <> (
                     select coalesce(sum(quantity), 0) from product.stock_ledger l
                     where l.product_id = s.product_id and l.kind <> 'sale')",
            )
            .await;
        assert_eq!(violations, 0, "the ledger differs from the available quantity");
        let violations = self
            .count(
                "select count(*) from product.product p join product.stock s on s.product_id = p.id
                 where p.in_stock <> (s.available > 0)",
            )
            .await;
        assert_eq!(violations, 0, "in_stock differs from the available quantity");
    }

    pub async fn count(&self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&self.pool).await.expect("counted")
    }

    /// Waits until the stock of expired holds is available again.
    pub async fn wait_until_stock_is(&self, id: i64, stock: i64) {
        eventually("the stock is back", || async { self.stock_of(id).await == stock }).await;
    }
}

async fn sign_in(accounts: &mut AuthServiceClient<Channel>, username: &str) -> Arc<SecretString> {
    let login = LoginRequest {
        username: username.to_owned(),
        password: PASSWORD.to_owned(),
        ..LoginRequest::default()
    };
    let tokens = accounts.login(login).await.expect("signs in").into_inner();
    Arc::new(SecretString::from(tokens.access_token))
}

/// Returns the reason of a refusal.
pub fn reason<T: std::fmt::Debug>(answer: Result<T, Status>) -> String {
    status::parse(&answer.expect_err("refused")).reason
}

/// Returns the fields of a refusal.
pub fn fields<T: std::fmt::Debug>(answer: Result<T, Status>) -> Vec<String> {
    let refusal = status::parse(&answer.expect_err("refused"));
    refusal.violations.into_iter().map(|(field, _)| field).collect()
}

/// Returns the lines of a refusal.
pub fn refused_lines<T: std::fmt::Debug>(answer: Result<T, Status>) -> Vec<RefusedLine> {
    let refusal = status::parse(&answer.expect_err("refused"));
    serde_json::from_str(&refusal.metadata["lines"]).expect("lines")
}

/// Returns a request to hold products with their quantities.
pub fn hold_request(
    order: Uuid,
    lines: impl IntoIterator<Item = (i64, i64)>,
    ttl_seconds: i64,
) -> HoldRequest {
    let lines = lines.into_iter().map(|(product_id, quantity)| StockLine { product_id, quantity });
    HoldRequest { order_id: order.to_string(), lines: lines.collect(), ttl_seconds, ..HoldRequest::default() }
}

pub fn order() -> Uuid {
    Uuid::now_v7()
}
