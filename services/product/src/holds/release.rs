//! The release of holds, in batches: two round trips, and a third for orders that have no hold.

use std::collections::{BTreeMap, BTreeSet};

use shoppee_kit::pg::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{MAX_ATTEMPTS, products};
use crate::{
    cache::Cache,
    error::Error,
    stock::{HoldState, ReleaseReason},
    store,
};

/// Releases the holds of some orders. Returns one response per request.
pub(super) async fn release_batch(
    pool: &PgPool,
    cache: &Cache,
    requests: &[(Uuid, ReleaseReason)],
    now: OffsetDateTime,
) -> Vec<Result<(), Error>> {
    let mut returns_sold = BTreeMap::<Uuid, bool>::new();
    for (order_id, reason) in requests {
        *returns_sold.entry(*order_id).or_default() |= *reason == ReleaseReason::OrderCancelled;
    }
    match release(pool, cache, &returns_sold, now).await {
        Ok(states) => {
            let outcome = |(order_id, _): &(Uuid, ReleaseReason)| match states.get(order_id) {
                Some(HoldState::Committed) if !returns_sold[order_id] => Err(Error::HoldCommitted),
                Some(_) | None => Ok(()),
            };
            requests.iter().map(outcome).collect()
        }
        Err(error) => vec![Err(error); requests.len()],
    }
}

/// Releases the holds, or inserts tombstones. Returns the states before, except of orders that got a tombstone.
#[tracing::instrument(
    name = "stock.release_batch",
    skip_all,
    fields(otel.kind = "client", db.system.name = "postgresql", orders = returns_sold.len())
)]
async fn release(
    pool: &PgPool,
    cache: &Cache,
    returns_sold: &BTreeMap<Uuid, bool>,
    now: OffsetDateTime,
) -> Result<BTreeMap<Uuid, HoldState>, Error> {
    let mut conn = pool.acquire().await?;
    let (mut pending, mut states) = (returns_sold.clone(), BTreeMap::new());
    for _ in 0..MAX_ATTEMPTS {
        let order_ids: Vec<Uuid> = pending.keys().copied().collect();
        let lines = store::hold::fetch_lines(&mut conn, &order_ids).await?;
        let revisions = cache.revisions_before_stock_change(products(&lines)).await;
        let released = store::hold::release(&mut conn, &pending, now).await?;
        let is_changed = |order_id| match released.get(order_id) {
            Some(HoldState::Held) => true,
            Some(HoldState::Committed) => pending[order_id],
            Some(HoldState::Released | HoldState::Expired) | None => false,
        };
        let changed_lines = lines.iter().filter(|(order_id, _)| is_changed(order_id));
        let changed_products: BTreeSet<i64> = changed_lines.map(|(_, line)| line.product_id).collect();
        if !changed_products.is_empty() {
            let is_changed = |(id, _): &(i64, i64)| changed_products.contains(id);
            cache.invalidate_stock(revisions.into_iter().filter(is_changed)).await;
        }
        pending.retain(|order_id, _| !released.contains_key(order_id));
        states.extend(released);
        if pending.is_empty() {
            return Ok(states);
        }
        let order_ids: Vec<Uuid> = pending.keys().copied().collect();
        for order_id in store::hold::insert_tombstones(&mut conn, &order_ids, now).await? {
            pending.remove(&order_id);
        }
        // An order that got no tombstone was held meanwhile.
        if pending.is_empty() {
            return Ok(states);
        }
    }
    Err(Error::Unavailable)
}
