//! Rate limits over all gateways: counters in Redis, on the clock of Redis. One round trip carries all pending checks,
//! and equal requests of one caller share one entry. A circuit breaker in front of Redis keeps requests from waiting
//! for a Redis that does not answer.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fred::{clients::Client, interfaces::ClientLike as _, types::scripts::Script};
use futures_util::future::try_join_all;
use shoppee_kit::{
    batch_queue::{BatchQueue, Limits},
    tasks::Tasks,
};
use tokio::time::Instant;

use super::{Decision, PolicySet, RateLimitKey, local::LocalLimiter};

const SCRIPT: &str = include_str!("gcra.lua");
/// Bounds the wait of a request for Redis, which answers in under a millisecond.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(200);
/// The time for which the circuit breaker stays open; then one batch probes Redis.
const BREAKER_OPEN_FOR: Duration = Duration::from_secs(1);
/// A batch is one run of the script: Redis does nothing else meanwhile. Without room in the queue, the gateway counts by
/// itself.
const LIMITS: Limits = Limits { capacity: 4096, batch_size: 128, workers: 2 };

/// A request to count.
#[derive(Clone, Debug)]
struct Check {
    policies: Arc<PolicySet>,
    key: RateLimitKey,
    /// True if the request is admitted already.
    is_admitted: bool,
}

/// The buckets that a request is counted in. Requests with the same buckets are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct BucketKey {
    key: RateLimitKey,
    /// The address of the policy set.
    policies: usize,
}

impl From<&Check> for BucketKey {
    fn from(check: &Check) -> Self {
        Self { key: check.key, policies: Arc::as_ptr(&check.policies).addr() }
    }
}

/// Equal requests of a batch.
#[derive(Debug)]
struct Group {
    policies: Arc<PolicySet>,
    key: RateLimitKey,
    /// The indexes in the batch: first the admitted requests, which Redis counts first.
    requests: VecDeque<usize>,
    admitted: u32,
}

#[derive(Debug)]
pub struct RedisLimiter {
    queue: BatchQueue<Check, Option<Vec<Decision>>>,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    redis: Client,
    script: Script,
    /// Follows the counters in Redis.
    local: Arc<LocalLimiter>,
    start: Instant,
    /// The end of the circuit breaker's open state, in milliseconds since the start; 0 while it is closed.
    open_until: AtomicU64,
}

impl RedisLimiter {
    /// Starts the workers. The times that `local` is given begin at `start`.
    pub fn start(redis: Client, local: Arc<LocalLimiter>, start: Instant, tasks: &Tasks) -> Self {
        let inner = Arc::new(Inner {
            redis,
            script: Script::from_lua(SCRIPT),
            local,
            start,
            open_until: AtomicU64::new(0),
        });
        let processor = inner.clone();
        let queue = BatchQueue::start("rate limits", LIMITS, tasks, move |checks| {
            let inner = processor.clone();
            async move { inner.process(&checks).await }
        });
        set_degraded(false);
        Self { queue, inner }
    }

    /// Counts a request and returns a decision per policy; `None` if Redis does not answer.
    pub async fn check(&self, policies: &Arc<PolicySet>, key: RateLimitKey) -> Option<Vec<Decision>> {
        if self.is_open() {
            return None;
        }
        self.queue.submit(Check { policies: policies.clone(), key, is_admitted: false }).await?
    }

    /// Counts a request that `local` has admitted.
    pub fn count_admitted(&self, policies: &Arc<PolicySet>, key: RateLimitKey) {
        if !self.queue.defer(Check { policies: policies.clone(), key, is_admitted: true }) {
            self.inner.local.record(&policies.policies, key, 1, None, self.inner.start.elapsed());
        }
    }

    /// Reports whether the circuit breaker is open.
    pub fn is_open(&self) -> bool {
        self.inner.open_until.load(Ordering::Relaxed) > self.inner.now()
    }
}

/// Groups equal requests.
fn group(checks: &[Check]) -> Vec<Group> {
    let mut groups = HashMap::<BucketKey, Group>::new();
    for (index, check) in checks.iter().enumerate() {
        let group = groups.entry(BucketKey::from(check)).or_insert_with(|| Group {
            policies: check.policies.clone(),
            key: check.key,
            requests: VecDeque::new(),
            admitted: 0,
        });
        if check.is_admitted {
            group.requests.push_front(index);
            group.admitted += 1;
        } else {
            group.requests.push_back(index);
        }
    }
    groups.into_values().collect()
}

impl Inner {
    /// Returns the decisions on each request of a batch.
    async fn process(&self, checks: &[Check]) -> Vec<Option<Vec<Decision>>> {
        let groups = group(checks);
        let decisions = if self.try_half_open() { self.decide(&groups).await } else { None };
        let mut responses = vec![None; checks.len()];
        let mut decisions = decisions.into_iter().flatten();
        for Group { policies, key, requests, admitted } in groups {
            let decision = decisions.next();
            let resets = decision.as_ref().map(BatchDecision::resets);
            let now = self.start.elapsed();
            self.local.record(&policies.policies, key, admitted, resets.as_deref(), now);
            for (position, index) in (0..).zip(requests) {
                if let Some(response) = responses.get_mut(index) {
                    *response = decision.as_ref().map(|decision| decision.to_decisions(position));
                }
            }
        }
        responses
    }

    async fn decide(&self, groups: &[Group]) -> Option<Vec<BatchDecision>> {
        match self.run_script(groups).await {
            Ok(decisions) => {
                if self.open_until.swap(0, Ordering::Relaxed) != 0 {
                    tracing::info!("Redis answers again: rate limits hold over all gateways");
                    set_degraded(false);
                }
                Some(decisions)
            }
            Err(error) => {
                if self.open_until.swap(self.now() + millis(BREAKER_OPEN_FOR), Ordering::Relaxed) == 0 {
                    tracing::warn!(%error, "Redis does not answer: rate limits are counted per gateway");
                    set_degraded(true);
                }
                None
            }
        }
    }

    /// Reports whether a batch may go to Redis: each while the breaker is closed, one probe per open period otherwise.
    fn try_half_open(&self) -> bool {
        let (until, now) = (self.open_until.load(Ordering::Relaxed), self.now());
        let next = now + millis(BREAKER_OPEN_FOR);
        until == 0
            || (until <= now
                && self
                    .open_until
                    .compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok())
    }

    async fn run_script(&self, groups: &[Group]) -> anyhow::Result<Vec<BatchDecision>> {
        // A command would wait for a connection that is being made; a request does not.
        anyhow::ensure!(self.redis.is_connected(), "not connected");
        // In a cluster, all keys of one script run must be in one slot: those of one caller.
        let size = if self.redis.is_clustered() { 1 } else { groups.len() };
        let runs = try_join_all(groups.chunks(size).map(|groups| self.eval_script(groups)));
        Ok(tokio::time::timeout(REQUEST_TIMEOUT, runs).await??.into_iter().flatten().collect())
    }

    async fn eval_script(&self, groups: &[Group]) -> anyhow::Result<Vec<BatchDecision>> {
        let (mut keys, mut arguments) = (Vec::new(), Vec::new());
        for Group { policies, key, requests, .. } in groups {
            let count = |of: usize| i64::try_from(of).unwrap_or_default();
            arguments.extend([count(policies.policies.len()), count(requests.len())]);
            for policy in &policies.policies {
                // The braces put a caller's keys into one slot of a cluster.
                keys.push(format!("rate:{{{key}}}:{}", policy.name));
                let window = policy.quota.window;
                arguments.extend([micros(window / policy.quota.count), micros(window)]);
            }
        }
        // EVALSHA; a Redis that does not know the script is sent its source.
        let result: Vec<i64> = self.script.evalsha_with_reload(&self.redis, keys, arguments).await?;
        let mut result = result.into_iter();
        let decisions =
            groups.iter().map(|group| BatchDecision::parse(group.policies.policies.len(), &mut result));
        decisions.collect::<Option<_>>().ok_or_else(|| anyhow::anyhow!("incomplete result of the script"))
    }

    fn now(&self) -> u64 {
        millis(self.start.elapsed()).max(1)
    }
}

fn set_degraded(degraded: bool) {
    metrics::gauge!("rate_limit_degraded").set(if degraded { 1.0 } else { 0.0 });
}

/// The script's result for one group of a batch.
#[derive(Debug)]
struct BatchDecision {
    allowed: i64,
    /// The state of each policy's bucket after the allowed requests.
    buckets: Vec<BucketState>,
}

#[derive(Clone, Copy, Debug)]
struct BucketState {
    remaining: i64,
    retry_after: Duration,
    reset_after: Duration,
}

impl BatchDecision {
    fn parse(policies: usize, result: &mut impl Iterator<Item = i64>) -> Option<Self> {
        let allowed = result.next()?;
        let duration = |micros: i64| Duration::from_micros(u64::try_from(micros).unwrap_or_default());
        let buckets = (0..policies).map(|_| {
            let (remaining, retry_after, reset_after) = (result.next()?, result.next()?, result.next()?);
            let (retry_after, reset_after) = (duration(retry_after), duration(reset_after));
            Some(BucketState { remaining, retry_after, reset_after })
        });
        Some(Self { allowed, buckets: buckets.collect::<Option<_>>()? })
    }

    /// Returns the time until each bucket is full again.
    fn resets(&self) -> Vec<Duration> {
        self.buckets.iter().map(|bucket| bucket.reset_after).collect()
    }

    /// Returns a decision per policy for the request with this index in the group.
    fn to_decisions(&self, index: i64) -> Vec<Decision> {
        let allowed = index < self.allowed;
        // Allowed requests of the group that are counted after this one.
        let later = if allowed { self.allowed - 1 - index } else { 0 };
        let decision = |bucket: &BucketState| Decision {
            allowed: allowed || bucket.remaining > 0,
            remaining: u32::try_from(bucket.remaining + later).unwrap_or_default(),
            retry_after: if allowed { Duration::ZERO } else { bucket.retry_after },
            reset_after: bucket.reset_after,
        };
        self.buckets.iter().map(decision).collect()
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate_limit::policy::POLICIES;

    #[test]
    fn admitted_requests_of_a_group_are_the_first() {
        let policies = PolicySet::new(&POLICIES, |policy| policy.name == "user").unwrap();
        let check =
            |id, is_admitted| Check { policies: policies.clone(), key: RateLimitKey::User(id), is_admitted };
        let checks = [check(1, false), check(2, true), check(1, true), check(1, false)];
        let mut groups: Vec<_> = group(&checks)
            .into_iter()
            .map(|group| (group.admitted, group.requests.into_iter().collect::<Vec<_>>()))
            .collect();
        groups.sort_unstable();
        assert_eq!(groups, [(1, vec![1]), (1, vec![2, 0, 3])]);
    }

    #[test]
    fn the_first_requests_of_a_group_are_allowed() {
        // Two of three, by a quota of 10 in 1 s; the second policy would allow many more.
        let result = [2, 0, 100_000, 1_000_000, 50, 0, 20_000];
        let batch = BatchDecision::parse(2, &mut result.into_iter()).unwrap();
        let at = |index| {
            let decisions = batch.to_decisions(index).into_iter();
            decisions.map(|decision| (decision.allowed, decision.remaining)).collect::<Vec<_>>()
        };
        assert_eq!(at(0), [(true, 1), (true, 51)]);
        assert_eq!(at(1), [(true, 0), (true, 50)]);
        assert_eq!(at(2), [(false, 0), (true, 50)]);
        assert_eq!(batch.to_decisions(2)[0].retry_after, Duration::from_millis(100));
        assert_eq!(batch.to_decisions(1)[0].retry_after, Duration::ZERO);
        assert!(BatchDecision::parse(2, &mut [2, 0].into_iter()).is_none());
    }
}
