//! Which limits there are: one line a policy.

use std::{str::FromStr, time::Duration};

use shoppee_kit::settings;

/// So many requests in such a window, all at once or spread. After a burst, the next is let in as soon as the
/// steady rate allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub count: u32,
    pub window: Duration,
}

/// The requests a policy counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those with a good token, per user.
    User,
    /// All others, per address.
    Anonymous,
    /// Those of one route, per address.
    Route(&'static str),
}

#[derive(Clone, Copy, Debug)]
pub struct Policy {
    pub name: &'static str,
    pub quota: Quota,
    pub scope: Scope,
    /// Whether it stands before the guessing of passwords.
    pub guard: bool,
}

/// The table. `RATE_LIMITS` overrides quotas by name.
#[rustfmt::skip]
pub const POLICIES: [Policy; 4] = [
    policy("user",      quota(40, 2),  Scope::User),
    policy("anonymous", quota(60, 2),  Scope::Anonymous),
    guard("login",      quota(30, 60), Scope::Route("/api/v1/auth/login")),
    policy("register",  quota(30, 60), Scope::Route("/api/v1/auth/register")),
];

const fn policy(name: &'static str, quota: Quota, scope: Scope) -> Policy {
    Policy { name, quota, scope, guard: false }
}

const fn guard(name: &'static str, quota: Quota, scope: Scope) -> Policy {
    Policy { name, quota, scope, guard: true }
}

/// A quota that a window can be written with in `RateLimit-Policy`: whole seconds, up to a day.
const LONGEST_WINDOW: Duration = Duration::from_hours(24);
/// Keeps the time between two requests at a microsecond or more.
const MOST: u32 = 1_000_000;

const fn quota(count: u32, seconds: u64) -> Quota {
    Quota { count, window: Duration::from_secs(seconds) }
}

/// The setting `RATE_LIMITS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RateLimits {
    /// None at all, for tests of something else.
    Off,
    /// The table, with other quotas for some.
    On(Vec<(&'static str, Quota)>),
}

impl RateLimits {
    /// The policies in force.
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
        entries.map(entry).collect::<Result<_, _>>().map(Self::On)
    }
}

fn entry(text: &str) -> Result<(&'static str, Quota), String> {
    let wrong = || format!("`{text}` is not like user=40/2s");
    let (name, rest) = text.split_once('=').ok_or_else(wrong)?;
    let (count, window) = rest.split_once('/').ok_or_else(wrong)?;
    let count: u32 = count.trim().parse().map_err(|_| wrong())?;
    let window = settings::duration(window.trim()).map_err(|_| wrong())?;
    let whole = window.subsec_nanos() == 0 && !window.is_zero() && window <= LONGEST_WINDOW;
    if !whole || !(1..=MOST).contains(&count) {
        return Err(format!("`{text}`: 1..{MOST} in whole seconds, up to a day"));
    }
    let known = POLICIES.iter().find(|policy| policy.name == name.trim());
    known.map(|policy| (policy.name, Quota { count, window })).ok_or_else(|| {
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
    fn off_and_nothing_are_different_things() {
        assert!("off".parse::<RateLimits>().unwrap().policies().is_empty());
        assert_eq!("".parse::<RateLimits>().unwrap().policies().len(), POLICIES.len());
    }

    #[test]
    fn nonsense_is_refused() {
        for odd in
            ["user", "user=", "user=40", "user=40/", "user=0/2s", "user=-1/2s", "user=40/500ms", "king=1/1s"]
        {
            assert!(odd.parse::<RateLimits>().is_err(), "{odd}");
        }
    }
}
