//! Cross-origin resource sharing (CORS, the Fetch standard): the allow-list of web origins. The WebSocket handshake
//! checks `Origin` against the same list.

use std::{str::FromStr, sync::Arc};

use axum::{
    extract::Request,
    response::{IntoResponse as _, Response},
};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, HOST, ORIGIN,
        VARY,
    },
};
use shoppee_kit::{log_throttle::LogThrottle, settings::Environment};

/// The methods and headers that a page may send.
const ALLOW_METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE");
const ALLOW_HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, idempotency-key, if-match, if-none-match, x-request-id, \
     traceparent, tracestate, baggage, device-token, last-event-id",
);
/// The response headers that a page may read.
const EXPOSE_HEADERS: HeaderValue = HeaderValue::from_static(
    "etag, location, retry-after, ratelimit, ratelimit-policy, x-request-id, idempotent-replayed, \
     device-token",
);
/// The seconds for which a browser caches a preflight response: the maximum that Chromium honours.
const PREFLIGHT_MAX_AGE: HeaderValue = HeaderValue::from_static("7200");
const VARY_ORIGIN: HeaderValue = HeaderValue::from_static("origin");

/// A web origin as browsers send it: scheme, host, and the port unless it is the scheme's default. Empty for an empty
/// list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(String);

impl FromStr for Origin {
    type Err = String;

    fn from_str(value: &str) -> Result<Self, String> {
        if value.is_empty() {
            return Ok(Self(String::new()));
        }
        Self::canonical(value).ok_or_else(|| "not an origin such as https://shop.example".to_owned())
    }
}

impl Origin {
    /// Returns the ASCII serialisation of an origin (WHATWG URL), which browsers send.
    fn canonical(value: &str) -> Option<Self> {
        let uri: http::Uri = value.parse().ok()?;
        let (scheme, rest) = value.split_once("://")?;
        let authority = uri.authority().filter(|authority| authority.as_str() == rest)?;
        let default_port: u16 = match uri.scheme_str()? {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let host = authority.host();
        let origin = match rest.strip_prefix(host)? {
            "" | ":" => format!("{scheme}://{host}"),
            port => match port.strip_prefix(':')?.parse::<u16>().ok()? {
                port if port == default_port => format!("{scheme}://{host}"),
                port => format!("{scheme}://{host}:{port}"),
            },
        };
        (!host.is_empty()).then(|| Self(origin.to_ascii_lowercase()))
    }
}

/// The allow-list of web origins.
#[derive(Clone, Debug)]
pub struct AllowedOrigins {
    listed: Arc<[Origin]>,
    /// Allows pages of localhost on any port: in development, if the list is empty.
    with_localhost: bool,
    refusals: Arc<LogThrottle>,
}

impl AllowedOrigins {
    pub fn new(allowed: &[Origin], environment: Environment) -> Self {
        let listed: Arc<[Origin]> = allowed.iter().filter(|origin| !origin.0.is_empty()).cloned().collect();
        let with_localhost = environment == Environment::Development && listed.is_empty();
        Self { listed, with_localhost, refusals: Arc::default() }
    }

    /// Reports whether a page of this `Origin` may use the gateway. Compares byte by byte, as browsers do: `null`,
    /// another port or a longer host do not match.
    pub fn allows(&self, origin: &HeaderValue) -> bool {
        self.listed.iter().any(|allowed| allowed.0.as_bytes() == origin.as_bytes())
            || self.with_localhost && is_localhost(origin)
    }

    /// Logs a refused page, at most once a minute.
    pub fn log_refusal(&self, origin: &HeaderValue) {
        if let Some(suppressed) = self.refusals.admit() {
            tracing::warn!(?origin, suppressed, "page refused: its origin is not in CORS_ORIGINS");
        }
    }
}

/// Reports whether the origin is localhost, on any port.
fn is_localhost(origin: &HeaderValue) -> bool {
    let local = |origin: &str| {
        let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"))?;
        let port = ["localhost", "127.0.0.1", "[::1]"].iter().find_map(|host| rest.strip_prefix(host))?;
        Some(port.is_empty() || port.strip_prefix(':')?.parse::<u16>().is_ok())
    };
    origin.to_str().ok().and_then(local) == Some(true)
}

/// Reports whether the origin is the target of the request (RFC 6454). A forged host name gains nothing: no cookie
/// authenticates a user.
pub fn is_same_origin(origin: &HeaderValue, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let Some(host) = hosts.next().filter(|host| !host.is_empty() && hosts.next().is_none()) else {
        return false;
    };
    let page = [b"http://".as_slice(), b"https://"].into_iter();
    page.filter_map(|scheme| origin.as_bytes().strip_prefix(scheme)).any(|page| page == host.as_bytes())
}

/// The CORS properties of a request.
#[derive(Debug)]
pub struct CorsRequest {
    origin: Option<HeaderValue>,
    is_same_origin: bool,
    is_preflight: bool,
}

impl From<&Request> for CorsRequest {
    fn from(request: &Request) -> Self {
        let origin = request.headers().get(ORIGIN).cloned();
        let is_preflight = origin.is_some()
            && request.method() == Method::OPTIONS
            && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        let is_same_origin = origin.as_ref().is_some_and(|origin| is_same_origin(origin, request.headers()));
        Self { origin, is_same_origin, is_preflight }
    }
}

impl CorsRequest {
    /// Returns the response to a preflight request.
    pub fn preflight_response(&self) -> Option<Response> {
        self.is_preflight.then(|| StatusCode::NO_CONTENT.into_response())
    }

    /// Writes the headers by which a browser decides whether its page may read the response.
    pub fn write_headers(self, origins: &AllowedOrigins, headers: &mut HeaderMap) {
        if let Some(origin) = self.origin {
            if origins.allows(&origin) {
                grant(headers, origin, self.is_preflight);
            } else if !self.is_same_origin {
                origins.log_refusal(&origin);
            }
        }
        // A cache must not serve one origin's response to another.
        headers.append(VARY, VARY_ORIGIN);
    }
}

fn grant(headers: &mut HeaderMap, origin: HeaderValue, preflight: bool) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    if preflight {
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, ALLOW_METHODS);
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, ALLOW_HEADERS);
        headers.insert(ACCESS_CONTROL_MAX_AGE, PREFLIGHT_MAX_AGE);
    } else {
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSE_HEADERS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_listed_origin_is_allowed() {
        let listed = ["https://shop.example".parse().unwrap(), "".parse().unwrap()];
        let origins = AllowedOrigins::new(&listed, Environment::Production);
        assert!(origins.allows(&HeaderValue::from_static("https://shop.example")));
        for hostile in [
            "",
            "null",
            "http://shop.example",
            "https://shop.example:444",
            "https://shop.example.evil.example",
            "https://evil-shop.example",
            "https://shop.example/",
            "https://SHOP.example",
            "*",
            "http://localhost:3000",
        ] {
            assert!(!origins.allows(&HeaderValue::from_static(hostile)), "{hostile}");
        }
        assert!(!AllowedOrigins::new(&[], Environment::Production).allows(&HeaderValue::from_static("")));
    }

    #[test]
    fn localhost_is_allowed_in_development_if_the_list_is_empty() {
        let origins = AllowedOrigins::new(&[], Environment::Development);
        for local in
            ["http://localhost", "http://localhost:5173", "https://127.0.0.1:8443", "http://[::1]:3000"]
        {
            assert!(origins.allows(&HeaderValue::from_static(local)), "{local}");
        }
        for other in [
            "http://localhost.evil.example",
            "http://localhost:",
            "http://localhost:99999",
            "http://localhost@evil.example",
            "http://127.0.0.10",
            "file://localhost",
            "null",
        ] {
            assert!(!origins.allows(&HeaderValue::from_static(other)), "{other}");
        }
        let listed =
            AllowedOrigins::new(&["http://localhost:3000".parse().unwrap()], Environment::Development);
        assert!(!listed.allows(&HeaderValue::from_static("http://localhost:5173")));
    }

    #[test]
    fn a_listed_origin_is_brought_into_its_canonical_form() {
        for (setting, sent) in [
            ("https://shop.example:443", "https://shop.example"),
            ("HTTPS://Shop.Example:0443", "https://shop.example"),
            ("http://shop.example:80", "http://shop.example"),
            ("http://shop.example:443", "http://shop.example:443"),
            ("https://shop.example:80", "https://shop.example:80"),
            ("http://localhost:5173", "http://localhost:5173"),
            ("https://[::1]:443", "https://[::1]"),
        ] {
            let origins = AllowedOrigins::new(&[setting.parse().unwrap()], Environment::Production);
            assert!(origins.allows(&HeaderValue::from_static(sent)), "{setting}");
        }
        for odd in [
            "shop.example",
            "ftp://shop.example",
            "https://",
            "https://:443",
            "https://shop.example/",
            "https://shop.example/page",
            "https://shop.example?q",
            "https://ann@shop.example",
            "https://shop.example:99999",
            "https://shop.example:x",
            "*",
            "null",
        ] {
            assert!(odd.parse::<Origin>().is_err(), "{odd}");
        }
    }

    #[test]
    fn a_same_origin_page_has_the_same_host_and_port() {
        let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static("shop.example:8080"))]);
        let same_origin = |origin: &'static str| is_same_origin(&HeaderValue::from_static(origin), &headers);
        assert!(same_origin("http://shop.example:8080") && same_origin("https://shop.example:8080"));
        for other in [
            "",
            "null",
            "shop.example:8080",
            "http://shop.example",
            "http://shop.example:8080/",
            "http://evil@shop.example:8080",
            "file://shop.example:8080",
        ] {
            assert!(!same_origin(other), "{other}");
        }
        assert!(!is_same_origin(&HeaderValue::from_static("http://"), &HeaderMap::new()));
    }
}
