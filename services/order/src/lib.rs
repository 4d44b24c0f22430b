//! The order service: carts, orders and their whole life, and the events that tell of it.
//!
//! `grpc → cart, checkout, payment, steps → order (the rules), store, stock (product, by gRPC)`; [`outbox`] and
//! [`workers`] do what need not be waited for. Wiring stands here.

mod audit;
mod cart;
mod checkout;
mod country;
mod error;
mod grpc;
mod idempotency;
mod metric_help;
mod order;
mod outbox;
mod payment;
mod provider;
mod refund;
mod registrations;
mod request;
mod steps;
mod stock;
mod store;
mod view;
mod workers;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use clap::{Parser, ValueEnum};
use shoppee_kit::{
    caller::Verifier,
    client::ServiceToken,
    database_clock::DatabaseClock,
    grpc as server, keys, ops,
    pg::{self, PgPool},
    pool::Pool,
    process::Process,
    redis,
    settings::{self, Common, duration, service_urls},
    telemetry,
};
use tokio::sync::Semaphore;

use crate::{order::UnpaidCaps, outbox::Relay, provider::Provider, stock::Stock};

/// The order service of Shoppee: carts, orders, payments and their events, by gRPC.
#[derive(Clone, Debug, Parser)]
#[command(name = "shoppee-order", version)]
pub struct Settings {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub postgres: settings::Postgres,
    #[command(flatten)]
    pub redis: settings::Redis,
    #[command(flatten)]
    pub service_client: settings::ServiceClient,
    /// Where the product service answers gRPC; a list, as above
    #[arg(long, env = "PRODUCT_URL", default_value = "http://127.0.0.1:50052", value_parser = service_urls)]
    pub product_url: String,
    /// Where gRPC is answered
    #[arg(long, env = "LISTEN_ADDR", default_value = "0.0.0.0:50053")]
    pub listen_addr: SocketAddr,
    /// Where /metrics, /healthz and /readyz are answered
    #[arg(long, env = "METRICS_ADDR", default_value = "0.0.0.0:9103")]
    pub metrics_addr: SocketAddr,
    /// Whether gRPC reflection is offered
    #[arg(long, env = "GRPC_REFLECTION", default_value_t = false, action = clap::ArgAction::Set)]
    pub grpc_reflection: bool,
    /// How long an order may stay unpaid
    #[arg(long, env = "ORDER_TTL", default_value = "15m", value_parser = duration)]
    pub order_ttl: Duration,
    /// Pending orders a user may have at a time
    #[arg(long, env = "MAX_UNPAID_ORDERS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_unpaid_orders: u32,
    /// Units that a user's pending orders may hold; one unit is always allowed; 0: any number
    #[arg(long, env = "MAX_UNPAID_UNITS", default_value_t = 5000)]
    pub max_unpaid_units: u32,
    /// Percent of a product for sale that a user's pending orders may hold, if they hold more than 1000 units; one unit
    /// is always allowed; 0: all of it
    #[arg(
        long,
        env = "MAX_UNPAID_PRODUCT_SHARE",
        default_value_t = 20,
        value_parser = clap::value_parser!(u8).range(0..=100)
    )]
    pub max_unpaid_product_share: u8,
    /// The gateway's; `off` lifts the two above as well, other values change nothing here
    #[arg(long, env = "RATE_LIMITS", default_value = "")]
    pub rate_limits: String,
    /// What the shop sells in, ISO 4217; the same as the product service's
    #[arg(long, env = "SHOP_CURRENCY", default_value = "EUR", value_parser = currency)]
    pub shop_currency: String,
    /// Who takes the money
    #[arg(long, env = "PAYMENT_PROVIDER", default_value = "sandbox")]
    pub payment_provider: PaymentProvider,
}

fn currency(code: &str) -> Result<String, String> {
    let fits = code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_uppercase());
    if fits { Ok(code.to_owned()) } else { Err("not a currency of ISO 4217, such as EUR".to_owned()) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PaymentProvider {
    /// Takes no money, and does as the payment token says
    Sandbox,
}

impl shoppee_kit::process::Settings for Settings {
    fn common(&self) -> &Common {
        &self.common
    }

    fn ops_addr(&self) -> Option<SocketAddr> {
        Some(self.metrics_addr)
    }
}

/// What the use cases work with; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    pub pool: PgPool,
    /// Of the database: replicas agree on it.
    pub clock: DatabaseClock,
    pub stock: Stock,
    pub provider: Provider,
    pub relay: Relay,
    pub order_ttl: Duration,
    pub max_unpaid: i64,
    pub unpaid: UnpaidCaps,
    pub currency: String,
    /// One for each release of an abandoned checkout that is on its way.
    pub releases: Arc<Semaphore>,
    /// Refusals that may look for the customer's own orders.
    pub refusals: Arc<Semaphore>,
    /// One for each batch of orders that ran out whose stock is being released.
    pub expiries: Arc<Semaphore>,
}

/// Wires the service and starts it.
pub async fn start(settings: Settings, process: Process) -> anyhow::Result<()> {
    telemetry::describe(metric_help::HELP);
    let Process { tasks, readiness, .. } = process.clone();
    anyhow::ensure!(settings.order_ttl >= Duration::from_secs(1), "ORDER_TTL must be at least 1s");
    let auth = Pool::start("auth", &settings.service_client.auth_url, &process)?;
    let product = Pool::start("product", &settings.product_url, &process)?;
    let redis = redis::Clients::open(&settings.redis, &process).await?.client("relay")?;
    let pool = pg::open("shoppee-order", &settings.postgres, sqlx::migrate!(), &tasks, &readiness).await?;
    // After the servers have let the process in: where they refuse, the reason is the only line.
    let caps = if settings.rate_limits == "off" {
        tracing::warn!("RATE_LIMITS=off: a user's pending orders may hold any number of units");
        UnpaidCaps::NONE
    } else {
        UnpaidCaps::new(settings.max_unpaid_units, settings.max_unpaid_product_share)
    };
    let clock = DatabaseClock::start(&pool, &process);

    let verifier = Verifier::new(process.clock.clone());
    let (ended, _) = tokio::sync::broadcast::channel(1);
    keys::follow(&process, auth.clone(), Arc::clone(&verifier), ended);

    let token = ServiceToken::new(
        auth,
        settings.service_client.service_client_id,
        settings.service_client.service_client_secret,
    );
    let provider = match settings.payment_provider {
        PaymentProvider::Sandbox => Provider::sandbox(pool.clone(), clock.clone()),
    };
    let orders = Orders {
        clock,
        stock: Stock::new(product, token),
        provider,
        relay: Relay::default(),
        order_ttl: settings.order_ttl,
        max_unpaid: i64::from(settings.max_unpaid_orders),
        unpaid: caps,
        currency: settings.shop_currency,
        expiries: Arc::new(Semaphore::new(steps::MAX_EXPIRIES)),
        releases: Arc::new(Semaphore::new(checkout::MAX_RELEASES)),
        refusals: Arc::new(Semaphore::new(checkout::MAX_EXPLAINED_REFUSALS)),
        pool,
    };

    ops::serve(settings.metrics_addr, &tasks, &readiness).await?;
    server::serve(
        settings.listen_addr,
        server::Services::default().with(grpc::service(orders.clone())),
        verifier,
        settings.grpc_reflection,
        &process,
    )
    .await?;

    steps::count_from_zero(&orders.currency);
    let ready = readiness.serving();
    outbox::start(&orders, &redis, &process, &ready);
    registrations::start(&orders, &redis, &process, &ready);
    workers::start(&orders, &process, &ready);
    audit::start(&orders, &process, &ready);
    Ok(())
}
