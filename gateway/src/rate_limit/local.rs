//! Rate limits of one gateway, for the time in which Redis is unavailable: the algorithm of `gcra.lua` on the gateway's
//! own clock, in bounded memory.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::{
    Decision, RateLimitKey,
    policy::{Policy, Quota},
};

/// The number of gateways that share an anti-bruteforce quota: without Redis, a gateway does not know the true one.
const ASSUMED_REPLICAS: u32 = 3;
/// Shards keep requests from waiting for one lock.
const SHARDS: usize = 16;
/// About 100 bytes each: 13 MiB over all shards.
const MAX_ENTRIES_PER_SHARD: usize = 8 * 1024;

/// The theoretical arrival time (TAT) of each bucket: the time at which the bucket is full again.
type Buckets = HashMap<(&'static str, RateLimitKey), Duration>;

#[derive(Debug)]
pub struct LocalLimiter {
    hasher: RandomState,
    shards: [Mutex<Buckets>; SHARDS],
}

impl Default for LocalLimiter {
    fn default() -> Self {
        Self { hasher: RandomState::new(), shards: Default::default() }
    }
}

impl LocalLimiter {
    /// Counts a request and returns a decision per policy. `now` is on any clock that begins before the first request.
    pub fn check(&self, policies: &[Policy], key: RateLimitKey, now: Duration) -> Vec<Decision> {
        let shard = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or_default();
        let mut buckets = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        let steps: Vec<(Decision, Duration)> = policies
            .iter()
            .map(|policy| {
                let tat = buckets.get(&(policy.name, key)).copied().unwrap_or_default();
                decide(policy, tat.max(now), now)
            })
            .collect();
        if steps.iter().all(|(decision, _)| decision.allowed) {
            evict(&mut buckets, now);
            for (policy, (_, tat)) in policies.iter().zip(&steps) {
                buckets.insert((policy.name, key), *tat);
            }
        }
        steps.into_iter().map(|(decision, _)| decision).collect()
    }
}

/// Returns the decision of `policy`, and the bucket's next theoretical arrival time.
fn decide(policy: &Policy, tat: Duration, now: Duration) -> (Decision, Duration) {
    let Quota { count, window } = policy.quota;
    let count = if policy.anti_bruteforce { (count / ASSUMED_REPLICAS).max(1) } else { count };
    let interval = window / count;
    let next_tat = tat + interval;
    let allowed = next_tat.saturating_sub(now) <= window;
    let new_tat = if allowed { next_tat } else { tat };
    let reset_after = new_tat.saturating_sub(now);
    let free = window.saturating_sub(reset_after);
    let remaining = free.as_nanos() / interval.as_nanos().max(1);
    let decision = Decision {
        allowed,
        remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
        // Zero for an allowed request.
        retry_after: next_tat.saturating_sub(now).saturating_sub(window),
        reset_after,
    };
    (decision, new_tat)
}

/// Removes full buckets from a shard that has too many entries, and every second entry if that is not enough. A flood
/// from so many addresses is not stopped by limits per address anyway.
fn evict(buckets: &mut Buckets, now: Duration) {
    if buckets.len() < MAX_ENTRIES_PER_SHARD {
        return;
    }
    buckets.retain(|_, tat| *tat > now);
    let mut keep = false;
    if buckets.len() >= MAX_ENTRIES_PER_SHARD {
        buckets.retain(|_, _| {
            keep = !keep;
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate_limit::policy::POLICIES;

    fn user(id: i64) -> RateLimitKey {
        RateLimitKey::User(id)
    }

    #[test]
    fn a_burst_is_followed_by_the_steady_rate() {
        let (limiter, policy) = (LocalLimiter::default(), &POLICIES[0]);
        let allowed_at =
            |now| (0..100).filter(|_| limiter.check(&[*policy], user(1), now)[0].allowed).count();
        let mut now = Duration::from_secs(100);
        assert_eq!(allowed_at(now), 40);
        let refused = limiter.check(&[*policy], user(1), now)[0];
        assert_eq!((refused.remaining, refused.retry_after), (0, Duration::from_millis(50)));
        now += refused.retry_after;
        assert_eq!(allowed_at(now), 1, "retry_after is exact");
        now += policy.quota.window;
        assert_eq!(allowed_at(now), 40);
        assert!(limiter.check(&[*policy], user(2), now)[0].allowed, "another user has a bucket of its own");
    }

    #[test]
    fn a_request_that_one_policy_refuses_is_counted_by_none() {
        let (limiter, anonymous, login) = (LocalLimiter::default(), &POLICIES[1], &POLICIES[2]);
        let allowed = |_: &u32| {
            let decisions = limiter.check(&[*anonymous, *login], user(1), Duration::ZERO);
            decisions.iter().all(|decision| decision.allowed)
        };
        assert_eq!((0..100).filter(allowed).count(), 10, "three gateways share an anti-bruteforce quota");
        assert_eq!(limiter.check(&[*anonymous], user(1), Duration::ZERO)[0].remaining, 60 - 10 - 1);
    }

    #[test]
    fn entries_are_bounded_whatever_the_number_of_callers() {
        let limiter = LocalLimiter::default();
        for id in 0..400_000 {
            limiter.check(&[POLICIES[0]], user(id), Duration::ZERO);
        }
        let entries: usize = limiter.shards.iter().map(|shard| shard.lock().unwrap().len()).sum();
        assert!(entries <= SHARDS * MAX_ENTRIES_PER_SHARD, "{entries}");
    }
}
