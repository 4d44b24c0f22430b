//! Categories.

use shoppee_kit::{audit_log::Actor, caller::Caller, idempotency};
use shoppee_proto::product::v1 as wire;
use tonic::Response;

use super::{convert, idempotency_key};
use crate::{
    categories::Categories, category::Category, error::Error, idempotency::IdempotentResult, listing,
};

pub async fn list(
    categories: &Categories,
    request: wire::ListCategoriesRequest,
) -> Result<wire::ListCategoriesResponse, Error> {
    let limit = listing::parse_limit(request.limit).map_err(Error::Malformed)?;
    let (page, next_cursor) = categories.list(limit, request.cursor.as_deref()).await?;
    Ok(wire::ListCategoriesResponse { items: page.into_iter().map(convert::category).collect(), next_cursor })
}

pub async fn create(
    categories: &Categories,
    caller: &Caller,
    mut request: wire::CreateCategoryRequest,
) -> Result<Response<wire::Category>, Error> {
    let key = request.idempotency_key.take();
    let key = idempotency_key::parse(caller, "categories.create", key, &request)?;
    let new = convert::new_category(request)?;
    Ok(answer(categories.create(&Actor::from_caller(caller), &new, key.as_ref()).await?))
}

pub async fn update(
    categories: &Categories,
    caller: &Caller,
    mut request: wire::UpdateCategoryRequest,
) -> Result<Response<wire::Category>, Error> {
    let (id, key) = (request.id, request.idempotency_key.take());
    let mask = request.update_mask.as_ref().map(|mask| mask.paths.clone());
    let key = idempotency_key::parse(caller, "categories.update", key, &(mask, &request))?;
    let changes = convert::category_changes(request)?;
    Ok(answer(categories.update(&Actor::from_caller(caller), id, &changes, key.as_ref()).await?))
}

fn answer(result: IdempotentResult<Category>) -> Response<wire::Category> {
    idempotency::respond(convert::category(result.value), result.replayed)
}
