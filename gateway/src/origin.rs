//! Which web pages may use the gateway: the allow-list behind CORS (the Fetch standard) and behind the
//! `Origin` check of sockets.

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

/// What a page may send.
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE");
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, idempotency-key, if-match, if-none-match, x-request-id, \
     traceparent, tracestate, baggage, device-token",
);
/// What a page may read besides the body.
const ANSWER_HEADERS: HeaderValue = HeaderValue::from_static(
    "etag, location, retry-after, ratelimit, ratelimit-policy, x-request-id, idempotent-replayed, \
     device-token",
);
/// How long a browser remembers the answer to a preflight. Seconds: the longest that Chromium honours.
const REMEMBERED: HeaderValue = HeaderValue::from_static("7200");
const VARIES: HeaderValue = HeaderValue::from_static("origin");

/// A web origin as browsers send it: scheme, host, and the port unless it is the scheme's own; empty for a list without
/// any.
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
    /// The form in which browsers send an origin (WHATWG URL, ASCII serialisation of an origin).
    fn canonical(value: &str) -> Option<Self> {
        let uri: http::Uri = value.parse().ok()?;
        let (scheme, rest) = value.split_once("://")?;
        let authority = uri.authority().filter(|authority| authority.as_str() == rest)?;
        let own_port: u16 = match uri.scheme_str()? {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let host = authority.host();
        let origin = match rest.strip_prefix(host)? {
            "" | ":" => format!("{scheme}://{host}"),
            port => match port.strip_prefix(':')?.parse::<u16>().ok()? {
                port if port == own_port => format!("{scheme}://{host}"),
                port => format!("{scheme}://{host}:{port}"),
            },
        };
        (!host.is_empty()).then(|| Self(origin.to_ascii_lowercase()))
    }
}

/// The allow-list.
#[derive(Clone, Debug)]
pub struct Origins {
    listed: Arc<[Origin]>,
    /// In development, where nothing is listed, the pages of this machine are allowed, on any port.
    with_localhost: bool,
    refusals: Arc<LogThrottle>,
}

impl Origins {
    pub fn new(allowed: &[Origin], environment: Environment) -> Self {
        let listed: Arc<[Origin]> = allowed.iter().filter(|origin| !origin.0.is_empty()).cloned().collect();
        let with_localhost = environment == Environment::Development && listed.is_empty();
        Self { listed, with_localhost, refusals: Arc::default() }
    }

    /// Whether a page of this `Origin` may use the gateway. Compared byte by byte, as browsers do: `null`,
    /// another port, a longer host are not on the list.
    pub fn allows(&self, origin: &HeaderValue) -> bool {
        self.listed.iter().any(|allowed| allowed.0.as_bytes() == origin.as_bytes())
            || self.with_localhost && is_localhost(origin)
    }

    /// Logs that a page was refused, once a minute.
    pub fn log_refusal(&self, origin: &HeaderValue) {
        if let Some(suppressed) = self.refusals.admit() {
            tracing::warn!(?origin, suppressed, "page refused: its origin is not in CORS_ORIGINS");
        }
    }
}

/// Reports whether the page came from this machine, whatever its port.
fn is_localhost(origin: &HeaderValue) -> bool {
    let local = |origin: &str| {
        let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"))?;
        let port = ["localhost", "127.0.0.1", "[::1]"].iter().find_map(|host| rest.strip_prefix(host))?;
        Some(port.is_empty() || port.strip_prefix(':')?.parse::<u16>().is_ok())
    };
    origin.to_str().ok().and_then(local) == Some(true)
}

/// Reports whether the page came from the target of the request: a page of our own, by the same origin of RFC 6454. No
/// cookie signs a user in, so that a page under a borrowed name has nothing to ride on.
pub fn is_our_own(origin: &HeaderValue, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let Some(host) = hosts.next().filter(|host| !host.is_empty() && hosts.next().is_none()) else {
        return false;
    };
    let page = [b"http://".as_slice(), b"https://"].into_iter();
    page.filter_map(|scheme| origin.as_bytes().strip_prefix(scheme)).any(|page| page == host.as_bytes())
}

/// What CORS asks of one request.
#[derive(Debug)]
pub struct Cors {
    origin: Option<HeaderValue>,
    is_our_own: bool,
    preflight: bool,
}

impl Cors {
    pub fn of(request: &Request) -> Self {
        let origin = request.headers().get(ORIGIN).cloned();
        let preflight = origin.is_some()
            && request.method() == Method::OPTIONS
            && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        let is_our_own = origin.as_ref().is_some_and(|origin| is_our_own(origin, request.headers()));
        Self { origin, is_our_own, preflight }
    }

    /// The answer to a browser that asks whether it may ask.
    pub fn preflight(&self) -> Option<Response> {
        self.preflight.then(|| StatusCode::NO_CONTENT.into_response())
    }

    /// Tells the browser whether its page may read the answer.
    pub fn write(self, origins: &Origins, headers: &mut HeaderMap) {
        if let Some(origin) = self.origin {
            if origins.allows(&origin) {
                grant(headers, origin, self.preflight);
            } else if !self.is_our_own {
                origins.log_refusal(&origin);
            }
        }
        // A cache must not hand one page's answer to another.
        headers.append(VARY, VARIES);
    }
}

fn grant(headers: &mut HeaderMap, origin: HeaderValue, preflight: bool) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    if preflight {
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
        headers.insert(ACCESS_CONTROL_MAX_AGE, REMEMBERED);
    } else {
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, ANSWER_HEADERS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_on_the_list_is_allowed() {
        let listed = ["https://shop.example".parse().unwrap(), "".parse().unwrap()];
        let origins = Origins::new(&listed, Environment::Production);
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
        assert!(!Origins::new(&[], Environment::Production).allows(&HeaderValue::from_static("")));
    }

    #[test]
    fn in_development_pages_of_this_machine_are_allowed_where_nothing_is_listed() {
        let origins = Origins::new(&[], Environment::Development);
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
        let listed = Origins::new(&["http://localhost:3000".parse().unwrap()], Environment::Development);
        assert!(!listed.allows(&HeaderValue::from_static("http://localhost:5173")));
    }

    #[test]
    fn an_origin_is_listed_as_browsers_send_it() {
        for (setting, sent) in [
            ("https://shop.example:443", "https://shop.example"),
            ("HTTPS://Shop.Example:0443", "https://shop.example"),
            ("http://shop.example:80", "http://shop.example"),
            ("http://shop.example:443", "http://shop.example:443"),
            ("https://shop.example:80", "https://shop.example:80"),
            ("http://localhost:5173", "http://localhost:5173"),
            ("https://[::1]:443", "https://[::1]"),
        ] {
            let origins = Origins::new(&[setting.parse().unwrap()], Environment::Production);
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
    fn a_page_of_our_own_is_one_of_the_same_host_and_port() {
        let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static("shop.example:8080"))]);
        let own = |origin: &'static str| is_our_own(&HeaderValue::from_static(origin), &headers);
        assert!(own("http://shop.example:8080") && own("https://shop.example:8080"));
        for other in [
            "",
            "null",
            "shop.example:8080",
            "http://shop.example",
            "http://shop.example:8080/",
            "http://evil@shop.example:8080",
            "file://shop.example:8080",
        ] {
            assert!(!own(other), "{other}");
        }
        assert!(!is_our_own(&HeaderValue::from_static("http://"), &HeaderMap::new()));
    }
}
