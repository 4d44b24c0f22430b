//! `/categories`: the category tree of the products.

use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use shoppee_proto::product::v1::{
    Category, CreateCategoryRequest, DeleteCategoryRequest, ListCategoriesRequest, ListCategoriesResponse,
    UpdateCategoryRequest,
};

use crate::{
    auth::{Authorized, MaybeUser},
    error::Problem,
    extract::{Id, IdempotencyKey, Json, Path, Query},
    product_cache::ProductCache,
    routes::{
        cache_control::{CacheControl, cache_control},
        idempotency,
        pagination::{Page, as_query_error, check_limit},
        patch::{FieldMaskBuilder, Nullable, deserialize_present},
    },
    upstream::Upstream,
};

pub async fn list(
    user: MaybeUser,
    upstream: Upstream,
    Query(Page { limit, cursor }): Query<Page>,
) -> Result<(CacheControl, Json<ListCategoriesResponse>), Problem> {
    check_limit(limit)?;
    let page = upstream.call(&user, ListCategoriesRequest { limit, cursor }).await.map_err(as_query_error)?;
    Ok((cache_control(&user), Json(page)))
}

pub async fn create(
    caller: Authorized<CreateCategoryRequest>,
    upstream: Upstream,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    Json(category): Json<CreateCategoryRequest>,
) -> Result<(StatusCode, HeaderMap, Json<Category>), Problem> {
    let request = CreateCategoryRequest { idempotency_key, ..category };
    let (metadata, category, _) = upstream.call_with_metadata(&caller, request).await?.into_parts();
    Ok((StatusCode::CREATED, idempotency::headers(&metadata), Json(category)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patch {
    #[serde(default, deserialize_with = "deserialize_present")]
    slug: Option<String>,
    #[serde(default, deserialize_with = "deserialize_present")]
    name: Option<String>,
    #[serde(default)]
    parent_id: Nullable<i64>,
}

pub async fn update(
    caller: Authorized<UpdateCategoryRequest>,
    upstream: Upstream,
    products: ProductCache,
    Path(id): Path<Id>,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    Json(patch): Json<Patch>,
) -> Result<(HeaderMap, Json<Category>), Problem> {
    let mut mask = FieldMaskBuilder::default();
    let mut request = UpdateCategoryRequest {
        id: id.into(),
        slug: mask.set("slug", patch.slug),
        name: mask.set("name", patch.name),
        parent_id: mask.set_nullable("parent_id", patch.parent_id),
        update_mask: None,
        idempotency_key,
    };
    request.update_mask = Some(mask.into());
    let (metadata, category, _) = upstream.call_with_metadata(&caller, request).await?.into_parts();
    // Cached products contain the category's name.
    products.invalidate_all();
    Ok((idempotency::headers(&metadata), Json(category)))
}

pub async fn remove(
    caller: Authorized<DeleteCategoryRequest>,
    upstream: Upstream,
    Path(id): Path<Id>,
) -> Result<StatusCode, Problem> {
    upstream.call(&caller, DeleteCategoryRequest { id: id.into() }).await?;
    Ok(StatusCode::NO_CONTENT)
}
