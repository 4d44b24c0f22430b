//! The cache of search results. A snapshot of the index is immutable: a result stays valid while its snapshot
//! is the newest, and answers repeated queries without the index.

use std::sync::Arc;

use metrics::{Counter, counter};

use super::{IndexResult, ranking::IndexQuery};
use crate::listing::SortKey;

/// The capacity of the cache: results and their queries. Bytes.
const MAX_CACHE_BYTES: u64 = 8 * 1024 * 1024;
/// The weight of an entry besides its query and its hits. Bytes.
const ENTRY_OVERHEAD_BYTES: usize = 512;
/// The weight of a facet, including its names. Bytes.
const FACET_BYTES: usize = 128;

/// A query to the snapshot of a generation.
type CacheKey = (u64, IndexQuery);

#[derive(Debug)]
pub struct ResultCache {
    entries: moka::sync::Cache<CacheKey, Arc<IndexResult>>,
    hit: Counter,
    miss: Counter,
}

impl ResultCache {
    pub fn new() -> Self {
        let weigh = |(_, query): &CacheKey, result: &Arc<IndexResult>| {
            let size = ENTRY_OVERHEAD_BYTES + query.text.len() + size(result);
            u32::try_from(size).unwrap_or(u32::MAX)
        };
        let counter = |result| counter!("cache_requests_total", "level" => "search", "result" => result);
        Self {
            entries: moka::sync::Cache::builder().weigher(weigh).max_capacity(MAX_CACHE_BYTES).build(),
            hit: counter("hit"),
            miss: counter("miss"),
        }
    }

    pub fn get(&self, key: &CacheKey) -> Option<Arc<IndexResult>> {
        let result = self.entries.get(key);
        if result.is_some() { &self.hit } else { &self.miss }.increment(1);
        result
    }

    pub fn insert(&self, key: CacheKey, result: Arc<IndexResult>) {
        self.entries.insert(key, result);
    }
}

/// Returns the size of a result in bytes.
fn size(result: &IndexResult) -> usize {
    let key_len = |key: &SortKey| match key {
        SortKey::Number(_) => 0,
        SortKey::Text(text) => text.len(),
    };
    let hits: usize = result.hits.iter().map(|(key, _)| size_of::<(SortKey, i64)>() + key_len(key)).sum();
    let facets = result.facets.as_ref().map_or(0, |facets| facets.categories.len() + facets.prices.len());
    hits + facets * FACET_BYTES
}
