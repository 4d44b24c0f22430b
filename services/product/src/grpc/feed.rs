//! What changes in the catalogue, as it is found.

use std::pin::Pin;

use shoppee_kit::{process::Process, status};
use shoppee_proto::product::v1::{
    ProductRevision, WatchRequest, WatchResponse, change_feed_service_server::ChangeFeedService,
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

/// What is told of some news, or of having missed some.
fn message(news: Option<&News>) -> WatchResponse {
    let Some(news) = news else {
        return WatchResponse { changed: Vec::new(), everything: true, age_ms: 0 };
    };
    let changed = news.changes.iter().map(|change| ProductRevision {
        product_id: change.product_id,
        revision: change.revision,
        changed_at: Some(change.at.into()),
    });
    let age = news.looked_at.elapsed().as_millis();
    WatchResponse {
        changed: changed.collect(),
        everything: news.everything,
        age_ms: age.try_into().unwrap_or(u64::MAX),
    }
}

#[tonic::async_trait]
impl ChangeFeedService for Feed {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| status::unavailable())?;
        let (mut news, stopping) = (self.changes.watch(), self.process.tasks.shutdown_token());
        let (to, messages) = mpsc::channel(UNTAKEN);
        self.process.tasks.track(async move {
            let _place = place;
            let mut next = None;
            loop {
                tokio::select! {
                    place = to.reserve() => match place {
                        Ok(place) => place.send(Ok(message(next.as_deref()))),
                        Err(_closed) => return,
                    },
                    () = stopping.cancelled() => return,
                }
                next = tokio::select! {
                    found = news.recv() => match found {
                        Ok(found) => Some(found),
                        Err(RecvError::Lagged(_)) => None,
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
