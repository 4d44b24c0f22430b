//! Group commit: a queue whose workers take all pending requests at once and process them as one batch. A request that
//! finds a worker idle starts at once; requests that arrive meanwhile share the next batch. A deferred request has no
//! caller that waits, so a batch of deferred requests alone is delayed for more.

use std::{
    fmt::{self, Debug, Formatter},
    sync::Arc,
    time::Duration,
};

use tokio::sync::{Mutex, mpsc, oneshot};

use crate::tasks::Tasks;

/// The delay of a batch that has only deferred requests.
const DEFERRED_BATCH_DELAY: Duration = Duration::from_millis(1);

/// The bounds of a queue.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Pending requests; further ones are refused.
    pub capacity: usize,
    /// Requests of one batch.
    pub batch_size: usize,
    /// Batches in flight.
    pub workers: usize,
}

/// The submitting side; cheap to clone. The workers end when the last clone is dropped.
pub struct BatchQueue<T, R>(mpsc::Sender<Pending<T, R>>);

/// A request with the sender of its response; a deferred request has none.
type Pending<T, R> = (T, Option<oneshot::Sender<R>>);

impl<T, R> Clone for BatchQueue<T, R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T, R> Debug for BatchQueue<T, R> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchQueue").finish_non_exhaustive()
    }
}

impl<T, R> BatchQueue<T, R>
where
    T: Send + 'static,
    R: Send + 'static,
{
    /// Starts the workers. `process` returns one response per request, in their order.
    pub fn start<F, Fut>(name: &'static str, limits: Limits, tasks: &Tasks, process: F) -> Self
    where
        F: Fn(Vec<T>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Vec<R>> + Send + 'static,
    {
        let (queue, pending) = mpsc::channel(limits.capacity);
        let pending = Arc::new(Mutex::new(pending));
        for _ in 0..limits.workers {
            tasks.spawn(name, run_worker(pending.clone(), limits.batch_size, process.clone()));
        }
        Self(queue)
    }

    /// Submits a request. Returns `None` if the queue is full, or if the batch was lost with its worker.
    pub async fn submit(&self, request: T) -> Option<R> {
        let (reply, response) = oneshot::channel();
        self.0.try_send((request, Some(reply))).ok()?;
        response.await.ok()
    }

    /// Submits a request whose response nothing needs. Returns false if the queue is full.
    pub fn defer(&self, request: T) -> bool {
        self.0.try_send((request, None)).is_ok()
    }
}

async fn run_worker<T, R, F, Fut>(
    pending: Arc<Mutex<mpsc::Receiver<Pending<T, R>>>>,
    batch_size: usize,
    process: F,
) -> anyhow::Result<()>
where
    F: Fn(Vec<T>) -> Fut,
    Fut: Future<Output = Vec<R>>,
{
    let mut batch = Vec::with_capacity(batch_size);
    while pending.lock().await.recv_many(&mut batch, batch_size).await > 0 {
        if batch.iter().all(|(_, reply)| reply.is_none()) {
            tokio::time::sleep(DEFERRED_BATCH_DELAY).await;
            // An idle worker holds the lock while it waits; it takes the next requests itself.
            if let Ok(mut pending) = pending.try_lock() {
                while batch.len() < batch_size
                    && let Ok(request) = pending.try_recv()
                {
                    batch.push(request);
                }
            }
        }
        let (requests, replies): (Vec<T>, Vec<_>) = batch.drain(..).unzip();
        for (reply, response) in replies.into_iter().zip(process(requests).await) {
            if let Some(reply) = reply {
                // The receiver is gone if the caller disconnected.
                let _ = reply.send(response);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, future::join_all};
    use tokio::sync::Semaphore;

    use super::*;

    const LIMITS: Limits = Limits { capacity: 8, batch_size: 4, workers: 1 };

    #[tokio::test]
    async fn requests_that_wait_for_a_busy_worker_share_a_batch() {
        let (tasks, _ended) = Tasks::new();
        let gate = Arc::new(Semaphore::new(0));
        let (started, mut batches) = mpsc::unbounded_channel();
        let opened = gate.clone();
        let queue = BatchQueue::start("test", LIMITS, &tasks, move |batch: Vec<usize>| {
            let gate = opened.clone();
            let _ = started.send(batch.clone());
            async move {
                gate.acquire().await.unwrap().forget();
                batch
            }
        });
        let submit = |request| {
            let queue = queue.clone();
            tokio::spawn(async move { queue.submit(request).await })
        };
        let first = submit(0);
        assert_eq!(batches.recv().await, Some(vec![0]), "a lone request does not wait for others");
        let others: Vec<_> = (1..=5).map(submit).collect();
        while queue.0.capacity() > LIMITS.capacity - 5 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(3);
        assert_eq!(batches.recv().await, Some(vec![1, 2, 3, 4]));
        assert_eq!(batches.recv().await, Some(vec![5]));
        assert_eq!(first.await.unwrap(), Some(0));
        let responses: Vec<_> =
            join_all(others).await.into_iter().map(|response| response.unwrap()).collect();
        assert_eq!(responses, (1..=5).map(Some).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn deferred_requests_share_a_batch() {
        let (tasks, _ended) = Tasks::new();
        let (sizes, mut batches) = mpsc::unbounded_channel();
        let queue = BatchQueue::start("test", LIMITS, &tasks, move |batch: Vec<()>| {
            let _ = sizes.send(batch.len());
            async move { batch }
        });
        assert!(queue.defer(()));
        // The worker has taken the first request, and waits.
        tokio::task::yield_now().await;
        assert!(queue.defer(()) && queue.defer(()));
        assert_eq!(batches.recv().await, Some(3));
    }

    #[tokio::test]
    async fn a_deferred_request_does_not_wait_for_another_request() {
        let (tasks, _ended) = Tasks::new();
        let (started, mut batches) = mpsc::unbounded_channel();
        let queue =
            BatchQueue::start("test", Limits { workers: 2, ..LIMITS }, &tasks, move |batch: Vec<()>| {
                let _ = started.send(batch.len());
                async move { batch }
            });
        assert!(queue.defer(()));
        let processed = tokio::time::timeout(Duration::from_secs(5), batches.recv());
        assert_eq!(processed.await.expect("the batch starts without another request"), Some(1));
    }

    #[tokio::test]
    async fn a_full_queue_refuses_a_request() {
        let (tasks, _ended) = Tasks::new();
        let queue = BatchQueue::start("test", Limits { capacity: 1, ..LIMITS }, &tasks, |_: Vec<()>| {
            std::future::pending::<Vec<()>>()
        });
        let mut in_flight = Box::pin(queue.submit(()));
        assert!((&mut in_flight).now_or_never().is_none());
        while queue.0.capacity() == 0 {
            tokio::task::yield_now().await;
        }
        let mut waiting = Box::pin(queue.submit(()));
        assert!((&mut waiting).now_or_never().is_none());
        assert_eq!(queue.submit(()).await, None);
    }
}
