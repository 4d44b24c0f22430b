//! Limits on how often somebody may ask: the policies stand in [`policy`]. They are counted over all gateways
//! in Redis ([`global`]), and per gateway while Redis is away ([`local`]), never not at all.

mod address;
mod global;
mod local;
mod policy;

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
    time::Duration,
};

use fred::clients::Client;
use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use shoppee_kit::caller::{Caller, Role};
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

#[derive(Debug)]
pub struct Limits {
    policies: Vec<Policy>,
    trusted: Vec<IpNet>,
    global: global::Global,
    local: local::Local,
    start: Instant,
}

impl Limits {
    pub fn new(settings: &Settings, redis: Client) -> Self {
        let policies = settings.rate_limits.policies();
        if policies.is_empty() {
            tracing::warn!(
                "RATE_LIMITS=off: nobody is held back but by the limit on password tries per account"
            );
        }
        Self {
            policies,
            trusted: settings.trusted_proxies.iter().filter_map(|network| network.0).collect(),
            global: global::Global::new(redis),
            local: local::Local::default(),
            start: Instant::now(),
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
        let (subject, policies) =
            self.policies(route, caller, || address::client(peer, headers, &self.trusted));
        if policies.is_empty() {
            return Admission::default();
        }
        let verdicts = match self.global.check(&policies, subject).await {
            Some(verdicts) => verdicts,
            None => self.local.check(&policies, subject, self.start.elapsed()),
        };
        for (policy, verdict) in policies.iter().zip(&verdicts) {
            let result = if verdict.let_in { "allowed" } else { "refused" };
            metrics::counter!("rate_limit_decisions_total", "policy" => policy.name, "result" => result)
                .increment(1);
        }
        Admission(policies.into_iter().copied().zip(verdicts).collect())
    }

    /// A route with a policy of its own is counted by address, whoever calls: what it stands before is the
    /// same for all.
    fn policies(
        &self,
        route: Option<&str>,
        caller: Option<&Caller>,
        address: impl Fn() -> IpAddr,
    ) -> (Subject, Vec<&Policy>) {
        let own = |policy: &Policy| matches!(policy.scope, Scope::Route(path) if route == Some(path));
        let person = caller.filter(|_| !self.policies.iter().any(own));
        let subject = match person {
            Some(caller) if caller.claims.role != Role::Service => Subject::User(caller.user_id()),
            _ => Subject::Address(address::network(address())),
        };
        let applies = |policy: &&Policy| match policy.scope {
            Scope::User => matches!(subject, Subject::User(_)),
            Scope::Anonymous => matches!(subject, Subject::Address(_)),
            Scope::Route(_) => own(policy),
        };
        (subject, self.policies.iter().filter(applies).collect())
    }
}

/// What all policies together say to one request.
#[derive(Debug, Default)]
pub struct Admission(Vec<(Policy, Verdict)>);

impl Admission {
    /// An error where one of them refuses.
    pub fn check(&self) -> Result<(), Problem> {
        let refusals = self.0.iter().filter(|(_, verdict)| !verdict.let_in);
        let Some((policy, verdict)) = refusals.max_by_key(|(_, verdict)| verdict.next_in) else {
            return Ok(());
        };
        let code = if policy.guard { Code::TooManyAttempts } else { Code::RateLimited };
        Err(Problem::new(code, "too many requests; wait as long as Retry-After says")
            .retry_after(verdict.next_in))
    }

    /// Tells the client how it stands, on every answer.
    pub fn write(&self, headers: &mut HeaderMap) {
        if self.0.is_empty() {
            return;
        }
        let (mut left, mut quotas) = (String::new(), String::new());
        for (policy, verdict) in &self.0 {
            let comma = if left.is_empty() { "" } else { ", " };
            let until = if verdict.let_in { verdict.whole_in } else { verdict.next_in };
            let seconds = until.as_millis().div_ceil(1000).max(1);
            let _ = write!(left, "{comma}\"{}\";r={};t={seconds}", policy.name, verdict.remaining);
            let quota = policy.quota;
            let _ =
                write!(quotas, "{comma}\"{}\";q={};w={}", policy.name, quota.count, quota.window.as_secs());
        }
        for (name, value) in [(RATE_LIMIT, left), (RATE_LIMIT_POLICY, quotas)] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
    }
}
