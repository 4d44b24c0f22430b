//! Order events, live, to every device of their user (contract §4).
//!
//! [`feed`] reads them from Redis and hands them to the [`hub`], which puts them into the queue of each
//! [`socket`] of the user. A socket that begins, or finds that a number is missing, [`resume`]s: from Redis,
//! else from the order service. [`frame`] is what we say and [`said`] what the client does, [`closing`] how
//! it ends, [`wire`] the connection underneath, [`ticket`] what browsers sign in with.

mod closing;
mod feed;
mod frame;
mod hub;
mod resume;
mod said;
mod socket;
pub mod ticket;
mod wire;

use std::{sync::Arc, time::Duration};

use shoppee_kit::{
    caller::{Caller, Verifier},
    clock::Clock,
    process::Process,
    redis,
    tasks::Tasks,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, broadcast},
    time::timeout,
};
use uuid::Uuid;

pub use self::closing::Closing;
use self::{hub::Hub, resume::Resume, wire::Wire};
use crate::{server, upstream::Upstream};

/// Sockets a process holds: at 8 KiB each, 160 MiB and twice what one is measured with.
const SOCKETS: usize = 20_000;
/// How long the connection may take to become a socket once it was agreed on.
const UPGRADE: Duration = Duration::from_secs(10);

/// All sockets of this process, and what they live on; cheap to clone.
#[derive(Clone, Debug)]
pub struct Realtime(Arc<Parts>);

pub struct Parts {
    hub: Arc<Hub>,
    resume: Resume,
    verifier: Arc<Verifier>,
    clock: Clock,
    tasks: Tasks,
    room: Arc<Semaphore>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Realtime").field("room", &self.room.available_permits()).finish_non_exhaustive()
    }
}

impl std::ops::Deref for Realtime {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Realtime {
    /// Starts to follow the events. The streams are in `redis`; the order service behind `upstream` has the
    /// truth; `ended` tells of sessions that end.
    pub fn start(
        redis: &redis::Clients,
        upstream: Upstream,
        verifier: Arc<Verifier>,
        ended: &broadcast::Sender<Uuid>,
        process: &Process,
    ) -> anyhow::Result<Self> {
        let commands = redis.client("tickets and histories")?;
        let hub = Hub::new(verifier.clone());
        hub.watch(&process.tasks, ended.subscribe());
        feed::follow(redis, &commands, &hub, &process.tasks)?;
        // What never happened is 0 for those who watch, not absent.
        closing::count_from_zero();
        metrics::gauge!("ws_connections").set(0);
        let _registered = metrics::histogram!("event_delivery_seconds");
        Ok(Self(Arc::new(Parts {
            hub,
            resume: Resume::new(&commands, upstream),
            verifier,
            clock: process.clock.clone(),
            tasks: process.tasks.clone(),
            room: Arc::new(Semaphore::new(SOCKETS)),
        })))
    }

    /// Room for one more socket; none where there are too many.
    pub fn room(&self) -> Option<OwnedSemaphorePermit> {
        self.room.clone().try_acquire_owned().ok()
    }

    /// Serves the socket that the connection becomes. The stop of the process waits for it.
    pub fn open(
        &self,
        upgrade: hyper::upgrade::OnUpgrade,
        caller: Caller,
        after: Option<i64>,
        room: OwnedSemaphorePermit,
    ) {
        let realtime = self.clone();
        drop(self.tasks.track(async move {
            let _room = room;
            let Ok(Ok(upgraded)) = timeout(UPGRADE, upgrade).await else { return };
            let Some((stream, read)) = server::into_stream(upgraded) else {
                tracing::error!("an upgraded connection is not one of the server's");
                return;
            };
            let wire = Wire::new(stream, read);
            socket::serve(wire, caller, after, realtime).await;
        }));
    }
}
