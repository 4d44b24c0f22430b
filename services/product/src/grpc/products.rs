//! The gRPC ProductService: public reads of the catalogue, and writes by admins.

use std::{pin::Pin, sync::Arc};

use shoppee_kit::{
    audit_log::Actor,
    caller::{self, Caller, Verifier},
    idempotency,
    status::Violations,
    tasks::Tasks,
};
use shoppee_proto::PRODUCT_REVISION;
use shoppee_proto::product::v1::{
    AdjustStockRequest, ArchiveProductRequest, BatchGetProductsRequest, BatchGetProductsResponse,
    BatchUpdateProductsRequest, BatchUpdateProductsResponse, Category, CreateCategoryRequest,
    CreateProductRequest, DeleteCategoryRequest, GetProductRequest, ListCategoriesRequest,
    ListCategoriesResponse, ListProductsRequest, ListProductsResponse, ListStockChangesRequest,
    ListStockChangesResponse, Product, ProductView, SearchProductsRequest, SearchProductsResponse,
    UpdateCategoryRequest, UpdateProductRequest, product_service_server::ProductService,
};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use super::{batch, categories, check_stock_scope, convert, idempotency_key, pages, stock_changes};
use crate::{
    adjustments::{Adjustment, Adjustments},
    batches::Batches,
    catalogue::Catalogue,
    categories::Categories,
    error::Error,
    idempotency::IdempotentResult,
    stock::{Delta, Reason},
};

/// Ids per call of BatchGetProducts.
const MAX_IDS: usize = 1000;

#[derive(Debug)]
pub struct Products {
    pub catalogue: Catalogue,
    pub categories: Categories,
    pub batches: Batches,
    pub adjustments: Adjustments,
    pub tasks: Tasks,
    /// For long-running calls, which check the caller again.
    pub verifier: Arc<Verifier>,
    pub currency: String,
}

impl Products {
    fn respond(&self, product: crate::product::Product) -> Response<Product> {
        let revision = product.revision;
        with_revision(revision, Response::new(convert::product(product, &self.currency)))
    }

    /// Responds with the result of a write, which may be a replay.
    fn respond_idempotent(&self, result: IdempotentResult<crate::product::Product>) -> Response<Product> {
        let (revision, product) = (result.value.revision, convert::product(result.value, &self.currency));
        with_revision(revision, idempotency::respond(product, result.replayed))
    }
}

fn with_revision<T>(revision: i64, mut response: Response<T>) -> Response<T> {
    set_revision(revision, response.metadata_mut());
    response
}

/// Sets the revision of a response in its metadata.
fn set_revision(revision: i64, metadata: &mut MetadataMap) {
    metadata.insert(PRODUCT_REVISION, revision.into());
}

/// Returns the minimum revision that the caller requires; 0 if absent.
fn min_revision<T>(request: &Request<T>) -> i64 {
    let value = request.metadata().get(PRODUCT_REVISION).and_then(|value| value.to_str().ok());
    value.and_then(|value| value.parse().ok()).unwrap_or_default()
}

/// Reports whether the caller may see archived products: admins and other services.
fn may_see_archived(caller: Option<&Caller>) -> bool {
    caller.is_some_and(Caller::is_staff)
}

/// Reports whether lists must include the caller's own writes: those of admins and services do.
fn reads_own_writes(caller: Option<&Caller>) -> bool {
    caller.is_some_and(Caller::is_staff)
}

type BatchResponses =
    Pin<Box<dyn tokio_stream::Stream<Item = Result<BatchUpdateProductsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ProductService for Products {
    type BatchUpdateProductsStreamStream = BatchResponses;

    async fn get_product(&self, request: Request<GetProductRequest>) -> Result<Response<Product>, Status> {
        let caller = caller::find(&request);
        let (min_revision, id) = (min_revision(&request), request.into_inner().id);
        let entry = self.catalogue.get(id, min_revision).await?;
        let include_archived = may_see_archived(caller.as_ref());
        let Some(product) = entry.product.as_ref().filter(|product| product.is_visible(include_archived))
        else {
            let mut refusal = Status::from(Error::NotFound);
            set_revision(entry.revision(), refusal.metadata_mut());
            return Err(refusal);
        };
        Ok(self.respond(product.clone()))
    }

    async fn batch_get_products(
        &self,
        request: Request<BatchGetProductsRequest>,
    ) -> Result<Response<BatchGetProductsResponse>, Status> {
        let caller = caller::find(&request);
        let BatchGetProductsRequest { ids, view } = request.into_inner();
        if ids.len() > MAX_IDS {
            return Err(Error::invalid("ids", "must be at most 1000").into());
        }
        let show = match ProductView::try_from(view) {
            Ok(ProductView::Unspecified | ProductView::Full) => {
                |product: &crate::product::Product, currency: &str| {
                    convert::product(product.clone(), currency)
                }
            }
            Ok(ProductView::Basic) => convert::basic,
            Err(_) => return Err(Error::malformed("view", "is unknown").into()),
        };
        let entries = self.catalogue.get_many(&ids, may_see_archived(caller.as_ref())).await?;
        let products = entries.iter().filter_map(|entry| entry.product.as_ref());
        let items = products.map(|product| show(product, &self.currency)).collect();
        Ok(Response::new(BatchGetProductsResponse { items }))
    }

    async fn list_products(
        &self,
        request: Request<ListProductsRequest>,
    ) -> Result<Response<ListProductsResponse>, Status> {
        let read_your_writes = reads_own_writes(caller::find(&request).as_ref());
        let page = pages::list(&self.catalogue, request.into_inner(), read_your_writes).await?;
        Ok(Response::new(convert::page(page, &self.currency)))
    }

    async fn search_products(
        &self,
        request: Request<SearchProductsRequest>,
    ) -> Result<Response<SearchProductsResponse>, Status> {
        let read_your_writes = reads_own_writes(caller::find(&request).as_ref());
        let results = pages::search(&self.catalogue, request.into_inner(), read_your_writes).await?;
        Ok(Response::new(convert::results(results, &self.currency)))
    }

    async fn create_product(
        &self,
        request: Request<CreateProductRequest>,
    ) -> Result<Response<Product>, Status> {
        let caller = caller::require(&request)?;
        let mut request = request.into_inner();
        let key = request.idempotency_key.take();
        let key = idempotency_key::parse(&caller, "products.create", key, &request)?;
        let new = convert::new_product(request)?;
        Ok(self.respond_idempotent(
            self.catalogue.create(&Actor::from_caller(&caller), &new, key.as_ref()).await?,
        ))
    }

    async fn update_product(
        &self,
        request: Request<UpdateProductRequest>,
    ) -> Result<Response<Product>, Status> {
        let caller = caller::require(&request)?;
        let mut request = request.into_inner();
        // The expected version is not part of the fingerprint: a repeat may expect a newer one.
        let (id, expected_version, key) =
            (request.id, request.expected_version.take(), request.idempotency_key.take());
        let mask = request.update_mask.as_ref().map(|mask| mask.paths.clone());
        let key = idempotency_key::parse(&caller, "products.update", key, &(mask, &request))?;
        let changes = convert::changes(request)?;
        check_stock_scope(&caller, changes.stock.is_some())?;
        let actor = Actor::from_caller(&caller);
        let updated = self.catalogue.update(&actor, id, expected_version, &changes, key.as_ref()).await?;
        Ok(self.respond_idempotent(updated))
    }

    async fn archive_product(&self, request: Request<ArchiveProductRequest>) -> Result<Response<()>, Status> {
        let actor = Actor::from_caller(&caller::require(&request)?);
        let request = request.into_inner();
        let archived = self.catalogue.archive(&actor, request.id, request.expected_version).await?;
        Ok(with_revision(archived.revision, Response::new(())))
    }

    async fn adjust_stock(&self, request: Request<AdjustStockRequest>) -> Result<Response<Product>, Status> {
        let caller = caller::require(&request)?;
        let mut request = request.into_inner();
        let key = request.idempotency_key.take();
        let key = idempotency_key::parse(&caller, "products.stock", key, &(request.id, &request))?;
        let mut bad = Violations::default();
        let delta = bad.collect("delta", Delta::parse(request.delta));
        let reason = bad.collect("reason", Reason::parse(request.reason));
        let (Some(delta), Some(reason)) = (delta, reason) else {
            return Err(Error::Invalid(bad).into());
        };
        let actor = Actor::from_caller(&caller);
        let adjustment = Adjustment { actor, product_id: request.id, delta, reason, key };
        Ok(self.respond_idempotent(self.adjustments.adjust(adjustment).await?))
    }

    async fn list_stock_changes(
        &self,
        request: Request<ListStockChangesRequest>,
    ) -> Result<Response<ListStockChangesResponse>, Status> {
        Ok(Response::new(stock_changes::list(&self.catalogue.pool, request.into_inner()).await?))
    }

    async fn batch_update_products(
        &self,
        request: Request<BatchUpdateProductsRequest>,
    ) -> Result<Response<BatchUpdateProductsResponse>, Status> {
        let caller = caller::require(&request)?;
        let result = batch::update(&self.batches, &caller, request.into_inner()).await?;
        Ok(idempotency::respond(result.value, result.replayed))
    }

    async fn batch_update_products_stream(
        &self,
        request: Request<Streaming<BatchUpdateProductsRequest>>,
    ) -> Result<Response<BatchResponses>, Status> {
        let caller = (caller::require(&request)?, self.verifier.clone());
        let responses = batch::stream(self.batches.clone(), &self.tasks, caller, request.into_inner());
        Ok(Response::new(Box::pin(responses)))
    }

    async fn list_categories(
        &self,
        request: Request<ListCategoriesRequest>,
    ) -> Result<Response<ListCategoriesResponse>, Status> {
        Ok(Response::new(categories::list(&self.categories, request.into_inner()).await?))
    }

    async fn create_category(
        &self,
        request: Request<CreateCategoryRequest>,
    ) -> Result<Response<Category>, Status> {
        let caller = caller::require(&request)?;
        Ok(categories::create(&self.categories, &caller, request.into_inner()).await?)
    }

    async fn update_category(
        &self,
        request: Request<UpdateCategoryRequest>,
    ) -> Result<Response<Category>, Status> {
        let caller = caller::require(&request)?;
        Ok(categories::update(&self.categories, &caller, request.into_inner()).await?)
    }

    async fn delete_category(&self, request: Request<DeleteCategoryRequest>) -> Result<Response<()>, Status> {
        let actor = Actor::from_caller(&caller::require(&request)?);
        self.categories.delete(&actor, request.into_inner().id).await?;
        Ok(Response::new(()))
    }
}
