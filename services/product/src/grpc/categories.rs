//! Categories.

use shoppee_proto::product::v1 as wire;

use super::convert;
use crate::{error::Error, tree::Tree};

pub async fn list(tree: &Tree) -> Result<wire::ListCategoriesResponse, Error> {
    let items = tree.all().await?.into_iter().map(convert::category).collect();
    Ok(wire::ListCategoriesResponse { items, next_cursor: None })
}

pub async fn create(tree: &Tree, request: wire::CreateCategoryRequest) -> Result<wire::Category, Error> {
    let new = convert::new_category(request)?;
    Ok(convert::category(tree.create(&new).await?))
}

pub async fn update(tree: &Tree, request: wire::UpdateCategoryRequest) -> Result<wire::Category, Error> {
    let id = request.id;
    let changes = convert::category_changes(request)?;
    Ok(convert::category(tree.update(id, &changes).await?))
}
