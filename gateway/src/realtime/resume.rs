//! What a socket has missed: from the user's own short stream in Redis where that is whole, else from the
//! order service, which has the truth. Asked when a socket begins, when a number is missing, and when
//! something may be.

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

use super::frame::Frame;
use crate::upstream::Upstream;

/// A client that missed more starts anew (contract §4).
const REPLAYED: usize = 500;
/// What a socket that stayed connected may have to catch up with, after an outage; more, and its client had
/// better start anew.
const CAUGHT_UP: usize = 5_000;
/// Events asked for at once: the most that the order service gives.
const PAGE: i32 = 500;
/// Questions to the order service at a time: after a Redis that lost its data every user has one, and orders
/// must still get through.
const AT_A_TIME: usize = 32;
/// How long a question waits for its turn: ten thousand users' pass in this time.
const IN_TURN: Duration = Duration::from_secs(6);

/// Nobody who could say answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither Redis nor the order service tells")]
pub struct Away;

/// Where a socket begins.
#[derive(Debug, Default)]
pub struct Start {
    /// The user's newest.
    pub seq: i64,
    /// Whether `frames` is all that was missed.
    pub recovered: bool,
    pub frames: Frames,
}

/// Events in order, without a gap.
pub type Frames = Arc<[Arc<Frame>]>;

/// What came out of asking for what was missed.
#[derive(Clone, Debug)]
pub enum Missed {
    Whole(Frames),
    /// Some of it is not kept any more, or it is too much.
    Broken,
}

pub struct Resume {
    redis: WithOptions<Client>,
    upstream: Upstream,
    turns: Semaphore,
    /// Questions that are being asked: the sockets of one user share the answer.
    asked: Mutex<HashMap<Question, Arc<OnceCell<Missed>>>>,
}

impl std::fmt::Debug for Resume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resume").field("turns", &self.turns).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Question {
    user_id: i64,
    after: i64,
    until: Option<i64>,
}

impl Resume {
    pub fn new(redis: &Client, upstream: Upstream) -> Self {
        Self {
            redis: redis.with_options(&redis::fail_fast_options()),
            upstream,
            turns: Semaphore::new(AT_A_TIME),
            asked: Mutex::default(),
        }
    }

    /// Where a new socket begins that has seen everything up to `after`, or that wants nothing but what
    /// comes.
    pub async fn start(&self, caller: &Caller, after: Option<i64>) -> Result<Start, Away> {
        let user_id = caller.user_id();
        let Some(after) = after else {
            let seq = match self.newest(user_id).await {
                Some(seq) => seq,
                None => self.page(caller, None).await?.last_seq,
            };
            return Ok(Start { seq, recovered: true, ..Start::default() });
        };
        if let Some(frames) = self.history(user_id, after).await {
            let seq = frames.last().map_or(after, |newest| newest.seq);
            return Ok(Start { seq, recovered: true, frames });
        }
        let (seq, missed) = self.pages(caller, after, REPLAYED).await?;
        Ok(match missed {
            Missed::Whole(frames) if seq >= after => Start { seq, recovered: true, frames },
            Missed::Whole(_) | Missed::Broken => Start { seq, ..Start::default() },
        })
    }

    /// What the caller has missed after `after`. With `until`, that event is known to exist, so that a
    /// history in Redis which goes that far is good enough; without, only the order service knows.
    pub async fn missed(&self, caller: &Caller, after: i64, until: Option<i64>) -> Result<Missed, Away> {
        let question = Question { user_id: caller.user_id(), after, until };
        let asking = Asking::new(&self.asked, question);
        let answer = asking.answer.get_or_try_init(|| async move {
            if let Some(until) = until
                && let Some(frames) = self.history(question.user_id, after).await
                && frames.last().is_some_and(|newest| newest.seq + 1 >= until)
            {
                return Ok(Missed::Whole(frames));
            }
            Ok(self.pages(caller, after, CAUGHT_UP).await?.1)
        });
        answer.await.cloned()
    }

    /// The newest event that Redis knows of.
    async fn newest(&self, user_id: i64) -> Option<i64> {
        let newest: Vec<(String, HashMap<String, Bytes>)> =
            self.redis.xrevrange_values(streams::history_stream(user_id), "+", "-", Some(1)).await.ok()?;
        seq_of(&newest.first()?.0)
    }

    /// What Redis has after `after`, if that is all there is and not too much.
    async fn history(&self, user_id: i64, after: i64) -> Option<Frames> {
        let first = format!("{}-0", after.checked_add(1)?);
        let entries: Vec<(String, HashMap<String, Bytes>)> = self
            .redis
            .xrange_values(streams::history_stream(user_id), first, "+", Some(REPLAYED as u64 + 1))
            .await
            .ok()?;
        if entries.is_empty() {
            // Nothing was missed only if Redis knows that `after` is the newest.
            return (self.newest(user_id).await? == after).then(Frames::default);
        }
        if entries.len() > REPLAYED {
            return None;
        }
        let events = entries
            .into_iter()
            .map(|(id, fields)| {
                let event = OrderEvent::decode(fields.get(streams::MESSAGE_FIELD)?.clone()).ok()?;
                (seq_of(&id)? == event.seq).then_some(event)
            })
            .collect::<Option<Vec<_>>>()?;
        frames(after, &events)
    }

    /// What the order service has after `after`, with the user's newest number.
    async fn pages(&self, caller: &Caller, after: i64, most: usize) -> Result<(i64, Missed), Away> {
        let (mut all, mut at) = (Vec::new(), after);
        loop {
            let page = self.page(caller, Some(at)).await?;
            let Some(frames) = frames(at, &page.events) else {
                return Ok((page.last_seq, Missed::Broken));
            };
            all.extend(frames.iter().cloned());
            let Some(newest) = frames.last().filter(|newest| newest.seq < page.last_seq) else {
                let whole = !frames.is_empty() || at >= page.last_seq;
                let missed = if whole { Missed::Whole(all.into()) } else { Missed::Broken };
                return Ok((page.last_seq, missed));
            };
            at = newest.seq;
            let left = usize::try_from(page.last_seq - at).unwrap_or(usize::MAX);
            if all.len().saturating_add(left) > most {
                return Ok((page.last_seq, Missed::Broken));
            }
        }
    }

    /// One question to the order service, in the name of the socket's user.
    async fn page(&self, caller: &Caller, after_seq: Option<i64>) -> Result<ListEventsResponse, Away> {
        let _turn = tokio::time::timeout(IN_TURN, self.turns.acquire()).await.map_err(|_| Away)?;
        let request = ListEventsRequest { after_seq, limit: Some(PAGE) };
        match self.upstream.call(caller, request).await {
            Ok(page) => Ok(page),
            Err(problem) => {
                tracing::debug!(code = problem.code.as_str(), "the order service does not tell the events");
                Err(Away)
            }
        }
    }
}

/// A question that others may ask at the same time; forgotten when the first of them is done with it.
struct Asking<'a> {
    asked: &'a Mutex<HashMap<Question, Arc<OnceCell<Missed>>>>,
    question: Question,
    answer: Arc<OnceCell<Missed>>,
}

impl<'a> Asking<'a> {
    fn new(asked: &'a Mutex<HashMap<Question, Arc<OnceCell<Missed>>>>, question: Question) -> Self {
        let answer =
            asked.lock().unwrap_or_else(PoisonError::into_inner).entry(question).or_default().clone();
        Self { asked, question, answer }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.get(&self.question).is_some_and(|answer| Arc::ptr_eq(answer, &self.answer)) {
            asked.remove(&self.question);
        }
    }
}

/// The events as frames, if they follow each other from `after` on.
fn frames(after: i64, events: &[OrderEvent]) -> Option<Frames> {
    (1..)
        .zip(events)
        .map(|(nth, event)| {
            let follows = event.seq.checked_sub(after) == Some(nth);
            follows.then(|| Frame::of(event)).flatten().map(Arc::new)
        })
        .collect::<Option<Vec<_>>>()
        .map(Into::into)
}

/// The number in an id `<seq>-0`.
fn seq_of(id: &str) -> Option<i64> {
    id.strip_suffix("-0")?.parse().ok()
}
