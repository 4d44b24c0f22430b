//! Corrections of stock by admins and services. They use group commit ([`BatchQueue`]), as holds do: corrections of one product do
//! not wait for its row lock, each with a connection of its own.
//!
//! A batch is one transaction: it locks the products, decides each correction in memory after the ones before it, and
//! writes them with a few statements, together with the answers under their idempotency keys.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use shoppee_kit::{
    audit_log::{Actor, Change, Record},
    batch_queue::{BatchQueue, Limits},
    clock::Clock,
    idempotency::StoredResponse,
    pg::PgPool,
    tasks::Tasks,
};
use time::OffsetDateTime;

use crate::{
    audit_log::product_record,
    cache::Cache,
    error::Error,
    idempotency::{self, IdempotentResult, Key, KeyId},
    product::Product,
    stock::{AdjustError, Delta, MovementKind, Reason, Shortage},
    store::{self, stock::Movement},
};

/// The bounds of the queue. Admins correct far less than customers order.
const QUEUE_LIMITS: Limits = Limits { capacity: 1024, batch_size: 128, workers: 2 };
/// Attempts at a batch. It is decided again if another process has used one of its keys meanwhile.
const MAX_ATTEMPTS: usize = 3;

type Outcome = Result<IdempotentResult<Product>, Error>;

/// A correction of the stock of a product.
#[derive(Clone, Debug)]
pub struct Adjustment {
    pub actor: Actor,
    pub product_id: i64,
    pub delta: Delta,
    pub reason: Reason,
    pub key: Option<Key>,
}

/// The use case of corrections; cheap to clone.
#[derive(Clone, Debug)]
pub struct Adjustments(BatchQueue<Adjustment, Outcome>);

impl Adjustments {
    /// Starts the workers, which end when the last clone of the result is dropped.
    pub fn start(pool: PgPool, clock: Clock, cache: Cache, tasks: &Tasks) -> Self {
        Self(BatchQueue::start("adjustments", QUEUE_LIMITS, tasks, move |adjustments: Vec<_>| {
            let (pool, clock, cache) = (pool.clone(), clock.clone(), cache.clone());
            async move { adjust_batch(&pool, &cache, &adjustments, clock.now()).await }
        }))
    }

    /// Corrects the stock of a product, archived ones included: units in the warehouse are counted in any case. Returns
    /// the product after the correction.
    #[tracing::instrument(name = "stock.adjust", skip_all)]
    pub async fn adjust(&self, adjustment: Adjustment) -> Outcome {
        self.0.submit(adjustment).await.unwrap_or(Err(Error::Unavailable))
    }
}

/// Returns one outcome per adjustment.
async fn adjust_batch(
    pool: &PgPool,
    cache: &Cache,
    adjustments: &[Adjustment],
    now: OffsetDateTime,
) -> Vec<Outcome> {
    match apply(pool, adjustments, now).await {
        Ok(Decisions { outcomes, products, .. }) => {
            for (product, _) in products.values().filter(|(_, adjustments)| *adjustments > 0) {
                cache.insert_written(product).await;
            }
            outcomes
        }
        Err(error) => vec![Err(error); adjustments.len()],
    }
}

/// Decides a batch and writes it.
#[tracing::instrument(
    name = "stock.adjust_batch",
    skip_all,
    fields(otel.kind = "client", db.system.name = "postgresql", adjustments = adjustments.len())
)]
async fn apply<'a>(
    pool: &PgPool,
    adjustments: &'a [Adjustment],
    now: OffsetDateTime,
) -> Result<Decisions<'a>, Error> {
    let ids: BTreeSet<i64> = adjustments.iter().map(|adjustment| adjustment.product_id).collect();
    let ids: Vec<i64> = ids.into_iter().collect();
    let keys: Vec<&Key> = adjustments.iter().filter_map(|adjustment| adjustment.key.as_ref()).collect();
    for _ in 0..MAX_ATTEMPTS {
        let mut tx = pool.begin().await?;
        store::stock::lock(&mut tx, &ids).await?;
        store::product::lock(&mut tx, &ids).await?;
        let products = store::product::get_many(&mut tx, &ids).await?;
        let stored = store::idempotency::fetch_many(&mut tx, &keys).await?;
        let decisions = Decisions::new(adjustments, products, &stored, now);
        if decisions.movements.is_empty() {
            tx.rollback().await?;
            return Ok(decisions);
        }
        store::product::add_versions(&mut tx, &decisions.versions(), &decisions.records, now).await?;
        store::stock::apply(&mut tx, &decisions.movements, now).await?;
        if idempotency::save_many(&mut tx, decisions.answers.values()).await? {
            tx.commit().await?;
            return Ok(decisions);
        }
        tx.rollback().await?;
    }
    Err(Error::Unavailable)
}

/// The decisions of a batch.
#[derive(Debug)]
struct Decisions<'a> {
    /// One outcome per adjustment.
    outcomes: Vec<Outcome>,
    /// The products after the batch, each with the number of its adjustments.
    products: BTreeMap<i64, (Product, i64)>,
    movements: Vec<Movement<'a>>,
    /// One audit record per movement.
    records: Vec<Record<'a>>,
    /// The answers under the keys that are used for the first time.
    answers: BTreeMap<KeyId<'a>, (&'a Key, Product)>,
}

impl<'a> Decisions<'a> {
    /// Decides the adjustments one after the other. `products` are those that exist, `stored` the used keys.
    fn new(
        adjustments: &'a [Adjustment],
        products: Vec<Product>,
        stored: &BTreeMap<KeyId<'a>, StoredResponse>,
        now: OffsetDateTime,
    ) -> Self {
        let mut decisions = Self {
            outcomes: Vec::with_capacity(adjustments.len()),
            products: products.into_iter().map(|product| (product.id, (product, 0))).collect(),
            movements: Vec::new(),
            records: Vec::new(),
            answers: BTreeMap::new(),
        };
        for adjustment in adjustments {
            let replay = adjustment.key.as_ref().and_then(|key| {
                let response = stored.get(&key.id()).map(|response| idempotency::replay(response, key));
                response.or_else(|| decisions.replay(key))
            });
            let outcome = replay.unwrap_or_else(|| decisions.decide(adjustment, now));
            decisions.outcomes.push(outcome);
        }
        decisions
    }

    /// Returns the answer of an earlier adjustment of the batch with the same key.
    fn replay(&self, key: &Key) -> Option<Outcome> {
        let (first, product) = self.answers.get(&key.id())?;
        if first.fingerprint == key.fingerprint {
            Some(Ok(IdempotentResult { value: product.clone(), replayed: true }))
        } else {
            Some(Err(Error::KeyReused))
        }
    }

    fn decide(&mut self, adjustment: &'a Adjustment, now: OffsetDateTime) -> Outcome {
        let Adjustment { actor, product_id, delta, reason, key } = adjustment;
        let (product, adjustments) = self.products.get_mut(product_id).ok_or(Error::NotFound)?;
        let stock = delta.apply(product.stock).map_err(|error| match error {
            AdjustError::BelowZero => Error::OutOfStock(vec![Shortage {
                product_id: *product_id,
                sku: Some(product.sku.clone()),
                requested: delta.get().saturating_neg(),
                available: product.stock,
            }]),
            AdjustError::TooMuch => Error::invalid("delta", "would make the stock more than 10^9"),
        })?;
        // The revision of the stock grows once in a batch, the version with each adjustment.
        product.revision += if *adjustments == 0 { 2 } else { 1 };
        *adjustments += 1;
        product.version += 1;
        let change = Change::between(json!({"stock": product.stock}), json!({"stock": stock.get()}))
            .with_parameter("reason", reason.as_str());
        self.records.push(product_record(actor, "stock.adjust", *product_id, change));
        product.stock = stock.get();
        product.updated_at = now;
        self.movements.push(Movement {
            product_id: *product_id,
            kind: MovementKind::Adjustment,
            quantity: delta.get(),
            order_id: None,
            reason: Some(reason.as_str()),
        });
        if let Some(key) = key {
            self.answers.insert(key.id(), (key, product.clone()));
        }
        Ok(IdempotentResult::new(product.clone()))
    }

    /// Returns the adjusted products, in the order of their ids, each with the number of its new versions.
    fn versions(&self) -> Vec<(i64, i64)> {
        let adjusted = self.products.iter().filter(|(_, (_, adjustments))| *adjustments > 0);
        adjusted.map(|(id, (_, adjustments))| (*id, *adjustments)).collect()
    }
}

#[cfg(test)]
mod tests;
