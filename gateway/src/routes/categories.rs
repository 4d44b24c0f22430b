//! `/categories`: the tree that products stand in.

use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use shoppee_proto::product::v1::{
    Category, CreateCategoryRequest, DeleteCategoryRequest, ListCategoriesRequest, ListCategoriesResponse,
    UpdateCategoryRequest,
};

use crate::{
    auth::{Admin, MaybeUser},
    error::Problem,
    extract::{Id, IdempotencyKey, Json, Path, Query},
    product_cache::ProductCache,
    routes::{
        cache::{Caching, catalogue},
        page::{Page, check_limit, of_query},
        patch::{Mask, Nullable, given},
        replay,
    },
    upstream::Upstream,
};

pub async fn list(
    user: MaybeUser,
    shop: Upstream,
    Query(Page { limit, cursor }): Query<Page>,
) -> Result<(Caching, Json<ListCategoriesResponse>), Problem> {
    check_limit(limit)?;
    let page = shop.call(&user, ListCategoriesRequest { limit, cursor }).await.map_err(of_query)?;
    Ok((catalogue(&user), Json(page)))
}

pub async fn create(
    admin: Admin,
    shop: Upstream,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    Json(category): Json<CreateCategoryRequest>,
) -> Result<(StatusCode, HeaderMap, Json<Category>), Problem> {
    let request = CreateCategoryRequest { idempotency_key, ..category };
    let (metadata, category, _) = shop.call_with_metadata(&admin, request).await?.into_parts();
    Ok((StatusCode::CREATED, replay::headers(&metadata), Json(category)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patch {
    #[serde(default, deserialize_with = "given")]
    slug: Option<String>,
    #[serde(default, deserialize_with = "given")]
    name: Option<String>,
    #[serde(default)]
    parent_id: Nullable<i64>,
}

pub async fn update(
    admin: Admin,
    shop: Upstream,
    products: ProductCache,
    Path(id): Path<Id>,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    Json(patch): Json<Patch>,
) -> Result<(HeaderMap, Json<Category>), Problem> {
    let mut mask = Mask::default();
    let mut request = UpdateCategoryRequest {
        id: id.into(),
        slug: mask.note("slug", patch.slug),
        name: mask.note("name", patch.name),
        parent_id: mask.note_nullable("parent_id", patch.parent_id),
        update_mask: None,
        idempotency_key,
    };
    request.update_mask = Some(mask.into());
    let (metadata, category, _) = shop.call_with_metadata(&admin, request).await?.into_parts();
    // Its products show its name.
    products.invalidate_all();
    Ok((replay::headers(&metadata), Json(category)))
}

pub async fn remove(admin: Admin, shop: Upstream, Path(id): Path<Id>) -> Result<StatusCode, Problem> {
    shop.call(&admin, DeleteCategoryRequest { id: id.into() }).await?;
    Ok(StatusCode::NO_CONTENT)
}
