//! The level in Redis, shared by all processes, and warm when one of them starts: `product:{id}`, an answer and its
//! revision.
//!
//! It is believed only over a connection on which this process itself has reported every change: each look at the log
//! reports what it found that was not reported yet, and how far that goes (`product:position`). A connection that breaks, or a report that
//! fails, ends the belief; the next connection begins with a report of everything since the position that Redis
//! knows. So whatever happens to Redis, wiped, restored, frozen or cut off, what it has is out of date for no longer
//! than one look.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use fred::{
    clients::Client,
    interfaces::{ClientLike as _, HashesInterface as _, KeysInterface as _},
    types::scripts::Script,
};
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use shoppee_kit::{
    process::Process,
    redis::{Clients, Connector},
    tasks::Tasks,
};
use time::OffsetDateTime;
use tokio::{sync::Notify, time::Instant};

use super::{Known, count};
use crate::{product::Product, store::change::Change};

/// A reader does not wait longer for Redis, which answers in under a millisecond; PostgreSQL knows as well.
const PATIENCE: Duration = Duration::from_millis(50);
/// Nor does a look at the log, so that memory is believed meanwhile.
const REPORT: Duration = Duration::from_millis(300);
/// Changes reported at once.
const REPORTED: usize = 500;
/// Word of a change stays longer than anybody who read before it can still be on the way.
const WORD: Duration = Duration::from_secs(30);
/// Nobody comes later than this with what was read.
const FRESH: Duration = Duration::from_secs(5);
/// Before Redis is tried again.
const REST: Duration = Duration::from_millis(500);
const POSITION: &str = "product:position";

/// A connection, and what has been said over it.
#[derive(Debug)]
struct Link {
    client: Client,
    newer: Script,
    position: Script,
    said: Mutex<Said>,
    /// Revisions of what the last look found: while a transaction lasts, each look finds all that came after it again.
    reported: tokio::sync::Mutex<HashMap<i64, i64>>,
}

#[derive(Clone, Copy, Debug)]
enum Said {
    /// Nothing yet; Redis knows all changes up to this number, if any.
    Nothing { known: Option<i64> },
    /// All changes up to this number at least.
    UpTo(i64),
}

#[derive(Clone, Debug)]
pub struct Shared(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    lifetime: Duration,
    tasks: Tasks,
    link: ArcSwapOption<Link>,
    broken: Notify,
}

impl Shared {
    /// Starts to connect, for as long as it takes, and again when that is over. Keeps nothing where `lifetime` is
    /// zero.
    pub fn start(redis: &Clients, lifetime: Duration, process: &Process) -> Self {
        let (tasks, link, broken) = (process.tasks.clone(), ArcSwapOption::empty(), Notify::new());
        let shared = Self(Arc::new(Parts { lifetime, tasks, link, broken }));
        if lifetime.is_zero() {
            return shared;
        }
        let connector = redis.connector("shared cache");
        let (keeper, stopping) = (shared.clone(), process.tasks.stopping());
        process.tasks.spawn("shared cache", async move {
            while !stopping.is_cancelled() {
                tokio::select! {
                    () = keeper.connect(&connector) => {}
                    () = stopping.cancelled() => return Ok(()),
                }
                tokio::time::sleep(REST).await;
            }
            Ok(())
        });
        shared
    }

    /// Connects, and returns when that is over.
    async fn connect(&self, connector: &Connector) {
        let connected = async {
            let (client, over) = connector.connect().await?;
            let (newer, position) =
                (Script::from_lua(include_str!("newer.lua")), Script::from_lua(include_str!("position.lua")));
            newer.load(&client).await?;
            position.load(&client).await?;
            let known: Option<i64> = client.get(POSITION).await?;
            let said = Mutex::new(Said::Nothing { known });
            let reported = tokio::sync::Mutex::default();
            anyhow::Ok((Arc::new(Link { client, newer, position, said, reported }), over))
        };
        match connected.await {
            Ok((link, over)) => {
                let client = link.client.clone();
                self.0.link.store(Some(link));
                tokio::select! {
                    _ = over => {}
                    () = self.0.broken.notified() => {}
                }
                self.0.link.store(None);
                let _ = client.quit().await;
            }
            Err(error) => tracing::debug!(%error, "no shared cache"),
        }
    }

    /// From where the log must be read: from what Redis knows, so that nothing is missing in between.
    pub fn from(&self) -> Option<i64> {
        match self.0.link.load().as_deref()?.said() {
            Said::Nothing { known } => known,
            Said::UpTo(said) => Some(said),
        }
    }

    /// Reports all changes behind `from`, the log being settled up to a number.
    pub async fn outdate(&self, changes: &[Change], from: i64, settled: i64) {
        let Some(link) = self.0.link.load_full() else {
            return;
        };
        match link.report(changes, from, settled).await {
            Ok(()) => link.say(Said::UpTo(settled)),
            Err(error) => {
                tracing::debug!(%error, "shared cache not kept up to date");
                self.0.link.store(None);
                self.0.broken.notify_one();
            }
        }
    }

    pub async fn get(&self, id: i64) -> Option<Known> {
        let link = self.believed()?;
        let asked: Result<Result<Option<String>, _>, _> =
            tokio::time::timeout(PATIENCE, link.client.hget(key(id), "answer")).await;
        let Ok(Ok(answer)) = asked else {
            count("redis", "error");
            return None;
        };
        let kept: Kept<'_> = serde_json::from_str(&answer?).ok()?;
        Some(Known::new(Some(kept.product.into_owned()), kept.read_at))
    }

    /// Puts it there, behind the answer of whoever asked.
    pub fn put(&self, id: i64, known: Arc<Known>) {
        let (Some(link), read) = (self.believed(), Instant::now()) else {
            return;
        };
        let lifetime = self.0.lifetime;
        self.0.tasks.track(async move {
            // That a product does not exist is not kept here: anybody can ask for any number.
            let Some(product) = &known.product else {
                return;
            };
            let kept = Kept { product: Cow::Borrowed(product), read_at: known.read_at };
            let Ok(answer) = serde_json::to_string(&kept) else {
                return;
            };
            if read.elapsed() < FRESH
                && let Err(error) = link.put(id, known.revision(), lifetime, &answer).await
            {
                tracing::debug!(%error, product.id = id, "not put into the shared cache");
            }
        });
    }

    /// The connection, where what comes from it can be believed.
    fn believed(&self) -> Option<Arc<Link>> {
        self.0.link.load_full().filter(|link| matches!(link.said(), Said::UpTo(_)))
    }
}

impl Link {
    fn said(&self) -> Said {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, said: Said) {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = said;
    }

    async fn report(&self, changes: &[Change], from: i64, settled: i64) -> anyhow::Result<()> {
        let mut reported = self.reported.lock().await;
        let is_new =
            |change: &&Change| reported.get(&change.product_id).is_none_or(|told| *told < change.revision);
        self.give_word(changes.iter().filter(is_new)).await?;
        let noted = self.position.evalsha(&self.client, POSITION, vec![settled, from]);
        let before: i64 = tokio::time::timeout(REPORT, noted).await??;
        // A Redis that is empty has nothing that could be out of date.
        anyhow::ensure!(before == EMPTY || before >= from, "Redis has an older state than before");
        if before == EMPTY {
            // But somebody may be on the way to it with what was read before the changes.
            self.give_word(changes.iter()).await?;
        }
        *reported = changes.iter().map(|change| (change.product_id, change.revision)).collect();
        Ok(())
    }

    async fn give_word(&self, changes: impl Iterator<Item = &Change>) -> anyhow::Result<()> {
        let changes: Vec<&Change> = changes.collect();
        for changes in changes.chunks(REPORTED) {
            // Sent one after the other, without waiting for each.
            let words = changes.iter().map(async |change| {
                let arguments = newer(change.revision, WORD, "");
                self.newer.evalsha::<i64, _, _, _>(&self.client, key(change.product_id), arguments).await
            });
            tokio::time::timeout(REPORT, try_join_all(words)).await??;
        }
        Ok(())
    }

    async fn put(&self, id: i64, revision: i64, lifetime: Duration, answer: &str) -> anyhow::Result<()> {
        let put = self.newer.evalsha(&self.client, key(id), newer(revision, lifetime, answer));
        let _: i64 = tokio::time::timeout(REPORT, put).await??;
        Ok(())
    }
}

/// What position.lua says where there is none.
const EMPTY: i64 = -1;

fn key(id: i64) -> String {
    format!("product:{id}")
}

/// The arguments of newer.lua.
fn newer(revision: i64, lifetime: Duration, answer: &str) -> Vec<String> {
    vec![revision.to_string(), lifetime.as_millis().to_string(), answer.to_owned()]
}

/// An answer as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept<'a> {
    product: Cow<'a, Product>,
    #[serde(with = "crate::product::micros")]
    read_at: OffsetDateTime,
}
