//! Recovery of missed events: from the user's history stream in Redis if that has no gap, else from the order service,
//! which is the source of truth. A socket recovers when it starts, after a gap in the sequence numbers, and when the hub
//! requests a sync.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use fred::{
    clients::{Client, WithOptions},
    interfaces::{ClientLike as _, StreamsInterface as _},
};
use prost::Message as _;
use shoppee_kit::{caller::Caller, redis};
use shoppee_proto::{
    order::v1::{ListEventsRequest, ListEventsResponse, OrderEvent},
    streams,
};
use tokio::sync::{OnceCell, Semaphore};

use super::{frame::Frame, hub::Hub};
use crate::upstream::Upstream;

/// Bounds the events that a new socket is sent. A client that missed more gets `recovered: false`.
const MAX_REPLAY: usize = 500;
/// Bounds the events that an open socket is sent after an outage. A client that missed more has to reconnect.
const MAX_CATCH_UP: usize = 5_000;
/// The page size of queries to the order service: the largest that it allows.
const PAGE_SIZE: i32 = 500;
/// Bounds the concurrent queries to the order service. After Redis has lost its data every user needs one, and orders must
/// still get through.
const MAX_CONCURRENT_QUERIES: usize = 32;
/// Bounds the wait of a query for its permit: ten thousand users' queries pass in this time.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(6);

/// Neither source of missed events is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("missed events are unavailable from Redis and the order service")]
pub struct Unavailable;

/// The position of a new socket, with the events that it missed.
#[derive(Debug, Default)]
pub struct InitialState {
    /// The user's latest sequence number.
    pub seq: i64,
    /// True if `frames` holds all missed events.
    pub recovered: bool,
    pub frames: Frames,
}

/// Consecutive events.
pub type Frames = Arc<[Arc<Frame>]>;

/// The result of a recovery.
#[derive(Clone, Debug)]
pub enum Recovered {
    Complete(Frames),
    /// Some events are not stored any more, or there are too many.
    Incomplete,
}

/// A client of both sources of missed events.
pub struct Recovery {
    redis: WithOptions<Client>,
    hub: Arc<Hub>,
    upstream: Upstream,
    query_permits: Semaphore,
    /// Recoveries that are under way: the sockets of one user share the result.
    in_flight: Mutex<HashMap<RecoveryKey, Arc<OnceCell<Recovered>>>>,
}

impl std::fmt::Debug for Recovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recovery").field("query_permits", &self.query_permits).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct RecoveryKey {
    user_id: i64,
    after: i64,
    until: Option<i64>,
}

impl Recovery {
    pub fn new(redis: &Client, hub: &Arc<Hub>, upstream: Upstream) -> Self {
        Self {
            redis: redis.with_options(&redis::fail_fast_options()),
            hub: hub.clone(),
            upstream,
            query_permits: Semaphore::new(MAX_CONCURRENT_QUERIES),
            in_flight: Mutex::default(),
        }
    }

    /// Returns the initial state of a socket whose client has all events up to `after`, or needs only new events.
    pub async fn initial_state(
        &self,
        caller: &Caller,
        after: Option<i64>,
    ) -> Result<InitialState, Unavailable> {
        let user_id = caller.user_id();
        let Some(after) = after else {
            let seq = match self.latest_seq(user_id).await {
                Some(seq) => seq,
                None => self.fetch_page(caller, None).await?.last_seq,
            };
            return Ok(InitialState { seq, recovered: true, ..InitialState::default() });
        };
        if let Some(frames) = self.fetch_history(user_id, after).await {
            let seq = frames.last().map_or(after, |last| last.seq);
            return Ok(InitialState { seq, recovered: true, frames });
        }
        self.fetch_state(caller, after).await
    }

    /// Returns the initial state from the order service, which also has the events that Redis lost.
    pub async fn fetch_state(&self, caller: &Caller, after: i64) -> Result<InitialState, Unavailable> {
        let (seq, recovered) = self.fetch_all(caller, after, MAX_REPLAY).await?;
        Ok(match recovered {
            Recovered::Complete(frames) if seq >= after => InitialState { seq, recovered: true, frames },
            Recovered::Complete(_) | Recovered::Incomplete => InitialState { seq, ..InitialState::default() },
        })
    }

    /// Returns the caller's events after `after`. With `until`, that event is known to exist, so that a history in Redis up
    /// to it suffices. Without, only the order service knows the latest event.
    pub async fn recover(
        &self,
        caller: &Caller,
        after: i64,
        until: Option<i64>,
    ) -> Result<Recovered, Unavailable> {
        let key = RecoveryKey { user_id: caller.user_id(), after, until };
        let guard = InFlightGuard::new(&self.in_flight, key);
        let result = guard.result.get_or_try_init(|| async move {
            if let Some(until) = until
                && let Some(frames) = self.fetch_history(key.user_id, after).await
                && frames.last().is_some_and(|last| last.seq + 1 >= until)
            {
                return Ok(Recovered::Complete(frames));
            }
            Ok(self.fetch_all(caller, after, MAX_CATCH_UP).await?.1)
        });
        result.await.cloned()
    }

    /// Returns the latest sequence number in Redis. For a user without a stream there, returns 0 if the user is known to
    /// have no events: an event that is on its way arrives as the next one.
    async fn latest_seq(&self, user_id: i64) -> Option<i64> {
        let entries: Vec<(String, HashMap<String, Bytes>)> =
            self.redis.xrevrange_values(streams::history_stream(user_id), "+", "-", Some(1)).await.ok()?;
        match entries.first() {
            Some((id, _)) => parse_seq(id),
            None => self.hub.has_no_events(user_id).then_some(0),
        }
    }

    /// Returns the events after `after` from Redis, if there are no gaps and not too many events.
    async fn fetch_history(&self, user_id: i64, after: i64) -> Option<Frames> {
        let first = format!("{}-0", after.checked_add(1)?);
        let entries: Vec<(String, HashMap<String, Bytes>)> = self
            .redis
            .xrange_values(streams::history_stream(user_id), first, "+", Some(MAX_REPLAY as u64 + 1))
            .await
            .ok()?;
        if entries.is_empty() {
            // Nothing was missed only if `after` is the latest in Redis.
            return (self.latest_seq(user_id).await? == after).then(Frames::default);
        }
        if entries.len() > MAX_REPLAY {
            return None;
        }
        let events = entries
            .into_iter()
            .map(|(id, fields)| {
                let event = OrderEvent::decode(fields.get(streams::MESSAGE_FIELD)?.clone()).ok()?;
                (parse_seq(&id)? == event.seq).then_some(event)
            })
            .collect::<Option<Vec<_>>>()?;
        frames(after, &events)
    }

    /// Returns the user's latest sequence number and the events after `after`, at most `max_events`, from the order service.
    async fn fetch_all(
        &self,
        caller: &Caller,
        after: i64,
        max_events: usize,
    ) -> Result<(i64, Recovered), Unavailable> {
        let (mut all, mut position) = (Vec::new(), after);
        loop {
            let page = self.fetch_page(caller, Some(position)).await?;
            let Some(frames) = frames(position, &page.events) else {
                return Ok((page.last_seq, Recovered::Incomplete));
            };
            all.extend(frames.iter().cloned());
            let Some(last) = frames.last().filter(|last| last.seq < page.last_seq) else {
                let is_complete = !frames.is_empty() || position >= page.last_seq;
                let recovered =
                    if is_complete { Recovered::Complete(all.into()) } else { Recovered::Incomplete };
                return Ok((page.last_seq, recovered));
            };
            position = last.seq;
            let remaining = usize::try_from(page.last_seq - position).unwrap_or(usize::MAX);
            if all.len().saturating_add(remaining) > max_events {
                return Ok((page.last_seq, Recovered::Incomplete));
            }
        }
    }

    /// Fetches a page from the order service on behalf of the socket's user.
    async fn fetch_page(
        &self,
        caller: &Caller,
        after_seq: Option<i64>,
    ) -> Result<ListEventsResponse, Unavailable> {
        let _permit = tokio::time::timeout(PERMIT_TIMEOUT, self.query_permits.acquire())
            .await
            .map_err(|_| Unavailable)?;
        let request = ListEventsRequest { after_seq, limit: Some(PAGE_SIZE) };
        let generation = self.hub.generation(caller.user_id());
        match self.upstream.call(caller, request).await {
            Ok(page) => {
                if page.last_seq == 0 {
                    self.hub.record_no_events(caller.user_id(), generation);
                }
                Ok(page)
            }
            Err(problem) => {
                tracing::debug!(
                    code = problem.code.as_str(),
                    "fetching events from the order service failed"
                );
                Err(Unavailable)
            }
        }
    }
}

/// A coalesced recovery: concurrent calls with one key share a result. It is removed when the first call ends.
struct InFlightGuard<'a> {
    in_flight: &'a Mutex<HashMap<RecoveryKey, Arc<OnceCell<Recovered>>>>,
    key: RecoveryKey,
    result: Arc<OnceCell<Recovered>>,
}

impl<'a> InFlightGuard<'a> {
    fn new(in_flight: &'a Mutex<HashMap<RecoveryKey, Arc<OnceCell<Recovered>>>>, key: RecoveryKey) -> Self {
        let result = in_flight.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone();
        Self { in_flight, key, result }
    }
}

impl Drop for InFlightGuard<'_> {
    fn drop(&mut self) {
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if in_flight.get(&self.key).is_some_and(|result| Arc::ptr_eq(result, &self.result)) {
            in_flight.remove(&self.key);
        }
    }
}

/// Returns the events as frames, if their sequence numbers are consecutive and start after `after`.
fn frames(after: i64, events: &[OrderEvent]) -> Option<Frames> {
    (1..)
        .zip(events)
        .map(|(nth, event)| {
            let is_next = event.seq.checked_sub(after) == Some(nth);
            is_next.then(|| Frame::from_event(event)).flatten().map(Arc::new)
        })
        .collect::<Option<Vec<_>>>()
        .map(Into::into)
}

/// Parses the sequence number of an entry id `<seq>-0`.
fn parse_seq(id: &str) -> Option<i64> {
    id.strip_suffix("-0")?.parse().ok()
}
