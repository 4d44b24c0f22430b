//! The client's IP address. Trusted proxies append to `X-Forwarded-For` on the right; its left-most entries are the
//! client's own claim and do not count.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::HeaderMap;
use ipnet::IpNet;

/// Returns the address of the peer. If the peer is a trusted proxy, returns the right-most address in `X-Forwarded-For`
/// that is not.
pub fn client_ip(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |ip: IpAddr| trusted.iter().any(|net| net.contains(&ip));
    let mut client = peer.to_canonical();
    let lines = headers.get_all("x-forwarded-for").iter().rev();
    let mut hops = lines.flat_map(|line| line.to_str().unwrap_or("?").rsplit(','));
    while is_trusted(client) {
        // An entry that is not an address ends the trusted part.
        match hops.next().and_then(|hop| parse_address(hop.trim())) {
            Some(hop) => client = hop.to_canonical(),
            None => break,
        }
    }
    client
}

/// Parses an address with or without a port.
fn parse_address(text: &str) -> Option<IpAddr> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|addr| addr.ip()))
}

/// Returns the address range that is counted as one client: an IPv4 address, or the /64 that an IPv6 customer gets.
pub fn rate_limit_prefix(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn client_of(peer: &str, forwarded: &[&'static str]) -> String {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append("x-forwarded-for", HeaderValue::from_static(line));
        }
        client_ip(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    #[test]
    fn only_a_trusted_proxy_may_forward_an_address() {
        assert_eq!(client_of("203.0.113.9", &["1.2.3.4"]), "203.0.113.9");
        assert_eq!(client_of("10.0.0.1", &["1.2.3.4"]), "1.2.3.4");
        assert_eq!(client_of("::ffff:10.0.0.1", &["1.2.3.4"]), "1.2.3.4");
        assert_eq!(client_of("::1", &["1.2.3.4:5678"]), "1.2.3.4");
        assert_eq!(client_of("::1", &["[2001:db8::7]:443"]), "2001:db8::7");
    }

    #[test]
    fn entries_that_a_client_wrote_itself_do_not_count() {
        assert_eq!(client_of("10.0.0.1", &["9.9.9.9, 1.2.3.4"]), "1.2.3.4");
        assert_eq!(client_of("10.0.0.1", &["9.9.9.9, 1.2.3.4, 10.0.0.2"]), "1.2.3.4");
        assert_eq!(client_of("10.0.0.1", &["9.9.9.9", "1.2.3.4"]), "1.2.3.4");
        assert_eq!(client_of("10.0.0.1", &["1.2.3.4, nonsense"]), "10.0.0.1");
        assert_eq!(client_of("10.0.0.1", &[]), "10.0.0.1");
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_client() {
        let [a, b] =
            ["2001:db8:1:2::1", "2001:db8:1:2:ffff::9"].map(|ip| rate_limit_prefix(ip.parse().unwrap()));
        assert_eq!(a, b);
        assert_ne!(a, rate_limit_prefix("2001:db8:1:3::1".parse().unwrap()));
    }
}
