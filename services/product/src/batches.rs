//! The execution of a batch: resolves the products, sets aside invalid rows, and decides the others under the
//! locks of their products. Each chunk is written with a few statements.
//!
//! With `continue` each chunk is a transaction of its own: a row and its ledger entry are written together or
//! not at all. With `abort` the whole batch is one transaction.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use shoppee_kit::{
    audit_log::{Actor, Record},
    clock::Clock,
    pg::PgPool,
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    audit_log::product_record,
    batch::{Change, OnError, Outcome, Row, RowError, RowResult, Target, Update},
    catalogue::Catalogue,
    error::Error,
    idempotency::{BatchLease, DoneRow, Key, LeaseOutcome},
    product::Sku,
    stock::MovementKind,
    store::{self, batch::Write, stock::Movement},
};

/// Rows written by one statement: enough to amortize the statement, few enough to keep row locks short.
const CHUNK_SIZE: usize = 500;
/// Chunks that run concurrently, over all batches; less if the connection pool is small.
const MAX_WORKERS: u32 = 4;
/// The reason in the ledger.
const LEDGER_REASON: &str = "batch";

/// The use case of batch updates; cheap to clone.
#[derive(Clone, Debug)]
pub struct Batches {
    pool: PgPool,
    clock: Clock,
    catalogue: Catalogue,
    workers: Arc<Semaphore>,
}

/// A valid row whose product exists, with its index in the batch.
#[derive(Clone, Debug)]
struct ResolvedRow {
    index: usize,
    id: i64,
    /// The SKU, if the row names its product by SKU. It may belong to another product by the time of the
    /// lock.
    sku: Option<Sku>,
    change: Change,
}

/// The outcomes of a chunk.
#[derive(Debug, Default)]
struct ChunkResult {
    outcomes: Vec<(usize, Outcome)>,
}

impl Batches {
    pub fn new(catalogue: Catalogue) -> Self {
        let pool = catalogue.pool.clone();
        // Three quarters of the connections remain for other requests.
        let workers = (pool.options().get_max_connections() / 4).clamp(1, MAX_WORKERS);
        Self {
            clock: catalogue.clock.clone(),
            pool,
            catalogue,
            workers: Arc::new(Semaphore::new(workers as usize)),
        }
    }

    /// Acquires the lease of a batch under a key, or returns its saved answer.
    pub async fn acquire_lease(&self, key: Key) -> Result<LeaseOutcome, Error> {
        BatchLease::acquire(&self.pool, key).await
    }

    /// Applies a batch and returns one result per row, in order. Rows in `done_rows` were applied by an
    /// earlier attempt under the same key and are skipped.
    pub async fn apply(
        &self,
        actor: &Actor,
        on_error: OnError,
        rows: Vec<Row>,
        lease: Option<&BatchLease>,
        done_rows: &[DoneRow],
    ) -> Result<Vec<RowResult>, Error> {
        let done_rows: HashMap<usize, &DoneRow> =
            done_rows.iter().filter_map(|row| Some((usize::try_from(row.row_index).ok()?, row))).collect();
        let ids = self.resolve(&rows).await?;
        let mut results = Vec::with_capacity(rows.len());
        let (mut named, mut resolved) = (HashSet::new(), Vec::new());
        for (index, row) in rows.into_iter().enumerate() {
            if let Some(done) = done_rows.get(&index) {
                named.insert(done.product_id);
                let outcome = Outcome::Updated { version: done.version, revision: done.revision };
                results.push(RowResult { id: Some(done.product_id), outcome });
                continue;
            }
            let id = row.target.as_ref().and_then(|target| ids.get(target));
            let outcome = match (row.change, id) {
                (_, Some(id)) if !named.insert(id) => {
                    Some(RowError::Invalid { field: "id", message: "is that of an earlier row" })
                }
                (Err(error), _) => Some(error),
                (Ok(_), None) => Some(RowError::NotFound),
                (Ok(change), Some(id)) => {
                    let sku = match row.target {
                        Some(Target::Sku(sku)) => Some(sku),
                        Some(Target::Id(_)) | None => None,
                    };
                    resolved.push(ResolvedRow { index, id, sku, change });
                    None
                }
            };
            // A resolved row counts as skipped until it is applied.
            let outcome = outcome.map_or(Outcome::Skipped, Outcome::Failed);
            results.push(RowResult { id, outcome });
        }
        let all_valid = resolved.len() + done_rows.len() == results.len();
        // The global lock order.
        resolved.sort_unstable_by_key(|row| row.id);
        let result = match on_error {
            OnError::Continue => self.continue_on_error(actor, resolved, lease).await?,
            OnError::Abort => self.all_or_nothing(actor, resolved, all_valid, lease).await?,
        };
        for (index, outcome) in result.outcomes {
            results[index].outcome = outcome;
        }
        // The next read of the caller includes its changes.
        let is_written = |outcome: &Outcome| {
            matches!(outcome, Outcome::Updated { .. } | Outcome::Failed(RowError::OutcomeUnknown))
        };
        if results.iter().any(|result| is_written(&result.outcome)) {
            self.catalogue.cache.wait_visible().await;
            for result in &mut results {
                // Orders may have changed the stock meanwhile.
                if let (Some(id), Outcome::Updated { revision, .. }) = (result.id, &mut result.outcome) {
                    *revision = self.catalogue.cache.min_revision(id).max(*revision);
                }
            }
        }
        Ok(results)
    }

    /// Resolves the products of the rows.
    async fn resolve(&self, rows: &[Row]) -> Result<ProductIds, Error> {
        let (mut ids, mut skus) = (Vec::new(), Vec::new());
        for row in rows {
            match &row.target {
                Some(Target::Id(id)) => ids.push(*id),
                Some(Target::Sku(sku)) => skus.push(sku.as_str().to_owned()),
                None => {}
            }
        }
        let mut conn = self.pool.acquire().await?;
        let rows = store::batch::find(&mut conn, &ids, &skus).await?;
        let mut products = ProductIds::default();
        for (id, sku) in rows {
            products.ids.insert(id);
            products.by_sku.insert(sku, id);
        }
        Ok(products)
    }

    /// Decides all rows, so that the caller learns of every error at once. Writes them only if all are valid,
    /// including the rows outside of `rows` (`all_valid`).
    async fn all_or_nothing(
        &self,
        actor: &Actor,
        rows: Vec<ResolvedRow>,
        all_valid: bool,
        lease: Option<&BatchLease>,
    ) -> Result<ChunkResult, Error> {
        let _worker = self.workers.acquire().await.map_err(|_| Error::Unavailable)?;
        let now = self.clock.now();
        let mut tx = self.pool.begin().await?;
        let Decided { mut result, writes, records } = Decided::new(&mut tx, actor, &rows).await?;
        let is_failed = |outcome: &Outcome| matches!(outcome, Outcome::Failed(_));
        if !all_valid || result.outcomes.iter().any(|(_, outcome)| is_failed(outcome)) {
            tx.rollback().await?;
            for (_, outcome) in &mut result.outcomes {
                if !is_failed(outcome) {
                    *outcome = Outcome::Skipped;
                }
            }
            return Ok(result);
        }
        for (writes, records) in writes.chunks(CHUNK_SIZE).zip(records.chunks(CHUNK_SIZE)) {
            write_updates(&mut tx, writes, records, now).await?;
        }
        result.record_progress(&mut tx, &rows, lease).await?;
        Ok(result.after_commit(tx.commit().await))
    }

    async fn continue_on_error(
        &self,
        actor: &Actor,
        rows: Vec<ResolvedRow>,
        lease: Option<&BatchLease>,
    ) -> Result<ChunkResult, Error> {
        let mut chunks = JoinSet::new();
        for chunk in rows.chunks(CHUNK_SIZE) {
            let (batches, actor, chunk, lease) =
                (self.clone(), actor.clone(), chunk.to_vec(), lease.cloned());
            chunks.spawn(async move {
                batches.apply_chunk(&actor, &chunk, lease.as_ref()).await.map_err(|error| (chunk, error))
            });
        }
        let (mut result, mut error, mut any_done) = (ChunkResult::default(), None, false);
        while let Some(chunk) = chunks.join_next().await {
            match chunk {
                Ok(Ok(chunk)) => {
                    any_done = true;
                    result.outcomes.extend(chunk.outcomes);
                }
                Ok(Err((chunk, reason))) => {
                    tracing::warn!(error = %reason, rows = chunk.len(), "rows of a batch were not applied");
                    let failed = |row: ResolvedRow| (row.index, Outcome::Failed(RowError::Unavailable));
                    result.outcomes.extend(chunk.into_iter().map(failed));
                    error = Some(reason);
                }
                Err(_panicked) => error = Some(Error::Internal),
            }
        }
        match error {
            // Nothing was applied: the whole batch fails.
            Some(error) if !any_done => Err(error),
            Some(_) | None => Ok(result),
        }
    }

    async fn apply_chunk(
        &self,
        actor: &Actor,
        rows: &[ResolvedRow],
        lease: Option<&BatchLease>,
    ) -> Result<ChunkResult, Error> {
        let _worker = self.workers.acquire().await.map_err(|_| Error::Unavailable)?;
        let now = self.clock.now();
        let mut tx = self.pool.begin().await?;
        let Decided { result, writes, records } = Decided::new(&mut tx, actor, rows).await?;
        if !writes.is_empty() {
            write_updates(&mut tx, &writes, &records, now).await?;
        }
        result.record_progress(&mut tx, rows, lease).await?;
        Ok(result.after_commit(tx.commit().await))
    }
}

impl ChunkResult {
    /// Records the applied rows in the transaction that applies them.
    async fn record_progress(
        &self,
        conn: &mut PgConnection,
        rows: &[ResolvedRow],
        lease: Option<&BatchLease>,
    ) -> Result<(), Error> {
        let Some(lease) = lease else {
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
        lease.record_progress(conn, &done.collect::<Vec<_>>()).await
    }

    /// Returns the final outcomes. If the commit failed, its outcome is unknown.
    fn after_commit(mut self, outcome: sqlx::Result<()>) -> Self {
        if let Err(error) = outcome {
            tracing::warn!(%error, "the outcome of a batch commit is unknown");
            for (_, outcome) in &mut self.outcomes {
                if matches!(outcome, Outcome::Updated { .. }) {
                    *outcome = Outcome::Failed(RowError::OutcomeUnknown);
                }
            }
        }
        self
    }
}

/// The products that exist.
#[derive(Debug, Default)]
struct ProductIds {
    ids: HashSet<i64>,
    by_sku: HashMap<String, i64>,
}

impl ProductIds {
    fn get(&self, target: &Target) -> Option<i64> {
        match target {
            Target::Id(id) => self.ids.get(id).copied(),
            Target::Sku(sku) => self.by_sku.get(sku.as_str()).copied(),
        }
    }
}

/// The decisions about rows whose products are locked.
struct Decided<'a> {
    result: ChunkResult,
    writes: Vec<Write>,
    /// One audit record per write.
    records: Vec<Record<'a>>,
}

impl<'a> Decided<'a> {
    /// Locks the products of these rows and decides each row.
    async fn new(conn: &mut PgConnection, actor: &'a Actor, rows: &[ResolvedRow]) -> Result<Self, Error> {
        let categories: BTreeSet<i64> =
            rows.iter().filter_map(|row| row.change.category_id.flatten()).collect();
        let categories: Vec<i64> = categories.into_iter().collect();
        let categories = if categories.is_empty() {
            BTreeSet::new()
        } else {
            store::batch::categories(conn, &categories).await?
        };
        let stocked: Vec<i64> =
            rows.iter().filter(|row| row.change.stock.is_some()).map(|row| row.id).collect();
        if !stocked.is_empty() {
            store::stock::lock(conn, &stocked).await?;
        }
        let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
        let current = store::batch::lock(conn, &ids).await?;

        let (mut result, mut writes, mut records) = (ChunkResult::default(), Vec::new(), Vec::new());
        for ResolvedRow { index, id, sku, change } in rows {
            let category_exists =
                change.category_id.flatten().is_none_or(|category| categories.contains(&category));
            let decided = match current.get(id) {
                None => Err(RowError::NotFound),
                Some(current) if sku.as_ref().is_some_and(|sku| sku.as_str() != current.sku) => {
                    Err(RowError::NotFound)
                }
                Some(_) if !category_exists => {
                    Err(RowError::Invalid { field: "category_id", message: "there is no such category" })
                }
                Some(current) => change.decide(current).map(|update| (update, current)),
            };
            let outcome = match decided {
                Err(error) => Outcome::Failed(error),
                Ok((None, current)) => Outcome::Unchanged(current.version),
                Ok((Some(update), current)) => {
                    records.push(product_record(
                        actor,
                        "product.batch_update",
                        *id,
                        update.to_change(current),
                    ));
                    writes.push(Write { id: *id, update });
                    Outcome::Updated { version: current.version + 1, revision: current.revision + 1 }
                }
            };
            result.outcomes.push((*index, outcome));
        }
        Ok(Self { result, writes, records })
    }
}

/// Writes locked products and corrects their stock.
async fn write_updates(
    conn: &mut PgConnection,
    writes: &[Write],
    records: &[Record<'_>],
    now: OffsetDateTime,
) -> Result<(), Error> {
    store::batch::write(conn, writes, records, now).await?;
    let corrections = writes.iter().map(|Write { id, update: Update { correction, .. }, .. }| Movement {
        product_id: *id,
        kind: MovementKind::Adjustment,
        quantity: *correction,
        order_id: None,
        reason: Some(LEDGER_REASON),
    });
    Ok(store::stock::apply(conn, &corrections.collect::<Vec<_>>(), now).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done() -> ChunkResult {
        let updated = Outcome::Updated { version: 2, revision: 3 };
        ChunkResult { outcomes: vec![(0, updated), (1, Outcome::Unchanged(7))] }
    }

    #[test]
    fn a_failed_commit_makes_the_outcome_of_updates_unknown() {
        assert_eq!(done().after_commit(Ok(())).outcomes, done().outcomes);
        let lost = done().after_commit(Err(sqlx::Error::WorkerCrashed));
        let uncertain = Outcome::Failed(RowError::OutcomeUnknown);
        assert_eq!(lost.outcomes, [(0, uncertain), (1, Outcome::Unchanged(7))]);
    }
}
