//! Starts the processes of a shop inside the test process, by their flags.

use std::net::SocketAddr;

use clap::Parser;
use shoppee_kit::testing::{Database, TestProcess, free_addr};

use super::{ADMIN, PASSWORD, Service, TestShop};

fn settings<S: Parser>(common: &[&str], extra: &[String]) -> S {
    let common =
        ["test", "--shoppee-env", "development", "--log", "warn"].into_iter().chain(common.iter().copied());
    S::try_parse_from(common.map(str::to_owned).chain(extra.iter().cloned())).expect("valid settings")
}

pub async fn start_auth(addr: SocketAddr, database: &Database, redis_url: &str) -> Service {
    let process = TestProcess::default();
    let args = [
        ("--database-url", database.url("auth").as_str()),
        ("--redis-url", redis_url),
        ("--listen-addr", &addr.to_string()),
        ("--metrics-addr", &free_addr().to_string()),
        ("--jwt-secret", "a secret for tests, longer than thirty-two bytes"),
        ("--admin-username", ADMIN),
        ("--admin-email", "admin@shoppee.test"),
        ("--admin-password", PASSWORD),
        ("--service-clients", "order=order-secret"),
    ]
    .map(|(flag, value)| format!("{flag}={value}"));
    let settings = settings(&["--database-pool-size", "8"], &args);
    shoppee_auth::start(settings, process.process.clone()).await.expect("auth starts");
    Service { addr, process }
}

pub async fn start_product(
    addr: SocketAddr,
    database_url: &str,
    redis_url: &str,
    urls: &[String; 3],
) -> Service {
    let process = TestProcess::default();
    let args = [
        ("--database-url", database_url),
        ("--redis-url", redis_url),
        ("--listen-addr", &addr.to_string()),
        ("--metrics-addr", &free_addr().to_string()),
        ("--auth-url", &urls[0]),
    ]
    .map(|(flag, value)| format!("{flag}={value}"));
    let settings = settings(&["--database-pool-size", "8"], &args);
    shoppee_product::start(settings, process.process.clone()).await.expect("product starts");
    Service { addr, process }
}

pub async fn start_order(
    addr: SocketAddr,
    database: &Database,
    redis_url: &str,
    urls: &[String; 3],
) -> Service {
    let process = TestProcess::default();
    let args = [
        ("--database-url", database.url("order").as_str()),
        ("--redis-url", redis_url),
        ("--listen-addr", &addr.to_string()),
        ("--metrics-addr", &free_addr().to_string()),
        ("--auth-url", &urls[0]),
        ("--product-url", &urls[1]),
        ("--service-client-id", "order"),
        ("--service-client-secret", "order-secret"),
    ]
    .map(|(flag, value)| format!("{flag}={value}"));
    let settings = settings(&["--database-pool-size", "8"], &args);
    shoppee_order::start(settings, process.process.clone()).await.expect("order starts");
    Service { addr, process }
}

pub async fn start_gateway(
    addr: SocketAddr,
    redis_url: &str,
    urls: &[String; 3],
    extra: &[String],
) -> Service {
    let process = TestProcess::default();
    let args = [
        ("--redis-url", redis_url),
        ("--listen-addr", &addr.to_string()),
        ("--auth-url", &urls[0]),
        ("--product-url", &urls[1]),
        ("--order-url", &urls[2]),
    ]
    .map(|(flag, value)| format!("{flag}={value}"));
    let is_default = |arg: &&String| !extra.contains(&arg.split('=').next().unwrap_or_default().to_owned());
    let mut args: Vec<String> =
        args.iter().filter(is_default).cloned().chain(extra.iter().cloned()).collect();
    if !extra.iter().any(|flag| flag == "--rate-limits") {
        args.push("--rate-limits=off".to_owned());
    }
    shoppee_gateway::start(settings(&[], &args), process.process.clone()).await.expect("gateway starts");
    Service { addr, process }
}

impl TestShop {
    /// Returns the environment of another gateway in a process of its own.
    pub fn gateway_environment(&self) -> Vec<(&'static str, String)> {
        let [auth, product, order] = self.urls.clone();
        let redis_url = format!("redis://127.0.0.1:{}", self.redis.port());
        vec![("REDIS_URL", redis_url), ("AUTH_URL", auth), ("PRODUCT_URL", product), ("ORDER_URL", order)]
    }
}
