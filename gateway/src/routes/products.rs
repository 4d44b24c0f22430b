//! `/products`: the catalogue, and what the shop's staff change in it.

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
        CreateProductRequest, GetPageRequest, ListProductsRequest, ProductSort, ProductStatus,
        SearchProductsRequest, SearchSort, UpdateProductRequest,
    },
};

use crate::{
    auth::{Admin, MaybeUser},
    error::Problem,
    extract::{AcceptsGzip, Id, IdempotencyKey, IfNoneMatch, Json, LARGE, Path, Query, WriteCondition, word},
    product_cache::{ProductCache, ProductResponse},
    routes::{
        batch::Batch,
        cache::{Caching, catalogue},
        page::{check, check_limit, of_query},
        patch::{Mask, Nullable, given},
        replay,
    },
    upstream::Upstream,
};

const LONGEST_SEARCH: usize = 200;
/// No product has this version: a precondition that cannot hold.
const NO_VERSION: i64 = 0;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    category: Option<String>,
    min_price: Option<i64>,
    max_price: Option<i64>,
    in_stock: Option<bool>,
    #[serde(default, deserialize_with = "word")]
    sort: Option<ProductSort>,
    limit: Option<i32>,
    cursor: Option<String>,
}

pub async fn list(
    user: MaybeUser,
    products: ProductCache,
    AcceptsGzip(gzip): AcceptsGzip,
    Query(list): Query<List>,
) -> Result<(Caching, Response), Problem> {
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
        .map_err(of_query)?;
    Ok((catalogue(&user), page.respond(gzip)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Search {
    q: String,
    category: Option<String>,
    min_price: Option<i64>,
    max_price: Option<i64>,
    in_stock: Option<bool>,
    #[serde(default, deserialize_with = "word")]
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
) -> Result<(Caching, Response), Problem> {
    check((1..=LONGEST_SEARCH).contains(&search.q.chars().count()), "q", "must be 1 to 200 characters")?;
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
        .map_err(of_query)?;
    Ok((catalogue(&user), page.respond(gzip)))
}

fn check_prices(min: Option<i64>, max: Option<i64>) -> Result<(), Problem> {
    check(min.is_none_or(|min| min >= 0), "min_price", "must not be negative")?;
    check(max.is_none_or(|max| max >= 0), "max_price", "must not be negative")?;
    check(min.zip(max).is_none_or(|(min, max)| min <= max), "min_price", "must not be above max_price")
}

pub async fn show(
    user: MaybeUser,
    products: ProductCache,
    Path(id): Path<Id>,
    known: IfNoneMatch,
) -> Result<Response, Problem> {
    let product = products.get(&user, id.into()).await?;
    if known.has(&product.etag) {
        return Ok((StatusCode::NOT_MODIFIED, catalogue(&user), [(ETAG, product.etag)]).into_response());
    }
    Ok((catalogue(&user), product).into_response())
}

pub async fn create(
    admin: Admin,
    shop: Upstream,
    products: ProductCache,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    Json(product): Json<CreateProductRequest>,
) -> Result<Response, Problem> {
    let request = CreateProductRequest { idempotency_key, ..product };
    let answer = shop.call_with_metadata(&admin, request).await?;
    let product = answer.get_ref();
    products.record_update(product.id, answer.metadata()).await;
    let location = format!("/api/v1/products/{}", product.id);
    let headers = replay::headers(answer.metadata());
    Ok((StatusCode::CREATED, headers, [(LOCATION, location)], ProductResponse::new(product)?).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patch {
    #[serde(default, deserialize_with = "given")]
    sku: Option<String>,
    #[serde(default, deserialize_with = "given")]
    name: Option<String>,
    #[serde(default, deserialize_with = "given")]
    price: Option<i64>,
    #[serde(default, deserialize_with = "given")]
    stock: Option<i64>,
    #[serde(default)]
    description: Nullable<String>,
    #[serde(default)]
    category_id: Nullable<i64>,
    #[serde(default)]
    image_url: Nullable<String>,
    #[serde(default)]
    attributes: Nullable<Object>,
    #[serde(default, deserialize_with = "word")]
    status: Option<ProductStatus>,
}

impl Patch {
    fn of(
        self,
        id: Id,
        expected_version: Option<i64>,
        idempotency_key: Option<String>,
    ) -> UpdateProductRequest {
        let mut mask = Mask::default();
        let mut request = UpdateProductRequest {
            id: id.into(),
            expected_version,
            sku: mask.note("sku", self.sku),
            name: mask.note("name", self.name),
            price: mask.note("price", self.price),
            stock: mask.note("stock", self.stock),
            description: mask.note_nullable("description", self.description),
            category_id: mask.note_nullable("category_id", self.category_id),
            image_url: mask.note_nullable("image_url", self.image_url),
            attributes: mask.note_nullable("attributes", self.attributes),
            status: mask.note("status", self.status.map(Into::into)),
            update_mask: None,
            idempotency_key,
        };
        request.update_mask = Some(mask.into());
        request
    }
}

pub async fn update(
    admin: Admin,
    shop: Upstream,
    products: ProductCache,
    Path(id): Path<Id>,
    condition: WriteCondition,
    IdempotencyKey(key): IdempotencyKey,
    Json(patch): Json<Patch>,
) -> Result<(HeaderMap, ProductResponse), Problem> {
    let expected_version = expected(&admin, &products, id, condition).await?;
    let answer = shop.call_with_metadata(&admin, patch.of(id, expected_version, key)).await?;
    products.record_update(id.into(), answer.metadata()).await;
    Ok((replay::headers(answer.metadata()), ProductResponse::new(answer.get_ref())?))
}

pub async fn archive(
    admin: Admin,
    shop: Upstream,
    products: ProductCache,
    Path(id): Path<Id>,
    condition: WriteCondition,
) -> Result<StatusCode, Problem> {
    let expected_version = expected(&admin, &products, id, condition).await?;
    let request = ArchiveProductRequest { id: id.into(), expected_version };
    let answer = shop.call_with_metadata(&admin, request).await?;
    products.record_update(id.into(), answer.metadata()).await;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn adjust_stock(
    admin: Admin,
    shop: Upstream,
    products: ProductCache,
    Path(id): Path<Id>,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    Json(change): Json<AdjustStockRequest>,
) -> Result<(HeaderMap, ProductResponse), Problem> {
    let request = AdjustStockRequest { id: id.into(), idempotency_key, ..change };
    let answer = shop.call_with_metadata(&admin, request).await?;
    products.record_update(id.into(), answer.metadata()).await;
    Ok((replay::headers(answer.metadata()), ProductResponse::new(answer.get_ref())?))
}

pub async fn update_batch(
    admin: Admin,
    shop: Upstream,
    products: ProductCache,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    Json(batch): Json<Batch, LARGE>,
) -> Result<(HeaderMap, Json<BatchUpdateProductsResponse>), Problem> {
    let request: BatchUpdateProductsRequest = batch.try_into()?;
    let request = BatchUpdateProductsRequest { idempotency_key, ..request };
    let (metadata, answer, _) = shop.call_with_metadata(&admin, request).await?.into_parts();
    products.record_batch_update(&answer.results).await;
    Ok((replay::headers(&metadata), Json(answer)))
}

/// The version a write depends on. Of several that the client would take, it is the one the product has. Versions only
/// grow: one that the product does not have now, and that the client has seen, does not come back.
async fn expected(
    admin: &Admin,
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
                let current = products.fetch_at_min_revision(admin, id.into()).await?.get_ref().version;
                Ok(Some(if versions.contains(&current) { current } else { NO_VERSION }))
            }
        },
        WriteCondition::NoneOf(versions) => {
            let current = products.fetch_at_min_revision(admin, id.into()).await?.get_ref().version;
            Ok(versions.contains(&current).then_some(NO_VERSION))
        }
    }
}
