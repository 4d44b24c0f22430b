//! Limits that hold over all gateways, kept in Redis, by Redis's clock. All requests that wait are asked about
//! together, in one round trip; those of one caller cost one key. A Redis that does not answer is
//! left alone for a while, so that not every request waits for it.

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

use super::{Set, Subject, Verdict};

const SOURCE: &str = include_str!("gcra.lua");
/// A request does not wait longer than this for Redis, which answers in under a millisecond.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long Redis is left alone after it did not answer; then one request asks it again.
const REST: Duration = Duration::from_secs(1);
/// Requests asked about in one step: Redis does nothing else meanwhile.
const ROUND: usize = 128;
/// Steps on their way at the same time.
const WORKERS: usize = 2;
/// Requests that wait to be asked about; more are counted by this gateway alone.
const WAITING: usize = 4096;

/// Who is counted, and by which policies: requests are equal where both are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Who(Subject, usize);

/// A request that waits.
#[derive(Debug)]
struct Ask {
    set: Arc<Set>,
    subject: Subject,
    answer: oneshot::Sender<Option<Vec<Verdict>>>,
}

#[derive(Debug)]
pub struct Global {
    queue: mpsc::Sender<Ask>,
    link: Arc<Link>,
}

#[derive(Debug)]
struct Link {
    redis: Client,
    script: Script,
    start: Instant,
    /// Milliseconds since the start until which Redis is left alone; 0 while it answers.
    rest_until: AtomicU64,
}

impl Global {
    pub fn start(redis: Client, tasks: &Tasks) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING);
        let link = Link {
            redis,
            script: Script::from_lua(SOURCE),
            start: Instant::now(),
            rest_until: AtomicU64::new(0),
        };
        let (link, waiting) = (Arc::new(link), Arc::new(Mutex::new(waiting)));
        for _ in 0..WORKERS {
            let (link, waiting, stopping) = (link.clone(), waiting.clone(), tasks.stopping());
            tasks.spawn("limits", async move {
                tokio::select! {
                    () = work(&link, &waiting) => {}
                    () = stopping.cancelled() => {}
                }
                Ok(())
            });
        }
        Link::degraded(false);
        Self { queue, link }
    }

    /// `None` where Redis does not answer.
    pub async fn check(&self, set: &Arc<Set>, subject: Subject) -> Option<Vec<Verdict>> {
        if self.link.rests() {
            return None;
        }
        let (answer, verdicts) = oneshot::channel();
        self.queue.try_send(Ask { set: set.clone(), subject, answer }).ok()?;
        verdicts.await.ok().flatten()
    }
}

async fn work(link: &Link, waiting: &Mutex<mpsc::Receiver<Ask>>) {
    let mut round = Vec::with_capacity(ROUND);
    while waiting.lock().await.recv_many(&mut round, ROUND).await > 0 {
        let mut groups = HashMap::<Who, Vec<Ask>>::new();
        for ask in round.drain(..) {
            groups.entry(Who(ask.subject, Arc::as_ptr(&ask.set).addr())).or_default().push(ask);
        }
        link.answer(groups.into_values().collect()).await;
    }
}

impl Link {
    /// Answers groups of equal requests.
    async fn answer(&self, groups: Vec<Vec<Ask>>) {
        let decided = if self.may_ask() { self.decide(&groups).await } else { None };
        let mut decided = decided.into_iter().flatten();
        for group in groups {
            let decision = decided.next();
            for (place, ask) in (0..).zip(group) {
                let verdicts = decision.as_ref().map(|decision| decision.verdicts(place));
                // Nobody listens where the client hung up.
                let _ = ask.answer.send(verdicts);
            }
        }
    }

    async fn decide(&self, groups: &[Vec<Ask>]) -> Option<Vec<Decision>> {
        let questions = groups.iter().filter_map(|group| {
            let Ask { set, subject, .. } = group.first()?;
            Some(Question { set, subject: *subject, requests: group.len() })
        });
        match self.ask(&questions.collect::<Vec<_>>()).await {
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

    /// Whether Redis is being left alone.
    fn rests(&self) -> bool {
        self.rest_until.load(Ordering::Relaxed) > self.now()
    }

    /// Always while Redis answers; while it does not, once each time it has rested.
    fn may_ask(&self) -> bool {
        let (until, now) = (self.rest_until.load(Ordering::Relaxed), self.now());
        until == 0
            || (until <= now
                && self
                    .rest_until
                    .compare_exchange(until, now + millis(REST), Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok())
    }

    async fn ask(&self, questions: &[Question<'_>]) -> anyhow::Result<Vec<Decision>> {
        // A command would wait for a connection that is being made; a request does not.
        anyhow::ensure!(self.redis.is_connected(), "not connected");
        // In a cluster the keys of one command are those of one caller.
        let steps = if self.redis.is_clustered() { 1 } else { questions.len() };
        let asked = try_join_all(questions.chunks(steps).map(|questions| self.step(questions)));
        Ok(tokio::time::timeout(PATIENCE, asked).await??.into_iter().flatten().collect())
    }

    async fn step(&self, questions: &[Question<'_>]) -> anyhow::Result<Vec<Decision>> {
        let (mut keys, mut arguments) = (Vec::new(), Vec::new());
        for question in questions {
            let count = |of: usize| i64::try_from(of).unwrap_or_default();
            let Question { set, subject, requests } = *question;
            arguments.extend([count(set.policies.len()), count(requests)]);
            for policy in &set.policies {
                // The braces make a caller's keys one slot of a cluster.
                keys.push(format!("rate:{{{subject}}}:{}", policy.name));
                let window = policy.quota.window;
                arguments.extend([micros(window / policy.quota.count), micros(window)]);
            }
        }
        // By its hash; a Redis that has just been started is sent the script itself.
        let answer: Vec<i64> = self.script.evalsha_with_reload(&self.redis, keys, arguments).await?;
        let mut answer = answer.into_iter();
        let decisions =
            questions.iter().map(|question| Decision::read(question.set.policies.len(), &mut answer));
        decisions.collect::<Option<_>>().ok_or_else(|| anyhow::anyhow!("half an answer"))
    }

    fn degraded(degraded: bool) {
        metrics::gauge!("rate_limit_degraded").set(if degraded { 1.0 } else { 0.0 });
    }

    fn now(&self) -> u64 {
        millis(self.start.elapsed()).max(1)
    }
}

/// What is asked about a group of equal requests.
#[derive(Clone, Copy)]
struct Question<'a> {
    set: &'a Set,
    subject: Subject,
    requests: usize,
}

/// What was decided about a group of equal requests.
#[derive(Debug)]
struct Decision {
    let_in: i64,
    /// Of each policy, after those that were let in.
    states: Vec<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    remaining: i64,
    next_in: Duration,
    whole_in: Duration,
}

impl Decision {
    fn read(policies: usize, answer: &mut impl Iterator<Item = i64>) -> Option<Self> {
        let let_in = answer.next()?;
        let duration = |micros: i64| Duration::from_micros(u64::try_from(micros).unwrap_or_default());
        let states = (0..policies).map(|_| {
            let (remaining, next_in, whole_in) = (answer.next()?, answer.next()?, answer.next()?);
            Some(State { remaining, next_in: duration(next_in), whole_in: duration(whole_in) })
        });
        Some(Self { let_in, states: states.collect::<Option<_>>()? })
    }

    /// For the request at this place of the group, from 0.
    fn verdicts(&self, place: i64) -> Vec<Verdict> {
        let let_in = place < self.let_in;
        let behind = if let_in { self.let_in - 1 - place } else { 0 };
        let verdict = |state: &State| Verdict {
            let_in: let_in || state.remaining > 0,
            remaining: u32::try_from(state.remaining + behind).unwrap_or_default(),
            next_in: if let_in { Duration::ZERO } else { state.next_in },
            whole_in: state.whole_in,
        };
        self.states.iter().map(verdict).collect()
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
    fn the_first_of_equal_requests_are_let_in_first() {
        // Two of three, by a quota of 10 in 1 s; the second policy would take many more.
        let answer = [2, 0, 100_000, 1_000_000, 50, 0, 20_000];
        let decision = Decision::read(2, &mut answer.into_iter()).unwrap();
        let at =
            |place| decision.verdicts(place).into_iter().map(|verdict| (verdict.let_in, verdict.remaining));
        assert_eq!(at(0).collect::<Vec<_>>(), [(true, 1), (true, 51)]);
        assert_eq!(at(1).collect::<Vec<_>>(), [(true, 0), (true, 50)]);
        assert_eq!(at(2).collect::<Vec<_>>(), [(false, 0), (true, 50)]);
        assert_eq!(decision.verdicts(2)[0].next_in, Duration::from_millis(100));
        assert_eq!(decision.verdicts(1)[0].next_in, Duration::ZERO);
        assert!(Decision::read(2, &mut [2, 0].into_iter()).is_none());
    }
}
