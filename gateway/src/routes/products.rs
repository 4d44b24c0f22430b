//! `/products`: reading and changing the catalogue.

use axum::response::{IntoResponse as _, Response};
use http::{
    HeaderMap, StatusCode,
    header::{ETAG, LOCATION},
};
use serde::Deserialize;
use shoppee_proto::{
    Object,
    product::v1::{
        AdjustStockRequest, ArchiveProductRequest, BatchUpdateProductsRequest, BatchUpdateProductsResponse,
        CreateProductRequest, GetPageRequest, ListProductsRequest, ListStockChangesRequest,
        ListStockChangesResponse, ProductSort, ProductStatus, SearchProductsRequest, SearchSort,
        UpdateProductRequest,
    },
};

use crate::{
    auth::{Authorized, MaybeUser},
    error::Problem,
    extract::{
        AcceptsGzip, BATCH_BODY_LIMIT, Id, IdempotencyKey, IfNoneMatch, Json, Path, Query, WriteCondition,
        deserialize_enum,
    },
    product_cache::{ProductCache, ProductResponse},
    routes::{
        batch::Batch,
        cache_control::{CacheControl, cache_control},
        idempotency,
        pagination::{Page, as_query_error, check_limit, require},
        patch::{FieldMaskBuilder, Nullable, deserialize_present},
    },
    upstream::{Credential, Upstream},
};

const MAX_QUERY_LEN: usize = 200;
/// A version that no product has: a precondition that always fails.
const NO_VERSION: i64 = 0;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    category: Option<String>,
    min_price: Option<i64>,
    max_price: Option<i64>,
    in_stock: Option<bool>,
    #[serde(default, deserialize_with = "deserialize_enum")]
    sort: Option<ProductSort>,
    limit: Option<i32>,
    cursor: Option<String>,
}

pub async fn list(
    user: MaybeUser,
    products: ProductCache,
    AcceptsGzip(gzip): AcceptsGzip,
    Query(list): Query<List>,
) -> Result<(CacheControl, Response), Problem> {
    check_limit(list.limit)?;
    check_prices(list.min_price, list.max_price)?;
    let request = ListProductsRequest {
        category: list.category,
        min_price: list.min_price,
        max_price: list.max_price,
        in_stock: list.in_stock,
        sort: list.sort.unwrap_or(ProductSort::Newest).into(),
        limit: list.limit,
        cursor: list.cursor,
    };
    let page = products
        .get_page(&user, GetPageRequest { list: Some(request), search: None })
        .await
        .map_err(as_query_error)?;
    Ok((cache_control(&user), page.respond(gzip)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Search {
    q: String,
    category: Option<String>,
    min_price: Option<i64>,
    max_price: Option<i64>,
    in_stock: Option<bool>,
    #[serde(default, deserialize_with = "deserialize_enum")]
    sort: Option<SearchSort>,
    facets: Option<bool>,
    limit: Option<i32>,
    cursor: Option<String>,
}

pub async fn search(
    user: MaybeUser,
    products: ProductCache,
    AcceptsGzip(gzip): AcceptsGzip,
    Query(search): Query<Search>,
) -> Result<(CacheControl, Response), Problem> {
    require((1..=MAX_QUERY_LEN).contains(&search.q.chars().count()), "q", "must be 1 to 200 characters")?;
    check_limit(search.limit)?;
    check_prices(search.min_price, search.max_price)?;
    let request = SearchProductsRequest {
        q: search.q,
        category: search.category,
        min_price: search.min_price,
        max_price: search.max_price,
        in_stock: search.in_stock,
        sort: search.sort.unwrap_or(SearchSort::Relevance).into(),
        facets: search.facets,
        limit: search.limit,
        cursor: search.cursor,
    };
    let page = products
        .get_page(&user, GetPageRequest { list: None, search: Some(request) })
        .await
        .map_err(as_query_error)?;
    Ok((cache_control(&user), page.respond(gzip)))
}

fn check_prices(min: Option<i64>, max: Option<i64>) -> Result<(), Problem> {
    require(min.is_none_or(|min| min >= 0), "min_price", "must not be negative")?;
    require(max.is_none_or(|max| max >= 0), "max_price", "must not be negative")?;
    require(min.zip(max).is_none_or(|(min, max)| min <= max), "min_price", "must not be above max_price")
}

pub async fn get(
    user: MaybeUser,
    products: ProductCache,
    Path(id): Path<Id>,
    if_none_match: IfNoneMatch,
) -> Result<Response, Problem> {
    let product = products.get(&user, id.into()).await?;
    if if_none_match.matches(&product.etag) {
        return Ok((StatusCode::NOT_MODIFIED, cache_control(&user), [(ETAG, product.etag)]).into_response());
    }
    Ok((cache_control(&user), product).into_response())
}

pub async fn create(
    caller: Authorized<CreateProductRequest>,
    upstream: Upstream,
    products: ProductCache,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    Json(product): Json<CreateProductRequest>,
) -> Result<Response, Problem> {
    let request = CreateProductRequest { idempotency_key, ..product };
    let response = upstream.call_with_metadata(&caller, request).await?;
    let product = response.get_ref();
    products.record_update(product.id, response.metadata()).await;
    let location = format!("/api/v1/products/{}", product.id);
    let headers = idempotency::headers(response.metadata());
    Ok((StatusCode::CREATED, headers, [(LOCATION, location)], ProductResponse::new(product)?).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patch {
    #[serde(default, deserialize_with = "deserialize_present")]
    sku: Option<String>,
    #[serde(default, deserialize_with = "deserialize_present")]
    name: Option<String>,
    #[serde(default, deserialize_with = "deserialize_present")]
    price: Option<i64>,
    #[serde(default, deserialize_with = "deserialize_present")]
    stock: Option<i64>,
    #[serde(default)]
    description: Nullable<String>,
    #[serde(default)]
    category_id: Nullable<i64>,
    #[serde(default)]
    image_url: Nullable<String>,
    #[serde(default)]
    attributes: Nullable<Object>,
    #[serde(default, deserialize_with = "deserialize_enum")]
    status: Option<ProductStatus>,
}

impl Patch {
    fn into_request(
        self,
        id: Id,
        expected_version: Option<i64>,
        idempotency_key: Option<String>,
    ) -> UpdateProductRequest {
        let mut mask = FieldMaskBuilder::default();
        let mut request = UpdateProductRequest {
            id: id.into(),
            expected_version,
            sku: mask.set("sku", self.sku),
            name: mask.set("name", self.name),
            price: mask.set("price", self.price),
            stock: mask.set("stock", self.stock),
            description: mask.set_nullable("description", self.description),
            category_id: mask.set_nullable("category_id", self.category_id),
            image_url: mask.set_nullable("image_url", self.image_url),
            attributes: mask.set_nullable("attributes", self.attributes),
            status: mask.set("status", self.status.map(Into::into)),
            update_mask: None,
            idempotency_key,
        };
        request.update_mask = Some(mask.into());
        request
    }
}

pub async fn update(
    caller: Authorized<UpdateProductRequest>,
    upstream: Upstream,
    products: ProductCache,
    Path(id): Path<Id>,
    condition: WriteCondition,
    IdempotencyKey(key): IdempotencyKey,
    Json(patch): Json<Patch>,
) -> Result<(HeaderMap, ProductResponse), Problem> {
    let expected_version = resolve_version(&caller, &products, id, condition).await?;
    let response =
        upstream.call_with_metadata(&caller, patch.into_request(id, expected_version, key)).await?;
    products.record_update(id.into(), response.metadata()).await;
    Ok((idempotency::headers(response.metadata()), ProductResponse::new(response.get_ref())?))
}

pub async fn archive(
    caller: Authorized<ArchiveProductRequest>,
    upstream: Upstream,
    products: ProductCache,
    Path(id): Path<Id>,
    condition: WriteCondition,
) -> Result<StatusCode, Problem> {
    let expected_version = resolve_version(&caller, &products, id, condition).await?;
    let request = ArchiveProductRequest { id: id.into(), expected_version };
    let response = upstream.call_with_metadata(&caller, request).await?;
    products.record_update(id.into(), response.metadata()).await;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn adjust_stock(
    caller: Authorized<AdjustStockRequest>,
    upstream: Upstream,
    products: ProductCache,
    Path(id): Path<Id>,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    Json(change): Json<AdjustStockRequest>,
) -> Result<(HeaderMap, ProductResponse), Problem> {
    let request = AdjustStockRequest { id: id.into(), idempotency_key, ..change };
    let response = upstream.call_with_metadata(&caller, request).await?;
    products.record_update(id.into(), response.metadata()).await;
    Ok((idempotency::headers(response.metadata()), ProductResponse::new(response.get_ref())?))
}

pub async fn list_stock_changes(
    caller: Authorized<ListStockChangesRequest>,
    upstream: Upstream,
    Path(id): Path<Id>,
    Query(Page { limit, cursor }): Query<Page>,
) -> Result<Json<ListStockChangesResponse>, Problem> {
    check_limit(limit)?;
    let request = ListStockChangesRequest { id: id.into(), limit, cursor };
    Ok(Json(upstream.call(&caller, request).await.map_err(as_query_error)?))
}

pub async fn update_batch(
    caller: Authorized<BatchUpdateProductsRequest>,
    upstream: Upstream,
    products: ProductCache,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    Json(batch): Json<Batch, BATCH_BODY_LIMIT>,
) -> Result<(HeaderMap, Json<BatchUpdateProductsResponse>), Problem> {
    let request: BatchUpdateProductsRequest = batch.try_into()?;
    let request = BatchUpdateProductsRequest { idempotency_key, ..request };
    let (metadata, response, _) = upstream.call_with_metadata(&caller, request).await?.into_parts();
    products.record_batch_update(&response.results).await;
    Ok((idempotency::headers(&metadata), Json(response)))
}

/// Returns the version that a write requires. If the client accepts several, it is the current one. Versions only grow: an
/// older version that the client knows does not return.
async fn resolve_version(
    caller: &impl Credential,
    products: &ProductCache,
    id: Id,
    condition: WriteCondition,
) -> Result<Option<i64>, Problem> {
    match condition {
        WriteCondition::Any => Ok(None),
        WriteCondition::OneOf(versions) => match versions[..] {
            [] => Ok(Some(NO_VERSION)),
            [version] => Ok(Some(version)),
            [..] => {
                let current = products.fetch_at_min_revision(caller, id.into()).await?.get_ref().version;
                Ok(Some(if versions.contains(&current) { current } else { NO_VERSION }))
            }
        },
        WriteCondition::NoneOf(versions) => {
            let current = products.fetch_at_min_revision(caller, id.into()).await?.get_ref().version;
            Ok(versions.contains(&current).then_some(NO_VERSION))
        }
    }
}
