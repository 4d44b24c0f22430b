//! Categories.

use shoppee_kit::{caller::Caller, idempotency};
use shoppee_proto::product::v1 as wire;
use tonic::Response;

use super::{convert, key};
use crate::{category::Category, error::Error, idempotency::Answered, listing, tree::Tree};

pub async fn list(
    tree: &Tree,
    request: wire::ListCategoriesRequest,
) -> Result<wire::ListCategoriesResponse, Error> {
    let limit = listing::limit(request.limit).map_err(Error::Malformed)?;
    let (page, next_cursor) = tree.list(limit, request.cursor.as_deref()).await?;
    Ok(wire::ListCategoriesResponse { items: page.into_iter().map(convert::category).collect(), next_cursor })
}

pub async fn create(
    tree: &Tree,
    admin: &Caller,
    mut request: wire::CreateCategoryRequest,
) -> Result<Response<wire::Category>, Error> {
    let key = request.idempotency_key.take();
    let key = key::read(admin, "categories.create", key, &request)?;
    let new = convert::new_category(request)?;
    Ok(answer(tree.create(&new, key.as_ref()).await?))
}

pub async fn update(
    tree: &Tree,
    admin: &Caller,
    mut request: wire::UpdateCategoryRequest,
) -> Result<Response<wire::Category>, Error> {
    let (id, key) = (request.id, request.idempotency_key.take());
    let mask = request.update_mask.as_ref().map(|mask| mask.paths.clone());
    let key = key::read(admin, "categories.update", key, &(mask, &request))?;
    let changes = convert::category_changes(request)?;
    Ok(answer(tree.update(id, &changes, key.as_ref()).await?))
}

fn answer(answered: Answered<Category>) -> Response<wire::Category> {
    idempotency::respond(convert::category(answered.answer), answered.replayed)
}
