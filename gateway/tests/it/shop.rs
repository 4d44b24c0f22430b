//! A whole shop for a test: a database, a Redis, the three services and some gateways, all in this process,
//! and the people who use it.

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

mod answer;
mod far;
mod processes;

pub use answer::{Answer, send, text};
use far::far;
use processes::{start_auth, start_gateway, start_order, start_product};

const ADMIN: &str = "admin";
pub const PASSWORD: &str = "correct horse battery";

/// Bounds the time, and sets the interval, in which a client comes back to a shop that answers 503.
const UNAVAILABLE_TIMEOUT: Duration = Duration::from_secs(20);
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Tells people and things of one test apart.
static NEXT: AtomicU64 = AtomicU64::new(1);

#[derive(Debug)]
pub struct Shop {
    database: Database,
    pub redis: RedisServer,
    urls: [String; 3],
    auth: Service,
    product: Service,
    pub order: Service,
    pub gateways: Vec<Service>,
    /// Beside those that every shop has.
    more: Vec<Service>,
    http: reqwest::Client,
    _turn: Turn,
}

static MACHINE: LazyLock<Arc<RwLock<()>>> = LazyLock::new(Arc::default);

/// Held while the shop is open.
#[derive(Debug)]
enum Turn {
    Alone(#[expect(dead_code, reason = "held")] OwnedRwLockWriteGuard<()>),
    Shared(#[expect(dead_code, reason = "held")] OwnedRwLockReadGuard<()>),
}

/// A process of the shop, and where it answers.
#[derive(Debug)]
pub struct Service {
    pub addr: SocketAddr,
    pub process: TestProcess,
}

impl Service {
    /// Stops as SIGTERM does it.
    pub async fn stop(&self) {
        self.process.stop().await;
    }
}

/// How a shop is opened.
#[derive(Debug, Default)]
pub struct Plan {
    gateways: usize,
    gateway_args: Vec<String>,
    alone: bool,
    by_name: bool,
}

impl Plan {
    pub fn gateways(mut self, count: usize) -> Self {
        self.gateways = count;
        self
    }

    /// Flags of the gateways.
    pub fn with(mut self, flag: &str, value: &str) -> Self {
        self.gateway_args.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// While no other test of this file's shops runs: for those that load the machine, or measure time.
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// The gateways know the services by name, not by address.
    pub fn by_name(mut self) -> Self {
        self.by_name = true;
        self
    }

    pub async fn open(self) -> Shop {
        let shop = self.open_unready().await;
        shop.ready().await;
        shop
    }

    /// Without waiting for `/readyz`, where a part is missing.
    pub async fn open_unready(self) -> Shop {
        let turn = if self.alone {
            Turn::Alone(MACHINE.clone().write_owned().await)
        } else {
            Turn::Shared(MACHINE.clone().read_owned().await)
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
                    if self.by_name { &names } else { &urls },
                    &self.gateway_args,
                )
                .await,
            );
        }
        let mut shop = Shop {
            database,
            redis,
            urls,
            auth,
            product,
            order,
            gateways,
            more: Vec::new(),
            http: reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .expect("a client"),
            _turn: turn,
        };
        shop.serves().await;
        shop
    }
}

impl Shop {
    /// A shop with one gateway and no limits.
    pub async fn open() -> Self {
        Self::plan().open().await
    }

    pub fn plan() -> Plan {
        Plan::default()
    }

    /// Waits until every process serves.
    async fn serves(&mut self) {
        for service in [&mut self.auth, &mut self.product, &mut self.order] {
            service.process.wait_ready().await;
        }
        for gateway in &mut self.gateways {
            gateway.process.wait_ready().await;
        }
    }

    /// Waits until every gateway finds all it needs.
    async fn ready(&self) {
        for number in 0..self.gateways.len() {
            let url = format!("{}/readyz", self.url(number));
            shoppee_kit::testing::eventually("the gateway is ready", || async {
                self.http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success())
            })
            .await;
        }
    }

    /// Stops the order service, for as long as `meanwhile` takes, and starts it again where it was.
    pub async fn without_orders(&mut self, meanwhile: impl AsyncFnOnce(&Self)) {
        self.order.stop().await;
        meanwhile(self).await;
        let redis_url = format!("redis://127.0.0.1:{}", self.redis.port());
        self.order = start_order(self.order.addr, &self.database, &redis_url, &self.urls).await;
    }

    /// The same of the product service.
    pub async fn without_products(&mut self, meanwhile: impl AsyncFnOnce(&Self)) {
        self.product.stop().await;
        meanwhile(self).await;
        let redis_url = format!("redis://127.0.0.1:{}", self.redis.port());
        self.product =
            start_product(self.product.addr, &self.database.url("product"), &redis_url, &self.urls).await;
    }

    /// Starts another gateway, to which the auth service is so far away, and does not wait until it is ready.
    pub async fn gateway_far_from_auth(&mut self, delay: Duration) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let (near, auth) = (listener.local_addr().expect("an address"), self.auth.addr);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    let mut there = TcpStream::connect(auth).await.expect("auth is there");
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut there).await;
                });
            }
        });
        self.another_gateway(&[("--auth-url", &format!("http://{near}"))]).await;
    }

    /// Starts another gateway, with these flags beside those that it needs.
    pub async fn another_gateway(&mut self, flags: &[(&str, &str)]) {
        let redis_url = format!("redis://127.0.0.1:{}", self.redis.port());
        let flags: Vec<String> =
            flags.iter().flat_map(|(flag, value)| [*flag, *value]).map(str::to_owned).collect();
        self.gateways.push(start_gateway(free_addr(), &redis_url, &self.urls, &flags).await);
    }

    /// Starts another gateway that asks all product services; its number.
    pub async fn gateway_to_all(&mut self) -> usize {
        let urls = self.product_services().into_iter().map(|service| format!("http://{service}"));
        self.another_gateway(&[("--product-url", &urls.collect::<Vec<_>>().join(","))]).await;
        self.gateways.len() - 1
    }

    /// Where the product services answer.
    pub fn product_services(&self) -> Vec<SocketAddr> {
        std::iter::once(&self.product).chain(&self.more).map(|service| service.addr).collect()
    }

    /// Starts another product service, and another gateway that asks that one.
    pub async fn second_product_service(&mut self) {
        self.second_product_service_far_from_its_database(Duration::ZERO).await;
    }

    /// The same, from which every message to the database and back takes so long.
    pub async fn second_product_service_far_from_its_database(&mut self, delay: Duration) {
        let redis_url = format!("redis://127.0.0.1:{}", self.redis.port());
        let mut urls = self.urls.clone();
        let (addr, database) = (free_addr(), far(self.database.address().await, delay).await);
        let database_url = self.database.url_at("product", &database.to_string());
        let mut product = start_product(addr, &database_url, &redis_url, &self.urls).await;
        product.process.wait_ready().await;
        self.more.push(product);
        urls[1] = format!("http://{addr}");
        self.gateways.push(start_gateway(free_addr(), &redis_url, &urls, &[]).await);
        self.serves().await;
        self.ready().await;
    }

    /// Lets Redis forget everything.
    pub async fn wipe_redis(&self) {
        let redis = self.redis.client().await;
        let () = fred::interfaces::ClientLike::flushall(&redis, false).await.expect("wipes");
    }

    /// Where a gateway answers.
    pub fn url(&self, gateway: usize) -> String {
        format!("http://{}", self.gateways[gateway].addr)
    }

    /// Somebody who has not signed in.
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

    /// Somebody who has just registered under a name like this one, and signed in.
    pub async fn customer(&self, name: &str) -> Person {
        let name = format!("{name}{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let account =
            json!({"username": name, "email": format!("{name}@shoppee.test"), "password": PASSWORD});
        self.guest().post("/auth/register", &account).await.expect(201);
        self.sign_in(&name).await
    }

    pub async fn admin(&self) -> Person {
        self.sign_in(ADMIN).await
    }

    /// Somebody who is registered.
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

    /// Something to buy: the product as the shop shows it.
    pub async fn product(&self, admin: &Person, price: i64, stock: i64) -> Value {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (sku, name) = (format!("SKU-{number}"), format!("Thing {number}"));
        let product = json!({"sku": sku, "name": name, "price": price, "stock": stock});
        admin.post("/products", &product).await.expect(201).body
    }
}

/// Where an order goes.
pub fn address() -> Value {
    json!({
        "recipient": "Ann Example", "line1": "1 High Street",
        "city": "Town", "postal_code": "12345", "country": "DE",
    })
}

/// Somebody who uses the shop, through one gateway.
#[derive(Clone, Debug)]
pub struct Person {
    pub id: i64,
    pub name: String,
    pub token: Option<String>,
    base: String,
    http: reqwest::Client,
    /// Makes the client send a request again after a 503 or 504 with `Retry-After`, which a shop short of processor time
    /// may answer.
    retries_unavailable: bool,
}

impl Person {
    /// Returns the same client, but one that takes the first answer, for tests about a part that is away.
    pub fn without_retries(&self) -> Self {
        Self { retries_unavailable: false, ..self.clone() }
    }

    /// The same, through another gateway.
    pub fn through(&self, shop: &Shop, gateway: usize) -> Self {
        Self { base: shop.url(gateway), ..self.clone() }
    }

    /// The same with another access token.
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// A request to a path below `/api/v1`, or to one that begins with two slashes, as it is.
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

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    /// Sends a POST under an idempotency key of its own, so that it may be sent again.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        let key = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.send(self.request(Method::POST, path).header("idempotency-key", key).json(body)).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::PUT, path).json(body)).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::PATCH, path).json(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// Sends a request, again for as long as the shop asks for that.
    async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let deadline = Instant::now() + UNAVAILABLE_TIMEOUT;
        loop {
            let answer = send(request.try_clone().expect("a body in memory")).await;
            let comes_back = matches!(answer.status, 503 | 504) && !answer.header("retry-after").is_empty();
            if !comes_back || !self.retries_unavailable || Instant::now() > deadline {
                return answer;
            }
            eprintln!("sent again: {}", answer.text);
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// Orders so many of one product.
    pub async fn orders(&self, product: &Value, quantity: i64) -> Answer {
        let items = json!([{"product_id": product["id"], "quantity": quantity}]);
        self.post("/orders", &json!({"items": items, "shipping_address": address()})).await
    }

    /// The same under an idempotency key.
    pub async fn orders_with_key(&self, product: &Value, quantity: i64, key: &str) -> Answer {
        let items = json!([{"product_id": product["id"], "quantity": quantity}]);
        let order = json!({"items": items, "shipping_address": address()});
        self.send(self.request(Method::POST, "/orders").header("idempotency-key", key).json(&order)).await
    }

    pub async fn pays(&self, order: &Value) -> Answer {
        self.post(&format!("/orders/{}/pay", text(&order["id"])), &json!({"payment_token": "tok_ok"})).await
    }
}
