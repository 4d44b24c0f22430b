//! Products as customers are shown them: the bytes of the answer with their entity tag, kept in memory for as long as
//! they are true.
//!
//! They are true while the product service, which reads the log of changes several times a second, tells of them
//! ([`ChangeFeedClient`]); where it says nothing, every request goes to it. An answer has a revision, and nobody who
//! asks here is shown an older one than somebody was before: the newest that was seen lately is remembered, asked for
//! as the least that will do, and what comes home below it is not kept.

mod together;

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    extract::FromRequestParts,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{
    HeaderValue,
    header::{CONTENT_TYPE, ETAG},
    request::Parts as Request,
};
use metrics::{Counter, Histogram, counter, histogram};
use shoppee_kit::{caller::Role, client, clock::Clock, fold::Fold, process::Process};
use shoppee_proto::{
    PRODUCT_REVISION,
    product::v1::{CachedProduct, Product, ProductAsOf, ProductStatus, WatchRequest, WatchResponse},
};
use time::OffsetDateTime;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use crate::{
    auth::{Credential, MaybeUser, Nobody},
    error::Problem,
    extract::etag,
    state::State,
    upstream::Upstream,
};
use together::Together;

/// The memory for answers. Bytes.
const ROOM: u64 = 64 * 1024 * 1024;
/// What an answer takes beside its body. Bytes.
const OVERHEAD: usize = 512;
/// Answers are believed for so long after the service was heard: a change must show within a second.
const TRUST: Duration = Duration::from_millis(600);
/// A service that says nothing for so long is left for another.
const SILENCE: Duration = Duration::from_secs(2);
const REST: Duration = Duration::from_millis(200);
/// For so long at least the newest revision is remembered that was seen: longer than an answer can be on its way, and
/// than a replica of the service may lag behind another.
const SEEN: Duration = Duration::from_secs(10);
const MOST_SEEN: u64 = 100_000;

/// A product as JSON, with its entity tag.
#[derive(Clone, Debug)]
pub struct Tagged {
    pub etag: HeaderValue,
    body: Bytes,
}

impl Tagged {
    pub fn new(product: &Product) -> Result<Self, Problem> {
        let body = serde_json::to_vec(product).map_err(|error| {
            tracing::error!(%error, "a product does not serialise");
            Problem::internal()
        })?;
        Ok(Self::of(product.version, body))
    }

    /// That version of a product, as it is shown.
    fn of(version: i64, body: Vec<u8>) -> Self {
        Self { etag: etag(version, &body), body: body.into() }
    }
}

impl IntoResponse for Tagged {
    fn into_response(self) -> Response {
        let json = HeaderValue::from_static("application/json");
        ([(ETAG, self.etag), (CONTENT_TYPE, json)], self.body).into_response()
    }
}

/// An answer of the service.
#[derive(Clone, Debug)]
struct Answer {
    tagged: Tagged,
    revision: i64,
    /// Whether everybody may see it.
    open: bool,
    at: Instant,
}

impl Answer {
    fn new(product: &Product, revision: i64) -> Result<Self, Problem> {
        let open = product.status == i32::from(ProductStatus::Active);
        Ok(Self { tagged: Tagged::new(product)?, revision, open, at: Instant::now() })
    }

    /// What the service has in memory, which everybody may see.
    fn cached(found: CachedProduct) -> Self {
        let tagged = Tagged::of(found.version, found.json);
        Self { tagged, revision: found.revision, open: true, at: Instant::now() }
    }
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Catalogue(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    upstream: Upstream,
    together: Together,
    clock: Clock,
    /// `None` where it was set to keep nothing.
    answers: Option<moka::future::Cache<i64, Arc<Answer>>>,
    /// The newest revisions that were seen.
    seen: moka::sync::Cache<i64, Revision>,
    /// Grows each time that everything is forgotten.
    era: AtomicU64,
    start: Instant,
    /// Milliseconds since the start.
    believed_until: AtomicU64,
    fold: Fold,
    watched: Watched,
}

/// The newest that was seen, and when.
#[derive(Clone, Copy, Debug)]
struct Revision {
    number: i64,
    at: Instant,
}

/// Looked up once: there is a hit with nearly every request.
#[derive(Debug)]
struct Watched {
    hits: Counter,
    misses: Counter,
    bypasses: Counter,
    ages: Histogram,
    delays: Histogram,
}

impl Watched {
    fn new() -> Self {
        let count =
            |result: &'static str| counter!("cache_requests_total", "level" => "gateway", "result" => result);
        Self {
            hits: count("hit"),
            misses: count("miss"),
            bypasses: count("bypass"),
            ages: histogram!("cache_age_seconds", "level" => "gateway"),
            delays: histogram!("cache_invalidation_seconds", "level" => "gateway"),
        }
    }
}

impl Catalogue {
    /// Starts to listen to the service. Keeps answers for `lifetime` at most; nothing where that is zero.
    pub fn start(upstream: Upstream, lifetime: Duration, process: &Process) -> Self {
        let answers = (!lifetime.is_zero()).then(|| {
            let size = |answer: &Arc<Answer>| u32::try_from(OVERHEAD + answer.tagged.body.len());
            moka::future::Cache::builder()
                .max_capacity(ROOM)
                .weigher(move |_, answer| size(answer).unwrap_or(u32::MAX))
                .time_to_live(lifetime)
                .build()
        });
        let catalogue = Self(Arc::new(Parts {
            together: Together::new(upstream.clone(), process.tasks.clone()),
            upstream,
            clock: process.clock.clone(),
            answers,
            seen: moka::sync::Cache::builder().max_capacity(MOST_SEEN).time_to_live(2 * SEEN).build(),
            era: AtomicU64::new(0),
            start: Instant::now(),
            believed_until: AtomicU64::new(0),
            fold: Fold::default(),
            watched: Watched::new(),
        }));
        if catalogue.0.answers.is_some() {
            let (listener, stopping) = (catalogue.clone(), process.tasks.stopping());
            process.tasks.spawn("catalogue", async move {
                while !stopping.is_cancelled() {
                    tokio::select! {
                        () = listener.listen() => {}
                        () = stopping.cancelled() => {}
                    }
                    tokio::time::sleep(REST).await;
                }
                Ok(())
            });
        }
        catalogue
    }

    /// A product as `user` may see it.
    pub async fn product(&self, user: &MaybeUser, id: i64) -> Result<Tagged, Problem> {
        let watched = &self.0.watched;
        let Some(answers) = self.believed() else {
            watched.bypasses.increment(1);
            return Ok(self.ask(user, id).await?.tagged);
        };
        if let Some(answer) = answers.get(&id).await {
            watched.hits.increment(1);
            watched.ages.record(answer.at.elapsed().as_secs_f64());
            return Ok(answer.tagged.clone());
        }
        if sees_more(user) {
            watched.bypasses.increment(1);
            return Ok(self.ask(user, id).await?.tagged);
        }
        watched.misses.increment(1);
        let era = self.0.era.load(Ordering::Acquire);
        // One asks, the others wait for what it gets.
        let asked = answers.try_get_with(id, async { self.ask(user, id).await.map(Arc::new) });
        let answer = asked.await.map_err(|problem| (*problem).clone())?;
        let current = era == self.0.era.load(Ordering::Acquire) && answer.revision >= self.seen(id);
        if current && answer.open {
            return Ok(answer.tagged.clone());
        }
        answers.invalidate(&id).await;
        Ok(self.ask(user, id).await?.tagged)
    }

    async fn ask(&self, user: &MaybeUser, id: i64) -> Result<Answer, Problem> {
        let answer = if sees_more(user) {
            self.ask_alone(user, id).await?
        } else if let Some(answer) = self.0.together.look_up(id, self.seen(id)).await {
            answer
        } else {
            self.ask_alone(&Nobody, id).await?
        };
        self.see(id, answer.revision);
        Ok(answer)
    }

    async fn ask_alone(&self, user: &impl Credential, id: i64) -> Result<Answer, Problem> {
        let asked = ProductAsOf { id, revision: self.seen(id) };
        let (metadata, product, _) = self.0.upstream.call_in_full(user, asked).await?.into_parts();
        Answer::new(&product, told_revision(&metadata))
    }

    /// Takes notice of a change that went through here: whoever asks next is shown it.
    pub async fn wrote(&self, id: i64, metadata: &MetadataMap) {
        self.outdate(id, told_revision(metadata)).await;
    }

    /// The same of an order, which has moved stocks; of many moves of one stock the service tells soon enough.
    pub async fn ordered(&self, ids: &[i64]) {
        if let Some(answers) = &self.0.answers {
            for id in ids.iter().filter(|id| self.0.fold.lets_through(**id)) {
                answers.invalidate(id).await;
            }
        }
    }

    /// Forgets everything; what is on its way is not kept either.
    pub fn forget_all(&self) {
        self.0.era.fetch_add(1, Ordering::AcqRel);
        if let Some(answers) = &self.0.answers {
            answers.invalidate_all();
        }
    }

    async fn outdate(&self, id: i64, revision: i64) {
        self.see(id, revision);
        if let Some(answers) = &self.0.answers
            && answers.get(&id).await.is_some_and(|answer| answer.revision < revision)
        {
            answers.invalidate(&id).await;
        }
    }

    /// Listens to one replica of the service until that ends.
    async fn listen(&self) {
        let watch = async { self.0.upstream.changes().watch(WatchRequest {}).await };
        let Ok(news) = client::within(SILENCE, watch).await else {
            return;
        };
        let mut news = news.into_inner();
        while let Ok(Ok(Some(news))) = tokio::time::timeout(SILENCE, news.message()).await {
            self.take_in(news).await;
        }
    }

    async fn take_in(&self, news: WatchResponse) {
        if news.everything {
            self.forget_all();
        }
        for changed in news.changed {
            self.outdate(changed.product_id, changed.revision).await;
            if let Some(Ok(at)) = changed.changed_at.map(OffsetDateTime::try_from) {
                let delay = self.0.clock.now() - at;
                self.0.watched.delays.record(delay.as_seconds_f64().max(0.0));
            }
        }
        self.0.believed_until.store(self.now() + millis(TRUST), Ordering::Release);
    }

    /// The answers, where they may be believed.
    fn believed(&self) -> Option<&moka::future::Cache<i64, Arc<Answer>>> {
        self.0.answers.as_ref().filter(|_| self.now() < self.0.believed_until.load(Ordering::Acquire))
    }

    fn seen(&self, id: i64) -> i64 {
        self.0.seen.get(&id).map_or(0, |newest| newest.number)
    }

    fn see(&self, id: i64, number: i64) {
        let now = Instant::now();
        // Writing costs several times what looking does.
        let known = |newest: Revision| newest.number >= number && now < newest.at + SEEN;
        if self.0.seen.get(&id).is_some_and(known) {
            return;
        }
        let newest = |held: Option<moka::Entry<i64, Revision>>| {
            let held = held.map_or(0, |held| held.into_value().number);
            Revision { number: held.max(number), at: now }
        };
        self.0.seen.entry(id).and_upsert_with(newest);
    }

    fn now(&self) -> u64 {
        millis(self.0.start.elapsed())
    }
}

/// Whether `user` is shown what others are not, and so asks for itself.
fn sees_more(user: &MaybeUser) -> bool {
    user.0.as_ref().is_some_and(|caller| caller.claims.role != Role::User)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Of an answer that says none: the oldest.
fn told_revision(metadata: &MetadataMap) -> i64 {
    let told = metadata.get(PRODUCT_REVISION).and_then(|value| value.to_str().ok());
    told.and_then(|told| told.parse().ok()).unwrap_or_default()
}

impl FromRequestParts<State> for Catalogue {
    type Rejection = Infallible;

    async fn from_request_parts(_: &mut Request, state: &State) -> Result<Self, Infallible> {
        Ok(state.catalogue.clone())
    }
}
