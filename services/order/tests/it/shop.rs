//! A test fixture: the three services on servers of their own, and their callers.

use std::{sync::Arc, time::Duration};

use secrecy::SecretString;
use shoppee_kit::{
    client,
    clock::Clock,
    settings,
    testing::{Database, RedisServer, TestProcess, common, eventually, free_addr},
};
use shoppee_proto::{
    auth::v1::{LoginRequest, RegisterRequest, auth_service_client::AuthServiceClient},
    order::v1::{
        AddCartItemRequest, CancelOrderRequest, Cart, CompleteOrderRequest, CreateOrderRequest,
        GetCartRequest, GetOrderRequest, ListEventsRequest, ListOrderEventsRequest, Order, OrderEvent,
        OrderHistoryEvent, PayOrderRequest, ShipOrderRequest, order_service_client::OrderServiceClient,
    },
    product::v1::{
        CreateProductRequest, GetProductRequest, Product, product_service_client::ProductServiceClient,
    },
};
use sqlx::PgPool;
use tonic::{Code, Request, Response, Status, transport::Channel};

mod binary;
mod consumer;
mod requests;
mod retry;

pub use consumer::Consumer;
pub use requests::{expect_error, order_request};
use retry::retry;

const ORDER_SECRET: &str = "the order service's own secret";
const PASSWORD: &str = "correct horse battery";
/// Bounds a call. It takes milliseconds, but a test machine may be slow.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// The three services, as separate processes except for their memory.
pub struct TestShop {
    pub database: Database,
    pub redis: RedisServer,
    auth: Channel,
    product: Channel,
    pub order: Channel,
    clock: Clock,
    order_settings: shoppee_order::Settings,
    order_process: TestProcess,
    _auth: TestProcess,
    _product: TestProcess,
}

impl TestShop {
    pub async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    /// Starts a shop with changed settings of the order service.
    pub async fn start_with(change: impl FnOnce(&mut shoppee_order::Settings)) -> Self {
        Self::start_changed(async |settings| change(settings)).await
    }

    /// Starts a shop with a proxy between the order service and the product service. `proxy` maps the URL to an
    /// address.
    pub async fn start_behind(proxy: impl AsyncFnOnce(&str) -> String) -> Self {
        Self::start_changed(async |settings| {
            settings.product_url = format!("http://{}", proxy(&settings.product_url).await);
        })
        .await
    }

    async fn start_changed(change: impl AsyncFnOnce(&mut shoppee_order::Settings)) -> Self {
        let database = Database::create().await;
        let redis = RedisServer::start().await;
        let (mut auth_process, mut product_process) = (TestProcess::default(), TestProcess::default());
        let (auth, product) = (free_addr(), free_addr());
        shoppee_auth::start(
            shoppee_auth::Settings {
                common: common(),
                postgres: database.settings("auth"),
                redis: redis.settings(),
                listen_addr: auth,
                metrics_addr: free_addr(),
                grpc_reflection: false,
                jwt_secret: SecretString::from("a secret of this test, long enough to be one"),
                jwt_secret_previous: None,
                // Some tests advance the clock by a day.
                access_token_ttl: Duration::from_hours(48),
                refresh_token_ttl: Duration::from_hours(24),
                admin_username: Some("root".to_owned()),
                admin_email: Some("root@shop.example".to_owned()),
                admin_password: Some(SecretString::from(PASSWORD)),
                service_clients: Some(SecretString::from(format!("order={ORDER_SECRET}"))),
                password_hashes: None,
                audit_log: shoppee_kit::settings::AuditLog::default(),
            },
            auth_process.process.clone(),
        )
        .await
        .expect("auth starts");
        let auth_url = format!("http://{auth}");
        shoppee_product::start(
            shoppee_product::Settings {
                common: common(),
                postgres: database.settings("product"),
                redis: redis.settings(),
                database_read_urls: Vec::new(),
                cache_l1_ttl: Duration::from_mins(5),
                cache_l2_ttl: Duration::from_hours(1),
                auth_url: auth_url.clone(),
                listen_addr: product,
                metrics_addr: free_addr(),
                grpc_reflection: false,
                shop_currency: "EUR".to_owned(),
                audit_log: shoppee_kit::settings::AuditLog::default(),
            },
            product_process.process.clone(),
        )
        .await
        .expect("product starts");
        let mut order_settings = shoppee_order::Settings {
            common: common(),
            postgres: database.settings("order"),
            redis: redis.settings(),
            service_client: settings::ServiceClient {
                auth_url: auth_url.clone(),
                service_client_id: "order".to_owned(),
                service_client_secret: SecretString::from(ORDER_SECRET),
            },
            product_url: format!("http://{product}"),
            listen_addr: free_addr(),
            metrics_addr: free_addr(),
            grpc_reflection: false,
            order_ttl: Duration::from_mins(15),
            max_unpaid_orders: 20,
            max_unpaid_units: 5000,
            max_unpaid_product_share: 20,
            rate_limits: String::new(),
            shop_currency: "EUR".to_owned(),
            payment_provider: shoppee_order::PaymentProvider::Sandbox,
            audit_log: shoppee_kit::settings::AuditLog::default(),
        };
        change(&mut order_settings).await;
        let mut order_process = TestProcess::default();
        shoppee_order::start(order_settings.clone(), order_process.process.clone())
            .await
            .expect("order starts");
        auth_process.wait_ready().await;
        product_process.wait_ready().await;
        order_process.wait_ready().await;
        let channel = |url: &str| client::channel(url).expect("a URL");
        Self {
            auth: channel(&auth_url),
            product: channel(&format!("http://{product}")),
            order: channel(&format!("http://{}", order_settings.listen_addr)),
            clock: order_process.process.clock.clone(),
            order_settings,
            order_process,
            _auth: auth_process,
            _product: product_process,
            database,
            redis,
        }
    }

    /// Advances the clock of the order service.
    pub fn advance_clock(&self, time: Duration) {
        self.clock.advance(time);
    }

    /// Sets the clock of the order service's machine ahead, without passing time.
    pub fn set_ahead(&self, by: Duration) {
        self.clock.set_offset(by);
    }

    /// Starts a second process of the order service on the same database.
    pub async fn start_replica(&self) -> TestProcess {
        let mut process = TestProcess::default();
        process.process.clock = self.clock.clone();
        let settings = shoppee_order::Settings {
            listen_addr: free_addr(),
            metrics_addr: free_addr(),
            ..self.order_settings.clone()
        };
        shoppee_order::start(settings, process.process.clone()).await.expect("order starts");
        process.wait_ready().await;
        process
    }

    pub async fn stop_order(&mut self) {
        self.order_process.stop().await;
    }

    pub async fn start_order(&mut self) {
        let mut process = TestProcess::default();
        process.process.clock = self.clock.clone();
        shoppee_order::start(self.order_settings.clone(), process.process.clone())
            .await
            .expect("order starts");
        process.wait_ready().await;
        self.order_process = process;
    }

    /// Starts a second process of the order service, and returns a channel to it.
    pub async fn start_reachable_replica(&self) -> (TestProcess, Channel) {
        let mut process = TestProcess::default();
        process.process.clock = self.clock.clone();
        let mut settings = self.order_settings.clone();
        (settings.listen_addr, settings.metrics_addr) = (free_addr(), free_addr());
        let url = format!("http://{}", settings.listen_addr);
        shoppee_order::start(settings, process.process.clone()).await.expect("order starts");
        process.wait_ready().await;
        (process, client::channel(&url).expect("a URL"))
    }

    /// Registers a user and signs in.
    pub async fn customer(&self, name: &str) -> Person {
        let mut auth = AuthServiceClient::new(self.auth.clone());
        let request = RegisterRequest {
            username: name.to_owned(),
            email: format!("{name}@shop.example"),
            password: PASSWORD.to_owned(),
            ..RegisterRequest::default()
        };
        auth.register(request).await.expect("registers");
        self.sign_in(name).await
    }

    /// Signs in the initial admin.
    pub async fn admin(&self) -> Person {
        // The service creates the account when it starts, which may take a moment.
        let login = || async { self.try_sign_in("root").await.is_ok() };
        eventually("the first admin can sign in", login).await;
        self.sign_in("root").await
    }

    async fn sign_in(&self, name: &str) -> Person {
        // A busy machine may shed the password hash.
        for _ in 0..10 {
            match self.try_sign_in(name).await {
                Err(status) if status.code() == Code::Unavailable => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                answered => return answered.expect("signs in"),
            }
        }
        panic!("{name} cannot sign in")
    }

    async fn try_sign_in(&self, name: &str) -> Result<Person, Status> {
        let request = LoginRequest {
            username: name.to_owned(),
            password: PASSWORD.to_owned(),
            user_agent: "test".to_owned(),
            ..LoginRequest::default()
        };
        let tokens = AuthServiceClient::new(self.auth.clone()).login(request).await?.into_inner();
        Ok(Person {
            id: tokens.user.expect("a user").id,
            token: Arc::new(SecretString::from(tokens.access_token)),
            order: OrderServiceClient::new(self.order.clone()),
            product: ProductServiceClient::new(self.product.clone()),
        })
    }

    /// Connects to the order service's database.
    pub async fn db(&self) -> PgPool {
        self.service_db("order").await
    }

    /// Connects to the database of `service`.
    pub async fn service_db(&self, service: &str) -> PgPool {
        PgPool::connect(&self.database.url(service)).await.expect("connects")
    }
}

/// A signed-in user.
#[derive(Clone)]
pub struct Person {
    pub id: i64,
    pub token: Arc<SecretString>,
    order: OrderServiceClient<Channel>,
    product: ProductServiceClient<Channel>,
}

impl Person {
    fn with_token<T>(&self, message: T) -> Request<T> {
        client::request(message, Some(&self.token), REQUEST_TIMEOUT)
    }

    /// Creates a product; for admins.
    pub async fn sells(&self, sku: &str, price: i64, stock: i64) -> i64 {
        let request = CreateProductRequest {
            sku: sku.to_owned(),
            name: format!("Product {sku}"),
            price,
            stock,
            ..CreateProductRequest::default()
        };
        self.product.clone().create_product(self.with_token(request)).await.expect("created").into_inner().id
    }

    pub async fn product(&self, id: i64) -> Product {
        let request = || self.with_token(GetProductRequest { id });
        retry(|| async { self.product.clone().get_product(request()).await })
            .await
            .expect("found")
            .into_inner()
    }

    pub async fn stock(&self, id: i64) -> i64 {
        self.product(id).await.stock
    }

    pub fn products(&self) -> (ProductServiceClient<Channel>, Arc<SecretString>) {
        (self.product.clone(), self.token.clone())
    }

    /// Returns the same user, calling another replica of the order service.
    pub fn at(&self, order: &Channel) -> Self {
        Self { order: OrderServiceClient::new(order.clone()), ..self.clone() }
    }

    pub fn service(&self) -> OrderServiceClient<Channel> {
        self.order.clone()
    }

    pub async fn orders(&self, request: CreateOrderRequest) -> Result<Response<Order>, Status> {
        self.order.clone().create_order(self.with_token(request)).await
    }

    /// Places an order under a key, with retries while the machine is busy.
    pub async fn orders_with_retries(&self, request: CreateOrderRequest) -> Result<Order, Status> {
        let key = Some(uuid::Uuid::now_v7().to_string());
        let request = CreateOrderRequest { idempotency_key: key, ..request };
        retry(|| async { self.orders(request.clone()).await.map(Response::into_inner) }).await
    }

    pub async fn buys(&self, product_id: i64, quantity: i64) -> Order {
        self.orders_with_retries(order_request(&[(product_id, quantity)])).await.expect("ordered")
    }

    pub async fn get_order(&self, id: &str) -> Result<Order, Status> {
        let request = self.with_token(GetOrderRequest { id: id.to_owned() });
        self.order.clone().get_order(request).await.map(Response::into_inner)
    }

    pub async fn pays(&self, id: &str) -> Result<Order, Status> {
        self.pays_with(id, "tok_ok", None).await.map(Response::into_inner)
    }

    pub async fn pays_with(
        &self,
        id: &str,
        token: &str,
        key: Option<&str>,
    ) -> Result<Response<Order>, Status> {
        let request = PayOrderRequest {
            id: id.to_owned(),
            payment_token: token.to_owned(),
            idempotency_key: key.map(str::to_owned),
        };
        self.order.clone().pay_order(self.with_token(request)).await
    }

    pub async fn ships(&self, id: &str) -> Result<Order, Status> {
        self.ships_with(id, "3S-1", None).await.map(Response::into_inner)
    }

    pub async fn ships_with(
        &self,
        id: &str,
        tracking_number: &str,
        key: Option<&str>,
    ) -> Result<Response<Order>, Status> {
        let request = ShipOrderRequest {
            id: id.to_owned(),
            carrier: "Post".to_owned(),
            tracking_number: tracking_number.to_owned(),
            idempotency_key: key.map(str::to_owned),
        };
        self.order.clone().ship_order(self.with_token(request)).await
    }

    pub async fn completes(&self, id: &str) -> Result<Order, Status> {
        self.completes_with(id, None).await.map(Response::into_inner)
    }

    pub async fn completes_with(&self, id: &str, key: Option<&str>) -> Result<Response<Order>, Status> {
        let request = CompleteOrderRequest { id: id.to_owned(), idempotency_key: key.map(str::to_owned) };
        self.order.clone().complete_order(self.with_token(request)).await
    }

    pub async fn cancels(&self, id: &str) -> Result<Order, Status> {
        let request =
            self.with_token(CancelOrderRequest { id: id.to_owned(), reason: None, idempotency_key: None });
        self.order.clone().cancel_order(request).await.map(Response::into_inner)
    }

    pub async fn cancels_with(
        &self,
        id: &str,
        reason: Option<&str>,
        key: Option<&str>,
    ) -> Result<Response<Order>, Status> {
        let request = CancelOrderRequest {
            id: id.to_owned(),
            reason: reason.map(str::to_owned),
            idempotency_key: key.map(str::to_owned),
        };
        self.order.clone().cancel_order(self.with_token(request)).await
    }

    pub async fn history(&self, id: &str) -> Result<Vec<OrderHistoryEvent>, Status> {
        let request = self.with_token(ListOrderEventsRequest { id: id.to_owned() });
        Ok(self.order.clone().list_order_events(request).await?.into_inner().items)
    }

    /// All events of the user, from the first.
    pub async fn events(&self) -> Vec<OrderEvent> {
        let request = self.with_token(ListEventsRequest { after_seq: Some(0), limit: None });
        self.order.clone().list_events(request).await.expect("listed").into_inner().events
    }

    pub async fn cart(&self) -> Cart {
        self.order.clone().get_cart(self.with_token(GetCartRequest {})).await.expect("a cart").into_inner()
    }

    pub async fn add_to_cart(&self, product_id: i64, quantity: i64) -> Result<Cart, Status> {
        let request = self.with_token(AddCartItemRequest { product_id, quantity, idempotency_key: None });
        self.order.clone().add_cart_item(request).await.map(Response::into_inner)
    }

    pub async fn add_to_cart_with_key(
        &self,
        product_id: i64,
        quantity: i64,
        key: &str,
    ) -> Result<Response<Cart>, Status> {
        let idempotency_key = Some(key.to_owned());
        let request = self.with_token(AddCartItemRequest { product_id, quantity, idempotency_key });
        self.order.clone().add_cart_item(request).await
    }

    pub fn request<T>(&self, message: T) -> Request<T> {
        self.with_token(message)
    }
}
