//! A complete shop for a test: a database, a Redis, the three services and some gateways, all in this process, and clients
//! for its users.

use std::{
    net::SocketAddr,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::Method;
use serde_json::{Value, json};
use shoppee_kit::testing::{Database, RedisServer, TestProcess, free_addr};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock},
};

mod latency_proxy;
mod processes;
mod response;

use latency_proxy::delayed;
use processes::{start_auth, start_gateway, start_order, start_product};
pub use response::{ApiResponse, send, text};

const ADMIN: &str = "admin";
pub const PASSWORD: &str = "correct horse battery";

/// Bounds the time for which a client repeats a request that got a 503.
const UNAVAILABLE_TIMEOUT: Duration = Duration::from_secs(20);
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Makes the names of users and products unique.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

#[derive(Debug)]
pub struct TestShop {
    database: Database,
    pub redis: RedisServer,
    urls: [String; 3],
    auth: Service,
    product: Service,
    pub order: Service,
    pub gateways: Vec<Service>,
    extra_products: Vec<Service>,
    http: reqwest::Client,
    _exclusivity: ExclusivityGuard,
}

static EXCLUSIVITY: LazyLock<Arc<RwLock<()>>> = LazyLock::new(Arc::default);

/// A lock for the life of a shop. An exclusive shop runs alone.
#[derive(Debug)]
enum ExclusivityGuard {
    Exclusive(#[expect(dead_code, reason = "held")] OwnedRwLockWriteGuard<()>),
    Shared(#[expect(dead_code, reason = "held")] OwnedRwLockReadGuard<()>),
}

/// A process of the shop with its address.
#[derive(Debug)]
pub struct Service {
    pub addr: SocketAddr,
    pub process: TestProcess,
}

impl Service {
    /// Stops the process as SIGTERM does.
    pub async fn stop(&self) {
        self.process.stop().await;
    }
}

/// A builder of shops.
#[derive(Debug, Default)]
pub struct ShopBuilder {
    gateways: usize,
    gateway_args: Vec<String>,
    is_exclusive: bool,
    services_by_name: bool,
}

impl ShopBuilder {
    pub fn gateways(mut self, count: usize) -> Self {
        self.gateways = count;
        self
    }

    /// Adds a flag of the gateways.
    pub fn with(mut self, flag: &str, value: &str) -> Self {
        self.gateway_args.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// Runs no other shop of this process meanwhile, for tests that load the machine or measure time.
    pub fn exclusive(mut self) -> Self {
        self.is_exclusive = true;
        self
    }

    /// Configures the services at the gateways by name, not by address.
    pub fn services_by_name(mut self) -> Self {
        self.services_by_name = true;
        self
    }

    pub async fn start(self) -> TestShop {
        let shop = self.start_without_ready().await;
        shop.wait_until_ready().await;
        shop
    }

    /// Starts a shop without waiting for `/readyz`, for tests with an unavailable service.
    pub async fn start_without_ready(self) -> TestShop {
        let exclusivity = if self.is_exclusive {
            ExclusivityGuard::Exclusive(EXCLUSIVITY.clone().write_owned().await)
        } else {
            ExclusivityGuard::Shared(EXCLUSIVITY.clone().read_owned().await)
        };
        let database = Database::create().await;
        let redis = RedisServer::start().await;
        let redis_url = format!("redis://127.0.0.1:{}", redis.port());
        let [auth, product, order] = [free_addr(), free_addr(), free_addr()];
        let urls = [auth, product, order].map(|addr| format!("http://{addr}"));
        let names = [auth, product, order].map(|addr| format!("http://localhost:{}", addr.port()));

        let auth = start_auth(auth, &database, &redis_url).await;
        let product = start_product(product, &database.url("product"), &redis_url, &urls).await;
        let order = start_order(order, &database, &redis_url, &urls).await;
        let mut gateways = Vec::new();
        for _ in 0..self.gateways.max(1) {
            gateways.push(
                start_gateway(
                    free_addr(),
                    &redis_url,
                    if self.services_by_name { &names } else { &urls },
                    &self.gateway_args,
                )
                .await,
            );
        }
        let mut shop = TestShop {
            database,
            redis,
            urls,
            auth,
            product,
            order,
            gateways,
            extra_products: Vec::new(),
            http: reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .expect("a client"),
            _exclusivity: exclusivity,
        };
        shop.wait_until_serving().await;
        shop
    }
}

impl TestShop {
    /// Starts a shop with one gateway and no rate limits.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    pub fn builder() -> ShopBuilder {
        ShopBuilder::default()
    }

    /// Waits until every process serves.
    async fn wait_until_serving(&mut self) {
        for service in [&mut self.auth, &mut self.product, &mut self.order] {
            service.process.wait_ready().await;
        }
        for gateway in &mut self.gateways {
            gateway.process.wait_ready().await;
        }
    }

    /// Waits until every gateway is ready.
    async fn wait_until_ready(&self) {
        for number in 0..self.gateways.len() {
            let url = format!("{}/readyz", self.url(number));
            shoppee_kit::testing::eventually("the gateway is ready", || async {
                self.http.get(&url).send().await.is_ok_and(|response| response.status().is_success())
            })
            .await;
        }
    }

    /// Stops the order service, runs `meanwhile`, and starts it again at its address.
    pub async fn without_order_service(&mut self, meanwhile: impl AsyncFnOnce(&Self)) {
        self.order.stop().await;
        meanwhile(self).await;
        let redis_url = format!("redis://127.0.0.1:{}", self.redis.port());
        self.order = start_order(self.order.addr, &self.database, &redis_url, &self.urls).await;
    }

    /// Does the same with the product service.
    pub async fn without_product_service(&mut self, meanwhile: impl AsyncFnOnce(&Self)) {
        self.product.stop().await;
        meanwhile(self).await;
        let redis_url = format!("redis://127.0.0.1:{}", self.redis.port());
        self.product =
            start_product(self.product.addr, &self.database.url("product"), &redis_url, &self.urls).await;
    }

    /// Starts another gateway, whose connections to the auth service open after `delay`. Does not wait until it is ready.
    pub async fn add_gateway_with_auth_latency(&mut self, delay: Duration) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let (proxy_addr, auth) = (listener.local_addr().expect("an address"), self.auth.addr);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    let mut upstream = TcpStream::connect(auth).await.expect("connects to auth");
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
                });
            }
        });
        self.add_gateway(&[("--auth-url", &format!("http://{proxy_addr}"))]).await;
    }

    /// Starts another gateway with additional flags.
    pub async fn add_gateway(&mut self, flags: &[(&str, &str)]) {
        let redis_url = format!("redis://127.0.0.1:{}", self.redis.port());
        let flags: Vec<String> =
            flags.iter().flat_map(|(flag, value)| [*flag, *value]).map(str::to_owned).collect();
        self.gateways.push(start_gateway(free_addr(), &redis_url, &self.urls, &flags).await);
    }

    /// Starts another gateway with all product services. Returns its index.
    pub async fn add_gateway_to_all_products(&mut self) -> usize {
        let urls = self.product_services().into_iter().map(|service| format!("http://{service}"));
        self.add_gateway(&[("--product-url", &urls.collect::<Vec<_>>().join(","))]).await;
        self.gateways.len() - 1
    }

    /// Returns the addresses of the product services.
    pub fn product_services(&self) -> Vec<SocketAddr> {
        std::iter::once(&self.product).chain(&self.extra_products).map(|service| service.addr).collect()
    }

    /// Starts another product service, and another gateway that uses only that one.
    pub async fn add_product_service(&mut self) {
        self.add_product_service_with_database_latency(Duration::ZERO).await;
    }

    /// Does the same, with a delay of every message between that service and its database.
    pub async fn add_product_service_with_database_latency(&mut self, delay: Duration) {
        let redis_url = format!("redis://127.0.0.1:{}", self.redis.port());
        let mut urls = self.urls.clone();
        let (addr, database) = (free_addr(), delayed(self.database.address().await, delay).await);
        let database_url = self.database.url_at("product", &database.to_string());
        let mut product = start_product(addr, &database_url, &redis_url, &self.urls).await;
        product.process.wait_ready().await;
        self.extra_products.push(product);
        urls[1] = format!("http://{addr}");
        self.gateways.push(start_gateway(free_addr(), &redis_url, &urls, &[]).await);
        self.wait_until_serving().await;
        self.wait_until_ready().await;
    }

    /// Deletes all data in Redis.
    pub async fn wipe_redis(&self) {
        let redis = self.redis.client().await;
        let () = fred::interfaces::ClientLike::flushall(&redis, false).await.expect("wipes");
    }

    /// Returns the URL of a gateway.
    pub fn url(&self, gateway: usize) -> String {
        format!("http://{}", self.gateways[gateway].addr)
    }

    /// Returns a client that is not signed in.
    pub fn guest(&self) -> Person {
        Person {
            base: self.url(0),
            http: self.http.clone(),
            id: 0,
            name: String::new(),
            token: None,
            retries_unavailable: true,
        }
    }

    /// Registers a user with a unique name of this prefix, and signs in.
    pub async fn customer(&self, name: &str) -> Person {
        let name = format!("{name}{}", NEXT_ID.fetch_add(1, Ordering::Relaxed));
        let account =
            json!({"username": name, "email": format!("{name}@shoppee.test"), "password": PASSWORD});
        self.guest().post("/auth/register", &account).await.expect(201);
        self.sign_in(&name).await
    }

    pub async fn admin(&self) -> Person {
        self.sign_in(ADMIN).await
    }

    /// Signs in as a registered user.
    pub async fn sign_in(&self, name: &str) -> Person {
        let tokens = self.guest().post("/auth/login", &json!({"username": name, "password": PASSWORD})).await;
        let tokens = tokens.expect(200).body;
        Person {
            id: tokens["user"]["id"].as_i64().expect("an id"),
            name: name.to_owned(),
            token: Some(text(&tokens["access_token"]).to_owned()),
            ..self.guest()
        }
    }

    /// Creates a product.
    pub async fn product(&self, admin: &Person, price: i64, stock: i64) -> Value {
        let number = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let (sku, name) = (format!("SKU-{number}"), format!("Thing {number}"));
        let product = json!({"sku": sku, "name": name, "price": price, "stock": stock});
        admin.post("/products", &product).await.expect(201).body
    }
}

/// Returns a shipping address.
pub fn address() -> Value {
    json!({
        "recipient": "Ann Example", "line1": "1 High Street",
        "city": "Town", "postal_code": "12345", "country": "DE",
    })
}

/// A client of one gateway, signed in or not.
#[derive(Clone, Debug)]
pub struct Person {
    pub id: i64,
    pub name: String,
    pub token: Option<String>,
    base: String,
    http: reqwest::Client,
    /// Makes the client repeat a request after a 503 or 504 with `Retry-After`, which a shop short of processor time may
    /// return.
    retries_unavailable: bool,
}

impl Person {
    /// Returns a client that does not repeat requests, for tests with an unavailable service.
    pub fn without_retries(&self) -> Self {
        Self { retries_unavailable: false, ..self.clone() }
    }

    /// Returns the client with another gateway.
    pub fn through(&self, shop: &TestShop, gateway: usize) -> Self {
        Self { base: shop.url(gateway), ..self.clone() }
    }

    /// Returns the client with another access token.
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// Builds a request to a path below `/api/v1`; a path that starts with two slashes is absolute.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let url = match path.strip_prefix("//") {
            Some(path) => format!("{}/{path}", self.base),
            None => format!("{}/api/v1{path}", self.base),
        };
        let request = self.http.request(method, url);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub async fn get(&self, path: &str) -> ApiResponse {
        self.send(self.request(Method::GET, path)).await
    }

    /// Sends a POST with an idempotency key of its own, so that it may be repeated.
    pub async fn post(&self, path: &str, body: &Value) -> ApiResponse {
        let key = format!("test-{}", NEXT_ID.fetch_add(1, Ordering::Relaxed));
        self.send(self.request(Method::POST, path).header("idempotency-key", key).json(body)).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> ApiResponse {
        self.send(self.request(Method::PUT, path).json(body)).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> ApiResponse {
        self.send(self.request(Method::PATCH, path).json(body)).await
    }

    pub async fn delete(&self, path: &str) -> ApiResponse {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// Sends a request, and repeats it while the shop returns `Retry-After`.
    async fn send(&self, request: reqwest::RequestBuilder) -> ApiResponse {
        let deadline = Instant::now() + UNAVAILABLE_TIMEOUT;
        loop {
            let response = send(request.try_clone().expect("a body in memory")).await;
            let is_retryable =
                matches!(response.status, 503 | 504) && !response.header("retry-after").is_empty();
            if !is_retryable || !self.retries_unavailable || Instant::now() > deadline {
                return response;
            }
            eprintln!("repeated: {}", response.text);
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// Orders a quantity of one product.
    pub async fn orders(&self, product: &Value, quantity: i64) -> ApiResponse {
        let items = json!([{"product_id": product["id"], "quantity": quantity}]);
        self.post("/orders", &json!({"items": items, "shipping_address": address()})).await
    }

    /// Does the same with an idempotency key.
    pub async fn orders_with_key(&self, product: &Value, quantity: i64, key: &str) -> ApiResponse {
        let items = json!([{"product_id": product["id"], "quantity": quantity}]);
        let order = json!({"items": items, "shipping_address": address()});
        self.send(self.request(Method::POST, "/orders").header("idempotency-key", key).json(&order)).await
    }

    pub async fn pays(&self, order: &Value) -> ApiResponse {
        self.post(&format!("/orders/{}/pay", text(&order["id"])), &json!({"payment_token": "tok_ok"})).await
    }
}
