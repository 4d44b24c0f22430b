//! Whether a process can serve: what it depends on, asked again and again.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use crate::tasks::Tasks;

/// How often a dependency is asked: `/readyz` must tell the truth within 5 s, either way.
const INTERVAL: Duration = Duration::from_secs(1);
/// A dependency that takes longer than this to answer does not.
const PATIENCE: Duration = Duration::from_millis(1500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Without it the process can answer nothing; gRPC health turns to NOT_SERVING.
    Vital,
    /// Without it some things are slower or refused.
    Useful,
}

#[derive(Clone, Debug)]
struct Check {
    need: Need,
    up: bool,
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
        Fut: Future<Output = bool> + Send + 'static,
    {
        self.set(name, need, false);
        let (readiness, stop) = (self.clone(), tasks.stopping());
        tasks.spawn(name, async move {
            while !stop.is_cancelled() {
                // In a task of its own: a query that is slow must not be dropped half-way.
                let answer = tokio::time::timeout(PATIENCE, tokio::spawn(ask())).await;
                readiness.set(name, need, matches!(answer, Ok(Ok(true))));
                tokio::select! {
                    () = tokio::time::sleep(INTERVAL) => {}
                    () = stop.cancelled() => {}
                }
            }
            Ok(())
        });
    }

    /// Says how a dependency is, for those who learn of it by themselves.
    pub fn set(&self, name: &'static str, need: Need, up: bool) {
        metrics::gauge!("dependency_up", "dependency" => name).set(if up { 1.0 } else { 0.0 });
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        if checks.insert(name, Check { need, up }).is_some_and(|before| before.up != up) {
            if up {
                tracing::info!(dependency = name, "dependency answers");
            } else {
                tracing::warn!(dependency = name, "dependency does not answer");
            }
        }
        let vital = checks.values().all(|check| check.up || check.need == Need::Useful);
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
        checks.iter().filter(|(_, check)| !check.up && counts(check.need)).map(|(name, _)| *name).collect()
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
}
