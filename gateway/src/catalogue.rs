//! Products as customers are shown them: the bytes of the answer with their entity tag, kept in memory for as long as
//! they are true.
//!
//! They are true while the product service, which reads the log of changes several times a second, tells of them
//! ([`Belief`]); where it says nothing, every request goes to it. An answer has a revision, and nobody who asks here is
//! shown an older one than somebody was before: the newest that was seen lately is remembered, asked for as the least
//! that will do, and what comes home below it is not kept.

mod belief;
mod pages;
mod rendered;
mod together;

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::extract::FromRequestParts;
use http::request::Parts as Request;
use metrics::{Counter, Histogram, counter, histogram};
use shoppee_kit::{client, clock::Clock, fold::Fold, process::Process};
use shoppee_proto::{
    PRODUCT_REVISION,
    product::v1::{
        CachedProduct, GetPageRequest, Product, ProductAsOf, ProductChangeResult, ProductStatus, RowStatus,
        WatchRequest, WatchResponse,
    },
};
use time::OffsetDateTime;
use tokio::{
    task::coop::consume_budget,
    time::{Instant, timeout},
};
use tonic::{Code as Grpc, Response as Told, Status, metadata::MetadataMap};

use crate::{
    auth::{Credential, MaybeUser, Nobody},
    error::{Code, Problem},
    state::State,
    upstream::Upstream,
};
use belief::Belief;
use pages::{Key, Pages};
pub use rendered::{Page, Tagged};
use together::Together;

/// The memory for answers. Bytes.
const ROOM: u64 = 64 * 1024 * 1024;
/// What an answer takes beside its body. Bytes.
const OVERHEAD: usize = 512;
/// A service that says nothing for so long is left for another.
const SILENCE: Duration = Duration::from_secs(2);
const REST: Duration = Duration::from_millis(200);
/// For so long at least the newest revision is remembered that was seen: longer than an answer can be on its way, and
/// than a replica of the service may lag behind another.
const SEEN: Duration = Duration::from_secs(10);
const MOST_SEEN: u64 = 100_000;
/// The revision of an answer that says none: older than all.
const UNKNOWN: i64 = 0;
/// The key of the pages among the ids of products whose stock moves; no product has it.
const PAGES: i64 = 0;
/// Whoever waits for what another has asked for, and asks once more, does both within this; in 2.5 s a client hears
/// that a part of the shop is away.
const PATIENCE: Duration = Duration::from_millis(2400);

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

/// An answer in memory.
#[derive(Debug)]
struct Kept {
    answer: Answer,
    /// In which it was asked for.
    era: u64,
    /// Nothing newer was seen until it was here for all to find; since then whoever sees that drops it.
    sound: AtomicBool,
}

type Answers = moka::future::Cache<i64, Arc<Kept>>;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Catalogue(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    upstream: Upstream,
    together: Together,
    clock: Clock,
    /// `None` where it was set to keep nothing.
    answers: Option<Answers>,
    /// The newest revisions that were seen.
    seen: moka::sync::Cache<i64, Revision>,
    /// Grows each time that everything is forgotten.
    era: AtomicU64,
    pages: Pages,
    belief: Belief,
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
            let size = |kept: &Arc<Kept>| u32::try_from(OVERHEAD + kept.answer.tagged.len());
            moka::future::Cache::builder()
                .max_capacity(ROOM)
                .weigher(move |_, kept| size(kept).unwrap_or(u32::MAX))
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
            pages: Pages::new(),
            belief: Belief::none(Instant::now()),
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
        // Before it is looked at what is believed: when that ends, a new one has begun already.
        let era = self.0.era.load(Ordering::Acquire);
        let Some(answers) = self.believed() else {
            watched.bypasses.increment(1);
            return Ok(self.ask(user, id).await?.tagged);
        };
        if let Some(kept) = answers.get(&id).await
            && self.is_sound(id, &kept)
        {
            watched.hits.increment(1);
            watched.ages.record(kept.answer.at.elapsed().as_secs_f64());
            return Ok(kept.answer.tagged.clone());
        }
        if user.sees_more() {
            watched.bypasses.increment(1);
            return Ok(self.ask(user, id).await?.tagged);
        }
        watched.misses.increment(1);
        let shared = timeout(PATIENCE, self.ask_with_others(answers, era, id));
        shared.await.unwrap_or_else(|_| Err(Problem::unavailable()))
    }

    /// Returns the page that `request` asks for, as `user` may see it.
    pub async fn page(&self, user: &MaybeUser, request: GetPageRequest) -> Result<Page, Problem> {
        let pages = &self.0.pages;
        if user.sees_more() {
            pages.bypasses.increment(1);
            return self.ask_for_items(user, request).await;
        }
        if self.believed().is_none() {
            pages.bypasses.increment(1);
            return self.ask_for_page(request).await;
        }
        pages.get(Key::of(&request), self.ask_for_page(request)).await
    }

    /// A page as anybody may see it, which the service renders.
    async fn ask_for_page(&self, request: GetPageRequest) -> Result<Page, Problem> {
        match self.0.upstream.call_in_full(&Nobody, request.clone()).await {
            Ok(told) => Ok(Page::from_json(told.into_inner().json)),
            // A service of the version before, while a new one is rolled out.
            Err(status) if status.code() == Grpc::Unimplemented => self.ask_for_items(&Nobody, request).await,
            Err(status) => Err(status.into()),
        }
    }

    /// The products of a page, rendered here.
    async fn ask_for_items(&self, user: &impl Credential, request: GetPageRequest) -> Result<Page, Problem> {
        let upstream = &self.0.upstream;
        match request.search {
            Some(request) => Page::new(&upstream.call(user, request).await?),
            None => Page::new(&upstream.call(user, request.list.unwrap_or_default()).await?),
        }
    }

    /// One asks, the others wait for what it gets, and all who come later are told it too.
    async fn ask_with_others(&self, answers: &Answers, era: u64, id: i64) -> Result<Tagged, Problem> {
        let seen = self.seen(id);
        let ask = async {
            let answer = self.ask_openly(id).await?;
            Ok(Arc::new(Kept { answer, era, sound: AtomicBool::new(false) }))
        };
        match answers.try_get_with::<_, Problem>(id, ask).await {
            Ok(kept) if self.is_sound(id, &kept) => return Ok(kept.answer.tagged.clone()),
            Ok(_) => answers.invalidate(&id).await,
            // It may have been made since the one who asked did so.
            Err(problem) if problem.code == Code::NotFound && self.seen(id) > seen => {}
            Err(problem) => return Err(Problem::clone(&problem)),
        }
        Ok(self.ask_openly(id).await?.tagged)
    }

    /// Whether everybody may be shown what is in memory.
    fn is_sound(&self, id: i64, kept: &Kept) -> bool {
        if kept.sound.load(Ordering::Acquire) {
            return true;
        }
        let current = kept.era == self.0.era.load(Ordering::Acquire);
        let sound = current && kept.answer.open && kept.answer.revision >= self.seen(id);
        kept.sound.store(sound, Ordering::Release);
        sound
    }

    async fn ask(&self, user: &MaybeUser, id: i64) -> Result<Answer, Problem> {
        if user.sees_more() { self.ask_alone(user, id).await } else { self.ask_openly(id).await }
    }

    /// As anybody may see it.
    async fn ask_openly(&self, id: i64) -> Result<Answer, Problem> {
        let Some(answer) = self.0.together.look_up(id, self.seen(id)).await else {
            return self.ask_alone(&Nobody, id).await;
        };
        self.outdate(id, answer.revision).await;
        Ok(answer)
    }

    async fn ask_alone(&self, user: &impl Credential, id: i64) -> Result<Answer, Problem> {
        let told = self.newest(user, id).await?;
        Answer::new(told.get_ref(), told_revision(told.metadata()))
    }

    /// A product in no older state than was seen here.
    pub async fn newest(&self, user: &impl Credential, id: i64) -> Result<Told<Product>, Status> {
        let asked = ProductAsOf { id, revision: self.seen(id) };
        let told = self.0.upstream.call_in_full(user, asked).await;
        // That it is not in the shop any more is a state as well.
        let metadata = told.as_ref().map_or_else(Status::metadata, Told::metadata);
        self.outdate(id, told_revision(metadata)).await;
        told
    }

    /// Takes notice of a change that went through here: whoever asks next is shown it.
    pub async fn wrote(&self, id: i64, metadata: &MetadataMap) {
        self.0.pages.invalidate();
        self.outdate(id, told_revision(metadata)).await;
    }

    /// The same of many.
    pub async fn wrote_many(&self, results: &[ProductChangeResult]) {
        self.0.pages.invalidate();
        let mut doubtful = false;
        for result in results {
            match (result.id, result.status()) {
                (Some(id), RowStatus::Updated) if result.revision > UNKNOWN => {
                    self.outdate(id, result.revision).await;
                }
                (Some(_), RowStatus::Updated) => doubtful = true,
                (_, _) => doubtful |= may_be_done(result),
            }
        }
        if doubtful {
            self.forget_all();
        }
    }

    /// The same of an order, which has moved stocks; of many moves of one stock the service tells soon enough.
    pub async fn ordered(&self, ids: &[i64]) {
        if self.0.fold.lets_through(PAGES) {
            self.0.pages.invalidate();
        }
        if let Some(answers) = &self.0.answers {
            for id in ids.iter().filter(|id| self.0.fold.lets_through(**id)) {
                answers.invalidate(id).await;
            }
        }
    }

    /// Forgets everything; what is on its way is not kept either.
    pub fn forget_all(&self) {
        self.0.era.fetch_add(1, Ordering::AcqRel);
        self.0.pages.invalidate();
        if let Some(answers) = &self.0.answers {
            answers.invalidate_all();
        }
    }

    /// Takes notice of a revision: nobody is shown an older one any more.
    async fn outdate(&self, id: i64, revision: i64) {
        if revision == UNKNOWN {
            return;
        }
        // Of a large batch there are thousands: others have their turn in between.
        consume_budget().await;
        self.see(id, revision);
        // In this order: see `is_sound`.
        if let Some(answers) = &self.0.answers
            && answers.get(&id).await.is_some_and(|kept| kept.answer.revision < revision)
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
            self.0.belief.end();
            self.forget_all();
            return;
        }
        if !news.changed.is_empty() {
            self.0.pages.invalidate();
        }
        for changed in news.changed {
            self.outdate(changed.product_id, changed.revision).await;
            if let Some(Ok(at)) = changed.changed_at.map(OffsetDateTime::try_from) {
                let delay = self.0.clock.now() - at;
                self.0.watched.delays.record(delay.as_seconds_f64().max(0.0));
            }
        }
        self.0.belief.renew(Instant::now(), Duration::from_millis(news.age_ms));
    }

    /// The answers, where they may be believed.
    fn believed(&self) -> Option<&Answers> {
        self.0.answers.as_ref().filter(|_| self.0.belief.holds(Instant::now()))
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
}

/// Whether nobody knows if a row that failed was done even so.
fn may_be_done(result: &ProductChangeResult) -> bool {
    result.error.as_ref().is_some_and(|error| error.code == Code::Unavailable.as_str())
}

fn told_revision(metadata: &MetadataMap) -> i64 {
    let told = metadata.get(PRODUCT_REVISION).and_then(|value| value.to_str().ok());
    told.and_then(|told| told.parse().ok()).unwrap_or(UNKNOWN)
}

impl FromRequestParts<State> for Catalogue {
    type Rejection = Infallible;

    async fn from_request_parts(_: &mut Request, state: &State) -> Result<Self, Infallible> {
        Ok(state.catalogue.clone())
    }
}
