//! The product service: the catalogue and its categories, the stock, and what orders hold of it.
//!
//! [`grpc`] reads requests and calls a use case ([`catalogue`], [`tree`], [`holds`], [`batch`], [`search`]);
//! a use case owns its transaction and knows the rules ([`product`], [`category`], [`stock`], [`listing`])
//! and the [`store`], where all SQL is.

mod audit;
pub mod batch;
mod cache;
pub mod catalogue;
pub mod category;
mod changes;
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
mod store;
pub mod tree;
mod workers;

use std::{net::SocketAddr, time::Duration};

use clap::Parser;
use secrecy::SecretString;
use shoppee_kit::{
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
    cache::{Cache, Lifetimes},
    catalogue::Catalogue,
    changes::Changes,
    replicas::Replicas,
    search::Search,
};

/// The interval at which the share of unpaid orders is measured: it changes in minutes.
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
    /// Read replicas for lists, URLs as in DATABASE_URL; none where empty. Each gets DATABASE_POOL_SIZE
    /// connections
    #[arg(
        long,
        env = "DATABASE_READ_URLS",
        hide_env_values = true,
        value_delimiter = ',',
        default_value = ""
    )]
    pub database_read_urls: Vec<SecretString>,
    /// How long a product is kept in this process' memory, though no longer than it is true; 0s: not at all
    #[arg(long, env = "CACHE_L1_TTL", default_value = "5m", value_parser = settings::duration)]
    pub cache_l1_ttl: Duration,
    /// How long a product is kept in Redis, though no longer than it is true; 0s: not at all
    #[arg(long, env = "CACHE_L2_TTL", default_value = "1h", value_parser = settings::duration)]
    pub cache_l2_ttl: Duration,
    /// Where the auth service answers gRPC; calls are balanced over a list with commas, and over all addresses of a name
    #[arg(long, env = "AUTH_URL", default_value = "http://127.0.0.1:50051", value_parser = service_urls)]
    pub auth_url: String,
    /// Where gRPC is served
    #[arg(long, env = "LISTEN_ADDR", default_value = "0.0.0.0:50052")]
    pub listen_addr: SocketAddr,
    /// Where /metrics, /healthz and /readyz are served
    #[arg(long, env = "METRICS_ADDR", default_value = "0.0.0.0:9102")]
    pub metrics_addr: SocketAddr,
    /// Lets grpcurl and its like ask what there is
    #[arg(long, env = "GRPC_REFLECTION", default_value_t = false, action = clap::ArgAction::Set)]
    pub grpc_reflection: bool,
    /// The currency of all prices, an ISO 4217 code such as EUR
    #[arg(long, env = "SHOP_CURRENCY", default_value = "EUR", value_parser = currency)]
    pub shop_currency: String,
}

impl shoppee_kit::process::Settings for Settings {
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
    let pool = pg::open("shoppee-product", &settings.postgres, sqlx::migrate!(), tasks, readiness).await?;
    engine::check(&process, pool.clone());
    let replicas =
        Replicas::start(&pool, &settings.database_read_urls, settings.postgres.database_pool_size, &process)
            .await?;
    let changes = Changes::default();
    let lifetimes = Lifetimes { memory: settings.cache_l1_ttl, shared: settings.cache_l2_ttl };
    let cache = Cache::start(&pool, &redis, lifetimes, &changes, &process);
    ops::serve(settings.metrics_addr, tasks, readiness).await?;

    let verifier = Verifier::new(clock.clone());
    // Nobody holds sockets here: who ends is refused at the next call.
    let (ended, _) = broadcast::channel(1);
    verifier_sync::spawn(&process, auth, verifier.clone(), ended);

    let stored = DatabaseClock::start(&pool, &process);
    let holds = holds::Holds::start(pool.clone(), stored, cache.clone(), tasks);
    let ready = readiness.serving();
    let measured = holds.clone();
    worker::spawn(&process, "unpaid_share", UNPAID_SHARE_INTERVAL, ready.clone(), move || {
        let holds = measured.clone();
        async move { holds.measure_unpaid().await.map(|()| Round::Done) }
    });
    workers::start(&process, &ready, &pool, &holds, lifetimes);
    audit::start(&process, &ready, &pool, &changes);
    let search = Search::start(&pool, &changes, &process);
    let catalogue = Catalogue { replicas, pool, clock: clock.clone(), cache, search };
    let services = grpc::services(catalogue, &process, changes, holds, &verifier, &settings.shop_currency);
    server::serve(settings.listen_addr, services, verifier, settings.grpc_reflection, &process).await
}

#[cfg(test)]
mod tests {
    use super::currency;

    #[test]
    fn a_currency_is_three_capitals() {
        assert!(currency("EUR").is_ok());
        for odd in ["", "eur", "EURO", "E1R", "€€€"] {
            assert!(currency(odd).is_err(), "{odd}");
        }
    }
}
