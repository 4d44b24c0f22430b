//! `/orders`: placing orders, and their transitions.

use http::{HeaderMap, HeaderName, StatusCode, header::LOCATION};
use serde::Deserialize;
use shoppee_proto::order::v1::{
    Address, CancelOrderRequest, CompleteOrderRequest, CreateOrderRequest, GetOrderRequest,
    ListOrderEventsRequest, ListOrderEventsResponse, ListOrdersRequest, ListOrdersResponse, Order, OrderLine,
    OrderStatus, PayOrderRequest, ShipOrderRequest,
};

use crate::{
    auth::{Authorized, User},
    error::Problem,
    extract::{EmptyBody, IdempotencyKey, Json, OptionalJson, Path, Query, Uuid, deserialize_enum},
    product_cache::ProductCache,
    replay::is_replayed,
    routes::{
        idempotency,
        pagination::{as_query_error, check_limit},
    },
    upstream::Upstream,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewOrder {
    /// Absent or null orders the cart.
    items: Option<Vec<OrderLine>>,
    shipping_address: Address,
    expected_total: Option<i64>,
}

impl NewOrder {
    fn into_request(self, idempotency_key: Option<String>) -> Result<CreateOrderRequest, Problem> {
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
    upstream: Upstream,
    products: ProductCache,
    IdempotencyKey(key): IdempotencyKey,
    Json(order): Json<NewOrder>,
) -> Result<(StatusCode, HeaderMap, [(HeaderName, String); 1], Json<Order>), Problem> {
    let (metadata, order, _) =
        upstream.call_with_metadata(&user, order.into_request(key)?).await?.into_parts();
    if !is_replayed(&metadata) {
        products.invalidate_stock(&order.items.iter().map(|line| line.product_id).collect::<Vec<_>>()).await;
    }
    let location = format!("/api/v1/orders/{}", order.id);
    Ok((StatusCode::CREATED, idempotency::headers(&metadata), [(LOCATION, location)], Json(order)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    #[serde(default, deserialize_with = "deserialize_enum")]
    status: Option<OrderStatus>,
    limit: Option<i32>,
    cursor: Option<String>,
}

pub async fn list(
    user: User,
    upstream: Upstream,
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
    Ok(Json(upstream.call(&user, request).await.map_err(as_query_error)?))
}

pub async fn get(
    caller: Authorized<GetOrderRequest>,
    upstream: Upstream,
    Path(id): Path<Uuid>,
) -> Result<Json<Order>, Problem> {
    Ok(Json(upstream.call(&caller, GetOrderRequest { id: id.into() }).await?))
}

pub async fn list_events(
    caller: Authorized<ListOrderEventsRequest>,
    upstream: Upstream,
    Path(id): Path<Uuid>,
) -> Result<Json<ListOrderEventsResponse>, Problem> {
    Ok(Json(upstream.call(&caller, ListOrderEventsRequest { id: id.into() }).await?))
}

pub async fn pay(
    user: User,
    upstream: Upstream,
    Path(id): Path<Uuid>,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    Json(payment): Json<PayOrderRequest>,
) -> Result<(HeaderMap, Json<Order>), Problem> {
    let request = PayOrderRequest { id: id.into(), idempotency_key, ..payment };
    Ok(idempotency::into_response(upstream.call_with_metadata(&user, request).await?))
}

pub async fn cancel(
    caller: Authorized<CancelOrderRequest>,
    upstream: Upstream,
    Path(id): Path<Uuid>,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    OptionalJson(cancellation): OptionalJson<CancelOrderRequest>,
) -> Result<(HeaderMap, Json<Order>), Problem> {
    let request = CancelOrderRequest { id: id.into(), idempotency_key, ..cancellation.unwrap_or_default() };
    Ok(idempotency::into_response(upstream.call_with_metadata(&caller, request).await?))
}

pub async fn ship(
    caller: Authorized<ShipOrderRequest>,
    upstream: Upstream,
    Path(id): Path<Uuid>,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    Json(parcel): Json<ShipOrderRequest>,
) -> Result<(HeaderMap, Json<Order>), Problem> {
    let request = ShipOrderRequest { id: id.into(), idempotency_key, ..parcel };
    Ok(idempotency::into_response(upstream.call_with_metadata(&caller, request).await?))
}

pub async fn complete(
    user: User,
    upstream: Upstream,
    Path(id): Path<Uuid>,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    _: EmptyBody,
) -> Result<(HeaderMap, Json<Order>), Problem> {
    let request = CompleteOrderRequest { id: id.into(), idempotency_key };
    Ok(idempotency::into_response(upstream.call_with_metadata(&user, request).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(items: &str) -> Result<CreateOrderRequest, Problem> {
        let address = r#"{"recipient":"A","line1":"B","city":"C","postal_code":"1","country":"DE"}"#;
        let body = format!(r#"{{{items}"shipping_address":{address}}}"#);
        serde_json::from_str::<NewOrder>(&body).unwrap().into_request(None)
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
