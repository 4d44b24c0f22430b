//! Batch reads of the product cache.

use std::{collections::HashMap, sync::Arc};

use super::{Cache, CacheEntry, count_many};
use crate::{error::Error, product::Product, store};

impl Cache {
    /// Returns the entries of several ids, in their order. Entries that are not in memory are read with one
    /// statement.
    pub async fn get_many(&self, ids: &[i64]) -> Result<Vec<Arc<CacheEntry>>, Error> {
        let mut entries = Vec::with_capacity(ids.len());
        for id in ids {
            entries.push(match self.usable_memory() {
                Some(memory) => self.get_fresh(memory, *id, 0).await,
                None => None,
            });
        }
        let missing: Vec<i64> =
            ids.iter().zip(&entries).filter(|(_, entry)| entry.is_none()).map(|(id, _)| *id).collect();
        count_many("memory", "hit", ids.len() - missing.len());
        count_many("memory", "miss", missing.len());
        if missing.is_empty() {
            return Ok(entries.into_iter().flatten().collect());
        }
        let (read_at, generation) = (self.0.clock.now(), self.generation());
        let mut conn = self.0.pool.acquire().await?;
        let read = store::product::get_many(&mut conn, &missing).await?;
        drop(conn);
        let mut read: HashMap<i64, Product> = read.into_iter().map(|product| (product.id, product)).collect();
        let mut complete = Vec::with_capacity(ids.len());
        for (id, entry) in ids.iter().zip(entries) {
            complete.push(if let Some(entry) = entry {
                entry
            } else {
                let entry = Arc::new(CacheEntry::new(read.remove(id), read_at, generation));
                self.insert_if_newer(*id, entry.clone()).await;
                entry
            });
        }
        Ok(complete)
    }

    /// Returns the entries of several ids. If PostgreSQL is unavailable, returns stale entries, provided that
    /// all of them are in memory.
    pub async fn get_many_or_stale(&self, ids: &[i64]) -> Result<Vec<Arc<CacheEntry>>, Error> {
        let error = match self.get_many(ids).await {
            Err(error @ Error::Unavailable) => error,
            outcome => return outcome,
        };
        let memory = self.0.memory.as_ref().ok_or_else(|| error.clone())?;
        let mut entries = Vec::with_capacity(ids.len());
        for id in ids {
            entries.push(memory.get(id).await.ok_or_else(|| error.clone())?);
        }
        Ok(entries)
    }

    /// Returns the last assigned id of the change log; `None` if PostgreSQL is unavailable.
    pub async fn last_change_id(&self) -> Option<i64> {
        let mut conn = self.0.pool.acquire().await.ok()?;
        store::change::fetch_last_id(&mut conn).await.ok()
    }
}
