//! The catalogue: open to read, an admin's to change.

use std::{pin::Pin, sync::Arc};

use shoppee_kit::{
    caller::{self, Caller, Role, Verifier},
    idempotency,
    status::Violations,
    tasks::Tasks,
};
use shoppee_proto::PRODUCT_REVISION;
use shoppee_proto::product::v1::{
    AdjustStockRequest, ArchiveProductRequest, BatchGetProductsRequest, BatchGetProductsResponse,
    BatchUpdateProductsRequest, BatchUpdateProductsResponse, Category, CreateCategoryRequest,
    CreateProductRequest, DeleteCategoryRequest, GetProductRequest, ListCategoriesRequest,
    ListCategoriesResponse, ListProductsRequest, ListProductsResponse, Product, ProductView,
    SearchProductsRequest, SearchProductsResponse, UpdateCategoryRequest, UpdateProductRequest,
    product_service_server::ProductService,
};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use super::{batch, categories, convert, key, pages};
use crate::{
    batch::Batches,
    catalogue::Catalogue,
    error::Error,
    idempotency::Answered,
    stock::{Delta, Reason},
    tree::Tree,
};

/// Ids of one call of BatchGetProducts.
const MOST_IDS: usize = 1000;

#[derive(Debug)]
pub struct Products {
    pub catalogue: Catalogue,
    pub tree: Tree,
    pub batches: Batches,
    pub tasks: Tasks,
    /// For calls that last.
    pub verifier: Arc<Verifier>,
    pub currency: String,
}

impl Products {
    fn answer(&self, product: crate::product::Product) -> Response<Product> {
        let revision = product.revision;
        at(revision, Response::new(convert::product(product, &self.currency)))
    }

    /// The answer of a write, which may have been given before.
    fn answered(&self, answered: Answered<crate::product::Product>) -> Response<Product> {
        let (revision, product) =
            (answered.answer.revision, convert::product(answered.answer, &self.currency));
        at(revision, idempotency::respond(product, answered.replayed))
    }
}

fn at<T>(revision: i64, mut response: Response<T>) -> Response<T> {
    note(revision, response.metadata_mut());
    response
}

/// Says in which state of the product an answer was true.
fn note(revision: i64, metadata: &mut MetadataMap) {
    metadata.insert(PRODUCT_REVISION, revision.into());
}

/// The state that a caller has seen; 0 where it says none.
fn at_least<T>(request: &Request<T>) -> i64 {
    let seen = request.metadata().get(PRODUCT_REVISION).and_then(|value| value.to_str().ok());
    seen.and_then(|seen| seen.parse().ok()).unwrap_or_default()
}

/// Archived products are shown to those who keep the shop, and to its other services.
fn sees_archived(caller: Option<&Caller>) -> bool {
    caller.is_some_and(|caller| match caller.claims.role {
        Role::Admin | Role::Service => true,
        Role::User => false,
    })
}

/// Who changes the catalogue sees the change in the next list.
fn writes(caller: Option<&Caller>) -> bool {
    caller.is_some_and(Caller::is_admin)
}

type Answers = Pin<Box<dyn tokio_stream::Stream<Item = Result<BatchUpdateProductsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ProductService for Products {
    type BatchUpdateProductsStreamStream = Answers;

    async fn get_product(&self, request: Request<GetProductRequest>) -> Result<Response<Product>, Status> {
        let caller = caller::optional(&request)?;
        let (at_least, id) = (at_least(&request), request.into_inner().id);
        let known = self.catalogue.get(id, at_least).await?;
        let archived = sees_archived(caller.as_ref());
        let Some(product) = known.product.as_ref().filter(|product| product.may_be_seen(archived)) else {
            let mut refusal = Status::from(Error::NotFound);
            note(known.revision(), refusal.metadata_mut());
            return Err(refusal);
        };
        Ok(self.answer(product.clone()))
    }

    async fn batch_get_products(
        &self,
        request: Request<BatchGetProductsRequest>,
    ) -> Result<Response<BatchGetProductsResponse>, Status> {
        let caller = caller::optional(&request)?;
        let BatchGetProductsRequest { ids, view } = request.into_inner();
        if ids.len() > MOST_IDS {
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
        let found = self.catalogue.get_many(&ids, sees_archived(caller.as_ref())).await?;
        let products = found.iter().filter_map(|known| known.product.as_ref());
        let items = products.map(|product| show(product, &self.currency)).collect();
        Ok(Response::new(BatchGetProductsResponse { items }))
    }

    async fn list_products(
        &self,
        request: Request<ListProductsRequest>,
    ) -> Result<Response<ListProductsResponse>, Status> {
        let newest = writes(caller::optional(&request)?.as_ref());
        let page = pages::list(&self.catalogue, request.into_inner(), newest).await?;
        Ok(Response::new(convert::page(page, &self.currency)))
    }

    async fn search_products(
        &self,
        request: Request<SearchProductsRequest>,
    ) -> Result<Response<SearchProductsResponse>, Status> {
        let newest = writes(caller::optional(&request)?.as_ref());
        let results = pages::search(&self.catalogue, request.into_inner(), newest).await?;
        Ok(Response::new(convert::results(results, &self.currency)))
    }

    async fn create_product(
        &self,
        request: Request<CreateProductRequest>,
    ) -> Result<Response<Product>, Status> {
        let admin = caller::admin(&request)?;
        let mut asked = request.into_inner();
        let key = asked.idempotency_key.take();
        let key = key::read(&admin, "products.create", key, &asked)?;
        let new = convert::new_product(asked)?;
        Ok(self.answered(self.catalogue.create(&new, key.as_ref()).await?))
    }

    async fn update_product(
        &self,
        request: Request<UpdateProductRequest>,
    ) -> Result<Response<Product>, Status> {
        let admin = caller::admin(&request)?;
        let mut asked = request.into_inner();
        // The version that is expected is no part of what is asked for: a repeat may have learnt of another.
        let (id, expected, key) = (asked.id, asked.expected_version.take(), asked.idempotency_key.take());
        let mask = asked.update_mask.as_ref().map(|mask| mask.paths.clone());
        let key = key::read(&admin, "products.update", key, &(mask, &asked))?;
        let changes = convert::changes(asked)?;
        Ok(self.answered(self.catalogue.update(id, expected, &changes, key.as_ref()).await?))
    }

    async fn archive_product(&self, request: Request<ArchiveProductRequest>) -> Result<Response<()>, Status> {
        caller::admin(&request)?;
        let asked = request.into_inner();
        let archived = self.catalogue.archive(asked.id, asked.expected_version).await?;
        Ok(at(archived.revision, Response::new(())))
    }

    async fn adjust_stock(&self, request: Request<AdjustStockRequest>) -> Result<Response<Product>, Status> {
        let admin = caller::admin(&request)?;
        let mut asked = request.into_inner();
        let key = asked.idempotency_key.take();
        let key = key::read(&admin, "products.stock", key, &(asked.id, &asked))?;
        let mut bad = Violations::default();
        let delta = bad.collect("delta", Delta::parse(asked.delta));
        let reason = bad.collect("reason", Reason::parse(asked.reason));
        let (Some(delta), Some(reason)) = (delta, reason) else {
            return Err(Error::Invalid(bad).into());
        };
        Ok(self.answered(self.catalogue.adjust(asked.id, delta, &reason, key.as_ref()).await?))
    }

    async fn batch_update_products(
        &self,
        request: Request<BatchUpdateProductsRequest>,
    ) -> Result<Response<BatchUpdateProductsResponse>, Status> {
        let admin = caller::admin(&request)?;
        let answered = batch::update(&self.batches, &admin, request.into_inner()).await?;
        Ok(idempotency::respond(answered.answer, answered.replayed))
    }

    async fn batch_update_products_stream(
        &self,
        request: Request<Streaming<BatchUpdateProductsRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let admin = (caller::admin(&request)?, self.verifier.clone());
        let answers = batch::stream(self.batches.clone(), &self.tasks, admin, request.into_inner());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn list_categories(
        &self,
        request: Request<ListCategoriesRequest>,
    ) -> Result<Response<ListCategoriesResponse>, Status> {
        caller::optional(&request)?;
        Ok(Response::new(categories::list(&self.tree, request.into_inner()).await?))
    }

    async fn create_category(
        &self,
        request: Request<CreateCategoryRequest>,
    ) -> Result<Response<Category>, Status> {
        let admin = caller::admin(&request)?;
        Ok(categories::create(&self.tree, &admin, request.into_inner()).await?)
    }

    async fn update_category(
        &self,
        request: Request<UpdateCategoryRequest>,
    ) -> Result<Response<Category>, Status> {
        let admin = caller::admin(&request)?;
        Ok(categories::update(&self.tree, &admin, request.into_inner()).await?)
    }

    async fn delete_category(&self, request: Request<DeleteCategoryRequest>) -> Result<Response<()>, Status> {
        caller::admin(&request)?;
        self.tree.delete(request.into_inner().id).await?;
        Ok(Response::new(()))
    }
}
