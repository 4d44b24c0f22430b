//! The use cases of categories. Changes of the tree are serialized, so that two of them cannot create a cycle
//! together.

use shoppee_kit::{
    audit_log::{Actor, Change, store::Store as _},
    clock::Clock,
    cursor,
    pg::PgPool,
};

use crate::{
    audit_log::{category_fields, category_record},
    cache::Cache,
    category::{Category, CategoryChanges, NewCategory, Slug, validate_parent},
    error::Error,
    idempotency::{self, IdempotentResult, Key},
    store::{self, audit_log::AuditLog},
    validation::ValidationError,
};

#[derive(Clone, Debug)]
pub struct Categories {
    pub pool: PgPool,
    pub clock: Clock,
    pub cache: Cache,
}

impl Categories {
    /// Returns a page of the categories by slug, and the cursor of the next page.
    pub async fn list(
        &self,
        limit: i64,
        cursor: Option<&str>,
    ) -> Result<(Vec<Category>, Option<String>), Error> {
        let list = cursor::List::new(&"categories");
        let after =
            cursor.map(|cursor| list.decode::<String>(cursor)).transpose().map_err(Error::Malformed)?;
        let is_slug = after.as_ref().is_none_or(|slug| Slug::parse(slug.clone()).is_ok());
        if !is_slug {
            return Err(Error::malformed("cursor", "is not a cursor of this list"));
        }
        let mut conn = self.pool.acquire().await?;
        // One more than the page, to detect whether there is a next page.
        let mut page =
            store::category::fetch_page(&mut conn, after.as_deref().unwrap_or_default(), limit + 1).await?;
        let page_size = usize::try_from(limit).unwrap_or_default();
        let is_last = page.len() <= page_size;
        page.truncate(page_size);
        let next = page.last().filter(|_| !is_last).map(|last| list.encode(&last.slug));
        Ok((page, next))
    }

    pub async fn create(
        &self,
        actor: &Actor,
        new: &NewCategory,
        key: Option<&Key>,
    ) -> Result<IdempotentResult<Category>, Error> {
        let mut tx = self.pool.begin().await?;
        if let Some(result) = idempotency::claim(&mut tx, key).await? {
            return Ok(result);
        }
        store::category::lock_tree(&mut tx).await?;
        if let Some(parent) = new.parent_id {
            let all = store::category::fetch_all(&mut tx).await?;
            validate_parent(&all, None, parent).map_err(invalid_parent)?;
        }
        let created = Category {
            id: store::category::insert(&mut tx, new).await?,
            slug: new.slug.as_str().to_owned(),
            name: new.name.as_str().to_owned(),
            parent_id: new.parent_id,
        };
        let change = Change::creation(category_fields(&created));
        let record = category_record(actor, "category.create", created.id, change);
        AuditLog::insert(&mut tx, &[record], self.clock.now()).await?;
        idempotency::save(&mut tx, key, &created).await?;
        tx.commit().await?;
        Ok(IdempotentResult::new(created))
    }

    pub async fn update(
        &self,
        actor: &Actor,
        id: i64,
        changes: &CategoryChanges,
        key: Option<&Key>,
    ) -> Result<IdempotentResult<Category>, Error> {
        let mut tx = self.pool.begin().await?;
        if let Some(result) = idempotency::claim(&mut tx, key).await? {
            return Ok(result);
        }
        store::category::lock_tree(&mut tx).await?;
        let all = store::category::fetch_all(&mut tx).await?;
        let before = all.iter().find(|one| one.id == id).ok_or(Error::NotFound)?;
        let mut after = before.clone();
        if let Some(slug) = &changes.slug {
            slug.as_str().clone_into(&mut after.slug);
        }
        if let Some(name) = &changes.name {
            name.as_str().clone_into(&mut after.name);
        }
        if let Some(parent) = changes.parent_id {
            if let Some(parent) = parent {
                validate_parent(&all, Some(id), parent).map_err(invalid_parent)?;
            }
            after.parent_id = parent;
        }
        let is_changed = after != *before;
        if is_changed {
            let now = self.clock.now();
            store::category::update(&mut tx, &after, now).await?;
            let change = Change::between(category_fields(before), category_fields(&after));
            AuditLog::insert(&mut tx, &[category_record(actor, "category.update", id, change)], now).await?;
        }
        idempotency::save(&mut tx, key, &after).await?;
        tx.commit().await?;
        if is_changed {
            self.cache.wait_visible().await;
        }
        Ok(IdempotentResult::new(after))
    }

    /// Deletes a category. Refused while it has products, including archived ones, or child categories.
    pub async fn delete(&self, actor: &Actor, id: i64) -> Result<(), Error> {
        let mut tx = self.pool.begin().await?;
        store::category::lock_tree(&mut tx).await?;
        let deleted = store::category::delete(&mut tx, id).await?.ok_or(Error::NotFound)?;
        let change = Change::deletion(category_fields(&deleted));
        let record = category_record(actor, "category.delete", id, change);
        AuditLog::insert(&mut tx, &[record], self.clock.now()).await?;
        Ok(tx.commit().await?)
    }
}

fn invalid_parent(error: ValidationError) -> Error {
    Error::invalid("parent_id", error)
}
