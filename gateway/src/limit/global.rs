//! Limits that hold over all gateways, kept in Redis: one round trip a request, by Redis's clock. A Redis
//! that does not answer is left alone for a while, so that not every request waits for it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use fred::{clients::Client, interfaces::ClientLike as _, types::scripts::Script};
use tokio::time::Instant;

use super::{Subject, Verdict, policy::Policy};

const SOURCE: &str = include_str!("gcra.lua");
/// A request does not wait longer than this for Redis, which answers in under a millisecond.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long Redis is left alone after it did not answer; then one request asks it again.
const REST: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Global {
    redis: Client,
    script: Script,
    start: Instant,
    /// Milliseconds since the start until which Redis is left alone; 0 while it answers.
    rest_until: AtomicU64,
}

impl Global {
    pub fn new(redis: Client) -> Self {
        let global = Self {
            redis,
            script: Script::from_lua(SOURCE),
            start: Instant::now(),
            rest_until: AtomicU64::new(0),
        };
        Self::degraded(false);
        global
    }

    /// `None` where Redis does not answer.
    pub async fn check(&self, policies: &[&Policy], subject: Subject) -> Option<Vec<Verdict>> {
        if !self.may_ask() {
            return None;
        }
        match self.ask(policies, subject).await {
            Ok(answer) => {
                if self.rest_until.swap(0, Ordering::Relaxed) != 0 {
                    tracing::info!("limits hold over all gateways again");
                    Self::degraded(false);
                }
                Some(answer)
            }
            Err(error) => {
                if self.rest_until.swap(self.now() + millis(REST), Ordering::Relaxed) == 0 {
                    tracing::warn!(%error, "Redis does not answer: limits are kept per gateway");
                    Self::degraded(true);
                }
                None
            }
        }
    }

    /// Always while Redis answers; while it does not, for one request each time it has rested.
    fn may_ask(&self) -> bool {
        let (until, now) = (self.rest_until.load(Ordering::Relaxed), self.now());
        until == 0
            || (until <= now
                && self
                    .rest_until
                    .compare_exchange(until, now + millis(REST), Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok())
    }

    async fn ask(&self, policies: &[&Policy], subject: Subject) -> anyhow::Result<Vec<Verdict>> {
        // The braces make the keys one slot of a Redis Cluster.
        let keys: Vec<String> =
            policies.iter().map(|policy| format!("rate:{{{subject}}}:{}", policy.name)).collect();
        let times: Vec<i64> = policies
            .iter()
            .flat_map(|policy| {
                let window = policy.quota.window;
                [micros(window / policy.quota.count), micros(window)]
            })
            .collect();
        // A command would wait for a connection that is being made; the request does not.
        anyhow::ensure!(self.redis.is_connected(), "not connected");
        // By its hash; a Redis that has just been started is sent the script itself.
        let asked = self.script.evalsha_with_reload(&self.redis, keys, times);
        let answer: Vec<i64> = tokio::time::timeout(PATIENCE, asked).await??;
        Ok(answer.chunks_exact(4).map(verdict).collect())
    }

    fn degraded(degraded: bool) {
        metrics::gauge!("rate_limit_degraded").set(if degraded { 1.0 } else { 0.0 });
    }

    fn now(&self) -> u64 {
        millis(self.start.elapsed()).max(1)
    }
}

fn verdict(answer: &[i64]) -> Verdict {
    let duration = |micros: i64| Duration::from_micros(u64::try_from(micros).unwrap_or_default());
    Verdict {
        let_in: answer[0] == 1,
        remaining: u32::try_from(answer[1]).unwrap_or_default(),
        next_in: duration(answer[2]),
        whole_in: duration(answer[3]),
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
