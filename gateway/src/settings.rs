//! The settings of the gateway: environment variables, also command-line flags.

use std::{net::SocketAddr, num::NonZeroU16, time::Duration};

use clap::{Parser, ValueEnum};
use ipnet::IpNet;
use shoppee_kit::settings::{Common, Environment, Redis, duration, service_urls};

use crate::{cors::Origin, rate_limit::RateLimits};

/// The shop's REST and WebSocket gateway
#[derive(Clone, Debug, Parser)]
#[command(name = "shoppee-gateway", version)]
pub struct Settings {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub redis: Redis,
    /// Address that REST and WebSocket clients connect to
    #[arg(long, env = "LISTEN_ADDR", default_value = "0.0.0.0:8080")]
    pub listen_addr: SocketAddr,
    /// gRPC URL of the auth service, or several with commas; calls are balanced over them and over all addresses of a
    /// name
    #[arg(long, env = "AUTH_URL", default_value = "http://127.0.0.1:50051", value_parser = service_urls)]
    pub auth_url: String,
    /// gRPC URL of the product service, or several with commas
    #[arg(long, env = "PRODUCT_URL", default_value = "http://127.0.0.1:50052", value_parser = service_urls)]
    pub product_url: String,
    /// gRPC URL of the order service, or several with commas
    #[arg(long, env = "ORDER_URL", default_value = "http://127.0.0.1:50053", value_parser = service_urls)]
    pub order_url: String,
    /// Web origins that may call this API and open WebSockets, as in `https://shop.example`. Empty: none, and in
    /// development those of localhost
    #[arg(long, env = "CORS_ORIGINS", value_delimiter = ',', default_value = "", value_parser = parse_origin)]
    pub cors_origins: Vec<Origin>,
    /// Proxies whose X-Forwarded-For is trusted, as CIDRs; empty: none
    #[arg(long, env = "TRUSTED_PROXIES", value_delimiter = ',', default_value = "", value_parser = parse_network)]
    pub trusted_proxies: Vec<Network>,
    /// Serves the storefront at `/` and its back office at `/admin`; not set: on in development, off in production
    #[arg(long, env = "STOREFRONT")]
    pub storefront: Option<Switch>,
    /// Address of the control port of `scripts/up`, as in `http://127.0.0.1:20000`, for its page `/demo`; only in
    /// development
    #[arg(long, env = "DEMO_CONTROL_URL", value_parser = parse_loopback)]
    pub demo_control_url: Option<String>,
    /// Overrides of the built-in rate limits, as in `user=40/2s,anonymous=60/2s`; `off` disables all of them
    #[arg(long, env = "RATE_LIMITS", default_value = "")]
    pub rate_limits: RateLimits,
    /// Maximum of open HTTP connections. At the maximum, idle ones are closed and new ones wait to be accepted.
    /// WebSockets have a bound of their own
    #[arg(long, env = "MAX_CONNECTIONS", default_value_t = 8_192,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
    /// Maximum of concurrent requests; more get a 503
    #[arg(long, env = "MAX_REQUESTS", default_value_t = 1_024,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_requests: u32,
    /// Lifetime of a cached product response; a change of the product invalidates it earlier. 0s disables the cache,
    /// that of lists and searches included
    #[arg(long, env = "CACHE_L1_TTL", default_value = "5m", value_parser = duration)]
    pub cache_l1_ttl: Duration,
    /// Maximum of bytes of request bodies that are arriving, over all clients, each counted with twice its largest
    /// size; more get a 503
    #[arg(long, env = "MAX_BODY_BYTES", default_value_t = 64 * 1024 * 1024,
          value_parser = clap::value_parser!(u64).range(32 * 1024 * 1024..=1024 * 1024 * 1024))]
    pub max_body_bytes: u64,
    /// Maximum of unsent response bytes over all connections; beyond it, the connection with the most is closed
    #[arg(long, env = "MAX_UNSENT_BYTES", default_value_t = 64 * 1024 * 1024,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub max_unsent_bytes: u64,
    /// Time for the head of a request, from its first byte, and for the first request of a connection
    #[arg(long, env = "HEADER_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub header_timeout: Duration,
    /// Time for which an idle connection is kept; longer than that of a proxy in front
    #[arg(long, env = "IDLE_TIMEOUT", default_value = "75s", value_parser = duration)]
    pub idle_timeout: Duration,
    /// Time in which a client must read a response, with one second more for each 4 KiB that it has read
    #[arg(long, env = "SEND_TIMEOUT", default_value = "30s", value_parser = duration)]
    pub send_timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

impl Settings {
    pub fn has_storefront(&self) -> bool {
        match self.storefront {
            Some(switch) => switch == Switch::On,
            None => self.common.shoppee_env == Environment::Development,
        }
    }

    /// Returns the control port that the page `/demo` connects to, if the page is served.
    ///
    /// # Errors
    /// In production, which has no such page.
    pub fn demo_control_url(&self) -> anyhow::Result<Option<&str>> {
        let is_production = self.common.shoppee_env == Environment::Production;
        anyhow::ensure!(
            !is_production || self.demo_control_url.is_none(),
            "DEMO_CONTROL_URL is for development only"
        );
        Ok(self.demo_control_url.as_deref().filter(|_| self.has_storefront()))
    }
}

impl shoppee_kit::lifecycle::Settings for Settings {
    fn common(&self) -> &Common {
        &self.common
    }

    fn ops_addr(&self) -> Option<SocketAddr> {
        Some(self.listen_addr)
    }
}

/// A CIDR, or `None`: an empty variable means an empty list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(pub Option<IpNet>);

fn parse_network(value: &str) -> Result<Network, String> {
    let value = value.trim();
    if value.is_empty() {
        return Ok(Network(None));
    }
    let net = value.parse().or_else(|_| value.parse().map(|ip: std::net::IpAddr| ip.into()));
    net.map(|net| Network(Some(net))).map_err(|_| "not a CIDR such as 10.0.0.0/8".to_owned())
}

/// Parses the origin of a server on this machine: a page may connect to it.
fn parse_loopback(value: &str) -> Result<String, String> {
    let port = value.strip_prefix("http://127.0.0.1:").and_then(|port| port.parse::<NonZeroU16>().ok());
    port.map(|port| format!("http://127.0.0.1:{port}"))
        .ok_or_else(|| "not a URL such as http://127.0.0.1:20000".to_owned())
}

fn parse_origin(value: &str) -> Result<Origin, String> {
    value.trim().parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Settings, String> {
        let base = ["shoppee-gateway", "--redis-url", "redis://127.0.0.1:6379"];
        Settings::try_parse_from(base.iter().chain(args)).map_err(|error| error.to_string())
    }

    #[test]
    fn every_setting_but_the_redis_url_has_a_default() {
        let settings = parse(&[]).unwrap();
        assert_eq!(settings.listen_addr.port(), 8080);
        assert!(settings.trusted_proxies.iter().all(|network| network.0.is_none()));
    }

    #[test]
    fn the_storefront_is_on_in_development_unless_it_is_set() {
        let has_storefront = |args: &[&str]| parse(args).unwrap().has_storefront();
        assert!(!has_storefront(&[]));
        assert!(has_storefront(&["--shoppee-env", "development"]));
        assert!(has_storefront(&["--storefront", "on"]));
        assert!(!has_storefront(&["--shoppee-env", "development", "--storefront", "off"]));
    }

    #[test]
    fn the_demonstration_is_for_development_alone() {
        let control_url = |args: &[&str]| {
            let url = ["--demo-control-url", "http://127.0.0.1:20000"];
            parse(&[args, &url].concat()).unwrap().demo_control_url().map(|url| url.map(ToOwned::to_owned))
        };
        assert_eq!(parse(&[]).unwrap().demo_control_url().unwrap(), None);
        assert!(control_url(&["--storefront", "on"]).is_err(), "production");
        let development = control_url(&["--shoppee-env", "development"]).unwrap();
        assert_eq!(development.as_deref(), Some("http://127.0.0.1:20000"));
        let without = control_url(&["--shoppee-env", "development", "--storefront", "off"]).unwrap();
        assert_eq!(without, None, "the page needs the files of the storefront");
    }

    #[test]
    fn lists_are_separated_by_commas() {
        let proxies = parse(&["--trusted-proxies", "10.0.0.0/8, ::1"]).unwrap().trusted_proxies;
        assert_eq!(proxies.iter().filter_map(|network| network.0).count(), 2);
        let origins = parse(&["--cors-origins", "https://a.example,http://localhost:3000"]).unwrap();
        assert_eq!(origins.cors_origins.len(), 2);
        let auth = parse(&["--auth-url", "http://a:1/, http://b:2"]).unwrap().auth_url;
        assert_eq!(auth, "http://a:1,http://b:2");
    }

    #[test]
    fn invalid_values_are_refused() {
        for invalid in [
            ["--auth-url", "127.0.0.1:50051"],
            ["--auth-url", "http://host/path"],
            ["--auth-url", "http://a:1,"],
            ["--trusted-proxies", "10.0.0.0/40"],
            ["--cors-origins", "shop.example"],
            ["--cors-origins", "https://shop.example/path"],
            ["--rate-limits", "user=40"],
            ["--rate-limits", "nobody=40/2s"],
            ["--rate-limits", "user=0/2s"],
            ["--max-connections", "0"],
            ["--header-timeout", "soon"],
            ["--storefront", "maybe"],
            ["--demo-control-url", "http://127.0.0.1"],
            ["--demo-control-url", "http://127.0.0.1:0"],
            ["--demo-control-url", "http://10.0.0.1:20000"],
            ["--demo-control-url", "http://127.0.0.1:20000; script-src *"],
        ] {
            assert!(parse(&invalid).is_err(), "{invalid:?}");
        }
    }
}
