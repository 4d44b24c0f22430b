//! A batch loader (the DataLoader pattern): concurrent look-ups of products share one RPC to the service's memory, as
//! a call costs many times as much as a product.
//!
//! While a batch is in flight, further keys queue. The loader sends them when the batch returns, when there are
//! [`MAX_BATCH_SIZE`] keys, or after [`MAX_BATCH_DELAY`]. The service does not wait for its database: a key that is not
//! in its memory gets no product, and its caller falls back to `GetProduct`.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shoppee_kit::{tasks::Tasks, telemetry::Trace};
use shoppee_proto::product::v1::{LookupRequest, ProductAsOf};
use tokio::{sync::oneshot, time::timeout};

use super::FetchedProduct;
use crate::{auth::Anonymous, upstream::Upstream};

/// Bounds the wait of queued keys for a batch in flight, which may be lost or slow.
const MAX_BATCH_DELAY: Duration = Duration::from_millis(2);
/// The service's limit for one call. A batch of this size goes at once.
const MAX_BATCH_SIZE: usize = 100;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct BatchLoader(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    upstream: Upstream,
    tasks: Tasks,
    /// Locked by the batch in flight.
    in_flight: tokio::sync::Mutex<()>,
    pending: Mutex<HashMap<i64, PendingKey>>,
}

/// A product in the next batch.
#[derive(Debug, Default)]
struct PendingKey {
    /// The highest of the waiters' minimum revisions.
    min_revision: i64,
    waiters: Vec<oneshot::Sender<FetchedProduct>>,
}

impl BatchLoader {
    pub fn new(upstream: Upstream, tasks: Tasks) -> Self {
        Self(Arc::new(Inner {
            upstream,
            tasks,
            in_flight: tokio::sync::Mutex::default(),
            pending: Mutex::default(),
        }))
    }

    /// Returns a product at `min_revision` or newer, as every caller may see it; `None` if the service's memory has
    /// none.
    pub async fn load(&self, id: i64, min_revision: i64) -> Option<FetchedProduct> {
        self.enqueue(id, min_revision).await.ok()
    }

    /// Adds a key to the next batch. The receiver fails if there is no product.
    fn enqueue(&self, id: i64, min_revision: i64) -> oneshot::Receiver<FetchedProduct> {
        let (waiter, product) = oneshot::channel();
        let mut pending = self.pending();
        if pending.is_empty() {
            // The call is part of the trace of its first caller.
            self.0.tasks.track(Trace::current().instrument(self.clone().dispatch_next()));
        }
        let key = pending.entry(id).or_default();
        key.min_revision = key.min_revision.max(min_revision);
        key.waiters.push(waiter);
        if pending.len() == MAX_BATCH_SIZE {
            let batch = mem::take(&mut *pending);
            self.0.tasks.track(Trace::current().instrument(self.clone().dispatch(batch)));
        }
        product
    }

    /// Sends the pending keys after the batch in flight.
    async fn dispatch_next(self) {
        let inner = self.0.clone();
        let _guard = timeout(MAX_BATCH_DELAY, inner.in_flight.lock()).await;
        let batch = mem::take(&mut *self.pending());
        if !batch.is_empty() {
            self.dispatch(batch).await;
        }
    }

    /// Sends a batch, and passes each product to its waiters.
    async fn dispatch(self, mut batch: HashMap<i64, PendingKey>) {
        let products = batch.iter().map(|(id, key)| ProductAsOf { id: *id, revision: key.min_revision });
        let request = LookupRequest { products: products.collect() };
        // A failure drops the waiters, whose callers fall back to `GetProduct` and report its error.
        let Ok(response) = self.0.upstream.call(&Anonymous, request).await else {
            return;
        };
        for product in response.products {
            let Some(key) = batch.remove(&product.id) else { continue };
            let product = FetchedProduct::from(product);
            for waiter in key.waiters {
                // The receiver is gone if the client hung up.
                let _ = waiter.send(product.clone());
            }
        }
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<i64, PendingKey>> {
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
