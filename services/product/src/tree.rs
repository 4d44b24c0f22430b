//! The category tree: reading it, and what an admin does to it. Changes of the tree happen one at a time, so
//! that two of them cannot make a circle together.

use shoppee_kit::{clock::Clock, cursor, pg::PgPool};

use crate::{
    cache::Cache,
    category::{Category, CategoryChanges, NewCategory, Slug, may_hang},
    error::Error,
    idempotency::{self, Answered, Key},
    product::Fault,
    store,
};

#[derive(Clone, Debug)]
pub struct Tree {
    pub pool: PgPool,
    pub clock: Clock,
    pub cache: Cache,
}

impl Tree {
    /// A page of the categories, by slug, with the cursor of the next.
    pub async fn list(
        &self,
        limit: i64,
        cursor: Option<&str>,
    ) -> Result<(Vec<Category>, Option<String>), Error> {
        let after = cursor.map(cursor::decode::<String>).transpose().map_err(Error::Malformed)?;
        let is_slug = after.as_ref().is_none_or(|slug| Slug::parse(slug.clone()).is_ok());
        if !is_slug {
            return Err(Error::malformed("cursor", "is not a cursor of this list"));
        }
        let mut conn = self.pool.acquire().await?;
        // One more than asked for tells whether there is a next page.
        let mut page =
            store::category::page(&mut conn, after.as_deref().unwrap_or_default(), limit + 1).await?;
        let asked_for = usize::try_from(limit).unwrap_or_default();
        let is_last = page.len() <= asked_for;
        page.truncate(asked_for);
        let next = page.last().filter(|_| !is_last).map(|last| cursor::encode(&last.slug));
        Ok((page, next))
    }

    pub async fn create(&self, new: &NewCategory, key: Option<&Key>) -> Result<Answered<Category>, Error> {
        let mut tx = self.pool.begin().await?;
        if let Some(answered) = idempotency::claim(&mut tx, key).await? {
            return Ok(answered);
        }
        store::category::lock_tree(&mut tx).await?;
        if let Some(parent) = new.parent_id {
            let all = store::category::all(&mut tx).await?;
            may_hang(&all, None, parent).map_err(parent_id)?;
        }
        let created = Category {
            id: store::category::insert(&mut tx, new).await?,
            slug: new.slug.as_str().to_owned(),
            name: new.name.as_str().to_owned(),
            parent_id: new.parent_id,
        };
        idempotency::keep(&mut tx, key, &created).await?;
        tx.commit().await?;
        Ok(Answered::new(created))
    }

    pub async fn update(
        &self,
        id: i64,
        changes: &CategoryChanges,
        key: Option<&Key>,
    ) -> Result<Answered<Category>, Error> {
        let mut tx = self.pool.begin().await?;
        if let Some(answered) = idempotency::claim(&mut tx, key).await? {
            return Ok(answered);
        }
        store::category::lock_tree(&mut tx).await?;
        let all = store::category::all(&mut tx).await?;
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
                may_hang(&all, Some(id), parent).map_err(parent_id)?;
            }
            after.parent_id = parent;
        }
        let differs = after != *before;
        if differs {
            store::category::update(&mut tx, &after, self.clock.now()).await?;
        }
        idempotency::keep(&mut tx, key, &after).await?;
        tx.commit().await?;
        if differs {
            self.cache.show().await;
        }
        Ok(Answered::new(after))
    }

    /// Refused while products, archived ones among them, or other categories are in it.
    pub async fn delete(&self, id: i64) -> Result<(), Error> {
        let mut tx = self.pool.begin().await?;
        store::category::lock_tree(&mut tx).await?;
        if !store::category::delete(&mut tx, id).await? {
            return Err(Error::NotFound);
        }
        Ok(tx.commit().await?)
    }
}

fn parent_id(fault: Fault) -> Error {
    Error::invalid("parent_id", fault)
}
