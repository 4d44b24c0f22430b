//! The use cases of products: reads, and changes of one product by an admin.

use std::{collections::HashSet, sync::Arc};

use shoppee_kit::{
    audit_log::{Actor, Change, store::Store as _},
    clock::Clock,
    pg::PgPool,
};
use sqlx::PgConnection;

use crate::{
    audit_log::{product_fields, product_record},
    cache::{Cache, CacheEntry},
    category::Slug,
    error::Error,
    idempotency::{self, IdempotentResult},
    listing::{Filters, Page, PageCursor, Sort, SortKey},
    product::{NewProduct, Product, ProductChanges, Status, micros},
    replicas::Replicas,
    search::{Results, Search, SearchRequest},
    stock::MovementKind,
    store::{self, audit_log::AuditLog, listing::PageStart, stock::Movement},
};

/// The reason in the ledger if an admin sets a stock.
const SET_REASON: &str = "set by an admin";

/// The products of the shop; cheap to clone. Every read goes through [`Catalogue::get`],
/// [`Catalogue::get_in_memory`], [`Catalogue::get_many`] or [`Catalogue::list`].
#[derive(Clone, Debug)]
pub struct Catalogue {
    pub pool: PgPool,
    pub replicas: Replicas,
    pub clock: Clock,
    pub cache: Cache,
    pub search: Search,
}

impl Catalogue {
    /// Returns a product with at least revision `min_revision`. The handler checks whether the caller may see
    /// it.
    pub async fn get(&self, id: i64, min_revision: i64) -> Result<Arc<CacheEntry>, Error> {
        self.cache.get(id, min_revision).await
    }

    /// Returns a publicly visible product from memory; `None` if it is not there ([`Catalogue::get`] may have
    /// it).
    pub async fn get_in_memory(&self, id: i64, min_revision: i64) -> Option<Arc<CacheEntry>> {
        self.cache.get_in_memory(id, min_revision, |product| product.is_visible(false)).await
    }

    /// Returns those of the products that exist and are visible, in the requested order, each once.
    pub async fn get_many(&self, ids: &[i64], include_archived: bool) -> Result<Vec<Arc<CacheEntry>>, Error> {
        let mut unique = HashSet::new();
        let ids: Vec<i64> = ids.iter().copied().filter(|id| unique.insert(*id)).collect();
        let is_visible = |entry: &Arc<CacheEntry>| {
            entry.product.as_ref().is_some_and(|product| product.is_visible(include_archived))
        };
        Ok(self.cache.get_many(&ids).await?.into_iter().filter(is_visible).collect())
    }

    /// Returns a page of the active products that match a query. With `read_your_writes`, the page includes
    /// the writes before this call.
    pub async fn search(
        &self,
        request: &SearchRequest,
        cursor: Option<&str>,
        read_your_writes: bool,
    ) -> Result<Results, Error> {
        self.search.find(&self.cache, request, cursor, read_your_writes).await
    }

    /// Returns a page of the active products. With `read_your_writes`, the page includes the writes before
    /// this call.
    pub async fn list(
        &self,
        filters: &Filters,
        sort: Sort,
        limit: i64,
        cursor: Option<&str>,
        read_your_writes: bool,
    ) -> Result<Page, Error> {
        let query = ("list", sort, filters);
        let after = match cursor {
            None => {
                let (key, id) = sort.start(filters);
                PageStart { key, id }
            }
            Some(cursor) => {
                let PageCursor { key, id, .. } =
                    PageCursor::parse(cursor, &query).map_err(Error::Malformed)?;
                if !sort.accepts(&key) {
                    return Err(Error::malformed("cursor", "is not a cursor of this list"));
                }
                PageStart { key, id }
            }
        };
        let after = &after;
        let read = move |pool: PgPool| async move {
            let mut conn = pool.acquire().await?;
            let Some(categories) = resolve_categories(&mut conn, filters).await? else {
                return Ok(Vec::new());
            };
            // One more than the page, to detect whether there is a next page.
            let categories = categories.as_deref();
            Ok(store::listing::fetch_page(&mut conn, sort, filters, categories, after, limit + 1).await?)
        };
        let mut rows = self.replicas.read(read_your_writes, read).await?;
        let more = rows.len() > usize::try_from(limit).unwrap_or_default();
        if more {
            rows.pop();
        }
        let next_cursor = rows.last().filter(|_| more).map(|last| {
            let key = match sort {
                Sort::Newest => SortKey::Number(micros::from_time(last.created_at)),
                Sort::PriceAsc => SortKey::Number(last.price),
                Sort::PriceDesc => SortKey::Number(-last.price),
                Sort::Name => SortKey::Text(last.name_key.clone()),
            };
            PageCursor::new(&query, key, last.id).encode()
        });
        Ok(Page { items: rows.into_iter().map(Product::from).collect(), next_cursor })
    }

    pub async fn create(
        &self,
        actor: &Actor,
        product: &NewProduct,
        key: Option<&idempotency::Key>,
    ) -> Result<IdempotentResult<Product>, Error> {
        let now = self.clock.now();
        let mut tx = self.pool.begin().await?;
        if let Some(result) = idempotency::claim(&mut tx, key).await? {
            return Ok(result);
        }
        lock_category(&mut tx, product.category_id).await?;
        let id = store::product::insert(&mut tx, product, now).await?;
        store::stock::insert(&mut tx, id).await?;
        let supply = Movement {
            product_id: id,
            kind: MovementKind::Supply,
            quantity: product.stock.get(),
            order_id: None,
            reason: None,
        };
        store::stock::apply(&mut tx, &[supply], now).await?;
        let created = store::product::get(&mut tx, id).await?.ok_or(Error::Internal)?;
        let change = Change::creation(product_fields(&created));
        AuditLog::insert(&mut tx, &[product_record(actor, "product.create", id, change)], now).await?;
        idempotency::save(&mut tx, key, &created).await?;
        tx.commit().await?;
        self.cache.insert_written(&created).await;
        Ok(IdempotentResult::new(created))
    }

    /// Updates a product, which must have `expected_version` if that is given. An update without a difference
    /// creates no new version.
    pub async fn update(
        &self,
        actor: &Actor,
        id: i64,
        expected_version: Option<i64>,
        changes: &ProductChanges,
        key: Option<&idempotency::Key>,
    ) -> Result<IdempotentResult<Product>, Error> {
        self.apply((actor, "product.update"), id, expected_version, changes, key).await
    }

    /// Archives a product. Idempotent.
    pub async fn archive(
        &self,
        actor: &Actor,
        id: i64,
        expected_version: Option<i64>,
    ) -> Result<Product, Error> {
        let changes = ProductChanges { status: Some(Status::Archived), ..ProductChanges::default() };
        Ok(self.apply((actor, "product.archive"), id, expected_version, &changes, None).await?.value)
    }

    async fn apply(
        &self,
        (actor, action): (&Actor, &'static str),
        id: i64,
        expected_version: Option<i64>,
        changes: &ProductChanges,
        key: Option<&idempotency::Key>,
    ) -> Result<IdempotentResult<Product>, Error> {
        let now = self.clock.now();
        let mut tx = self.pool.begin().await?;
        if let Some(result) = idempotency::claim(&mut tx, key).await? {
            return Ok(result);
        }
        // The category is locked first: its deletion checks its products.
        lock_category(&mut tx, changes.category_id.flatten()).await?;
        // The stock is locked too, so that no order changes it meanwhile and the revision is exact.
        store::stock::lock(&mut tx, &[id]).await?;
        store::product::lock(&mut tx, &[id]).await?;
        let before = store::product::get(&mut tx, id).await?.ok_or(Error::NotFound)?;
        if expected_version.is_some_and(|expected_version| expected_version != before.version) {
            return Err(Error::VersionMismatch);
        }

        let mut after = before.clone();
        let mut is_changed = changes.apply(&mut after);
        if let Some(category_id) = changes.category_id
            && category_id != before.category.as_ref().map(|category| category.id)
        {
            store::product::set_category(&mut tx, id, category_id).await?;
            is_changed = true;
        }
        let correction = changes.stock.map_or(0, |stock| stock.get() - before.stock);
        if !is_changed && correction == 0 {
            idempotency::save(&mut tx, key, &before).await?;
            tx.commit().await?;
            return Ok(IdempotentResult::new(before));
        }
        store::product::update(&mut tx, &after, changes.attributes.as_ref(), now).await?;
        apply_correction(&mut tx, id, correction, SET_REASON, now).await?;
        let updated = store::product::get(&mut tx, id).await?.ok_or(Error::Internal)?;
        let change = Change::between(product_fields(&before), product_fields(&updated));
        AuditLog::insert(&mut tx, &[product_record(actor, action, id, change)], now).await?;
        idempotency::save(&mut tx, key, &updated).await?;
        tx.commit().await?;
        self.cache.insert_written(&updated).await;
        Ok(IdempotentResult::new(updated))
    }
}

/// Resolves the category filter. The inner `None` means all categories, the outer one an unknown category.
pub(crate) async fn resolve_categories(
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

/// Locks the category of a product against deletion until the transaction ends.
async fn lock_category(conn: &mut PgConnection, id: Option<i64>) -> Result<(), Error> {
    match id {
        Some(id) if !store::category::lock(conn, id).await? => {
            Err(Error::invalid("category_id", "there is no such category"))
        }
        Some(_) | None => Ok(()),
    }
}

async fn apply_correction(
    conn: &mut PgConnection,
    product_id: i64,
    quantity: i64,
    reason: &str,
    now: time::OffsetDateTime,
) -> Result<(), Error> {
    let reason = Some(reason);
    let movement = Movement { product_id, kind: MovementKind::Adjustment, quantity, order_id: None, reason };
    Ok(store::stock::apply(conn, &[movement], now).await?)
}
