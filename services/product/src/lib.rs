//! The product service: the catalogue and its categories, the stock, and the holds of orders.
//!
//! [`grpc`] parses requests and calls a use case ([`catalogue`], [`categories`], [`holds`], [`adjustments`],
//! [`stock_ledger`], [`batches`], [`search`]). A use case owns its transaction and applies the rules ([`product`],
//! [`category`], [`stock`], [`batch`], [`listing`]) and the [`store`], which has all SQL.

mod adjustments;
mod audit;
mod audit_log;
pub mod batch;
pub mod batches;
mod cache;
pub mod catalogue;
pub mod categories;
pub mod category;
mod change_log;
mod engine;
pub mod error;
mod grpc;
mod hold_audit;
pub mod holds;
mod idempotency;
pub mod listing;
mod metric_help;
pub mod product;
mod replicas;
pub mod search;
pub mod stock;
mod stock_ledger;
mod store;
pub mod validation;
mod workers;

use std::{net::SocketAddr, time::Duration};

use clap::Parser;
use secrecy::SecretString;
use shoppee_kit::{
    audit_log::retention,
    caller::Verifier,
    database_clock::DatabaseClock,
    grpc as server,
    load_balancer::LoadBalancer,
    ops, pg,
    process::Process,
    redis,
    settings::{self, Common, service_urls},
    telemetry, verifier_sync,
    worker::{self, Round},
};
use tokio::sync::broadcast;

use crate::{
    cache::{Cache, CacheTtls},
    catalogue::Catalogue,
    change_log::ChangeLog,
    replicas::Replicas,
    search::Search,
    store::audit_log::AuditLog,
};

/// The interval at which the share of unpaid orders is measured. It changes within minutes.
const UNPAID_SHARE_INTERVAL: Duration = Duration::from_secs(15);

/// The product service of Shoppee
#[derive(Clone, Debug, Parser)]
pub struct Settings {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub postgres: settings::Postgres,
    #[command(flatten)]
    pub redis: settings::Redis,
    /// Read replicas for lists, URLs as in DATABASE_URL; none if empty. Each gets DATABASE_POOL_SIZE
    /// connections
    #[arg(
        long,
        env = "DATABASE_READ_URLS",
        hide_env_values = true,
        value_delimiter = ',',
        default_value = ""
    )]
    pub database_read_urls: Vec<SecretString>,
    /// The maximum lifetime of a product in the memory cache of this process, which changes invalidate
    /// earlier; 0s disables the cache
    #[arg(long, env = "CACHE_L1_TTL", default_value = "5m", value_parser = settings::duration)]
    pub cache_l1_ttl: Duration,
    /// The maximum lifetime of a product in the Redis cache, which changes invalidate earlier; 0s disables
    /// the cache
    #[arg(long, env = "CACHE_L2_TTL", default_value = "1h", value_parser = settings::duration)]
    pub cache_l2_ttl: Duration,
    /// The gRPC URL of the auth service; calls are balanced over a comma-separated list, and over all
    /// addresses of a name
    #[arg(long, env = "AUTH_URL", default_value = "http://127.0.0.1:50051", value_parser = service_urls)]
    pub auth_url: String,
    /// The address at which gRPC is served
    #[arg(long, env = "LISTEN_ADDR", default_value = "0.0.0.0:50052")]
    pub listen_addr: SocketAddr,
    /// The address at which /metrics, /healthz and /readyz are served
    #[arg(long, env = "METRICS_ADDR", default_value = "0.0.0.0:9102")]
    pub metrics_addr: SocketAddr,
    /// Serves gRPC reflection, for tools such as grpcurl
    #[arg(long, env = "GRPC_REFLECTION", default_value_t = false, action = clap::ArgAction::Set)]
    pub grpc_reflection: bool,
    /// The currency of all prices, an ISO 4217 code such as EUR
    #[arg(long, env = "SHOP_CURRENCY", default_value = "EUR", value_parser = currency)]
    pub shop_currency: String,
    #[command(flatten)]
    pub audit_log: settings::AuditLog,
}

impl shoppee_kit::lifecycle::Settings for Settings {
    fn common(&self) -> &Common {
        &self.common
    }

    fn ops_addr(&self) -> Option<SocketAddr> {
        Some(self.metrics_addr)
    }
}

fn currency(value: &str) -> Result<String, String> {
    if value.len() == 3 && value.bytes().all(|byte| byte.is_ascii_uppercase()) {
        Ok(value.to_owned())
    } else {
        Err("not an ISO 4217 code such as EUR".to_owned())
    }
}

/// Wires the service and starts its tasks.
pub async fn start(settings: Settings, process: Process) -> anyhow::Result<()> {
    telemetry::describe(metric_help::HELP);
    let Process { clock, tasks, readiness, .. } = &process;
    let auth = LoadBalancer::start("auth", &settings.auth_url, &process)?;
    let redis = redis::Clients::open(&settings.redis, &process).await?;
    let pool = pg::open(
        "shoppee-product",
        &settings.postgres,
        sqlx::migrate!(),
        pg::PlanCacheMode::Auto,
        tasks,
        readiness,
    )
    .await?;
    engine::check(&process, pool.clone());
    let replicas =
        Replicas::start(&pool, &settings.database_read_urls, settings.postgres.database_pool_size, &process)
            .await?;
    let change_log = ChangeLog::default();
    let ttls = CacheTtls { memory: settings.cache_l1_ttl, redis: settings.cache_l2_ttl };
    let cache = Cache::start(&pool, &redis, ttls, &change_log, &process);
    let invalidated = cache.clone();
    change_log.spawn_poller(pool.clone(), &process, move |batch| {
        let cache = invalidated.clone();
        async move { cache.apply(&batch).await }
    });
    ops::serve(settings.metrics_addr, tasks, readiness).await?;

    let verifier = Verifier::new(clock.clone());
    // This process holds no sockets: a revoked session is refused at its next call.
    let (revoked, _) = broadcast::channel(1);
    verifier_sync::spawn(&process, auth, verifier.clone(), revoked);

    let database_clock = DatabaseClock::start(&pool, &process);
    let holds = holds::Holds::start(pool.clone(), database_clock, cache.clone(), tasks);
    let ready = readiness.serving();
    let measured_holds = holds.clone();
    worker::spawn(&process, "unpaid_share", UNPAID_SHARE_INTERVAL, ready.clone(), move || {
        let holds = measured_holds.clone();
        async move { holds.measure_unpaid_share().await.map(|()| Round::Done) }
    });
    workers::start(&process, &ready, &pool, &holds, ttls);
    let stock_audit = audit::start(&process, &ready, &pool, &change_log);
    retention::spawn::<AuditLog>(&process, &pool, &settings.audit_log, ready.clone());
    let search = Search::start(&pool, &change_log, &process);
    let catalogue = Catalogue { replicas, pool, clock: clock.clone(), cache, search };
    let services = grpc::services(
        catalogue,
        &process,
        change_log,
        holds,
        stock_audit,
        &verifier,
        &settings.shop_currency,
    );
    server::serve(settings.listen_addr, services, verifier, settings.grpc_reflection, &process).await
}

#[cfg(test)]
mod tests {
    use super::currency;

    #[test]
    fn a_currency_must_be_three_capital_letters() {
        assert!(currency("EUR").is_ok());
        for invalid in ["", "eur", "EURO", "E1R", "€€€"] {
            assert!(currency(invalid).is_err(), "{invalid}");
        }
    }
}
