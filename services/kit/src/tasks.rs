//! A supervisor of background tasks, with graceful shutdown. Every task has a name. A task that ends before the shutdown
//! ends the process with a non-zero code, so that the orchestrator restarts it.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A handle that spawns tasks and tells them to shut down.
#[derive(Clone, Debug)]
pub struct Tasks {
    shutdown: CancellationToken,
    tracker: TaskTracker,
    failures: Arc<mpsc::UnboundedSender<anyhow::Error>>,
}

impl Tasks {
    /// Returns the handle, and a channel that receives an error for each task that ends before the shutdown.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<anyhow::Error>) {
        let (sender, failures) = mpsc::unbounded_channel();
        let tasks = Self {
            shutdown: CancellationToken::new(),
            tracker: TaskTracker::new(),
            failures: Arc::new(sender),
        };
        (tasks, failures)
    }

    /// Spawns a supervised task. It must end soon after [`Tasks::shutdown_token`] is cancelled, and not before.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let tasks = self.clone();
        self.tracker.spawn(async move {
            let outcome = tokio::spawn(task).await;
            if tasks.shutdown.is_cancelled() {
                return;
            }
            let error = match outcome {
                Ok(Ok(())) => anyhow::anyhow!("task {name} ended"),
                Ok(Err(error)) => error.context(format!("task {name}")),
                Err(_) => anyhow::anyhow!("task {name} panicked"),
            };
            // The receiver is gone only when the process is ending anyway.
            let _ = tasks.failures.send(error);
        });
    }

    /// Spawns work that may end at any time and that the shutdown waits for: a request, a socket.
    pub fn track<F>(&self, work: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(work)
    }

    /// Returns the token that is cancelled when the shutdown begins.
    pub fn shutdown_token(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Cancels the shutdown token and waits until all tasks and work have ended.
    pub async fn stop(&self) {
        self.shutdown.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_before_the_shutdown_is_reported_by_name() {
        let (tasks, mut failures) = Tasks::new();
        tasks.spawn("short", async { Ok(()) });
        assert!(failures.recv().await.unwrap().to_string().contains("short"));
        tasks.spawn("broken", async { panic!("on purpose") });
        assert!(failures.recv().await.unwrap().to_string().contains("broken"));
    }

    #[tokio::test]
    async fn a_shutdown_waits_for_all_tasks_and_reports_none() {
        let (tasks, mut failures) = Tasks::new();
        let shutdown = tasks.shutdown_token();
        tasks.spawn("patient", async move {
            shutdown.cancelled().await;
            Ok(())
        });
        let work = tasks.track(async { tokio::task::yield_now().await });
        tasks.stop().await;
        assert!(work.is_finished());
        assert!(failures.try_recv().is_err());
    }
}
