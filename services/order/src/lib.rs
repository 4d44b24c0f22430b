//! The order service: carts, orders, payments and the events of orders.
//!
//! A call goes `grpc` → a use case → rules, `store` and clients:
//!
//! - rules: [`order`] (the state machine, lines, addresses), [`order_id`], [`decline`], [`country`]
//! - use cases: [`cart`], [`checkout`], [`payment`], [`refund`], [`transitions`] (ship, complete, cancel)
//! - clients: [`product_client`] (holds and products), [`provider`] (the payment provider)
//! - for the back office: [`order_rate`]
//! - in the background: [`workers`], [`expiry`], [`stock_tasks`], [`orphan_holds`], [`outbox`] (the relay),
//!   [`event_log`] (the log that services follow), [`user_events`] (the consumer of registrations), [`audit`]
//!
//! This file wires the parts.

mod audit;
mod audit_log;
mod cart;
mod checkout;
mod convert;
mod country;
mod decline;
mod error;
mod event_log;
mod expiry;
mod grpc;
mod idempotency;
mod idempotent_request;
mod metric_help;
mod mismatch;
mod order;
mod order_id;
mod order_metrics;
mod order_rate;
mod order_writer;
mod orphan_holds;
mod outbox;
mod payment;
mod product_client;
mod provider;
mod refund;
mod stock_tasks;
mod store;
mod timeout;
mod transitions;
mod user_events;
mod user_queue;
mod workers;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use clap::{Parser, ValueEnum};
use shoppee_kit::{
    audit_log::{retention, service as audit_service},
    caller::Verifier,
    database_clock::DatabaseClock,
    grpc as server,
    load_balancer::LoadBalancer,
    ops,
    pg::{self, PgPool},
    process::Process,
    redis,
    service_token::ServiceToken,
    settings::{self, Common, duration, service_urls},
    telemetry, verifier_sync,
};
use tokio::sync::{Semaphore, watch};

use crate::{
    event_log::{EventLog, EventStreams},
    idempotency::ReleasedKeys,
    order::UnpaidCaps,
    order_writer::OrderWriter,
    outbox::{CommittedUsers, OutboxBacklog},
    product_client::ProductClient,
    provider::Provider,
    store::audit_log::AuditLog,
};

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
    /// The gRPC URL of the product service; a list, as above
    #[arg(long, env = "PRODUCT_URL", default_value = "http://127.0.0.1:50052", value_parser = service_urls)]
    pub product_url: String,
    /// The address of the gRPC server
    #[arg(long, env = "LISTEN_ADDR", default_value = "0.0.0.0:50053")]
    pub listen_addr: SocketAddr,
    /// The address of /metrics, /healthz and /readyz
    #[arg(long, env = "METRICS_ADDR", default_value = "0.0.0.0:9103")]
    pub metrics_addr: SocketAddr,
    /// Serves gRPC reflection
    #[arg(long, env = "GRPC_REFLECTION", default_value_t = false, action = clap::ArgAction::Set)]
    pub grpc_reflection: bool,
    /// The time after which an unpaid order expires
    #[arg(long, env = "ORDER_TTL", default_value = "15m", value_parser = duration)]
    pub order_ttl: Duration,
    /// The maximum number of a user's unpaid orders
    #[arg(long, env = "MAX_UNPAID_ORDERS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_unpaid_orders: u32,
    /// The maximum units in a user's unpaid orders; one unit is always allowed; 0: no limit
    #[arg(long, env = "MAX_UNPAID_UNITS", default_value_t = 5000)]
    pub max_unpaid_units: u32,
    /// The maximum percentage of a product's stock in a user's unpaid orders, if they have more than 1000 units; one
    /// unit is always allowed; 0: no limit
    #[arg(
        long,
        env = "MAX_UNPAID_PRODUCT_SHARE",
        default_value_t = 20,
        value_parser = clap::value_parser!(u8).range(0..=100)
    )]
    pub max_unpaid_product_share: u8,
    /// The setting of the gateway; `off` disables the two limits above too, other values have no effect here
    #[arg(long, env = "RATE_LIMITS", default_value = "")]
    pub rate_limits: String,
    /// The currency of the shop, ISO 4217; the same as in the product service
    #[arg(long, env = "SHOP_CURRENCY", default_value = "EUR", value_parser = currency)]
    pub shop_currency: String,
    /// The payment provider
    #[arg(long, env = "PAYMENT_PROVIDER", default_value = "sandbox")]
    pub payment_provider: PaymentProvider,
    #[command(flatten)]
    pub audit_log: settings::AuditLog,
}

fn currency(code: &str) -> Result<String, String> {
    let is_valid = code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_uppercase());
    if is_valid { Ok(code.to_owned()) } else { Err("not a currency of ISO 4217, such as EUR".to_owned()) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PaymentProvider {
    /// Moves no money; the payment token decides the outcome
    Sandbox,
}

impl shoppee_kit::lifecycle::Settings for Settings {
    fn common(&self) -> &Common {
        &self.common
    }

    fn ops_addr(&self) -> Option<SocketAddr> {
        Some(self.metrics_addr)
    }
}

/// The state that the use cases share: settings and clients.
#[derive(Clone, Debug)]
pub(crate) struct OrderContext {
    pub pool: PgPool,
    pub writer: OrderWriter,
    pub released_keys: ReleasedKeys,
    /// The clock of the database, which all replicas share.
    pub clock: DatabaseClock,
    pub product: ProductClient,
    pub provider: Provider,
    pub committed_users: CommittedUsers,
    pub outbox_backlog: Arc<watch::Sender<OutboxBacklog>>,
    pub order_ttl: Duration,
    pub max_unpaid_orders: i64,
    pub unpaid_caps: UnpaidCaps,
    pub currency: String,
    /// Permits for the pending releases of abandoned checkouts.
    pub release_permits: Arc<Semaphore>,
    /// Permits for rejections that read the customer's own orders.
    pub refusal_permits: Arc<Semaphore>,
    /// Permits for the batches of expired orders whose stock is being released.
    pub expiry_permits: Arc<Semaphore>,
}

/// Wires the service and starts it.
pub async fn start(settings: Settings, process: Process) -> anyhow::Result<()> {
    telemetry::describe(metric_help::HELP);
    let Process { tasks, readiness, .. } = process.clone();
    anyhow::ensure!(settings.order_ttl >= Duration::from_secs(1), "ORDER_TTL must be at least 1s");
    let auth = LoadBalancer::start("auth", &settings.service_client.auth_url, &process)?;
    let product = LoadBalancer::start("product", &settings.product_url, &process)?;
    let redis = redis::Clients::open(&settings.redis, &process).await?.client("relay")?;
    let pool = pg::open(
        "shoppee-order",
        &settings.postgres,
        sqlx::migrate!(),
        pg::PlanCacheMode::ForceGenericPlan,
        &tasks,
        &readiness,
    )
    .await?;
    // Logged after the connections succeed: if one is refused, the reason is the only line.
    let unpaid_caps = if settings.rate_limits == "off" {
        tracing::warn!("unit limits of unpaid orders disabled (RATE_LIMITS=off)");
        UnpaidCaps::NONE
    } else {
        UnpaidCaps::new(settings.max_unpaid_units, settings.max_unpaid_product_share)
    };
    let clock = DatabaseClock::start(&pool, &process);

    let verifier = Verifier::new(process.clock.clone());
    let (revoked, _) = tokio::sync::broadcast::channel(1);
    verifier_sync::spawn(&process, auth.clone(), Arc::clone(&verifier), revoked);

    let token = ServiceToken::new(
        auth,
        settings.service_client.service_client_id,
        settings.service_client.service_client_secret,
    );
    let provider = match settings.payment_provider {
        PaymentProvider::Sandbox => Provider::sandbox(pool.clone(), clock.clone()),
    };
    let context = OrderContext {
        writer: OrderWriter::start(&pool, &clock, &tasks),
        released_keys: idempotency::start_releases(&pool, &tasks),
        clock,
        product: ProductClient::new(product, token),
        provider,
        committed_users: CommittedUsers::default(),
        outbox_backlog: Arc::default(),
        order_ttl: settings.order_ttl,
        max_unpaid_orders: i64::from(settings.max_unpaid_orders),
        unpaid_caps,
        currency: settings.shop_currency,
        expiry_permits: Arc::new(Semaphore::new(expiry::MAX_CONCURRENT_BATCHES)),
        release_permits: Arc::new(Semaphore::new(checkout::MAX_CONCURRENT_RELEASES)),
        refusal_permits: Arc::new(Semaphore::new(checkout::MAX_CONCURRENT_EXPLANATIONS)),
        pool,
    };

    let event_log = EventLog::new(&context.pool);
    let event_streams = EventStreams::new(&event_log, &verifier, &process);

    ops::serve(settings.metrics_addr, &tasks, &readiness).await?;
    server::serve(
        settings.listen_addr,
        grpc::services(&context, event_streams, &readiness)
            .with(audit_service::new::<AuditLog>(context.pool.clone())),
        verifier,
        settings.grpc_reflection,
        &process,
    )
    .await?;

    order_metrics::initialize(&context.currency);
    let ready = readiness.serving();
    outbox::start(&context, &redis, &process, &ready);
    event_log::start(&context, &event_log, &process, &ready);
    user_events::start(&context, &redis, &process, &ready);
    workers::start(&context, &process, &ready);
    orphan_holds::start(&context, &process, &ready);
    audit::start(&context, &process, &ready);
    retention::spawn::<AuditLog>(&process, &context.pool, &settings.audit_log, ready);
    Ok(())
}
