//! Rate limits. [`policy`] is the table of policies. [`redis`] counts requests over all gateways. [`local`] follows its
//! counters: it admits callers that are far from their limit, and counts alone while Redis is unavailable.

mod client_ip;
mod local;
mod policy;
mod redis;

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use fred::clients::Client;
use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use metrics::{Counter, counter};
use shoppee_kit::{
    caller::{Caller, Role},
    tasks::Tasks,
};
use tokio::time::Instant;

pub use policy::RateLimits;
use policy::{Policy, Scope};

use crate::error::{Code, Problem};

/// The headers of draft-ietf-httpapi-ratelimit-headers.
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The caller whose requests are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RateLimitKey {
    User(i64),
    Address(IpAddr),
}

impl fmt::Display for RateLimitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(id) => write!(f, "user-{id}"),
            Self::Address(ip) => write!(f, "ip-{ip}"),
        }
    }
}

/// The decision of one policy on one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    /// Further requests that the policy would allow now.
    pub remaining: u32,
    /// The time until the policy allows the next request; zero if it would allow one now.
    pub retry_after: Duration,
    /// The time until the whole quota is available again.
    pub reset_after: Duration,
}

/// Policies that apply together.
#[derive(Debug)]
pub struct PolicySet {
    policies: Vec<Policy>,
    /// The value of `RateLimit-Policy`.
    policy_header: HeaderValue,
    /// Allowed and refused requests of each policy.
    counters: Vec<(Counter, Counter)>,
}

impl PolicySet {
    /// Returns the set of the policies that `applies` selects; `None` if there is none.
    fn new(policies: &[Policy], applies: impl Fn(&Policy) -> bool) -> Option<Arc<Self>> {
        let policies: Vec<Policy> = policies.iter().copied().filter(applies).collect();
        let policy_header = policies.iter().map(|Policy { name, quota, .. }| {
            format!("\"{name}\";q={};w={}", quota.count, quota.window.as_secs())
        });
        let policy_header = policy_header.collect::<Vec<_>>().join(", ");
        let count = |policy: &Policy, result: &'static str| counter!("rate_limit_decisions_total", "policy" => policy.name, "result" => result);
        let counters =
            policies.iter().map(|policy| (count(policy, "allowed"), count(policy, "refused"))).collect();
        // Names and numbers are a valid header value.
        let policy_header = HeaderValue::from_str(&policy_header).unwrap_or(HeaderValue::from_static(""));
        (!policies.is_empty()).then(|| Arc::new(Self { policies, policy_header, counters }))
    }
}

#[derive(Debug)]
pub struct RateLimiter {
    user: Option<Arc<PolicySet>>,
    anonymous: Option<Arc<PolicySet>>,
    /// Routes with a policy of their own.
    routes: Vec<(&'static str, Option<Arc<PolicySet>>)>,
    trusted_proxies: Vec<IpNet>,
    redis: redis::RedisLimiter,
    local: Arc<local::LocalLimiter>,
    start: Instant,
}

impl RateLimiter {
    pub fn start(limits: &RateLimits, trusted_proxies: Vec<IpNet>, redis: Client, tasks: &Tasks) -> Self {
        let policies = limits.policies();
        if policies.is_empty() {
            tracing::warn!(
                "rate limiting disabled (RATE_LIMITS=off); the limit on password tries per account still applies"
            );
        }
        let routes = policies.iter().filter_map(|policy| match policy.scope {
            Scope::Route(route) => Some(route),
            Scope::User | Scope::Anonymous => None,
        });
        let route_set = |route: &'static str| {
            PolicySet::new(&policies, |policy| {
                matches!(policy.scope, Scope::Anonymous) || policy.scope == Scope::Route(route)
            })
        };
        let (local, start) = (Arc::new(local::LocalLimiter::default()), Instant::now());
        Self {
            user: PolicySet::new(&policies, |policy| policy.scope == Scope::User),
            anonymous: PolicySet::new(&policies, |policy| policy.scope == Scope::Anonymous),
            routes: routes.map(|route| (route, route_set(route))).collect(),
            trusted_proxies,
            redis: redis::RedisLimiter::start(redis, local.clone(), start, tasks),
            local,
            start,
        }
    }

    /// Reports whether the client itself is in a trusted network.
    pub fn is_trusted(&self, peer: IpAddr, headers: &HeaderMap) -> bool {
        if self.trusted_proxies.is_empty() {
            return false;
        }
        let client = client_ip::client_ip(peer, headers, &self.trusted_proxies);
        self.trusted_proxies.iter().any(|net| net.contains(&client))
    }

    /// Returns the key of a request: the user of its token, or else its network prefix.
    pub fn key(&self, caller: Option<&Caller>, peer: IpAddr, headers: &HeaderMap) -> RateLimitKey {
        match caller {
            Some(caller) if caller.claims.role != Role::Service => RateLimitKey::User(caller.user_id()),
            Some(_) | None => {
                let client = client_ip::client_ip(peer, headers, &self.trusted_proxies);
                RateLimitKey::Address(client_ip::rate_limit_prefix(client))
            }
        }
    }

    /// Counts a request to the route with this template, under the token of `caller`.
    pub async fn admit(
        &self,
        route: Option<&str>,
        caller: Option<&Caller>,
        peer: IpAddr,
        headers: &HeaderMap,
    ) -> Admission {
        let key = |caller| self.key(caller, peer, headers);
        // A route with a policy of its own counts by address, with or without a token: the policy protects the same
        // resource from all callers.
        let own = self.routes.iter().find(|(own, _)| route == Some(own));
        let (policies, key) = match (own, caller) {
            (Some((_, policies)), _) => (policies, key(None)),
            (None, caller) => match key(caller) {
                key @ RateLimitKey::User(_) => (&self.user, key),
                key @ RateLimitKey::Address(_) => (&self.anonymous, key),
            },
        };
        let Some(policies) = policies else {
            return Admission::default();
        };
        let decisions = self.decide(policies, key).await;
        for ((allowed, refused), decision) in policies.counters.iter().zip(&decisions) {
            if decision.allowed { allowed } else { refused }.increment(1);
        }
        Admission(Some((policies.clone(), decisions)))
    }

    async fn decide(&self, policies: &Arc<PolicySet>, key: RateLimitKey) -> Vec<Decision> {
        if !self.redis.is_open()
            && let Some(decisions) = self.local.admit_uncounted(&policies.policies, key, self.start.elapsed())
        {
            self.redis.count_admitted(policies, key);
            return decisions;
        }
        match self.redis.check(policies, key).await {
            Some(decisions) => decisions,
            None => self.local.check(&policies.policies, key, self.start.elapsed()),
        }
    }
}

/// The decisions of all policies on one request.
#[derive(Debug, Default)]
pub struct Admission(Option<(Arc<PolicySet>, Vec<Decision>)>);

impl Admission {
    /// Fails if a policy refuses the request.
    pub fn check(&self) -> Result<(), Problem> {
        let Some((set, decisions)) = &self.0 else {
            return Ok(());
        };
        let refusals = set.policies.iter().zip(decisions).filter(|(_, decision)| !decision.allowed);
        let Some((policy, decision)) = refusals.max_by_key(|(_, decision)| decision.retry_after) else {
            return Ok(());
        };
        let code = if policy.anti_bruteforce { Code::TooManyAttempts } else { Code::RateLimited };
        Err(Problem::new(code, "too many requests; wait as long as Retry-After says")
            .with_fact("limit", policy.name)
            .retry_after(decision.retry_after))
    }

    /// Writes `RateLimit` and `RateLimit-Policy` to the response of a counted request.
    pub fn write_headers(&self, headers: &mut HeaderMap) {
        let Some((set, decisions)) = &self.0 else {
            return;
        };
        let mut value = String::with_capacity(48);
        for (policy, decision) in set.policies.iter().zip(decisions) {
            let comma = if value.is_empty() { "" } else { ", " };
            let until = if decision.allowed { decision.reset_after } else { decision.retry_after };
            let seconds = until.as_millis().div_ceil(1000).max(1);
            let _ = write!(value, "{comma}\"{}\";r={};t={seconds}", policy.name, decision.remaining);
        }
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(RATE_LIMIT, value);
        }
        headers.insert(RATE_LIMIT_POLICY, set.policy_header.clone());
    }
}
