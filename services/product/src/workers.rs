//! What goes on without being asked. Any number of replicas may run these, and each may be killed anywhere:
//! what they do is one transaction, or can be done again.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use shoppee_kit::{pg::PgPool, process::Process};
use tokio::{sync::Mutex, time::Instant};

use crate::{
    cache::Lifetimes,
    error::Error,
    holds::Holds,
    store::{self, search::AT_ONCE},
};

/// A hold is back on the shelf within about this after its time.
const EXPIRY: Duration = Duration::from_secs(1);
/// How often a slice of the books is looked at.
const AUDIT: Duration = Duration::from_secs(5);
/// Products of a slice.
const SLICE: i64 = 1000;
/// Violations that are remembered; one is too many.
const REMEMBERED: usize = 10_000;
/// A renamed category's products are found by the new name within about this.
const RENAMING: Duration = Duration::from_secs(1);
/// How soon words begin to be read that were not at once: of a load past the service, or where that went wrong.
const READING: Duration = Duration::from_secs(1);
/// How often old entries of the change log are deleted.
const FORGETTING: Duration = Duration::from_mins(1);
/// Longer than anything stays in Redis that an entry could make old.
const LOGGED: Duration = Duration::from_hours(2);
/// Entries deleted in one transaction.
const FORGOTTEN: i64 = 10_000;
/// A worker that has nothing left to do rests this many times as long as its last step took, at least.
const REST: u32 = 20;

/// Starts all of them.
pub fn start(process: &Process, pool: &PgPool, holds: &Holds, lifetimes: Lifetimes) {
    let holds = holds.clone();
    repeat(process, "expiry", EXPIRY, move || {
        let holds = holds.clone();
        async move { Ok(holds.expire().await? > 0) }
    });
    // As long as nothing was found; the first round takes a while.
    metrics::gauge!("stock_invariant_violations").set(0.0);
    let (books, audited) = (Arc::new(Mutex::new(Books::default())), pool.clone());
    repeat(process, "audit", AUDIT, move || {
        let (books, pool) = (books.clone(), audited.clone());
        async move { books.lock().await.look(&pool).await }
    });
    let renamed = pool.clone();
    repeat(process, "renaming", RENAMING, move || {
        let pool = renamed.clone();
        async move { rename(&pool).await }
    });
    let (logged, clock, kept) = (pool.clone(), process.clock.clone(), LOGGED.max(2 * lifetimes.shared));
    repeat(process, "change log", FORGETTING, move || {
        let (pool, before) = (logged.clone(), clock.now() - kept);
        async move {
            let mut conn = pool.acquire().await?;
            Ok(store::change::forget(&mut conn, before, FORGOTTEN).await? > 0)
        }
    });
    let unread = pool.clone();
    repeat(process, "reading", READING, move || {
        let pool = unread.clone();
        async move { read(&pool).await }
    });
}

/// Takes one `step` after the other while the database is there; at once where the last says that there is
/// more to do, else after a `pause`.
fn repeat<S, F>(process: &Process, name: &'static str, pause: Duration, step: S)
where
    S: Fn() -> F + Send + 'static,
    F: Future<Output = Result<bool, Error>> + Send + 'static,
{
    let (stopping, readiness) = (process.tasks.stopping(), process.readiness.clone());
    process.tasks.spawn(name, async move {
        while !stopping.is_cancelled() {
            let began = Instant::now();
            // Until the migrations have run, there is nothing to work on.
            let more = if readiness.missing().contains(&"postgres") { Ok(false) } else { step().await };
            match more {
                Ok(true) => continue,
                Ok(false) | Err(Error::Unavailable) => {}
                Err(error) => tracing::warn!(worker = name, %error, "step failed"),
            }
            tokio::select! {
                () = tokio::time::sleep(pause.max(began.elapsed() * REST)) => {}
                () = stopping.cancelled() => {}
            }
        }
        Ok(())
    });
}

/// Goes round all products, slice by slice, and keeps count of those whose books do not balance.
#[derive(Debug, Default)]
struct Books {
    after: i64,
    violating: BTreeSet<i64>,
}

impl Books {
    /// Looks at the next slice; never in a hurry.
    async fn look(&mut self, pool: &PgPool) -> Result<bool, Error> {
        let mut conn = pool.acquire().await?;
        let found = store::stock::conservation(&mut conn, self.after, SLICE).await?;
        let (first, last) = (self.after.saturating_add(1), found.last.unwrap_or(i64::MAX));
        self.violating.retain(|id| !(first..=last).contains(id));
        for id in found.violations {
            tracing::error!(product.id = id, "supplied is not available + held + sold");
            if self.violating.len() < REMEMBERED {
                self.violating.insert(id);
            }
        }
        // After the last product, the first again.
        self.after = found.last.unwrap_or(0);
        #[expect(clippy::cast_precision_loss, reason = "a few thousand at most")]
        metrics::gauge!("stock_invariant_violations").set(self.violating.len() as f64);
        Ok(false)
    }
}

/// Lets some products of a renamed category follow; whether there are more.
async fn rename(pool: &PgPool) -> Result<bool, Error> {
    let mut conn = pool.acquire().await?;
    let Some(category) = store::category::renamed(&mut conn).await? else {
        return Ok(false);
    };
    let rewritten = store::category::rewrite(&mut conn, category, AT_ONCE.into()).await?;
    if rewritten.is_empty() {
        // Where some are being changed right now, it is settled at the next step.
        return Ok(store::category::settle(&mut conn, category).await?);
    }
    store::search::learn(&mut conn, &rewritten).await?;
    Ok(true)
}

/// Reads the words of some products that nobody has read yet; whether there are more.
async fn read(pool: &PgPool) -> Result<bool, Error> {
    let mut conn = pool.acquire().await?;
    let unread = store::search::unread(&mut conn).await?;
    store::search::learn(&mut conn, &unread).await?;
    Ok(!unread.is_empty())
}
