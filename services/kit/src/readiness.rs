//! Whether a process can serve: what it depends on, asked again and again.
//!
//! A dependency that is down is logged here, with the reason: at once, and then once a minute for as long as it lasts.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinHandle};

use crate::{log_throttle::LogThrottle, tasks::Tasks};

/// How often a dependency is asked: `/readyz` must tell the truth within 5 s, either way.
const INTERVAL: Duration = Duration::from_secs(1);
/// A dependency that takes longer than this to answer does not.
const PATIENCE: Duration = Duration::from_millis(1500);
/// The uptime of a dependency after which its failure is logged at once; one that comes and goes is logged once a
/// minute.
const STABLE_AFTER: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Without it the process can answer nothing; gRPC health turns to NOT_SERVING.
    Vital,
    /// Without it some things are slower or refused.
    Useful,
}

/// The reason for which a dependency does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Down {
    /// The kind of failure: each has a line of its own in the log.
    pub class: &'static str,
    /// A few words for `/readyz`, without addresses or texts of servers.
    pub reason: String,
    /// The same reason for the log.
    pub detail: String,
}

impl Down {
    /// A class that says all there is to say.
    pub fn because(class: &'static str) -> Self {
        Self { class, reason: class.to_owned(), detail: String::new() }
    }
}

/// The outcome of a check.
pub trait Outcome: Send + 'static {
    fn outcome(self) -> Result<(), Down>;
}

impl Outcome for Result<(), Down> {
    fn outcome(self) -> Self {
        self
    }
}

impl Outcome for bool {
    fn outcome(self) -> Result<(), Down> {
        if self { Ok(()) } else { Err(Down::because("no answer")) }
    }
}

#[derive(Debug)]
struct Check {
    need: Need,
    state: State,
    failures: BTreeMap<&'static str, LogThrottle>,
    /// Records that a line said that it is down, and none since that it is up.
    logged: bool,
}

#[derive(Debug)]
enum State {
    /// A dependency that is not asked yet.
    Starting,
    Up {
        since: Instant,
    },
    Down(Down),
}

impl Check {
    fn new(need: Need) -> Self {
        Self { need, state: State::Starting, failures: BTreeMap::new(), logged: false }
    }

    fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }
}

/// The state of a process's dependencies; cheap to clone.
#[derive(Clone, Debug)]
pub struct Readiness {
    checks: Arc<Mutex<BTreeMap<&'static str, Check>>>,
    serving: Arc<watch::Sender<bool>>,
    stopping: Arc<watch::Sender<bool>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            checks: Arc::default(),
            serving: Arc::new(watch::channel(false).0),
            stopping: Arc::new(watch::channel(false).0),
        }
    }
}

impl Readiness {
    /// Asks `ask` for its opinion every second; down until it first says yes.
    pub fn watch<F, Fut>(&self, tasks: &Tasks, name: &'static str, need: Need, ask: F)
    where
        F: Fn() -> Fut + Send + 'static,
        Fut: Future<Output: Outcome> + Send + 'static,
    {
        self.expect(name, need);
        let (readiness, stop) = (self.clone(), tasks.stopping());
        tasks.spawn(name, async move {
            let mut pending: Option<JoinHandle<Fut::Output>> = None;
            while !stop.is_cancelled() {
                // In a task of its own: a query that is slow must not be dropped half-way. One that is slower than this
                // round is waited for in the next, as more of them would make it slower.
                let mut asked = pending.take().unwrap_or_else(|| tokio::spawn(ask()));
                let outcome = match tokio::time::timeout(PATIENCE, &mut asked).await {
                    Ok(Ok(answer)) => answer.outcome(),
                    Ok(Err(_)) => Err(Down::because("the check failed")),
                    Err(_) => {
                        pending = Some(asked);
                        // The known cause says more than the fact that it lasts.
                        Err(readiness.last_down(name).unwrap_or_else(|| Down::because("no answer in time")))
                    }
                };
                readiness.report(name, need, outcome);
                tokio::select! {
                    () = tokio::time::sleep(INTERVAL) => {}
                    () = stop.cancelled() => {}
                }
            }
            Ok(())
        });
    }

    /// Names a dependency that is not known to be up yet.
    pub fn expect(&self, name: &'static str, need: Need) {
        metrics::gauge!("dependency_up", "dependency" => name).set(0.0);
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        checks.entry(name).or_insert_with(|| Check::new(need));
        self.update(&checks);
    }

    /// Records the state of a dependency, for a caller that learns of it by itself. One that is down at first is
    /// starting.
    pub fn set(&self, name: &'static str, need: Need, up: bool) {
        let known = self.checks.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name);
        if up || known { self.report(name, need, up.outcome()) } else { self.expect(name, need) }
    }

    /// Records the state of a dependency, and the reason where it is down.
    pub fn report(&self, name: &'static str, need: Need, outcome: Result<(), Down>) {
        metrics::gauge!("dependency_up", "dependency" => name).set(if outcome.is_ok() { 1.0 } else { 0.0 });
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        let check = checks.entry(name).or_insert_with(|| Check::new(need));
        match outcome {
            Ok(()) => {
                if !check.is_up() {
                    check.state = State::Up { since: Instant::now() };
                    if std::mem::take(&mut check.logged) {
                        tracing::info!(dependency = name, "dependency answers");
                    }
                }
            }
            Err(down) => {
                if matches!(check.state, State::Up { since } if since.elapsed() >= STABLE_AFTER) {
                    check.failures.clear();
                }
                if check.failures.entry(down.class).or_default().admit().is_some() {
                    check.logged = true;
                    let (reason, detail) = (&down.reason, &down.detail);
                    tracing::warn!(dependency = name, reason, detail, "dependency does not answer");
                }
                check.state = State::Down(down);
            }
        }
        self.update(&checks);
    }

    fn last_down(&self, name: &str) -> Option<Down> {
        let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        match &checks.get(name)?.state {
            State::Down(down) => Some(down.clone()),
            State::Starting | State::Up { .. } => None,
        }
    }

    fn update(&self, checks: &BTreeMap<&'static str, Check>) {
        let vital = checks.values().all(|check| check.is_up() || check.need == Need::Useful);
        let serving = vital && !self.is_stopping();
        self.serving.send_if_modified(|before| std::mem::replace(before, serving) != serving);
    }

    /// From now on this process is not ready, whatever its dependencies say.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
        self.serving.send_replace(false);
    }

    /// Whether [`Self::stop`] was called.
    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// What stands in the way of being ready; empty when ready.
    pub fn missing(&self) -> Vec<&'static str> {
        self.missing_where(|_| true)
    }

    /// What stands in the way of answering at all.
    pub fn missing_vital(&self) -> Vec<&'static str> {
        self.missing_where(|need| need == Need::Vital)
    }

    fn missing_where(&self, counts: impl Fn(Need) -> bool) -> Vec<&'static str> {
        if self.is_stopping() {
            return vec!["stopping"];
        }
        let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        checks
            .iter()
            .filter(|(_, check)| !check.is_up() && counts(check.need))
            .map(|(name, _)| *name)
            .collect()
    }

    /// Returns [`Self::missing`], or [`Self::missing_vital`], each with the reason in brackets.
    pub fn missing_with_reasons(&self, only_vital: bool) -> Vec<String> {
        let names = if only_vital { self.missing_vital() } else { self.missing() };
        let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        let with_reason = |name: &'static str| match checks.get(name).map(|check| &check.state) {
            Some(State::Down(down)) => format!("{name} ({})", down.reason),
            Some(State::Starting) => format!("{name} (starting)"),
            Some(State::Up { .. }) | None => name.to_owned(),
        };
        names.into_iter().map(with_reason).collect()
    }

    /// Whether requests can be answered at all.
    pub fn serving(&self) -> watch::Receiver<bool> {
        self.serving.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_vital_stands_in_the_way_of_serving() {
        let readiness = Readiness::default();
        let serving = readiness.serving();
        readiness.set("postgres", Need::Vital, true);
        readiness.set("redis", Need::Useful, false);
        assert!(*serving.borrow());
        assert_eq!((readiness.missing(), readiness.missing_vital()), (vec!["redis"], vec![]));
        readiness.set("postgres", Need::Vital, false);
        assert!(!*serving.borrow());
        readiness.set("postgres", Need::Vital, true);
        readiness.stop();
        assert!(!*serving.borrow());
        assert_eq!(readiness.missing_vital(), ["stopping"]);
        readiness.set("redis", Need::Useful, true);
        assert!(!*serving.borrow(), "nothing brings a stopping process back");
    }

    #[test]
    fn a_dependency_that_is_down_is_told_with_its_reason() {
        let readiness = Readiness::default();
        readiness.set("keys", Need::Vital, false);
        readiness.report("redis", Need::Useful, Err(Down::because("feed 3: timed out")));
        assert_eq!(readiness.missing_with_reasons(false), ["keys (starting)", "redis (feed 3: timed out)"]);
        assert_eq!(readiness.missing_with_reasons(true), ["keys (starting)"]);
        readiness.set("keys", Need::Vital, true);
        readiness.report("redis", Need::Useful, Ok(()));
        assert!(readiness.missing_with_reasons(false).is_empty());
        readiness.set("keys", Need::Vital, false);
        assert_eq!(readiness.missing_with_reasons(true), ["keys (no answer)"]);
    }

    #[tokio::test]
    async fn a_check_that_hangs_is_down_and_is_not_begun_a_second_time() {
        let ((tasks, _ended), readiness) = (Tasks::new(), Readiness::default());
        let (begun, counted) =
            (Arc::new(std::sync::atomic::AtomicUsize::new(0)), std::sync::atomic::Ordering::SeqCst);
        let (begun_here, (go_on, gate)) = (begun.clone(), watch::channel(false));
        readiness.watch(&tasks, "slow", Need::Vital, move || {
            begun_here.fetch_add(1, counted);
            let mut gate = gate.clone();
            async move { gate.wait_for(|open| *open).await.is_ok() }
        });
        let told = || readiness.missing_with_reasons(true);
        tokio::time::timeout(PATIENCE * 4, async {
            while told() != ["slow (no answer in time)"] {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            tokio::time::sleep(INTERVAL + PATIENCE / 2).await;
            assert_eq!(begun.load(counted), 1);
            go_on.send_replace(true);
            readiness.serving().wait_for(|serving| *serving).await.unwrap();
        })
        .await
        .unwrap();
        tasks.stop().await;
    }
}
