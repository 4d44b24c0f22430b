//! The catalogue: reading it, and what an admin does to one product.

use std::{collections::HashSet, sync::Arc};

use shoppee_kit::{clock::Clock, pg::PgPool};
use sqlx::PgConnection;

use crate::{
    cache::{Cache, Known},
    category::Slug,
    error::Error,
    idempotency::{self, Answered},
    listing::{Filters, Key, Page, Position, Sort},
    product::{Changes, NewProduct, Product, Status, micros},
    replicas::Replicas,
    search::Search,
    stock::{AdjustError, Delta, Kind, Reason, Shortage, Stock},
    store::{self, listing::After, stock::Movement},
};

/// What the ledger says where a stock was set to a number.
const SET: &str = "set by an admin";

/// The products of the shop; cheap to clone. Every read goes through [`Catalogue::get`], [`Catalogue::in_memory`],
/// [`Catalogue::get_many`] or [`Catalogue::list`].
#[derive(Clone, Debug)]
pub struct Catalogue {
    pub pool: PgPool,
    pub replicas: Replicas,
    pub clock: Clock,
    pub cache: Cache,
    pub search: Search,
}

impl Catalogue {
    /// What is known of a product, not older than revision `at_least`; whoever asks may not be allowed to see it.
    pub async fn get(&self, id: i64, at_least: i64) -> Result<Arc<Known>, Error> {
        self.cache.get(id, at_least).await
    }

    /// What is in memory of a product that anybody may see; where there is nothing, [`Catalogue::get`] can tell.
    pub async fn in_memory(&self, id: i64, at_least: i64) -> Option<Arc<Known>> {
        self.cache.in_memory(id, at_least, |product| product.may_be_seen(false)).await
    }

    /// Those of the products that exist, in the order asked for, each once.
    pub async fn get_many(&self, ids: &[i64], archived: bool) -> Result<Vec<Arc<Known>>, Error> {
        let mut seen = HashSet::new();
        let ids: Vec<i64> = ids.iter().copied().filter(|id| seen.insert(*id)).collect();
        let may_be_seen =
            |known: &Arc<Known>| known.product.as_ref().is_some_and(|product| product.may_be_seen(archived));
        Ok(self.cache.get_many(&ids).await?.into_iter().filter(may_be_seen).collect())
    }

    /// A page of the active products; with `newest`, as they are after what was written just now.
    pub async fn list(
        &self,
        filters: &Filters,
        sort: Sort,
        limit: i64,
        cursor: Option<&str>,
        newest: bool,
    ) -> Result<Page, Error> {
        let question = ("list", sort, filters);
        let after = match cursor {
            None => {
                let (key, id) = sort.start(filters);
                After { key, id }
            }
            Some(cursor) => {
                let Position { key, id, .. } =
                    Position::parse(cursor, &question).map_err(Error::Malformed)?;
                if !sort.fits(&key) {
                    return Err(Error::malformed("cursor", "is not a cursor of this list"));
                }
                After { key, id }
            }
        };
        let after = &after;
        let read = move |pool: PgPool| async move {
            let mut conn = pool.acquire().await?;
            let Some(categories) = categories(&mut conn, filters).await? else {
                return Ok(Vec::new());
            };
            // One more than the page shows whether there is another.
            let categories = categories.as_deref();
            Ok(store::listing::page(&mut conn, sort, filters, categories, after, limit + 1).await?)
        };
        let mut rows = self.replicas.read(newest, read).await?;
        let more = rows.len() > usize::try_from(limit).unwrap_or_default();
        if more {
            rows.pop();
        }
        let next_cursor = rows.last().filter(|_| more).map(|last| {
            let key = match sort {
                Sort::Newest => Key::Number(micros::of(last.created_at)),
                Sort::PriceAsc => Key::Number(last.price),
                Sort::PriceDesc => Key::Number(-last.price),
                Sort::Name => Key::Text(last.name_key.clone()),
            };
            Position::new(&question, key, last.id).cursor()
        });
        Ok(Page { items: rows.into_iter().map(Product::from).collect(), next_cursor })
    }

    pub async fn create(
        &self,
        product: &NewProduct,
        key: Option<&idempotency::Key>,
    ) -> Result<Answered<Product>, Error> {
        let now = self.clock.now();
        let mut tx = self.pool.begin().await?;
        if let Some(answered) = idempotency::claim(&mut tx, key).await? {
            return Ok(answered);
        }
        lock_category(&mut tx, product.category_id).await?;
        let id = store::product::insert(&mut tx, product, now).await?;
        store::stock::insert(&mut tx, id).await?;
        let supply = Movement {
            product_id: id,
            kind: Kind::Supply,
            quantity: product.stock.get(),
            order_id: None,
            reason: None,
        };
        store::stock::apply(&mut tx, &[supply], now).await?;
        let created = store::product::get(&mut tx, id).await?.ok_or(Error::Internal)?;
        idempotency::keep(&mut tx, key, &created).await?;
        tx.commit().await?;
        self.cache.wrote(&created).await;
        Ok(Answered::new(created))
    }

    /// Changes a product, the version of which must be `expected` where that is given. What is the same
    /// already is no change and no new version.
    pub async fn update(
        &self,
        id: i64,
        expected: Option<i64>,
        changes: &Changes,
        key: Option<&idempotency::Key>,
    ) -> Result<Answered<Product>, Error> {
        let now = self.clock.now();
        let mut tx = self.pool.begin().await?;
        if let Some(answered) = idempotency::claim(&mut tx, key).await? {
            return Ok(answered);
        }
        // In this order: a category that is deleted meanwhile looks at its products.
        lock_category(&mut tx, changes.category_id.flatten()).await?;
        // Its stock too: no order moves it until this is done, and the revision is exact.
        store::stock::lock(&mut tx, &[id]).await?;
        store::product::lock(&mut tx, &[id]).await?;
        let before = store::product::get(&mut tx, id).await?.ok_or(Error::NotFound)?;
        if expected.is_some_and(|expected| expected != before.version) {
            return Err(Error::VersionMismatch);
        }

        let mut after = before.clone();
        let mut differs = changes.apply(&mut after);
        if let Some(category_id) = changes.category_id
            && category_id != before.category.as_ref().map(|category| category.id)
        {
            store::product::set_category(&mut tx, id, category_id).await?;
            differs = true;
        }
        let correction = changes.stock.map_or(0, |stock| stock.get() - before.stock);
        if !differs && correction == 0 {
            idempotency::keep(&mut tx, key, &before).await?;
            tx.commit().await?;
            return Ok(Answered::new(before));
        }
        store::product::update(&mut tx, &after, changes.attributes.as_ref(), now).await?;
        correct(&mut tx, id, correction, SET, now).await?;
        let updated = store::product::get(&mut tx, id).await?.ok_or(Error::Internal)?;
        idempotency::keep(&mut tx, key, &updated).await?;
        tx.commit().await?;
        self.cache.wrote(&updated).await;
        Ok(Answered::new(updated))
    }

    /// Takes a product out of the shop; doing it again changes nothing.
    pub async fn archive(&self, id: i64, expected: Option<i64>) -> Result<Product, Error> {
        let changes = Changes { status: Some(Status::Archived), ..Changes::default() };
        Ok(self.update(id, expected, &changes, None).await?.answer)
    }

    /// Corrects a product's stock, of an archived one too: what lies in the warehouse has to be counted.
    pub async fn adjust(
        &self,
        id: i64,
        delta: Delta,
        reason: &Reason,
        key: Option<&idempotency::Key>,
    ) -> Result<Answered<Product>, Error> {
        let now = self.clock.now();
        let mut tx = self.pool.begin().await?;
        if let Some(answered) = idempotency::claim(&mut tx, key).await? {
            return Ok(answered);
        }
        let locked = store::stock::lock(&mut tx, &[id]).await?;
        let product = locked.get(&id).ok_or(Error::NotFound)?;
        let available = product.available;
        let stock: Stock = delta.apply(available).map_err(|error| match error {
            AdjustError::BelowZero => Error::OutOfStock(vec![Shortage {
                product_id: id,
                sku: Some(product.sku.clone()),
                requested: delta.get().saturating_neg(),
                available,
            }]),
            AdjustError::TooMuch => Error::invalid("delta", "would make the stock more than 10^9"),
        })?;
        store::product::lock(&mut tx, &[id]).await?;
        let product = store::product::get(&mut tx, id).await?.ok_or(Error::Internal)?;
        store::product::update(&mut tx, &product, None, now).await?;
        correct(&mut tx, id, stock.get() - available, reason.as_str(), now).await?;
        let adjusted = store::product::get(&mut tx, id).await?.ok_or(Error::Internal)?;
        idempotency::keep(&mut tx, key, &adjusted).await?;
        tx.commit().await?;
        self.cache.wrote(&adjusted).await;
        Ok(Answered::new(adjusted))
    }
}

/// The categories that the filters name: the inner `None` for all, the outer one where there is no such
/// category.
pub(crate) async fn categories(
    conn: &mut PgConnection,
    filters: &Filters,
) -> Result<Option<Option<Vec<i64>>>, Error> {
    let Some(slug) = &filters.category else {
        return Ok(Some(None));
    };
    let Ok(slug) = Slug::parse(slug.clone()) else {
        return Ok(None);
    };
    let ids = store::category::with_descendants(conn, slug.as_str()).await?;
    Ok(if ids.is_empty() { None } else { Some(Some(ids)) })
}

/// Locks the category that a product is put into; it cannot be deleted until the transaction ends.
async fn lock_category(conn: &mut PgConnection, id: Option<i64>) -> Result<(), Error> {
    match id {
        Some(id) if !store::category::lock(conn, id).await? => {
            Err(Error::invalid("category_id", "there is no such category"))
        }
        Some(_) | None => Ok(()),
    }
}

async fn correct(
    conn: &mut PgConnection,
    product_id: i64,
    quantity: i64,
    reason: &str,
    now: time::OffsetDateTime,
) -> Result<(), Error> {
    let reason = Some(reason);
    let movement = Movement { product_id, kind: Kind::Adjustment, quantity, order_id: None, reason };
    Ok(store::stock::apply(conn, &[movement], now).await?)
}
