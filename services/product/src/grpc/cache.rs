//! Products from memory, several in one call.

use shoppee_kit::caller;
use shoppee_proto::product::v1::{
    CachedProduct, LookupRequest, LookupResponse, product_cache_service_server::ProductCacheService,
};
use tonic::{Request, Response, Status};

use super::convert;
use crate::{cache::Known, catalogue::Catalogue, error::Error, product::Product};

/// Products of one call. A hundred of the largest are the most that a caller takes in one answer.
const MOST: usize = 100;

#[derive(Debug)]
pub struct Memory {
    pub catalogue: Catalogue,
    pub currency: String,
}

impl Memory {
    fn tell(&self, known: &Known) -> Option<CachedProduct> {
        let product = known.product.as_ref()?;
        let json = known.rendered(|product| self.render(product))?.to_vec();
        Some(CachedProduct { id: product.id, revision: product.revision, version: product.version, json })
    }

    fn render(&self, product: &Product) -> Option<Box<[u8]>> {
        let product = convert::product(product.clone(), &self.currency);
        serde_json::to_vec(&product).ok().map(Vec::into_boxed_slice)
    }
}

#[tonic::async_trait]
impl ProductCacheService for Memory {
    async fn lookup(&self, request: Request<LookupRequest>) -> Result<Response<LookupResponse>, Status> {
        caller::anyone(&request)?;
        let asked = request.into_inner().products;
        if asked.len() > MOST {
            return Err(Error::invalid("products", "must be at most 100").into());
        }
        let mut products = Vec::with_capacity(asked.len());
        for asked in asked {
            let known = self.catalogue.in_memory(asked.id, asked.revision).await;
            products.extend(known.and_then(|known| self.tell(&known)));
        }
        Ok(Response::new(LookupResponse { products }))
    }
}
