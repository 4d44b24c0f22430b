//! The table of rate limit policies: one line each.

use std::{str::FromStr, time::Duration};

use shoppee_kit::settings;

/// A number of requests in a window, at once or spread. After a burst, requests are allowed at the steady rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub count: u32,
    pub window: Duration,
}

/// The requests a policy counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Requests with a valid token, per user.
    User,
    /// All other requests, per address.
    Anonymous,
    /// Requests to one route, per address.
    Route(&'static str),
}

#[derive(Clone, Copy, Debug)]
pub struct Policy {
    pub name: &'static str,
    pub quota: Quota,
    pub scope: Scope,
    /// Limits the guessing of passwords.
    pub anti_bruteforce: bool,
}

/// The table. `RATE_LIMITS` overrides quotas by name.
#[rustfmt::skip]
pub const POLICIES: [Policy; 5] = [
    policy("user",           quota(40, 2),  Scope::User),
    policy("anonymous",      quota(60, 2),  Scope::Anonymous),
    anti_bruteforce("login", quota(30, 60), Scope::Route("/api/v1/auth/login")),
    policy("register",       quota(30, 60), Scope::Route("/api/v1/auth/register")),
    policy("token",          quota(60, 60), Scope::Route("/oauth/token")),
];

const fn policy(name: &'static str, quota: Quota, scope: Scope) -> Policy {
    Policy { name, quota, scope, anti_bruteforce: false }
}

const fn anti_bruteforce(name: &'static str, quota: Quota, scope: Scope) -> Policy {
    Policy { name, quota, scope, anti_bruteforce: true }
}

/// The longest window. `RateLimit-Policy` has whole seconds.
const MAX_WINDOW: Duration = Duration::from_hours(24);
/// The largest count of a quota. Keeps the time between two requests at a microsecond or more.
const MAX_COUNT: u32 = 1_000_000;

const fn quota(count: u32, seconds: u64) -> Quota {
    Quota { count, window: Duration::from_secs(seconds) }
}

/// The setting `RATE_LIMITS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RateLimits {
    /// No policy, for tests of other parts.
    Off,
    /// The table, with other quotas for some policies.
    On(Vec<(&'static str, Quota)>),
}

impl RateLimits {
    /// Returns the policies in force.
    pub fn policies(&self) -> Vec<Policy> {
        match self {
            Self::Off => Vec::new(),
            Self::On(overrides) => POLICIES
                .into_iter()
                .map(|policy| {
                    let own = overrides.iter().rev().find(|(name, _)| *name == policy.name);
                    Policy { quota: own.map_or(policy.quota, |(_, quota)| *quota), ..policy }
                })
                .collect(),
        }
    }
}

impl FromStr for RateLimits {
    type Err = String;

    fn from_str(value: &str) -> Result<Self, String> {
        if value.trim() == "off" {
            return Ok(Self::Off);
        }
        let entries = value.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        entries.map(parse_override).collect::<Result<_, _>>().map(Self::On)
    }
}

fn parse_override(text: &str) -> Result<(&'static str, Quota), String> {
    let invalid = || format!("`{text}` is not like user=40/2s");
    let (name, rest) = text.split_once('=').ok_or_else(invalid)?;
    let (count, window) = rest.split_once('/').ok_or_else(invalid)?;
    let count: u32 = count.trim().parse().map_err(|_| invalid())?;
    let window = settings::duration(window.trim()).map_err(|_| invalid())?;
    let whole = window.subsec_nanos() == 0 && !window.is_zero() && window <= MAX_WINDOW;
    if !whole || !(1..=MAX_COUNT).contains(&count) {
        return Err(format!("`{text}`: 1..{MAX_COUNT} in whole seconds, up to a day"));
    }
    let policy = POLICIES.iter().find(|policy| policy.name == name.trim());
    policy.map(|policy| (policy.name, Quota { count, window })).ok_or_else(|| {
        let names: Vec<&str> = POLICIES.iter().map(|policy| policy.name).collect();
        format!("`{name}` is no policy; there are {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_overridden_by_name() {
        let limits: RateLimits = "user=7/3s, login=5/1m".parse().unwrap();
        let policies = limits.policies();
        assert_eq!(policies[0].quota, quota(7, 3));
        assert_eq!(policies[1].quota, POLICIES[1].quota);
        assert_eq!(policies[2].quota, quota(5, 60));
    }

    #[test]
    fn off_lifts_all_limits_and_an_empty_value_none() {
        assert!("off".parse::<RateLimits>().unwrap().policies().is_empty());
        assert_eq!("".parse::<RateLimits>().unwrap().policies().len(), POLICIES.len());
    }

    #[test]
    fn an_invalid_override_is_refused() {
        for odd in
            ["user", "user=", "user=40", "user=40/", "user=0/2s", "user=-1/2s", "user=40/500ms", "king=1/1s"]
        {
            assert!(odd.parse::<RateLimits>().is_err(), "{odd}");
        }
    }
}
