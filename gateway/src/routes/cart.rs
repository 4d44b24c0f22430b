//! `/cart`: what somebody is about to order.

use http::{HeaderMap, StatusCode};
use shoppee_proto::order::v1::{
    AddCartItemRequest, Cart, ClearCartRequest, GetCartRequest, RemoveCartItemRequest, SetCartItemRequest,
};

use crate::{
    auth::User,
    error::Problem,
    extract::{Id, IdempotencyKey, Json, Path},
    routes::replay,
    upstream::Upstream,
};

pub async fn show(user: User, shop: Upstream) -> Result<Json<Cart>, Problem> {
    Ok(Json(shop.call(&user, GetCartRequest {}).await?))
}

pub async fn clear(user: User, shop: Upstream) -> Result<StatusCode, Problem> {
    shop.call(&user, ClearCartRequest {}).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn add(
    user: User,
    shop: Upstream,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    Json(item): Json<AddCartItemRequest>,
) -> Result<(HeaderMap, Json<Cart>), Problem> {
    Ok(replay::answer(shop.call_with_metadata(&user, AddCartItemRequest { idempotency_key, ..item }).await?))
}

pub async fn set(
    user: User,
    shop: Upstream,
    Path(product_id): Path<Id>,
    Json(item): Json<SetCartItemRequest>,
) -> Result<Json<Cart>, Problem> {
    let product_id = product_id.into();
    Ok(Json(shop.call(&user, SetCartItemRequest { product_id, ..item }).await?))
}

pub async fn remove(user: User, shop: Upstream, Path(product_id): Path<Id>) -> Result<Json<Cart>, Problem> {
    Ok(Json(shop.call(&user, RemoveCartItemRequest { product_id: product_id.into() }).await?))
}
