//! What runs in a process until it stops. Every task has a name; one that ends before it was asked to ends the
//! process, with a non-zero code, so that whoever supervises it starts it anew.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A handle to spawn tasks and to learn when to stop; cheap to clone.
#[derive(Clone, Debug)]
pub struct Tasks {
    stop: CancellationToken,
    running: TaskTracker,
    ended: Arc<mpsc::UnboundedSender<anyhow::Error>>,
}

impl Tasks {
    /// The tasks, and where the first that ends too early is told.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<anyhow::Error>) {
        let (ended, first) = mpsc::unbounded_channel();
        (Self { stop: CancellationToken::new(), running: TaskTracker::new(), ended: Arc::new(ended) }, first)
    }

    /// Runs `task` until it ends by itself, which it should do soon after [`Tasks::stopping`] is cancelled.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let tasks = self.clone();
        self.running.spawn(async move {
            let outcome = tokio::spawn(task).await;
            if tasks.stop.is_cancelled() {
                return;
            }
            let error = match outcome {
                Ok(Ok(())) => anyhow::anyhow!("task {name} ended"),
                Ok(Err(error)) => error.context(format!("task {name}")),
                Err(_) => anyhow::anyhow!("task {name} panicked"),
            };
            // Nobody listens only when the process is ending anyway.
            let _ = tasks.ended.send(error);
        });
    }

    /// Runs a piece of work that is waited for at the end but may end whenever it likes: a request, a socket.
    pub fn track<F>(&self, work: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.running.spawn(work)
    }

    /// Cancelled when it is time to stop.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Asks all to stop, and waits until they have.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.running.close();
        self.running.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_too_early_is_told_with_its_name() {
        let (tasks, mut ended) = Tasks::new();
        tasks.spawn("short", async { Ok(()) });
        assert!(ended.recv().await.unwrap().to_string().contains("short"));
        tasks.spawn("broken", async { panic!("on purpose") });
        assert!(ended.recv().await.unwrap().to_string().contains("broken"));
    }

    #[tokio::test]
    async fn stopping_waits_for_all_and_is_no_failure() {
        let (tasks, mut ended) = Tasks::new();
        let stop = tasks.stopping();
        tasks.spawn("patient", async move {
            stop.cancelled().await;
            Ok(())
        });
        let work = tasks.track(async { tokio::task::yield_now().await });
        tasks.stop().await;
        assert!(work.is_finished());
        assert!(ended.try_recv().is_err());
    }
}
