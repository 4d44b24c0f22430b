//! What an operator can set (contract §7): environment variables, also flags.

use std::{net::SocketAddr, time::Duration};

use clap::Parser;
use ipnet::IpNet;
use shoppee_kit::settings::{Common, Redis, duration, service_urls};

use crate::{limit::RateLimits, origin::Origin};

/// The shop's REST and WebSocket gateway
#[derive(Clone, Debug, Parser)]
#[command(name = "shoppee-gateway", version)]
pub struct Settings {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub redis: Redis,
    /// Where REST and WebSocket clients connect
    #[arg(long, env = "LISTEN_ADDR", default_value = "0.0.0.0:8080")]
    pub listen_addr: SocketAddr,
    /// Where the auth service answers gRPC; calls are balanced over a list with commas, and over all addresses of a name
    #[arg(long, env = "AUTH_URL", default_value = "http://127.0.0.1:50051", value_parser = service_urls)]
    pub auth_url: String,
    /// Where the product service answers gRPC; a list, as above
    #[arg(long, env = "PRODUCT_URL", default_value = "http://127.0.0.1:50052", value_parser = service_urls)]
    pub product_url: String,
    /// Where the order service answers gRPC; a list, as above
    #[arg(long, env = "ORDER_URL", default_value = "http://127.0.0.1:50053", value_parser = service_urls)]
    pub order_url: String,
    /// Web pages that may call this API and open sockets, as in `https://shop.example`; none where empty. In development
    /// pages of localhost may where it is empty
    #[arg(long, env = "CORS_ORIGINS", value_delimiter = ',', default_value = "", value_parser = origin)]
    pub cors_origins: Vec<Origin>,
    /// Proxies whose X-Forwarded-For is believed, as CIDRs; none where empty
    #[arg(long, env = "TRUSTED_PROXIES", value_delimiter = ',', default_value = "", value_parser = network)]
    pub trusted_proxies: Vec<Network>,
    /// Other limits than the built-in ones, as in `user=40/2s,anonymous=60/2s`; `off` lifts all of them
    #[arg(long, env = "RATE_LIMITS", default_value = "")]
    pub rate_limits: RateLimits,
    /// HTTP connections held open at once; those without a request make room for more, else more wait to be accepted.
    /// WebSockets have a bound of their own
    #[arg(long, env = "MAX_CONNECTIONS", default_value_t = 8_192,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
    /// Requests worked on at once; more are answered 503
    #[arg(long, env = "MAX_REQUESTS", default_value_t = 1_024,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_requests: u32,
    /// How long an answer about a product is kept in memory, though no longer than it is true; 0s: not at all, and no page
    /// of a list or a search either
    #[arg(long, env = "CACHE_L1_TTL", default_value = "5m", value_parser = duration)]
    pub cache_l1_ttl: Duration,
    /// Bytes of bodies that are arriving, of all clients, each accounted with twice its largest size; more are answered
    /// 503
    #[arg(long, env = "MAX_BODY_BYTES", default_value_t = 64 * 1024 * 1024,
          value_parser = clap::value_parser!(u64).range(32 * 1024 * 1024..=1024 * 1024 * 1024))]
    pub max_body_bytes: u64,
    /// Bytes of answers that wait for clients to take them, of all connections; beyond it the connection with the most
    /// is closed
    #[arg(long, env = "MAX_UNSENT_BYTES", default_value_t = 64 * 1024 * 1024,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub max_unsent_bytes: u64,
    /// Bounds the time in which a client sends the head of a request, from its first byte, or sends the first request
    /// of a connection
    #[arg(long, env = "HEADER_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub header_timeout: Duration,
    /// Bounds the time for which a connection is kept without a request; longer than a proxy in front keeps its own
    #[arg(long, env = "IDLE_TIMEOUT", default_value = "75s", value_parser = duration)]
    pub idle_timeout: Duration,
    /// Bounds the time in which a client takes an answer, with one second more for each 4 KiB that it has taken
    #[arg(long, env = "SEND_TIMEOUT", default_value = "30s", value_parser = duration)]
    pub send_timeout: Duration,
}

impl shoppee_kit::process::Settings for Settings {
    fn common(&self) -> &Common {
        &self.common
    }

    fn ops_addr(&self) -> Option<SocketAddr> {
        Some(self.listen_addr)
    }
}

/// A CIDR, or nothing: an empty variable means an empty list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(pub Option<IpNet>);

fn network(value: &str) -> Result<Network, String> {
    let value = value.trim();
    if value.is_empty() {
        return Ok(Network(None));
    }
    let net = value.parse().or_else(|_| value.parse().map(|ip: std::net::IpAddr| ip.into()));
    net.map(|net| Network(Some(net))).map_err(|_| "not a CIDR such as 10.0.0.0/8".to_owned())
}

fn origin(value: &str) -> Result<Origin, String> {
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
    fn nothing_but_redis_must_be_set() {
        let settings = parse(&[]).unwrap();
        assert_eq!(settings.listen_addr.port(), 8080);
        assert!(settings.trusted_proxies.iter().all(|network| network.0.is_none()));
    }

    #[test]
    fn lists_have_commas() {
        let proxies = parse(&["--trusted-proxies", "10.0.0.0/8, ::1"]).unwrap().trusted_proxies;
        assert_eq!(proxies.iter().filter_map(|network| network.0).count(), 2);
        let origins = parse(&["--cors-origins", "https://a.example,http://localhost:3000"]).unwrap();
        assert_eq!(origins.cors_origins.len(), 2);
        let auth = parse(&["--auth-url", "http://a:1/, http://b:2"]).unwrap().auth_url;
        assert_eq!(auth, "http://a:1,http://b:2");
    }

    #[test]
    fn wrong_values_are_refused() {
        for wrong in [
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
        ] {
            assert!(parse(&wrong).is_err(), "{wrong:?}");
        }
    }
}
