//! The gRPC ChangeFeedService: the stream of changes of the catalogue.

use std::pin::Pin;

use shoppee_kit::{process::Process, status};
use shoppee_proto::product::v1::{
    ProductRevision, WatchRequest, WatchResponse, change_feed_service_server::ChangeFeedService,
};
use tokio::sync::{Semaphore, broadcast::error::RecvError, mpsc};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use crate::change_log::{ChangeBatch, ChangeLog};

/// Concurrent watchers. Each costs a task; there is one per gateway.
const MAX_WATCHERS: usize = 256;
/// Messages that are buffered for a watcher. A watcher that reads none is told to start anew.
const STREAM_BUFFER: usize = 8;

#[derive(Debug)]
pub struct ChangeFeed {
    change_log: ChangeLog,
    process: Process,
    watcher_permits: std::sync::Arc<Semaphore>,
}

impl ChangeFeed {
    pub fn new(change_log: ChangeLog, process: &Process) -> Self {
        let watcher_permits = std::sync::Arc::new(Semaphore::new(MAX_WATCHERS));
        Self { change_log, process: process.clone(), watcher_permits }
    }
}

/// Returns the message for a batch; `None` means that the watcher has missed batches.
fn message(batch: Option<&ChangeBatch>) -> WatchResponse {
    let Some(batch) = batch else {
        return WatchResponse { changed: Vec::new(), everything: true, age_ms: 0 };
    };
    let changed = batch.changes.iter().map(|change| ProductRevision {
        product_id: change.product_id,
        revision: change.revision,
        changed_at: Some(change.at.into()),
    });
    let age = batch.polled_at.elapsed().as_millis();
    WatchResponse {
        changed: changed.collect(),
        everything: batch.everything,
        age_ms: age.try_into().unwrap_or(u64::MAX),
    }
}

#[tonic::async_trait]
impl ChangeFeedService for ChangeFeed {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let permit = self.watcher_permits.clone().try_acquire_owned().map_err(|_| status::unavailable())?;
        let (mut batches, shutdown) = (self.change_log.subscribe(), self.process.tasks.shutdown_token());
        let (sender, messages) = mpsc::channel(STREAM_BUFFER);
        self.process.tasks.track(async move {
            let _permit = permit;
            let mut next = None;
            loop {
                tokio::select! {
                    slot = sender.reserve() => match slot {
                        Ok(slot) => slot.send(Ok(message(next.as_deref()))),
                        Err(_closed) => return,
                    },
                    () = shutdown.cancelled() => return,
                }
                next = tokio::select! {
                    batch = batches.recv() => match batch {
                        Ok(batch) => Some(batch),
                        Err(RecvError::Lagged(_)) => None,
                        Err(RecvError::Closed) => return,
                    },
                    () = sender.closed() => return,
                    () = shutdown.cancelled() => return,
                };
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}
