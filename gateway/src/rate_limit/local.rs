//! The gateway's own record of rate limits, in bounded memory: the algorithm of `gcra.lua` on the gateway's clock. It
//! follows the counters in Redis, and replaces them while Redis is unavailable.
//!
//! A caller with over half of its quota left does not wait for Redis, which counts the request after its admission
//! (write-behind). At most one fortieth of a quota is admitted and not yet counted. So two gateways with old records
//! exceed a limit by a twentieth at most.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
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

/// The part of a quota that may be admitted before Redis counts it: one fortieth.
const UNCOUNTED_DIVISOR: u32 = 40;

/// A caller's bucket of one policy.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// The theoretical arrival time: the time at which the bucket is full again.
    tat: Duration,
    /// Admitted requests that Redis has not counted yet.
    uncounted: u32,
}

type Buckets = HashMap<(&'static str, RateLimitKey), Bucket>;

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
        let mut buckets = self.lock_shard(key);
        let steps = decide_all(&buckets, policies, key, now);
        if steps.iter().all(|(decision, _)| decision.allowed) {
            evict(&mut buckets, now);
            for (policy, (_, bucket)) in policies.iter().zip(&steps) {
                buckets.insert((policy.name, key), *bucket);
            }
        }
        steps.into_iter().map(|(decision, _)| decision).collect()
    }

    /// Admits a request that Redis counts later, see [`Self::record`]. Returns `None` if Redis has to decide.
    pub fn admit_uncounted(
        &self,
        policies: &[Policy],
        key: RateLimitKey,
        now: Duration,
    ) -> Option<Vec<Decision>> {
        let may_be_late =
            |policy: &Policy| !policy.anti_bruteforce && policy.quota.count >= UNCOUNTED_DIVISOR;
        if !policies.iter().all(may_be_late) {
            return None;
        }
        let mut buckets = self.lock_shard(key);
        let steps = decide_all(&buckets, policies, key, now);
        let is_far_from_limit = |(policy, (decision, bucket)): (&Policy, &(Decision, Bucket))| {
            decision.remaining >= policy.quota.count / 2
                && bucket.uncounted < policy.quota.count / UNCOUNTED_DIVISOR
        };
        if !policies.iter().zip(&steps).all(is_far_from_limit) {
            return None;
        }
        evict(&mut buckets, now);
        for (policy, (_, bucket)) in policies.iter().zip(&steps) {
            let bucket = Bucket { uncounted: bucket.uncounted + 1, ..*bucket };
            buckets.insert((policy.name, key), bucket);
        }
        Some(steps.into_iter().map(|(decision, _)| decision).collect())
    }

    /// Records that Redis has counted `counted` requests of [`Self::admit_uncounted`], and the times after which the
    /// buckets in Redis are full again. `None` for the times: Redis did not answer, and the requests remain counted here.
    pub fn record(
        &self,
        policies: &[Policy],
        key: RateLimitKey,
        counted: u32,
        resets: Option<&[Duration]>,
        now: Duration,
    ) {
        let mut buckets = self.lock_shard(key);
        evict(&mut buckets, now);
        for (index, policy) in policies.iter().enumerate() {
            let bucket = buckets.entry((policy.name, key)).or_default();
            bucket.uncounted = bucket.uncounted.saturating_sub(counted);
            if let Some(reset) = resets.and_then(|resets| resets.get(index)) {
                bucket.tat = now + *reset + policy.quota.window / policy.quota.count * bucket.uncounted;
            }
        }
    }

    fn lock_shard(&self, key: RateLimitKey) -> MutexGuard<'_, Buckets> {
        let shard = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or_default();
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the decision of each policy, and its bucket if the request is admitted.
fn decide_all(
    buckets: &Buckets,
    policies: &[Policy],
    key: RateLimitKey,
    now: Duration,
) -> Vec<(Decision, Bucket)> {
    let step = |policy: &Policy| {
        let bucket = buckets.get(&(policy.name, key)).copied().unwrap_or_default();
        let (decision, tat) = decide(policy, bucket.tat.max(now), now);
        (decision, Bucket { tat, ..bucket })
    };
    policies.iter().map(step).collect()
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
    buckets.retain(|_, bucket| bucket.tat > now || bucket.uncounted > 0);
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
    fn redis_counts_an_admitted_request_before_the_next_is_admitted_without_it() {
        let (limiter, policies, now) = (LocalLimiter::default(), [POLICIES[0]], Duration::from_secs(100));
        let admit =
            |now| limiter.admit_uncounted(&policies, user(1), now).map(|decisions| decisions[0].remaining);
        assert_eq!(admit(now), Some(39), "an unknown caller has the whole quota");
        assert_eq!(admit(now), None);
        limiter.record(&policies, user(1), 1, Some(&[Duration::from_millis(50)]), now);
        assert_eq!(admit(now), Some(38));
        limiter.record(&policies, user(1), 1, None, now);
        assert_eq!(admit(now), Some(37), "a request that Redis did not count remains counted here");
    }

    #[test]
    fn a_caller_near_its_limit_is_left_to_redis() {
        let (policies, now) = ([POLICIES[0]], Duration::from_secs(100));
        // Other gateways have admitted so many requests that the bucket is full again after this time.
        let admit_with_reset = |milliseconds| {
            let limiter = LocalLimiter::default();
            limiter.record(&policies, user(1), 0, Some(&[Duration::from_millis(milliseconds)]), now);
            limiter.admit_uncounted(&policies, user(1), now)
        };
        assert_eq!(admit_with_reset(950).map(|decisions| decisions[0].remaining), Some(20));
        assert!(admit_with_reset(1000).is_none(), "less than half of the quota would remain");
    }

    #[test]
    fn small_quotas_and_passwords_are_left_to_redis() {
        let limiter = LocalLimiter::default();
        for policy in [POLICIES[2], POLICIES[3]] {
            let policies = [POLICIES[1], policy];
            assert!(limiter.admit_uncounted(&policies, user(1), Duration::ZERO).is_none(), "{}", policy.name);
        }
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
