//! Access to the control port: hosts, origins, the token of the page's address, and sessions.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use axum::http::{HeaderMap, HeaderValue, header};
use tokio::sync::watch;

use crate::secrets::generate_key;

/// Bounds the sessions; one more ends the oldest.
const MAX_SESSIONS: usize = 8;
/// The names of this machine in a page's address.
const LOOPBACK_NAMES: [&str; 2] = ["127.0.0.1", "localhost"];

#[derive(Debug)]
pub struct Access {
    hosts: Vec<String>,
    origins: Vec<String>,
    /// The address of the page, without its token.
    base: String,
    /// The token that is not used yet, and the sessions.
    keys: Mutex<Keys>,
    page: watch::Sender<String>,
}

#[derive(Debug)]
struct Keys {
    token: String,
    sessions: VecDeque<String>,
}

impl Access {
    /// Allows pages of `gateways` to connect to `port`.
    pub fn new(port: u16, gateways: &[String]) -> Self {
        let ports: Vec<&str> = gateways.iter().filter_map(|url| url.rsplit(':').next()).collect();
        let origins = LOOPBACK_NAMES
            .iter()
            .flat_map(|name| ports.iter().map(move |port| format!("http://{name}:{port}")));
        let token = generate_key();
        // The part behind `#` is sent to no server.
        let base = format!("{}/demo#{port}.", gateways[0]);
        Self {
            hosts: LOOPBACK_NAMES.map(|name| format!("{name}:{port}")).to_vec(),
            origins: origins.collect(),
            page: watch::Sender::new(format!("{base}{token}")),
            base,
            keys: Mutex::new(Keys { token, sessions: VecDeque::new() }),
        }
    }

    /// Returns the address of the page.
    pub fn page(&self) -> watch::Receiver<String> {
        self.page.subscribe()
    }

    /// Reports whether a request names this server as its host. Another name may lead here by DNS rebinding.
    pub fn has_own_host(&self, headers: &HeaderMap) -> bool {
        single(headers, &header::HOST).is_some_and(|host| is_one_of(&self.hosts, host))
    }

    /// Returns the origin of a request, if it is a gateway's.
    pub fn allowed_origin<'a>(&self, headers: &'a HeaderMap) -> Option<&'a HeaderValue> {
        single(headers, &header::ORIGIN).filter(|origin| is_one_of(&self.origins, origin))
    }

    /// Exchanges the token for a session key. The next page needs a new token.
    pub fn redeem(&self, token: &str) -> Option<String> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        // A guess of 256 bits gains nothing from the time of a comparison.
        if keys.token != token {
            return None;
        }
        let session = generate_key();
        keys.token = generate_key();
        keys.sessions.push_back(session.clone());
        if keys.sessions.len() > MAX_SESSIONS {
            keys.sessions.pop_front();
        }
        self.page.send_replace(format!("{}{}", self.base, keys.token));
        Some(session)
    }

    /// Reports whether a request has the key of a session.
    pub fn has_session(&self, headers: &HeaderMap) -> bool {
        let key = single(headers, &header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        key.and_then(|value| value.strip_prefix("Bearer "))
            .is_some_and(|key| keys.sessions.iter().any(|session| session == key))
    }
}

/// Returns the value of a header that a request has once.
fn single<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

fn is_one_of(allowed: &[String], value: &HeaderValue) -> bool {
    allowed.iter().any(|one| one.as_bytes() == value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access() -> Access {
        Access::new(20_000, &["http://127.0.0.1:8080".to_owned(), "http://127.0.0.1:8081".to_owned()])
    }

    fn headers(values: &[(header::HeaderName, &'static str)]) -> HeaderMap {
        values.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn other_hosts_and_origins_are_refused() {
        let access = access();
        let has_host = |host| access.has_own_host(&headers(&[(header::HOST, host)]));
        assert!(has_host("127.0.0.1:20000") && has_host("localhost:20000"));
        for foreign in ["127.0.0.1", "127.0.0.1:8080", "rebound.example:20000", "127.0.0.1:20000.example"] {
            assert!(!has_host(foreign), "{foreign}");
        }
        assert!(!access.has_own_host(&HeaderMap::new()));
        let mut two = headers(&[(header::HOST, "localhost:20000")]);
        two.append(header::HOST, HeaderValue::from_static("rebound.example"));
        assert!(!access.has_own_host(&two));
        let has_origin = |origin| access.allowed_origin(&headers(&[(header::ORIGIN, origin)])).is_some();
        assert!(has_origin("http://127.0.0.1:8080") && has_origin("http://localhost:8081"));
        for foreign in
            ["null", "http://127.0.0.1:20000", "https://127.0.0.1:8080", "http://127.0.0.1:8080.example"]
        {
            assert!(!has_origin(foreign), "{foreign}");
        }
        assert!(
            access.allowed_origin(&HeaderMap::new()).is_none(),
            "a request without an origin is no page's"
        );
    }

    #[test]
    fn a_token_is_good_once_and_the_page_has_the_next_one() {
        let access = access();
        let page = access.page();
        let token = || page.borrow().split_once("/demo#20000.").unwrap().1.to_owned();
        let first = token();
        assert_eq!(access.redeem("another"), None);
        let session = access.redeem(&first).unwrap();
        assert_eq!(access.redeem(&first), None);
        assert!(session != first && token() != first);
        let authorization = |key: &str| {
            let value = HeaderValue::from_str(&format!("Bearer {key}")).unwrap();
            HeaderMap::from_iter([(header::AUTHORIZATION, value)])
        };
        assert!(access.has_session(&authorization(&session)));
        assert!(!access.has_session(&authorization(&first)) && !access.has_session(&HeaderMap::new()));
        for _ in 0..MAX_SESSIONS {
            access.redeem(&token()).unwrap();
        }
        assert!(!access.has_session(&authorization(&session)), "the oldest session has ended");
    }
}
