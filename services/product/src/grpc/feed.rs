//! What changes in the catalogue, as it is found.

use std::pin::Pin;

use shoppee_kit::{process::Process, status};
use shoppee_proto::product::v1::{
    ProductRevision, WatchRequest, WatchResponse, change_feed_server::ChangeFeed,
};
use tokio::sync::{Semaphore, broadcast::error::RecvError, mpsc};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use crate::changes::{Changes, News};

/// Each costs a task; there is one a gateway.
const MOST_WATCHERS: usize = 256;
/// Messages that a watcher has not taken yet; one that takes none is told to start anew.
const UNTAKEN: usize = 8;

#[derive(Debug)]
pub struct Feed {
    changes: Changes,
    process: Process,
    places: std::sync::Arc<Semaphore>,
}

impl Feed {
    pub fn new(changes: Changes, process: &Process) -> Self {
        let places = std::sync::Arc::new(Semaphore::new(MOST_WATCHERS));
        Self { changes, process: process.clone(), places }
    }
}

fn message(news: &News) -> WatchResponse {
    let changed = news.iter().map(|change| ProductRevision {
        product_id: change.product_id,
        revision: change.revision,
        changed_at: Some(change.at.into()),
    });
    WatchResponse { changed: changed.collect(), everything: false }
}

#[tonic::async_trait]
impl ChangeFeed for Feed {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| status::unavailable())?;
        let (mut news, stopping) = (self.changes.watch(), self.process.tasks.stopping());
        let (to, messages) = mpsc::channel(UNTAKEN);
        self.process.tasks.track(async move {
            let _place = place;
            let mut next = WatchResponse { changed: Vec::new(), everything: true };
            loop {
                tokio::select! {
                    sent = to.send(Ok(next)) => if sent.is_err() { return },
                    () = stopping.cancelled() => return,
                }
                next = tokio::select! {
                    found = news.recv() => match found {
                        Ok(found) => message(&found),
                        Err(RecvError::Lagged(_)) => WatchResponse { changed: Vec::new(), everything: true },
                        Err(RecvError::Closed) => return,
                    },
                    () = to.closed() => return,
                    () = stopping.cancelled() => return,
                };
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}
