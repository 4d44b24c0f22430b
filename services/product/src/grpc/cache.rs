//! The gRPC ProductCacheService: products from memory, several per call, and pages of products. A product is
//! rendered as JSON once and shared by all responses.

use std::sync::Arc;

use serde::Serialize;
use shoppee_proto::product::v1::{
    CachedProduct, GetPageRequest, GetPageResponse, ListProductsRequest, LookupRequest, LookupResponse,
    SearchProductsRequest, product_cache_service_server::ProductCacheService,
};
use tonic::{Request, Response, Status};

use super::{convert, pages};
use crate::{cache::CacheEntry, catalogue::Catalogue, error::Error, listing::Page, product::Product};

/// Products per call. A hundred of the largest products fill the largest response that a caller accepts.
const MAX_LOOKUP_PRODUCTS: usize = 100;

#[derive(Debug)]
pub struct CachedProducts {
    pub catalogue: Catalogue,
    pub currency: String,
}

impl CachedProducts {
    fn to_cached(&self, entry: &CacheEntry) -> Option<CachedProduct> {
        let product = entry.product.as_ref()?;
        let json = entry.rendered(|product| self.render(product))?.to_vec();
        Some(CachedProduct { id: product.id, revision: product.revision, version: product.version, json })
    }

    async fn list(&self, request: ListProductsRequest) -> Result<Vec<u8>, Error> {
        let Page { items, next_cursor } = pages::list(&self.catalogue, request, false).await?;
        let mut rendered = Vec::with_capacity(items.len());
        for product in &items {
            rendered.push(self.rendered(product).await?);
        }
        let empty = convert::page(Page { items: Vec::new(), next_cursor }, &self.currency);
        splice(&empty, rendered.iter().map(Rendered::json))
    }

    async fn search(&self, request: SearchProductsRequest) -> Result<Vec<u8>, Error> {
        let mut results = pages::search(&self.catalogue, request, false).await?;
        let items = std::mem::take(&mut results.items);
        let rendered = items.iter().filter_map(|entry| entry.rendered(|product| self.render(product)));
        splice(&convert::results(results, &self.currency), rendered)
    }

    /// Returns the JSON of a product that was just read. The rendered form in memory is used if it has the
    /// same revision.
    async fn rendered(&self, product: &Product) -> Result<Rendered, Error> {
        let entry = self.catalogue.get_in_memory(product.id, product.revision).await;
        if let Some(entry) = entry.filter(|entry| entry.revision() == product.revision)
            && entry.rendered(|product| self.render(product)).is_some()
        {
            return Ok(Rendered::Shared(entry));
        }
        self.render(product).map(Rendered::Own).ok_or_else(unserialisable)
    }

    fn render(&self, product: &Product) -> Option<Box<[u8]>> {
        let product = convert::product(product.clone(), &self.currency);
        serde_json::to_vec(&product).ok().map(Vec::into_boxed_slice)
    }
}

/// The JSON of a product.
enum Rendered {
    /// The shared form in memory.
    Shared(Arc<CacheEntry>),
    Own(Box<[u8]>),
}

impl Rendered {
    fn json(&self) -> &[u8] {
        match self {
            Self::Shared(entry) => entry.rendered(|_| None).unwrap_or_default(),
            Self::Own(json) => json,
        }
    }
}

/// Returns the JSON of `page`, which has no items, with `items` inserted.
fn splice<'a>(page: &impl Serialize, items: impl Iterator<Item = &'a [u8]>) -> Result<Vec<u8>, Error> {
    let page = serde_json::to_vec(page).map_err(|_| unserialisable())?;
    let rest = page.strip_prefix(br#"{"items":[]"#).ok_or_else(unserialisable)?;
    let items: Vec<&[u8]> = items.collect();
    let mut json = Vec::with_capacity(page.len() + items.iter().map(|item| item.len() + 1).sum::<usize>());
    json.extend_from_slice(br#"{"items":["#);
    for (at, item) in items.into_iter().enumerate() {
        if at > 0 {
            json.push(b',');
        }
        json.extend_from_slice(item);
    }
    json.push(b']');
    json.extend_from_slice(rest);
    Ok(json)
}

fn unserialisable() -> Error {
    tracing::error!("a page does not serialise");
    Error::Internal
}

#[tonic::async_trait]
impl ProductCacheService for CachedProducts {
    async fn lookup(&self, request: Request<LookupRequest>) -> Result<Response<LookupResponse>, Status> {
        let keys = request.into_inner().products;
        if keys.len() > MAX_LOOKUP_PRODUCTS {
            return Err(Error::invalid("products", "must be at most 100").into());
        }
        let mut products = Vec::with_capacity(keys.len());
        for key in keys {
            let entry = self.catalogue.get_in_memory(key.id, key.revision).await;
            products.extend(entry.and_then(|entry| self.to_cached(&entry)));
        }
        Ok(Response::new(LookupResponse { products }))
    }

    async fn get_page(&self, request: Request<GetPageRequest>) -> Result<Response<GetPageResponse>, Status> {
        let json = match request.into_inner() {
            GetPageRequest { list: Some(request), search: None } => self.list(request).await?,
            GetPageRequest { list: None, search: Some(request) } => self.search(request).await?,
            _ => return Err(Error::malformed("list", "or search: one of the two must be present").into()),
        };
        Ok(Response::new(GetPageResponse { json }))
    }
}
