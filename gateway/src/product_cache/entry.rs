//! The entries of the product cache.

use std::sync::atomic::AtomicBool;

use shoppee_proto::product::v1::{CachedProduct, Product, ProductStatus};
use tokio::time::Instant;

use super::ProductResponse;
use crate::error::Problem;

/// A product that was fetched from the service.
#[derive(Clone, Debug)]
pub struct FetchedProduct {
    pub response: ProductResponse,
    pub revision: i64,
    /// Every caller may see the product (`public` of RFC 9111).
    pub public: bool,
    pub fetched_at: Instant,
}

impl FetchedProduct {
    pub fn new(product: &Product, revision: i64) -> Result<Self, Problem> {
        let public = product.status == i32::from(ProductStatus::Active);
        Ok(Self { response: ProductResponse::new(product)?, revision, public, fetched_at: Instant::now() })
    }
}

impl From<CachedProduct> for FetchedProduct {
    /// The service's memory holds public products only.
    fn from(product: CachedProduct) -> Self {
        let response = ProductResponse::from_json(product.version, product.json);
        Self { response, revision: product.revision, public: true, fetched_at: Instant::now() }
    }
}

#[derive(Debug)]
pub struct CacheEntry {
    pub product: FetchedProduct,
    /// The generation in which the fetch began.
    pub generation: u64,
    /// Set when no newer revision was known while the entry was in the cache. Later, whatever raises the minimum
    /// revision also removes the entry.
    pub valid: AtomicBool,
}

impl CacheEntry {
    pub fn new(product: FetchedProduct, generation: u64) -> Self {
        Self { product, generation, valid: AtomicBool::new(false) }
    }
}
