//! The cache of search results. A snapshot of the index never changes: a result is valid for as long as its snapshot is
//! the newest, and answers every repeat of its question without the index.

use std::sync::Arc;

use metrics::{Counter, counter};

use super::{Found, ranking::Question};
use crate::listing::Key;

/// Bounds the results and their questions. Bytes.
const CAPACITY: u64 = 8 * 1024 * 1024;
/// The size of an entry without its question and its hits. Bytes.
const ENTRY_OVERHEAD: usize = 512;
/// The size of a category's or a price range's count, names included. Bytes.
const FACET_SIZE: usize = 128;

/// A question to the snapshot of a generation.
type CacheKey = (u64, Question);

#[derive(Debug)]
pub struct ResultCache {
    entries: moka::sync::Cache<CacheKey, Arc<Found>>,
    hit: Counter,
    miss: Counter,
}

impl ResultCache {
    pub fn new() -> Self {
        let size = |(_, question): &CacheKey, found: &Arc<Found>| {
            let size = ENTRY_OVERHEAD + question.query.len() + size(found);
            u32::try_from(size).unwrap_or(u32::MAX)
        };
        let counter = |result| counter!("cache_requests_total", "level" => "search", "result" => result);
        Self {
            entries: moka::sync::Cache::builder().weigher(size).max_capacity(CAPACITY).build(),
            hit: counter("hit"),
            miss: counter("miss"),
        }
    }

    pub fn get(&self, key: &CacheKey) -> Option<Arc<Found>> {
        let found = self.entries.get(key);
        if found.is_some() { &self.hit } else { &self.miss }.increment(1);
        found
    }

    pub fn insert(&self, key: CacheKey, found: Arc<Found>) {
        self.entries.insert(key, found);
    }
}

/// Returns the size of a result in bytes.
fn size(found: &Found) -> usize {
    let key_len = |key: &Key| match key {
        Key::Number(_) => 0,
        Key::Text(text) => text.len(),
    };
    let hits: usize = found.hits.iter().map(|(key, _)| size_of::<(Key, i64)>() + key_len(key)).sum();
    let facets = found.facets.as_ref().map_or(0, |facets| facets.categories.len() + facets.prices.len());
    hits + facets * FACET_SIZE
}
