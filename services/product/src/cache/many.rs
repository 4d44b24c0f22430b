//! Several products at once.

use std::{collections::HashMap, sync::Arc};

use super::{Cache, Known, count_many};
use crate::{error::Error, product::Product, store};

impl Cache {
    /// What is known of several ids, in their order. Those that are not in memory are read together.
    pub async fn get_many(&self, ids: &[i64]) -> Result<Vec<Arc<Known>>, Error> {
        let mut known = Vec::with_capacity(ids.len());
        for id in ids {
            known.push(match self.memory() {
                Some(memory) => self.fresh(memory, *id, 0).await,
                None => None,
            });
        }
        let missing: Vec<i64> =
            ids.iter().zip(&known).filter(|(_, known)| known.is_none()).map(|(id, _)| *id).collect();
        count_many("memory", "hit", ids.len() - missing.len());
        count_many("memory", "miss", missing.len());
        if missing.is_empty() {
            return Ok(known.into_iter().flatten().collect());
        }
        let (read_at, generation) = (self.0.clock.now(), self.generation());
        let mut conn = self.0.pool.acquire().await?;
        let read = store::product::get_many(&mut conn, &missing).await?;
        drop(conn);
        let mut read: HashMap<i64, Product> = read.into_iter().map(|product| (product.id, product)).collect();
        let mut complete = Vec::with_capacity(ids.len());
        for (id, known) in ids.iter().zip(known) {
            complete.push(if let Some(known) = known {
                known
            } else {
                let known = Arc::new(Known::new(read.remove(id), read_at, generation));
                self.keep(*id, known.clone()).await;
                known
            });
        }
        Ok(complete)
    }

    /// The same; while PostgreSQL does not answer, as they were when they were last read, if all of them are still in
    /// memory.
    pub async fn get_many_or_stale(&self, ids: &[i64]) -> Result<Vec<Arc<Known>>, Error> {
        let error = match self.get_many(ids).await {
            Err(error @ Error::Unavailable) => error,
            outcome => return outcome,
        };
        let memory = self.0.memory.as_ref().ok_or_else(|| error.clone())?;
        let mut known = Vec::with_capacity(ids.len());
        for id in ids {
            known.push(memory.get(id).await.ok_or_else(|| error.clone())?);
        }
        Ok(known)
    }

    /// The highest number of the change log that was given; `None` while PostgreSQL does not say.
    pub async fn newest_change(&self) -> Option<i64> {
        let mut conn = self.0.pool.acquire().await.ok()?;
        store::change::newest(&mut conn).await.ok()
    }
}
