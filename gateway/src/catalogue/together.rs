//! Requests for products that come at the same moment ask the service's memory in one call.
//!
//! For a call costs many times what it costs to tell a product. While one is on its way, those who come gather, and go
//! together when it is back. The service answers at once, with what it has; who was not told asks for itself.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shoppee_kit::{tasks::Tasks, telemetry::Trace};
use shoppee_proto::product::v1::{LookupRequest, ProductAsOf};
use tokio::{sync::oneshot, time::timeout};

use super::Answer;
use crate::{auth::Nobody, upstream::Upstream};

/// Who has gathered goes after this, whether the call before is back or not: it is lost, or its service is slow.
const PATIENCE: Duration = Duration::from_millis(2);
/// Products of one call; the service answers no more. So many go at once.
const MOST: usize = 100;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Together(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    upstream: Upstream,
    tasks: Tasks,
    /// Held by the call that is on its way.
    turn: tokio::sync::Mutex<()>,
    gathered: Mutex<HashMap<i64, Wanted>>,
}

/// A product that somebody waits for.
#[derive(Debug, Default)]
struct Wanted {
    /// The least that is good enough for all of them.
    revision: i64,
    by: Vec<oneshot::Sender<Answer>>,
}

impl Together {
    pub fn new(upstream: Upstream, tasks: Tasks) -> Self {
        Self(Arc::new(Parts {
            upstream,
            tasks,
            turn: tokio::sync::Mutex::default(),
            gathered: Mutex::default(),
        }))
    }

    /// A product as anybody may see it, not older than `revision`, where the service has that in memory.
    pub async fn look_up(&self, id: i64, revision: i64) -> Option<Answer> {
        self.gather(id, revision).await.ok()
    }

    /// Tells the answer, or that there is none.
    fn gather(&self, id: i64, revision: i64) -> oneshot::Receiver<Answer> {
        let (to, answer) = oneshot::channel();
        let mut gathered = self.gathered();
        if gathered.is_empty() {
            // The call is part of the trace of whoever comes first.
            self.0.tasks.track(Trace::current().of(self.clone().go()));
        }
        let wanted = gathered.entry(id).or_default();
        wanted.revision = wanted.revision.max(revision);
        wanted.by.push(to);
        if gathered.len() == MOST {
            let full = mem::take(&mut *gathered);
            self.0.tasks.track(Trace::current().of(self.clone().call(full)));
        }
        answer
    }

    /// Asks for all who have gathered.
    async fn go(self) {
        let parts = self.0.clone();
        let _turn = timeout(PATIENCE, parts.turn.lock()).await;
        let gathered = mem::take(&mut *self.gathered());
        if !gathered.is_empty() {
            self.call(gathered).await;
        }
    }

    /// Tells those who wait what the service has in memory.
    async fn call(self, mut wanted: HashMap<i64, Wanted>) {
        let products = wanted.iter().map(|(id, wanted)| ProductAsOf { id: *id, revision: wanted.revision });
        let request = LookupRequest { products: products.collect() };
        // Why it failed is told to those who ask for themselves.
        let Ok(found) = self.0.upstream.call(&Nobody, request).await else {
            return;
        };
        for found in found.products {
            let Some(wanted) = wanted.remove(&found.id) else { continue };
            let answer = Answer::cached(found);
            for to in wanted.by {
                // Who has hung up needs none.
                let _ = to.send(answer.clone());
            }
        }
    }

    fn gathered(&self) -> MutexGuard<'_, HashMap<i64, Wanted>> {
        self.0.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
