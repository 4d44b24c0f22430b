//! Live order events, to every device of their user: over WebSockets, Server-Sent Events and long polls.
//!
//! [`stream_reader`] reads events from Redis and passes them to the [`hub`], which enqueues them at each
//! [`subscription`] of the user: that of a [`socket`] or of an [`event_stream`]. A subscription that starts, or finds
//! a gap in the sequence numbers, runs [`recovery`]: from Redis, else from the order service. [`position_check`]
//! finds events that Redis did not deliver. [`all_events`] streams the events of all users. [`frame`] has the
//! gateway's messages and [`command`] the client's, [`close_code`] the close codes, [`closing_handshake`] the end of a
//! socket, [`metered_stream`] the TCP stream below it, [`ticket`] the sign-in of browsers. [`connection_limit`] bounds the
//! connections of a user over all gateways, and [`delivery_times`] has the times from commit to frame.

mod all_events;
mod close_code;
mod closing_handshake;
mod command;
mod connection_limit;
mod delivery_times;
mod event_stream;
mod frame;
mod hub;
mod metered_stream;
mod position_check;
mod recovery;
mod socket;
mod stream_reader;
mod subscription;
pub mod ticket;

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use shoppee_kit::{
    caller::{Caller, Verifier},
    clock::Clock,
    process::Process,
    redis,
    tasks::Tasks,
};
use shoppee_proto::order::v1::WatchEventsResponse;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, broadcast},
    time::timeout,
};
use tonic::Streaming;
use uuid::Uuid;

pub use self::{close_code::CloseReason, delivery_times::EventDelivery};
use self::{
    connection_limit::ConnectionLimiter, delivery_times::DeliveryTimes, frame::Frame, hub::Hub,
    metered_stream::MeteredStream, recovery::Recovery, subscription::Subscription,
};
use crate::{server, upstream::Upstream};

/// Bounds the sockets, streams and long polls of a process: at 7 KiB each, 137 MiB. This is twice the number in the load
/// test.
const MAX_SUBSCRIPTIONS: usize = 20_000;
/// Bounds the time from the handshake's answer to the upgrade of the connection.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// All sockets of this process, with their shared resources.
#[derive(Clone, Debug)]
pub struct Realtime(Arc<Inner>);

pub struct Inner {
    hub: Arc<Hub>,
    connection_limiter: ConnectionLimiter,
    recovery: Recovery,
    verifier: Arc<Verifier>,
    clock: Clock,
    tasks: Tasks,
    subscription_permits: Arc<Semaphore>,
    admin_stream_permits: Arc<Semaphore>,
    delivery_times: DeliveryTimes,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Realtime")
            .field("subscription_permits", &self.subscription_permits.available_permits())
            .finish_non_exhaustive()
    }
}

impl std::ops::Deref for Realtime {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Realtime {
    /// Spawns the stream readers and the hub's maintenance task. The streams are in `redis`; the order service behind
    /// `upstream` is the source of truth; `revocations` carries the ids of revoked sessions.
    pub fn start(
        redis: &redis::Clients,
        upstream: Upstream,
        verifier: Arc<Verifier>,
        revocations: &broadcast::Sender<Uuid>,
        process: &Process,
    ) -> anyhow::Result<Self> {
        let commands = redis.client("tickets and histories")?;
        let hub = Hub::new(verifier.clone());
        hub.spawn_maintenance(&process.tasks, revocations.subscribe());
        let delivery = Arc::default();
        stream_reader::spawn_readers(redis, &commands, &hub, &delivery, &process.tasks)?;
        position_check::spawn(&hub, &delivery, &upstream, &process.tasks);
        // A scrape shows metrics of events that have not occurred yet.
        close_code::register_metrics();
        metrics::gauge!("ws_connections").set(0);
        let _registered = metrics::histogram!("event_delivery_seconds");
        Ok(Self(Arc::new(Inner {
            connection_limiter: ConnectionLimiter::start(&commands, &hub, &process.tasks),
            recovery: Recovery::new(&commands, &hub, upstream),
            hub,
            verifier,
            clock: process.clock.clone(),
            tasks: process.tasks.clone(),
            subscription_permits: Arc::new(Semaphore::new(MAX_SUBSCRIPTIONS)),
            admin_stream_permits: Arc::new(Semaphore::new(all_events::MAX_STREAMS)),
            delivery_times: DeliveryTimes::default(),
        })))
    }

    /// Reserves one of the process's subscriptions; `None` if all are in use.
    pub fn try_reserve_subscription(&self) -> Option<OwnedSemaphorePermit> {
        self.subscription_permits.clone().try_acquire_owned().ok()
    }

    /// Reserves one of the process's streams for admins; `None` if all are in use.
    pub fn try_reserve_admin_stream(&self) -> Option<OwnedSemaphorePermit> {
        self.admin_stream_permits.clone().try_acquire_owned().ok()
    }

    /// Returns the number of open sockets, streams and long polls.
    pub fn subscriptions(&self) -> usize {
        MAX_SUBSCRIPTIONS.saturating_sub(self.subscription_permits.available_permits())
    }

    /// Returns the number of open streams of all users' events.
    pub fn admin_streams(&self) -> usize {
        all_events::MAX_STREAMS.saturating_sub(self.admin_stream_permits.available_permits())
    }

    /// Returns the times from commit to frame since the start.
    pub fn event_delivery(&self) -> EventDelivery {
        self.delivery_times.summarize()
    }

    /// Records the time from the commit of an event to its delivery, which is now.
    fn record_delivery(&self, frame: &Frame) {
        let seconds = frame.age(self.clock.now().into());
        metrics::histogram!("event_delivery_seconds").record(seconds);
        self.delivery_times.record(seconds);
    }

    /// Returns the body of a stream of the caller's events.
    pub fn stream(&self, caller: Caller, after: Option<i64>, permit: OwnedSemaphorePermit) -> Body {
        event_stream::body(Subscription::new(self, caller, after), permit)
    }

    /// Returns the caller's events after a position as JSON; waits for the next one if there are none.
    pub async fn poll(
        &self,
        caller: Caller,
        after: Option<i64>,
        wait: Duration,
    ) -> Result<String, CloseReason> {
        event_stream::poll(Subscription::new(self, caller, after), after, wait).await
    }

    /// Returns the body of a stream of all users' events.
    pub fn stream_all(
        &self,
        messages: Streaming<WatchEventsResponse>,
        admin: &Caller,
        permit: OwnedSemaphorePermit,
    ) -> Body {
        let shutdown = self.tasks.shutdown_token();
        all_events::body(messages, admin.user_id(), self.clock.clone(), shutdown, permit)
    }

    /// Serves the socket into which the connection is upgraded. Shutdown waits for it.
    pub fn open(
        &self,
        upgrade: hyper::upgrade::OnUpgrade,
        caller: Caller,
        after: Option<i64>,
        permit: OwnedSemaphorePermit,
    ) {
        let realtime = self.clone();
        drop(self.tasks.track(async move {
            let _permit = permit;
            let Ok(Ok(upgraded)) = timeout(UPGRADE_TIMEOUT, upgrade).await else { return };
            let Some((stream, read)) = server::into_stream(upgraded) else {
                tracing::error!("upgraded connection has an unexpected type");
                return;
            };
            socket::serve(MeteredStream::new(stream, read), caller, after, realtime).await;
        }));
    }
}
