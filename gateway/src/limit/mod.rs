//! Limits on how often somebody may ask: the policies stand in [`policy`]. They are counted over all gateways in Redis
//! ([`global`]), and per gateway while Redis is away ([`local`]), never not at all.

mod address;
mod global;
mod local;
mod policy;

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

use crate::{
    Settings,
    error::{Code, Problem},
};

/// draft-ietf-httpapi-ratelimit-headers: what is left, and of what.
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Who is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    User(i64),
    Address(IpAddr),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(id) => write!(f, "user-{id}"),
            Self::Address(ip) => write!(f, "ip-{ip}"),
        }
    }
}

/// What one policy says to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub let_in: bool,
    /// How many more would be let in at once.
    pub remaining: u32,
    /// Until the next is let in; zero where one would be now.
    pub next_in: Duration,
    /// Until the quota is whole again.
    pub whole_in: Duration,
}

/// Policies that apply together, and what is said of them on every answer.
#[derive(Debug)]
pub struct Set {
    policies: Vec<Policy>,
    quotas: HeaderValue,
    /// How often each let somebody in, and refused.
    counted: Vec<(Counter, Counter)>,
}

impl Set {
    fn of(policies: &[Policy], applies: impl Fn(&Policy) -> bool) -> Option<Arc<Self>> {
        let policies: Vec<Policy> = policies.iter().copied().filter(applies).collect();
        let quotas = policies.iter().map(|Policy { name, quota, .. }| {
            format!("\"{name}\";q={};w={}", quota.count, quota.window.as_secs())
        });
        let quotas = quotas.collect::<Vec<_>>().join(", ");
        let count = |policy: &Policy, result: &'static str| counter!("rate_limit_decisions_total", "policy" => policy.name, "result" => result);
        let counted =
            policies.iter().map(|policy| (count(policy, "allowed"), count(policy, "refused"))).collect();
        // Names and numbers are a header value.
        let quotas = HeaderValue::from_str(&quotas).unwrap_or(HeaderValue::from_static(""));
        (!policies.is_empty()).then(|| Arc::new(Self { policies, quotas, counted }))
    }
}

#[derive(Debug)]
pub struct Limits {
    user: Option<Arc<Set>>,
    anonymous: Option<Arc<Set>>,
    /// Of routes that have a policy of their own.
    routes: Vec<(&'static str, Option<Arc<Set>>)>,
    trusted: Vec<IpNet>,
    global: global::Global,
    local: local::Local,
    start: Instant,
}

impl Limits {
    pub fn start(settings: &Settings, redis: Client, tasks: &Tasks) -> Self {
        let policies = settings.rate_limits.policies();
        if policies.is_empty() {
            tracing::warn!(
                "RATE_LIMITS=off: nobody is held back but by the limit on password tries per account"
            );
        }
        let routes = policies.iter().filter_map(|policy| match policy.scope {
            Scope::Route(route) => Some(route),
            Scope::User | Scope::Anonymous => None,
        });
        let with_own = |route: &'static str| {
            Set::of(&policies, |policy| {
                matches!(policy.scope, Scope::Anonymous) || policy.scope == Scope::Route(route)
            })
        };
        Self {
            user: Set::of(&policies, |policy| policy.scope == Scope::User),
            anonymous: Set::of(&policies, |policy| policy.scope == Scope::Anonymous),
            routes: routes.map(|route| (route, with_own(route))).collect(),
            trusted: settings.trusted_proxies.iter().filter_map(|network| network.0).collect(),
            global: global::Global::start(redis, tasks),
            local: local::Local::default(),
            start: Instant::now(),
        }
    }

    /// Reports whether a request comes from a trusted network itself, and not by way of it.
    pub fn is_trusted(&self, peer: IpAddr, headers: &HeaderMap) -> bool {
        if self.trusted.is_empty() {
            return false;
        }
        let client = address::client(peer, headers, &self.trusted);
        self.trusted.iter().any(|net| net.contains(&client))
    }

    /// Returns the owner of a request: the user of its token, or its address.
    pub fn subject(&self, caller: Option<&Caller>, peer: IpAddr, headers: &HeaderMap) -> Subject {
        match caller {
            Some(caller) if caller.claims.role != Role::Service => Subject::User(caller.user_id()),
            Some(_) | None => {
                Subject::Address(address::network(address::client(peer, headers, &self.trusted)))
            }
        }
    }

    /// Counts a request. `route` is its template, `caller` whom its token speaks for.
    pub async fn admit(
        &self,
        route: Option<&str>,
        caller: Option<&Caller>,
        peer: IpAddr,
        headers: &HeaderMap,
    ) -> Admission {
        let subject = |caller| self.subject(caller, peer, headers);
        // A route with a policy of its own is counted by address, whoever calls: what it stands before is the same
        // for all.
        let own = self.routes.iter().find(|(own, _)| route == Some(own));
        let (set, subject) = match (own, caller) {
            (Some((_, set)), _) => (set, subject(None)),
            (None, caller) => match subject(caller) {
                subject @ Subject::User(_) => (&self.user, subject),
                subject @ Subject::Address(_) => (&self.anonymous, subject),
            },
        };
        let Some(set) = set else {
            return Admission::default();
        };
        let verdicts = match self.global.check(set, subject).await {
            Some(verdicts) => verdicts,
            None => self.local.check(&set.policies, subject, self.start.elapsed()),
        };
        for ((allowed, refused), verdict) in set.counted.iter().zip(&verdicts) {
            if verdict.let_in { allowed } else { refused }.increment(1);
        }
        Admission(Some((set.clone(), verdicts)))
    }
}

/// What all policies together say to one request.
#[derive(Debug, Default)]
pub struct Admission(Option<(Arc<Set>, Vec<Verdict>)>);

impl Admission {
    /// An error where one of them refuses.
    pub fn check(&self) -> Result<(), Problem> {
        let Some((set, verdicts)) = &self.0 else {
            return Ok(());
        };
        let refusals = set.policies.iter().zip(verdicts).filter(|(_, verdict)| !verdict.let_in);
        let Some((policy, verdict)) = refusals.max_by_key(|(_, verdict)| verdict.next_in) else {
            return Ok(());
        };
        let code = if policy.guard { Code::TooManyAttempts } else { Code::RateLimited };
        Err(Problem::new(code, "too many requests; wait as long as Retry-After says")
            .with_fact("limit", policy.name)
            .retry_after(verdict.next_in))
    }

    /// Tells the client how it stands, on every answer.
    pub fn write(&self, headers: &mut HeaderMap) {
        let Some((set, verdicts)) = &self.0 else {
            return;
        };
        let mut left = String::with_capacity(48);
        for (policy, verdict) in set.policies.iter().zip(verdicts) {
            let comma = if left.is_empty() { "" } else { ", " };
            let until = if verdict.let_in { verdict.whole_in } else { verdict.next_in };
            let seconds = until.as_millis().div_ceil(1000).max(1);
            let _ = write!(left, "{comma}\"{}\";r={};t={seconds}", policy.name, verdict.remaining);
        }
        if let Ok(left) = HeaderValue::try_from(left) {
            headers.insert(RATE_LIMIT, left);
        }
        headers.insert(RATE_LIMIT_POLICY, set.quotas.clone());
    }
}
