//! `/orders`: placing them, and the steps of their lives.

use http::{HeaderMap, HeaderName, StatusCode, header::LOCATION};
use serde::Deserialize;
use shoppee_proto::order::v1::{
    Address, CancelOrderRequest, CompleteOrderRequest, CreateOrderRequest, GetOrderRequest,
    ListOrderEventsRequest, ListOrderEventsResponse, ListOrdersRequest, ListOrdersResponse, Order, OrderLine,
    OrderStatus, PayOrderRequest, ShipOrderRequest,
};

use crate::{
    auth::{Admin, User},
    error::Problem,
    extract::{IdempotencyKey, Json, NoBody, OptionalJson, Path, Query, Uuid, word},
    product_cache::ProductCache,
    routes::{
        page::{check_limit, of_query},
        replay,
    },
    upstream::Upstream,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewOrder {
    /// Absent or null: the cart.
    items: Option<Vec<OrderLine>>,
    shipping_address: Address,
    expected_total: Option<i64>,
}

impl NewOrder {
    fn with_key(self, idempotency_key: Option<String>) -> Result<CreateOrderRequest, Problem> {
        if self.items.as_ref().is_some_and(Vec::is_empty) {
            return Err(Problem::invalid("items", "must be one or more; without items, the cart is ordered"));
        }
        Ok(CreateOrderRequest {
            from_cart: self.items.is_none(),
            items: self.items.unwrap_or_default(),
            shipping_address: Some(self.shipping_address),
            expected_total: self.expected_total,
            idempotency_key,
        })
    }
}

pub async fn create(
    user: User,
    shop: Upstream,
    products: ProductCache,
    IdempotencyKey(key): IdempotencyKey,
    Json(order): Json<NewOrder>,
) -> Result<(StatusCode, HeaderMap, [(HeaderName, String); 1], Json<Order>), Problem> {
    let (metadata, order, _) = shop.call_with_metadata(&user, order.with_key(key)?).await?.into_parts();
    if !replay::is_replayed(&metadata) {
        products.invalidate_stock(&order.items.iter().map(|line| line.product_id).collect::<Vec<_>>()).await;
    }
    let location = format!("/api/v1/orders/{}", order.id);
    Ok((StatusCode::CREATED, replay::headers(&metadata), [(LOCATION, location)], Json(order)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    #[serde(default, deserialize_with = "word")]
    status: Option<OrderStatus>,
    limit: Option<i32>,
    cursor: Option<String>,
}

pub async fn list(
    user: User,
    shop: Upstream,
    Query(list): Query<List>,
) -> Result<Json<ListOrdersResponse>, Problem> {
    check_limit(list.limit)?;
    let request = ListOrdersRequest {
        status: list.status.map(Into::into),
        limit: list.limit,
        cursor: list.cursor,
        everyone: false,
        user_id: None,
    };
    Ok(Json(shop.call(&user, request).await.map_err(of_query)?))
}

pub async fn show(user: User, shop: Upstream, Path(id): Path<Uuid>) -> Result<Json<Order>, Problem> {
    Ok(Json(shop.call(&user, GetOrderRequest { id: id.into() }).await?))
}

pub async fn list_events(
    user: User,
    shop: Upstream,
    Path(id): Path<Uuid>,
) -> Result<Json<ListOrderEventsResponse>, Problem> {
    Ok(Json(shop.call(&user, ListOrderEventsRequest { id: id.into() }).await?))
}

pub async fn pay(
    user: User,
    shop: Upstream,
    Path(id): Path<Uuid>,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    Json(payment): Json<PayOrderRequest>,
) -> Result<(HeaderMap, Json<Order>), Problem> {
    let request = PayOrderRequest { id: id.into(), idempotency_key, ..payment };
    Ok(replay::answer(shop.call_with_metadata(&user, request).await?))
}

pub async fn cancel(
    user: User,
    shop: Upstream,
    Path(id): Path<Uuid>,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    OptionalJson(why): OptionalJson<CancelOrderRequest>,
) -> Result<(HeaderMap, Json<Order>), Problem> {
    let request = CancelOrderRequest { id: id.into(), idempotency_key, ..why.unwrap_or_default() };
    Ok(replay::answer(shop.call_with_metadata(&user, request).await?))
}

pub async fn ship(
    admin: Admin,
    shop: Upstream,
    Path(id): Path<Uuid>,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    Json(parcel): Json<ShipOrderRequest>,
) -> Result<(HeaderMap, Json<Order>), Problem> {
    let request = ShipOrderRequest { id: id.into(), idempotency_key, ..parcel };
    Ok(replay::answer(shop.call_with_metadata(&admin, request).await?))
}

pub async fn complete(
    user: User,
    shop: Upstream,
    Path(id): Path<Uuid>,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    _: NoBody,
) -> Result<(HeaderMap, Json<Order>), Problem> {
    let request = CompleteOrderRequest { id: id.into(), idempotency_key };
    Ok(replay::answer(shop.call_with_metadata(&user, request).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(items: &str) -> Result<CreateOrderRequest, Problem> {
        let address = r#"{"recipient":"A","line1":"B","city":"C","postal_code":"1","country":"DE"}"#;
        let body = format!(r#"{{{items}"shipping_address":{address}}}"#);
        serde_json::from_str::<NewOrder>(&body).unwrap().with_key(None)
    }

    #[test]
    fn no_items_and_null_mean_the_cart_but_an_empty_list_does_not() {
        assert!(order("").unwrap().from_cart);
        assert!(order(r#""items":null,"#).unwrap().from_cart);
        assert_eq!(order(r#""items":[],"#).unwrap_err().code, crate::error::Code::ValidationFailed);
        let lines = order(r#""items":[{"product_id":1,"quantity":2}],"#).unwrap();
        assert!(lines.items.len() == 1 && !lines.from_cart);
    }
}
