//! Rate limits over all gateways: counters in Redis, on the clock of Redis. One round trip carries all pending checks,
//! and equal requests of one caller share one entry. A circuit breaker in front of Redis keeps requests from waiting
//! for a Redis that does not answer.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fred::{clients::Client, interfaces::ClientLike as _, types::scripts::Script};
use futures_util::future::try_join_all;
use shoppee_kit::tasks::Tasks;
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::Instant,
};

use super::{Decision, PolicySet, RateLimitKey};

const SCRIPT: &str = include_str!("gcra.lua");
/// Bounds the wait of a request for Redis, which answers in under a millisecond.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(200);
/// The time for which the circuit breaker stays open; then one batch probes Redis.
const BREAKER_OPEN_FOR: Duration = Duration::from_secs(1);
/// Checks in one run of the script: Redis does nothing else meanwhile.
const BATCH_SIZE: usize = 128;
const MAX_IN_FLIGHT_BATCHES: usize = 2;
/// Pending checks; the gateway counts further requests by itself.
const QUEUE_CAPACITY: usize = 4096;

/// A request that waits for its decisions.
#[derive(Debug)]
struct PendingCheck {
    policies: Arc<PolicySet>,
    key: RateLimitKey,
    reply: oneshot::Sender<Option<Vec<Decision>>>,
}

/// The buckets that a request is counted in. Requests with the same buckets are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct BucketKey {
    key: RateLimitKey,
    /// The address of the policy set.
    policies: usize,
}

impl From<&PendingCheck> for BucketKey {
    fn from(check: &PendingCheck) -> Self {
        Self { key: check.key, policies: Arc::as_ptr(&check.policies).addr() }
    }
}

#[derive(Debug)]
pub struct RedisLimiter {
    queue: mpsc::Sender<PendingCheck>,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    redis: Client,
    script: Script,
    start: Instant,
    /// The end of the circuit breaker's open state, in milliseconds since the start; 0 while it is closed.
    open_until: AtomicU64,
}

impl RedisLimiter {
    pub fn start(redis: Client, tasks: &Tasks) -> Self {
        let (queue, pending) = mpsc::channel(QUEUE_CAPACITY);
        let script = Script::from_lua(SCRIPT);
        let inner = Inner { redis, script, start: Instant::now(), open_until: AtomicU64::new(0) };
        let (inner, pending) = (Arc::new(inner), Arc::new(Mutex::new(pending)));
        for _ in 0..MAX_IN_FLIGHT_BATCHES {
            let (inner, pending, shutdown) = (inner.clone(), pending.clone(), tasks.shutdown_token());
            tasks.spawn("rate limits", async move {
                tokio::select! {
                    () = run_batches(&inner, &pending) => {}
                    () = shutdown.cancelled() => {}
                }
                Ok(())
            });
        }
        set_degraded(false);
        Self { queue, inner }
    }

    /// Returns a decision per policy; `None` if Redis does not answer.
    pub async fn check(&self, policies: &Arc<PolicySet>, key: RateLimitKey) -> Option<Vec<Decision>> {
        if self.inner.is_open() {
            return None;
        }
        let (reply, decisions) = oneshot::channel();
        self.queue.try_send(PendingCheck { policies: policies.clone(), key, reply }).ok()?;
        decisions.await.ok().flatten()
    }
}

async fn run_batches(inner: &Inner, pending: &Mutex<mpsc::Receiver<PendingCheck>>) {
    let mut batch = Vec::with_capacity(BATCH_SIZE);
    while pending.lock().await.recv_many(&mut batch, BATCH_SIZE).await > 0 {
        let mut groups = HashMap::<BucketKey, Vec<PendingCheck>>::new();
        for check in batch.drain(..) {
            groups.entry(BucketKey::from(&check)).or_default().push(check);
        }
        inner.process(groups.into_values().collect()).await;
    }
}

impl Inner {
    /// Sends each request of the groups its decisions. The requests of a group are equal.
    async fn process(&self, groups: Vec<Vec<PendingCheck>>) {
        let decisions = if self.try_half_open() { self.decide(&groups).await } else { None };
        let mut decisions = decisions.into_iter().flatten();
        for group in groups {
            let decision = decisions.next();
            for (index, check) in (0..).zip(group) {
                // The receiver is gone if the client hung up.
                let _ = check.reply.send(decision.as_ref().map(|decision| decision.to_decisions(index)));
            }
        }
    }

    async fn decide(&self, groups: &[Vec<PendingCheck>]) -> Option<Vec<BatchDecision>> {
        let entries = groups.iter().filter_map(|group| {
            let PendingCheck { policies, key, .. } = group.first()?;
            Some(BatchEntry { policies, key: *key, requests: group.len() })
        });
        match self.run_script(&entries.collect::<Vec<_>>()).await {
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

    /// Reports whether the circuit breaker is open.
    fn is_open(&self) -> bool {
        self.open_until.load(Ordering::Relaxed) > self.now()
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

    async fn run_script(&self, entries: &[BatchEntry<'_>]) -> anyhow::Result<Vec<BatchDecision>> {
        // A command would wait for a connection that is being made; a request does not.
        anyhow::ensure!(self.redis.is_connected(), "not connected");
        // In a cluster, all keys of one script run must be in one slot: those of one caller.
        let size = if self.redis.is_clustered() { 1 } else { entries.len() };
        let runs = try_join_all(entries.chunks(size).map(|entries| self.eval_script(entries)));
        Ok(tokio::time::timeout(REQUEST_TIMEOUT, runs).await??.into_iter().flatten().collect())
    }

    async fn eval_script(&self, entries: &[BatchEntry<'_>]) -> anyhow::Result<Vec<BatchDecision>> {
        let (mut keys, mut arguments) = (Vec::new(), Vec::new());
        for BatchEntry { policies, key, requests } in entries {
            let count = |of: usize| i64::try_from(of).unwrap_or_default();
            arguments.extend([count(policies.policies.len()), count(*requests)]);
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
            entries.iter().map(|entry| BatchDecision::parse(entry.policies.policies.len(), &mut result));
        decisions.collect::<Option<_>>().ok_or_else(|| anyhow::anyhow!("incomplete result of the script"))
    }

    fn now(&self) -> u64 {
        millis(self.start.elapsed()).max(1)
    }
}

fn set_degraded(degraded: bool) {
    metrics::gauge!("rate_limit_degraded").set(if degraded { 1.0 } else { 0.0 });
}

/// A group of equal requests in a batch.
#[derive(Clone, Copy)]
struct BatchEntry<'a> {
    policies: &'a PolicySet,
    key: RateLimitKey,
    requests: usize,
}

/// The script's result for one entry of a batch.
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
