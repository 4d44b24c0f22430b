//! `/cart`: the cart of the caller.

use http::{HeaderMap, StatusCode};
use shoppee_proto::order::v1::{
    AddCartItemRequest, Cart, ClearCartRequest, GetCartRequest, RemoveCartItemRequest, SetCartItemRequest,
};

use crate::{
    auth::User,
    error::Problem,
    extract::{Id, IdempotencyKey, Json, Path},
    routes::idempotency,
    upstream::Upstream,
};

pub async fn get(user: User, upstream: Upstream) -> Result<Json<Cart>, Problem> {
    Ok(Json(upstream.call(&user, GetCartRequest {}).await?))
}

pub async fn clear(user: User, upstream: Upstream) -> Result<StatusCode, Problem> {
    upstream.call(&user, ClearCartRequest {}).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn add(
    user: User,
    upstream: Upstream,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    Json(item): Json<AddCartItemRequest>,
) -> Result<(HeaderMap, Json<Cart>), Problem> {
    Ok(idempotency::into_response(
        upstream.call_with_metadata(&user, AddCartItemRequest { idempotency_key, ..item }).await?,
    ))
}

pub async fn set(
    user: User,
    upstream: Upstream,
    Path(product_id): Path<Id>,
    Json(item): Json<SetCartItemRequest>,
) -> Result<Json<Cart>, Problem> {
    let product_id = product_id.into();
    Ok(Json(upstream.call(&user, SetCartItemRequest { product_id, ..item }).await?))
}

pub async fn remove(
    user: User,
    upstream: Upstream,
    Path(product_id): Path<Id>,
) -> Result<Json<Cart>, Problem> {
    Ok(Json(upstream.call(&user, RemoveCartItemRequest { product_id: product_id.into() }).await?))
}
