//! The level in Redis, shared by all processes, and warm when one of them starts. `product:{epoch}:{id}` has an answer
//! and its revision. `product:log` has the epoch and the number of the log up to which every change was reported to it.
//!
//! **A process believes the content of Redis only while it has itself reported every change to it**, over the present
//! connection. First come the changes behind the position that Redis knew when the connection was made. They are read
//! from the log a page at a time, with the position saved after each page. Then comes what each look at the log finds.
//! A look that was not reported yet is at most [`MAX_LAG`] old. For longer than that the memory remembers the newest
//! revision of what it found. A connection that breaks, a report that fails, a Redis that lost what was reported, end
//! the belief.
//!
//! A new epoch begins instead where too many changes are missing: nothing of the old one is looked at again. It is
//! entered before a product is read that is to be kept in it, so nothing older than its beginning gets into it.
//!
//! Reading the log for Redis is apart from reading it for the memory ([`crate::changes`]), which therefore is believed
//! however slow Redis is.

mod follower;

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use fred::{clients::Client, interfaces::HashesInterface as _, types::scripts::Script};
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use shoppee_kit::pg::PgPool;
use shoppee_kit::{process::Process, redis::Clients, tasks::Tasks};
use time::OffsetDateTime;
use tokio::time::Instant;

use self::follower::Follower;
use super::{Cache, FLOOR, Known, count};
use crate::{
    changes::Changes,
    product::{Product, are_shallow},
    store::change::Change,
};

/// A reader does not wait longer for Redis, which answers in under a millisecond; PostgreSQL knows as well.
const READ_TIMEOUT: Duration = Duration::from_millis(50);
/// The timeout of one command of a report: Redis is given up where it takes longer.
const REPORT_TIMEOUT: Duration = Duration::from_millis(300);
/// Changes reported at once.
const REPORTED: usize = 500;
/// Word of a change stays longer than any read that began before it takes.
const WORD_TTL: Duration = Duration::from_secs(30);
/// The age above which a read is not put there.
const MAX_PUT_AGE: Duration = Duration::from_secs(5);
/// Changes that were told to the memory longer ago than this must have been reported. The memory remembers them for
/// twice as long.
const MAX_LAG: Duration = Duration::from_secs(FLOOR.as_secs() / 2);
const LOG: &str = "product:log";

#[derive(Clone, Debug)]
pub struct Shared(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    lifetime: Duration,
    tasks: Tasks,
    link: ArcSwapOption<Link>,
}

impl Shared {
    /// Keeps nothing where `lifetime` is zero.
    pub fn new(lifetime: Duration, process: &Process) -> Self {
        let (tasks, link) = (process.tasks.clone(), ArcSwapOption::empty());
        Self(Arc::new(Parts { lifetime, tasks, link }))
    }

    /// Reports whether anything is kept at all.
    pub fn is_on(&self) -> bool {
        !self.0.lifetime.is_zero()
    }

    /// Starts to connect, for as long as it takes, and again when that is over; over each connection reports what
    /// changes.
    pub fn follow(
        &self,
        redis: &Clients,
        cache: &Cache,
        pool: &PgPool,
        changes: &Changes,
        process: &Process,
    ) {
        if self.is_on() {
            let follower = Follower {
                connector: redis.connector("shared cache"),
                shared: self.clone(),
                cache: cache.clone(),
                pool: pool.clone(),
                changes: changes.clone(),
            };
            let stopping = process.tasks.shutdown_token();
            process.tasks.spawn("shared cache", async move {
                follower.run(&stopping).await;
                Ok(())
            });
        }
    }

    /// Reports whether the content of Redis is believed in this generation of the memory.
    pub fn is_believed(&self, generation: u64) -> bool {
        self.believed(generation).is_some()
    }

    /// The epoch, where what is in it is believed in this generation of the memory.
    pub fn believed(&self, generation: u64) -> Option<Arc<Link>> {
        self.0.link.load_full().filter(|link| link.is_believed(generation))
    }

    /// Puts a product into the epoch `link`, which was believed before the product was read, behind the answer to the
    /// request.
    pub fn put(&self, link: Arc<Link>, id: i64, known: Arc<Known>) {
        let (lifetime, read) = (self.0.lifetime, Instant::now());
        self.0.tasks.track(async move {
            // That a product does not exist is not kept here: anybody can ask for any number.
            let Some(product) = &known.product else {
                return;
            };
            let kept = Kept { product: Cow::Borrowed(product), read_at: known.read_at };
            let Ok(answer) = serde_json::to_string(&kept) else {
                return;
            };
            if read.elapsed() < MAX_PUT_AGE
                && let Err(error) = link.put(id, known.revision(), lifetime, &answer).await
            {
                tracing::debug!(%error, product.id = id, "not put into the shared cache");
            }
        });
    }
}

/// An epoch, and what was reported to it over a connection.
#[derive(Debug)]
pub struct Link {
    client: Client,
    scripts: Arc<Scripts>,
    epoch: String,
    /// `None` until all was reported that Redis did not know of.
    reported: Mutex<Option<Reported>>,
}

#[derive(Debug)]
struct Scripts {
    newer: Script,
    note: Script,
    begin: Script,
}

/// The extent of what was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reported {
    /// All that the log showed at this moment.
    at: Instant,
    /// The generation of the memory then.
    generation: u64,
}

impl Reported {
    /// Reports whether all that the memory may have forgotten by now was reported.
    fn is_enough(self, generation: u64, now: Instant) -> bool {
        self.generation == generation && now.duration_since(self.at) < MAX_LAG
    }
}

impl Link {
    fn is_believed(&self, generation: u64) -> bool {
        let reported = *self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        reported.is_some_and(|reported| reported.is_enough(generation, Instant::now()))
    }

    fn believe(&self, reported: Reported) {
        *self.reported.lock().unwrap_or_else(PoisonError::into_inner) = Some(reported);
    }

    /// A product, and when it was read.
    pub async fn get(&self, id: i64) -> Option<(Product, OffsetDateTime)> {
        let asked: Result<Result<Option<String>, _>, _> =
            tokio::time::timeout(READ_TIMEOUT, self.client.hget(self.key(id), "answer")).await;
        let Ok(Ok(answer)) = asked else {
            count("redis", "error");
            return None;
        };
        let kept: Kept<'_> = serde_json::from_str(&answer?).ok()?;
        // A process of another version may have put it there.
        are_shallow(&kept.product.attributes).then_some(())?;
        Some((kept.product.into_owned(), kept.read_at))
    }

    async fn put(&self, id: i64, revision: i64, lifetime: Duration, answer: &str) -> anyhow::Result<()> {
        let put = self.scripts.newer.evalsha(&self.client, self.key(id), newer(revision, lifetime, answer));
        let _: i64 = tokio::time::timeout(REPORT_TIMEOUT, put).await??;
        Ok(())
    }

    /// Gives word of changes: what is older is not kept any more.
    async fn report(&self, changes: &[Change]) -> anyhow::Result<()> {
        for changes in changes.chunks(REPORTED) {
            // Sent one after the other, without waiting for each.
            let words = changes.iter().map(async |change| {
                let arguments = newer(change.revision, WORD_TTL, "");
                let key = self.key(change.product_id);
                self.scripts.newer.evalsha::<i64, _, _, _>(&self.client, key, arguments).await
            });
            tokio::time::timeout(REPORT_TIMEOUT, try_join_all(words)).await??;
        }
        Ok(())
    }

    /// Notes that all changes up to `upto` were reported, by a process that has reported all behind `from`. `false`
    /// where the epoch is over, or Redis has lost something.
    async fn note(&self, from: i64, upto: i64) -> anyhow::Result<bool> {
        let arguments = vec![self.epoch.clone(), from.to_string(), upto.to_string()];
        let noted = self.scripts.note.evalsha::<i64, _, _, _>(&self.client, LOG, arguments);
        Ok(tokio::time::timeout(REPORT_TIMEOUT, noted).await?? == 1)
    }

    fn key(&self, id: i64) -> String {
        format!("product:{}:{id}", self.epoch)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redis_is_believed_only_while_all_is_reported_that_the_memory_may_have_forgotten() {
        let at = Instant::now();
        let reported = Reported { at, generation: 3 };
        assert!(reported.is_enough(3, at + MAX_LAG / 2));
        assert!(!reported.is_enough(3, at + MAX_LAG), "a change may be older than what the memory remembers");
        assert!(!reported.is_enough(4, at), "everything was dropped, and the epoch does not know");
        assert!(2 * MAX_LAG <= FLOOR);
    }
}
