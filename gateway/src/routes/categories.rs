//! `/categories`: the tree that products stand in.

use http::StatusCode;
use serde::Deserialize;
use shoppee_proto::product::v1::{
    Category, CreateCategoryRequest, DeleteCategoryRequest, ListCategoriesRequest, ListCategoriesResponse,
    UpdateCategoryRequest,
};

use crate::{
    auth::{Admin, MaybeUser},
    catalogue::Catalogue,
    error::Problem,
    extract::{Id, Json, Path},
    routes::{
        cache::{Caching, catalogue},
        patch::{Mask, Nullable, given},
    },
    upstream::Upstream,
};

pub async fn list(
    user: MaybeUser,
    shop: Upstream,
) -> Result<(Caching, Json<ListCategoriesResponse>), Problem> {
    Ok((catalogue(&user), Json(shop.call(&user, ListCategoriesRequest {}).await?)))
}

pub async fn create(
    admin: Admin,
    shop: Upstream,
    Json(category): Json<CreateCategoryRequest>,
) -> Result<(StatusCode, Json<Category>), Problem> {
    Ok((StatusCode::CREATED, Json(shop.call(&admin, category).await?)))
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
    products: Catalogue,
    Path(id): Path<Id>,
    Json(patch): Json<Patch>,
) -> Result<Json<Category>, Problem> {
    let mut mask = Mask::default();
    let mut request = UpdateCategoryRequest {
        id: id.into(),
        slug: mask.note("slug", patch.slug),
        name: mask.note("name", patch.name),
        parent_id: mask.note_nullable("parent_id", patch.parent_id),
        update_mask: None,
    };
    request.update_mask = Some(mask.into());
    let category = shop.call(&admin, request).await?;
    // Its products show its name.
    products.forget_all();
    Ok(Json(category))
}

pub async fn remove(admin: Admin, shop: Upstream, Path(id): Path<Id>) -> Result<StatusCode, Problem> {
    shop.call(&admin, DeleteCategoryRequest { id: id.into() }).await?;
    Ok(StatusCode::NO_CONTENT)
}
