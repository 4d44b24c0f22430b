//! Readiness probes: checks the dependencies of a process periodically, and tells whether it can serve.
//!
//! A dependency that is down is logged here with the reason: at once, and then once a minute while it lasts.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinHandle};

use crate::{log_throttle::LogThrottle, tasks::Tasks};

/// The interval between two checks: `/readyz` reports a change within 5 s.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Bounds a check. A dependency that takes longer is down.
const CHECK_TIMEOUT: Duration = Duration::from_millis(1500);
/// The uptime of a dependency after which its failure is logged at once. A flapping dependency is logged once a minute.
const MIN_STABLE_UPTIME: Duration = Duration::from_secs(10);

/// The effect of a failed dependency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Criticality {
    /// The process can answer no request without it; gRPC health turns to NOT_SERVING.
    Required,
    /// Some requests are slower or refused without it.
    Optional,
}

/// The reason for which a dependency is down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Down {
    /// The class of failure; log lines are throttled per class.
    pub class: &'static str,
    /// A short text for `/readyz`, without addresses or messages of servers.
    pub reason: String,
    /// The same reason for the log.
    pub detail: String,
}

impl Down {
    /// Creates a reason that consists of its class alone.
    pub fn new(class: &'static str) -> Self {
        Self { class, reason: class.to_owned(), detail: String::new() }
    }
}

/// The outcome of a check: a bool, or a result with the reason.
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
        if self { Ok(()) } else { Err(Down::new("no answer")) }
    }
}

#[derive(Debug)]
struct Check {
    criticality: Criticality,
    state: State,
    failures: BTreeMap<&'static str, LogThrottle>,
    /// True after a failure was logged, until the recovery is logged.
    logged: bool,
}

#[derive(Debug)]
enum State {
    /// Before the first check.
    Starting,
    Up {
        since: Instant,
    },
    Down(Down),
}

impl Check {
    fn new(criticality: Criticality) -> Self {
        Self { criticality, state: State::Starting, failures: BTreeMap::new(), logged: false }
    }

    fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }
}

/// The state of the dependencies of a process.
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
    /// Runs `probe` every second. The dependency is down until it first succeeds.
    pub fn watch<F, Fut>(&self, tasks: &Tasks, name: &'static str, criticality: Criticality, probe: F)
    where
        F: Fn() -> Fut + Send + 'static,
        Fut: Future<Output: Outcome> + Send + 'static,
    {
        self.register(name, criticality);
        let (readiness, shutdown) = (self.clone(), tasks.shutdown_token());
        tasks.spawn(name, async move {
            let mut pending: Option<JoinHandle<Fut::Output>> = None;
            while !shutdown.is_cancelled() {
                // The probe runs in its own task, as a slow query must not be dropped half-way. A probe that outlasts
                // this round is awaited in the next: starting more of them would slow it down further.
                let mut probe = pending.take().unwrap_or_else(|| tokio::spawn(probe()));
                let outcome = match tokio::time::timeout(CHECK_TIMEOUT, &mut probe).await {
                    Ok(Ok(outcome)) => outcome.outcome(),
                    Ok(Err(_)) => Err(Down::new("the check failed")),
                    Err(_) => {
                        pending = Some(probe);
                        // The last known reason is more specific than a timeout.
                        Err(readiness.last_down(name).unwrap_or_else(|| Down::new("no answer in time")))
                    }
                };
                readiness.report(name, criticality, outcome);
                tokio::select! {
                    () = tokio::time::sleep(CHECK_INTERVAL) => {}
                    () = shutdown.cancelled() => {}
                }
            }
            Ok(())
        });
    }

    /// Registers a dependency that is starting.
    pub fn register(&self, name: &'static str, criticality: Criticality) {
        metrics::gauge!("dependency_up", "dependency" => name).set(0.0);
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        checks.entry(name).or_insert_with(|| Check::new(criticality));
        self.update(&checks);
    }

    /// Records the state of a dependency without a probe. A dependency that is down at first is starting.
    pub fn set(&self, name: &'static str, criticality: Criticality, up: bool) {
        let registered = self.checks.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name);
        if up || registered {
            self.report(name, criticality, up.outcome());
        } else {
            self.register(name, criticality);
        }
    }

    /// Records the state of a dependency, with the reason if it is down.
    pub fn report(&self, name: &'static str, criticality: Criticality, outcome: Result<(), Down>) {
        metrics::gauge!("dependency_up", "dependency" => name).set(if outcome.is_ok() { 1.0 } else { 0.0 });
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        let check = checks.entry(name).or_insert_with(|| Check::new(criticality));
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
                if matches!(check.state, State::Up { since } if since.elapsed() >= MIN_STABLE_UPTIME) {
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
        let required_up =
            checks.values().all(|check| check.is_up() || check.criticality == Criticality::Optional);
        let serving = required_up && !self.is_stopping();
        self.serving.send_if_modified(|before| std::mem::replace(before, serving) != serving);
    }

    /// Makes the process not ready for good, independent of its dependencies.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
        self.serving.send_replace(false);
    }

    /// Returns whether [`Self::stop`] was called.
    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Returns the names of the dependencies that are down.
    pub fn failing(&self) -> Vec<&'static str> {
        self.failing_where(|_| true)
    }

    /// Returns the names of the required dependencies that are down.
    pub fn failing_required(&self) -> Vec<&'static str> {
        self.failing_where(|criticality| criticality == Criticality::Required)
    }

    fn failing_where(&self, counts: impl Fn(Criticality) -> bool) -> Vec<&'static str> {
        if self.is_stopping() {
            return vec!["stopping"];
        }
        let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        checks
            .iter()
            .filter(|(_, check)| !check.is_up() && counts(check.criticality))
            .map(|(name, _)| *name)
            .collect()
    }

    /// Returns [`Self::failing`], or [`Self::failing_required`], each with the reason in brackets.
    pub fn failing_with_reasons(&self, only_required: bool) -> Vec<String> {
        let names = if only_required { self.failing_required() } else { self.failing() };
        let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        let with_reason = |name: &'static str| match checks.get(name).map(|check| &check.state) {
            Some(State::Down(down)) => format!("{name} ({})", down.reason),
            Some(State::Starting) => format!("{name} (starting)"),
            Some(State::Up { .. }) | None => name.to_owned(),
        };
        names.into_iter().map(with_reason).collect()
    }

    /// Returns a channel that tells whether all required dependencies are up.
    pub fn serving(&self) -> watch::Receiver<bool> {
        self.serving.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failing_required_dependency_stops_serving() {
        let readiness = Readiness::default();
        let serving = readiness.serving();
        readiness.set("postgres", Criticality::Required, true);
        readiness.set("redis", Criticality::Optional, false);
        assert!(*serving.borrow());
        assert_eq!((readiness.failing(), readiness.failing_required()), (vec!["redis"], vec![]));
        readiness.set("postgres", Criticality::Required, false);
        assert!(!*serving.borrow());
        readiness.set("postgres", Criticality::Required, true);
        readiness.stop();
        assert!(!*serving.borrow());
        assert_eq!(readiness.failing_required(), ["stopping"]);
        readiness.set("redis", Criticality::Optional, true);
        assert!(!*serving.borrow(), "nothing brings a stopping process back");
    }

    #[test]
    fn a_dependency_that_is_down_is_reported_with_its_reason() {
        let readiness = Readiness::default();
        readiness.set("keys", Criticality::Required, false);
        readiness.report("redis", Criticality::Optional, Err(Down::new("feed 3: timed out")));
        assert_eq!(readiness.failing_with_reasons(false), ["keys (starting)", "redis (feed 3: timed out)"]);
        assert_eq!(readiness.failing_with_reasons(true), ["keys (starting)"]);
        readiness.set("keys", Criticality::Required, true);
        readiness.report("redis", Criticality::Optional, Ok(()));
        assert!(readiness.failing_with_reasons(false).is_empty());
        readiness.set("keys", Criticality::Required, false);
        assert_eq!(readiness.failing_with_reasons(true), ["keys (no answer)"]);
    }

    #[tokio::test]
    async fn a_probe_that_hangs_is_down_and_is_not_started_again() {
        let ((tasks, _failures), readiness) = (Tasks::new(), Readiness::default());
        let (starts, order) =
            (Arc::new(std::sync::atomic::AtomicUsize::new(0)), std::sync::atomic::Ordering::SeqCst);
        let (counter, (open, gate)) = (starts.clone(), watch::channel(false));
        readiness.watch(&tasks, "slow", Criticality::Required, move || {
            counter.fetch_add(1, order);
            let mut gate = gate.clone();
            async move { gate.wait_for(|open| *open).await.is_ok() }
        });
        let failing = || readiness.failing_with_reasons(true);
        tokio::time::timeout(CHECK_TIMEOUT * 4, async {
            while failing() != ["slow (no answer in time)"] {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            tokio::time::sleep(CHECK_INTERVAL + CHECK_TIMEOUT / 2).await;
            assert_eq!(starts.load(order), 1);
            open.send_replace(true);
            readiness.serving().wait_for(|serving| *serving).await.unwrap();
        })
        .await
        .unwrap();
        tasks.stop().await;
    }
}
