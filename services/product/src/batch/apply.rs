//! What happens with a batch: its products are found, the rows that could never be applied are set aside, the
//! others are decided under the locks of their products and written with a few statements a chunk.
//!
//! With `continue` each chunk is a transaction of its own: a row and its line in the ledger are both there or
//! neither. With `abort` everything is one transaction.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use shoppee_kit::{clock::Clock, pg::PgPool};
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{Change, OnError, Outcome, Row, RowFault, RowResult, Target, Update};
use crate::{
    catalogue::Catalogue,
    error::Error,
    idempotency::{Begun, DoneRow, Key, Turn},
    product::Sku,
    stock::Kind,
    store::{self, batch::Write, stock::Movement},
};

/// Rows written by one statement: large enough that its cost is the rows', small enough that nobody waits
/// long for their locks.
const CHUNK: usize = 500;
/// Chunks at work at the same time, over all batches; less where the pool is small.
const WORKERS: u32 = 4;
/// What the ledger says.
const REASON: &str = "batch";

/// Batches of changes; cheap to clone.
#[derive(Clone, Debug)]
pub struct Batches {
    pool: PgPool,
    clock: Clock,
    catalogue: Catalogue,
    workers: Arc<Semaphore>,
}

/// A row that may be applied, with its place in the batch.
#[derive(Clone, Debug)]
struct Found {
    index: usize,
    id: i64,
    /// Where it was named by that, which another product may have when its turn comes.
    sku: Option<Sku>,
    change: Change,
}

/// What became of the rows of a chunk.
#[derive(Debug, Default)]
struct Done {
    outcomes: Vec<(usize, Outcome)>,
}

impl Batches {
    pub fn new(catalogue: Catalogue) -> Self {
        let pool = catalogue.pool.clone();
        // Three quarters of the connections are left to everybody else.
        let workers = (pool.options().get_max_connections() / 4).clamp(1, WORKERS);
        Self {
            clock: catalogue.clock.clone(),
            pool,
            catalogue,
            workers: Arc::new(Semaphore::new(workers as usize)),
        }
    }

    /// Takes the turn at a batch under a key, or finds its answer.
    pub async fn begin(&self, key: Key) -> Result<Begun, Error> {
        Turn::begin(&self.pool, key).await
    }

    /// Applies a batch; one result a row, in order. Under a key, all but the rows that are `done`.
    pub async fn apply(
        &self,
        on_error: OnError,
        rows: Vec<Row>,
        turn: Option<&Turn>,
        done: &[DoneRow],
    ) -> Result<Vec<RowResult>, Error> {
        let done: HashMap<usize, &DoneRow> =
            done.iter().filter_map(|row| Some((usize::try_from(row.row_index).ok()?, row))).collect();
        let ids = self.find(&rows).await?;
        let mut results = Vec::with_capacity(rows.len());
        let (mut named, mut found) = (HashSet::new(), Vec::new());
        for (index, row) in rows.into_iter().enumerate() {
            if let Some(done) = done.get(&index) {
                named.insert(done.product_id);
                let outcome = Outcome::Updated { version: done.version, revision: done.revision };
                results.push(RowResult { id: Some(done.product_id), outcome });
                continue;
            }
            let id = row.target.as_ref().and_then(|target| ids.get(target));
            let outcome = match (row.change, id) {
                (_, Some(id)) if !named.insert(id) => {
                    Some(RowFault::Invalid { field: "id", fault: "an earlier row has the same product" })
                }
                (Err(fault), _) => Some(fault),
                (Ok(_), None) => Some(RowFault::NotFound),
                (Ok(change), Some(id)) => {
                    let sku = match row.target {
                        Some(Target::Sku(sku)) => Some(sku),
                        Some(Target::Id(_)) | None => None,
                    };
                    found.push(Found { index, id, sku, change });
                    None
                }
            };
            // A row that was found is skipped, until it is done.
            let outcome = outcome.map_or(Outcome::Skipped, Outcome::Failed);
            results.push(RowResult { id, outcome });
        }
        let sound = found.len() + done.len() == results.len();
        // In the order in which everybody locks.
        found.sort_unstable_by_key(|row| row.id);
        let done = match on_error {
            OnError::Continue => self.continue_on_error(found, turn).await?,
            OnError::Abort => self.all_or_nothing(found, sound, turn).await?,
        };
        for (index, outcome) in done.outcomes {
            results[index].outcome = outcome;
        }
        // Staff that look at what they have just changed see it.
        let shows = |outcome: &Outcome| {
            matches!(outcome, Outcome::Updated { .. } | Outcome::Failed(RowFault::Uncertain))
        };
        if results.iter().any(|result| shows(&result.outcome)) {
            self.catalogue.cache.show().await;
            for result in &mut results {
                // Orders may have moved its stock while it was written.
                if let (Some(id), Outcome::Updated { revision, .. }) = (result.id, &mut result.outcome) {
                    *revision = self.catalogue.cache.floor(id).max(*revision);
                }
            }
        }
        Ok(results)
    }

    /// The products that the rows name.
    async fn find(&self, rows: &[Row]) -> Result<Ids, Error> {
        let (mut ids, mut skus) = (Vec::new(), Vec::new());
        for row in rows {
            match &row.target {
                Some(Target::Id(id)) => ids.push(*id),
                Some(Target::Sku(sku)) => skus.push(sku.as_str().to_owned()),
                None => {}
            }
        }
        let mut conn = self.pool.acquire().await?;
        let products = store::batch::find(&mut conn, &ids, &skus).await?;
        let mut found = Ids::default();
        for (id, sku) in products {
            found.ids.insert(id);
            found.by_sku.insert(sku, id);
        }
        Ok(found)
    }

    /// Decides all rows, so that whoever sent them learns of every fault at once; writes them where there is
    /// none, here or in the rows that are not `sound`.
    async fn all_or_nothing(
        &self,
        rows: Vec<Found>,
        sound: bool,
        turn: Option<&Turn>,
    ) -> Result<Done, Error> {
        let _worker = self.workers.acquire().await.map_err(|_| Error::Unavailable)?;
        let now = self.clock.now();
        let mut tx = self.pool.begin().await?;
        let (mut done, writes) = decide(&mut tx, &rows).await?;
        let failed = |outcome: &Outcome| matches!(outcome, Outcome::Failed(_));
        if !sound || done.outcomes.iter().any(|(_, outcome)| failed(outcome)) {
            tx.rollback().await?;
            for (_, outcome) in &mut done.outcomes {
                if !failed(outcome) {
                    *outcome = Outcome::Skipped;
                }
            }
            return Ok(done);
        }
        for chunk in writes.chunks(CHUNK) {
            write(&mut tx, chunk, now).await?;
        }
        done.note(&mut tx, &rows, turn).await?;
        Ok(done.committed(tx.commit().await))
    }

    async fn continue_on_error(&self, rows: Vec<Found>, turn: Option<&Turn>) -> Result<Done, Error> {
        let mut chunks = JoinSet::new();
        for chunk in rows.chunks(CHUNK) {
            let (batches, chunk, turn) = (self.clone(), chunk.to_vec(), turn.cloned());
            chunks.spawn(async move {
                batches.chunk(&chunk, turn.as_ref()).await.map_err(|error| (chunk, error))
            });
        }
        let (mut done, mut error, mut any) = (Done::default(), None, false);
        while let Some(chunk) = chunks.join_next().await {
            match chunk {
                Ok(Ok(chunk)) => {
                    any = true;
                    done.outcomes.extend(chunk.outcomes);
                }
                Ok(Err((chunk, why))) => {
                    tracing::warn!(error = %why, rows = chunk.len(), "rows of a batch not done");
                    let failed = |row: Found| (row.index, Outcome::Failed(RowFault::Unavailable));
                    done.outcomes.extend(chunk.into_iter().map(failed));
                    error = Some(why);
                }
                Err(_panicked) => error = Some(Error::Internal),
            }
        }
        match error {
            // Nothing was done; to be told as such.
            Some(error) if !any => Err(error),
            Some(_) | None => Ok(done),
        }
    }

    async fn chunk(&self, rows: &[Found], turn: Option<&Turn>) -> Result<Done, Error> {
        let _worker = self.workers.acquire().await.map_err(|_| Error::Unavailable)?;
        let now = self.clock.now();
        let mut tx = self.pool.begin().await?;
        let (done, writes) = decide(&mut tx, rows).await?;
        if !writes.is_empty() {
            write(&mut tx, &writes, now).await?;
        }
        done.note(&mut tx, rows, turn).await?;
        Ok(done.committed(tx.commit().await))
    }
}

impl Done {
    /// Notes the rows that changed their products, in the transaction that does so.
    async fn note(&self, conn: &mut PgConnection, rows: &[Found], turn: Option<&Turn>) -> Result<(), Error> {
        let Some(turn) = turn else {
            return Ok(());
        };
        let products: HashMap<usize, i64> = rows.iter().map(|row| (row.index, row.id)).collect();
        let done = self.outcomes.iter().filter_map(|(index, outcome)| match outcome {
            Outcome::Updated { version, revision } => Some(DoneRow {
                row_index: i32::try_from(*index).ok()?,
                product_id: *products.get(index)?,
                version: *version,
                revision: *revision,
            }),
            Outcome::Unchanged(_) | Outcome::Failed(_) | Outcome::Skipped => None,
        });
        turn.note(conn, &done.collect::<Vec<_>>()).await
    }

    /// What became of the rows in the end: where the database went away, it may have done all and not said so.
    fn committed(mut self, answer: sqlx::Result<()>) -> Self {
        if let Err(error) = answer {
            tracing::warn!(%error, "rows of a batch may be done or not");
            for (_, outcome) in &mut self.outcomes {
                if matches!(outcome, Outcome::Updated { .. }) {
                    *outcome = Outcome::Failed(RowFault::Uncertain);
                }
            }
        }
        self
    }
}

/// The products that were found.
#[derive(Debug, Default)]
struct Ids {
    ids: HashSet<i64>,
    by_sku: HashMap<String, i64>,
}

impl Ids {
    fn get(&self, target: &Target) -> Option<i64> {
        match target {
            Target::Id(id) => self.ids.get(id).copied(),
            Target::Sku(sku) => self.by_sku.get(sku.as_str()).copied(),
        }
    }
}

/// Locks the products of these rows, and decides each.
async fn decide(conn: &mut PgConnection, rows: &[Found]) -> Result<(Done, Vec<Write>), Error> {
    let categories: BTreeSet<i64> = rows.iter().filter_map(|row| row.change.category_id.flatten()).collect();
    let categories: Vec<i64> = categories.into_iter().collect();
    let categories = if categories.is_empty() {
        BTreeSet::new()
    } else {
        store::batch::categories(conn, &categories).await?
    };
    let stocked: Vec<i64> = rows.iter().filter(|row| row.change.stock.is_some()).map(|row| row.id).collect();
    if !stocked.is_empty() {
        store::stock::lock(conn, &stocked).await?;
    }
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    let current = store::batch::lock(conn, &ids).await?;

    let (mut done, mut writes) = (Done::default(), Vec::new());
    for Found { index, id, sku, change } in rows {
        let known = change.category_id.flatten().is_none_or(|category| categories.contains(&category));
        let decided = match current.get(id) {
            None => Err(RowFault::NotFound),
            Some(current) if sku.as_ref().is_some_and(|sku| sku.as_str() != current.sku) => {
                Err(RowFault::NotFound)
            }
            Some(_) if !known => {
                Err(RowFault::Invalid { field: "category_id", fault: "there is no such category" })
            }
            Some(current) => change.decide(current).map(|update| (update, current)),
        };
        let outcome = match decided {
            Err(fault) => Outcome::Failed(fault),
            Ok((None, current)) => Outcome::Unchanged(current.version),
            Ok((Some(update), current)) => {
                writes.push(Write { id: *id, update });
                Outcome::Updated { version: current.version + 1, revision: current.revision + 1 }
            }
        };
        done.outcomes.push((*index, outcome));
    }
    Ok((done, writes))
}

/// Writes products that are locked, and corrects their stock.
async fn write(conn: &mut PgConnection, writes: &[Write], now: OffsetDateTime) -> Result<(), Error> {
    store::batch::write(conn, writes, now).await?;
    let corrections = writes.iter().map(|Write { id, update: Update { correction, .. }, .. }| Movement {
        product_id: *id,
        kind: Kind::Adjustment,
        quantity: *correction,
        order_id: None,
        reason: Some(REASON),
    });
    Ok(store::stock::apply(conn, &corrections.collect::<Vec<_>>(), now).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done() -> Done {
        let updated = Outcome::Updated { version: 2, revision: 3 };
        Done { outcomes: vec![(0, updated), (1, Outcome::Unchanged(7))] }
    }

    #[test]
    fn what_was_changed_is_uncertain_where_the_database_did_not_say_that_it_was() {
        assert_eq!(done().committed(Ok(())).outcomes, done().outcomes);
        let lost = done().committed(Err(sqlx::Error::WorkerCrashed));
        let uncertain = Outcome::Failed(RowFault::Uncertain);
        assert_eq!(lost.outcomes, [(0, uncertain), (1, Outcome::Unchanged(7))]);
    }
}
