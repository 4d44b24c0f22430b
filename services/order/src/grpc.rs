//! `OrderService` by gRPC. Each method: who may call, parse, the use case, its answer.

use shoppee_kit::{
    caller::{self, Caller},
    idempotency::{check_key, respond},
    status::Violations,
};
use shoppee_proto::order::v1::{
    AddCartItemRequest, CancelOrderRequest, Cart, ClearCartRequest, CompleteOrderRequest, CreateOrderRequest,
    GetCartRequest, GetOrderRequest, ListEventsRequest, ListEventsResponse, ListOrderEventsRequest,
    ListOrderEventsResponse, ListOrdersRequest, ListOrdersResponse, Order, PayOrderRequest,
    RemoveCartItemRequest, SetCartItemRequest, ShipOrderRequest,
    order_service_server::{OrderService, OrderServiceServer},
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{
    Orders, cart, checkout,
    checkout::Wish,
    error::Error,
    order::{self, Line, Lines, Quantity, Shipment},
    payment,
    provider::PaymentToken,
    steps::{self, StepContent, StepRequest},
    store::{event, order as store},
    view,
};

/// Items of a page.
const PAGE: i64 = 20;
const LARGEST_PAGE: i64 = 100;
/// Events in one answer; what a user's short history holds.
const MOST_EVENTS: i64 = 500;

pub fn service(orders: Orders) -> OrderServiceServer<Service> {
    OrderServiceServer::new(Service { orders })
}

#[derive(Debug)]
pub struct Service {
    orders: Orders,
}

#[tonic::async_trait]
impl OrderService for Service {
    #[tracing::instrument(name = "cart.get", skip_all)]
    async fn get_cart(&self, request: Request<GetCartRequest>) -> Result<Response<Cart>, Status> {
        let caller = caller::user(&request)?;
        Ok(Response::new(cart::get(&self.orders, caller.user_id()).await?))
    }

    #[tracing::instrument(name = "cart.add", skip_all)]
    async fn add_cart_item(&self, request: Request<AddCartItemRequest>) -> Result<Response<Cart>, Status> {
        let caller = caller::user(&request)?;
        let item = request.into_inner();
        let line = Line::new(item.product_id, item.quantity).map_err(Error::from)?;
        let key = key(item.idempotency_key)?;
        let (cart, replayed) = cart::add(&self.orders, caller.user_id(), line, key).await?;
        Ok(respond(cart, replayed))
    }

    #[tracing::instrument(name = "cart.set", skip_all)]
    async fn set_cart_item(&self, request: Request<SetCartItemRequest>) -> Result<Response<Cart>, Status> {
        let caller = caller::user(&request)?;
        let item = request.into_inner();
        let quantity = match item.quantity {
            0 => None,
            number => {
                let wrong = |message| Error::from(Violations::from(("quantity", message)));
                Some(Quantity::new(number).map_err(|_| wrong("must be 0 to 1000"))?)
            }
        };
        Ok(Response::new(cart::set(&self.orders, caller.user_id(), item.product_id, quantity).await?))
    }

    #[tracing::instrument(name = "cart.remove", skip_all)]
    async fn remove_cart_item(
        &self,
        request: Request<RemoveCartItemRequest>,
    ) -> Result<Response<Cart>, Status> {
        let caller = caller::user(&request)?;
        let product_id = request.into_inner().product_id;
        Ok(Response::new(cart::set(&self.orders, caller.user_id(), product_id, None).await?))
    }

    #[tracing::instrument(name = "cart.clear", skip_all)]
    async fn clear_cart(&self, request: Request<ClearCartRequest>) -> Result<Response<()>, Status> {
        let caller = caller::user(&request)?;
        Ok(Response::new(cart::clear(&self.orders, caller.user_id()).await?))
    }

    #[tracing::instrument(name = "order.place", skip_all)]
    async fn create_order(&self, request: Request<CreateOrderRequest>) -> Result<Response<Order>, Status> {
        let caller = caller::user(&request)?;
        let wish = wish(&caller, request.into_inner())?;
        let (order, replayed) = checkout::place(&self.orders, wish).await?;
        Ok(respond(order, replayed))
    }

    #[tracing::instrument(name = "order.get", skip_all)]
    async fn get_order(&self, request: Request<GetOrderRequest>) -> Result<Response<Order>, Status> {
        let caller = caller::user(&request)?;
        let id = order_id(&request.into_inner().id)?;
        Ok(Response::new(steps::get(&self.orders, &caller, id).await?))
    }

    #[tracing::instrument(name = "order.list", skip_all)]
    async fn list_orders(
        &self,
        request: Request<ListOrdersRequest>,
    ) -> Result<Response<ListOrdersResponse>, Status> {
        let asked = request.get_ref();
        let caller = if asked.everyone { caller::admin(&request)? } else { caller::user(&request)? };
        let filter = filter(&caller, request.get_ref())?;
        Ok(Response::new(list(&self.orders, filter).await?))
    }

    #[tracing::instrument(name = "order.history", skip_all)]
    async fn list_order_events(
        &self,
        request: Request<ListOrderEventsRequest>,
    ) -> Result<Response<ListOrderEventsResponse>, Status> {
        let caller = caller::user(&request)?;
        let id = order_id(&request.into_inner().id)?;
        let mut conn = self.orders.pool.acquire().await.map_err(Error::from)?;
        let (owner, _) = steps::owner_of(&mut conn, &caller, id).await?;
        let events = event::of_order(&mut conn, owner, id).await.map_err(Error::from)?;
        Ok(Response::new(ListOrderEventsResponse {
            items: events.into_iter().map(view::history_event).collect(),
            next_cursor: None,
        }))
    }

    #[tracing::instrument(name = "order.pay", skip_all)]
    async fn pay_order(&self, request: Request<PayOrderRequest>) -> Result<Response<Order>, Status> {
        let caller = caller::user(&request)?;
        let payment = request.into_inner();
        let id = order_id(&payment.id)?;
        let token = PaymentToken::parse(&payment.payment_token).map_err(Error::from)?;
        let key = key(payment.idempotency_key)?;
        let (order, replayed) = payment::pay(&self.orders, &caller, id, token, key).await?;
        Ok(respond(order, replayed))
    }

    #[tracing::instrument(name = "order.cancel", skip_all)]
    async fn cancel_order(&self, request: Request<CancelOrderRequest>) -> Result<Response<Order>, Status> {
        let caller = caller::user(&request)?;
        let asked = request.into_inner();
        let reason = order::reason(asked.reason).map_err(Error::from)?;
        let content = StepContent::Cancel { reason };
        self.step(&caller, &asked.id, asked.idempotency_key, content).await
    }

    #[tracing::instrument(name = "order.ship", skip_all)]
    async fn ship_order(&self, request: Request<ShipOrderRequest>) -> Result<Response<Order>, Status> {
        let caller = caller::admin(&request)?;
        let asked = request.into_inner();
        let shipment = Shipment::new(asked.carrier, asked.tracking_number).map_err(Error::from)?;
        self.step(&caller, &asked.id, asked.idempotency_key, StepContent::Ship(shipment)).await
    }

    #[tracing::instrument(name = "order.complete", skip_all)]
    async fn complete_order(
        &self,
        request: Request<CompleteOrderRequest>,
    ) -> Result<Response<Order>, Status> {
        let caller = caller::user(&request)?;
        let asked = request.into_inner();
        self.step(&caller, &asked.id, asked.idempotency_key, StepContent::Complete).await
    }

    #[tracing::instrument(name = "events.list", skip_all)]
    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        let user_id = caller::user_or_socket(&request)?.user_id();
        let asked = request.into_inner();
        let limit = page(asked.limit, MOST_EVENTS, MOST_EVENTS)?;
        let mut conn = self.orders.pool.acquire().await.map_err(Error::from)?;
        let last_seq = event::last_seq(&mut conn, user_id).await.map_err(Error::from)?;
        let events = match asked.after_seq {
            Some(after) => {
                event::after(&mut conn, user_id, after.max(0), limit).await.map_err(Error::from)?
            }
            None => Vec::new(),
        };
        // One may have been committed between the two looks.
        let last_seq = events.last().map_or(last_seq, |event| event.seq.max(last_seq));
        Ok(Response::new(ListEventsResponse { events: events.iter().map(view::event).collect(), last_seq }))
    }
}

impl Service {
    async fn step(
        &self,
        caller: &Caller,
        id: &str,
        given: Option<String>,
        content: StepContent,
    ) -> Result<Response<Order>, Status> {
        let request = StepRequest { order_id: order_id(id)?, key: key(given)?, content };
        let (order, replayed) = steps::take(&self.orders, caller, request).await?;
        Ok(respond(order, replayed))
    }
}

fn wish(caller: &Caller, request: CreateOrderRequest) -> Result<Wish, Error> {
    let key = key(request.idempotency_key)?;
    let pairs: Vec<_> = request.items.iter().map(|item| (item.product_id, item.quantity)).collect();
    let lines = match (request.from_cart, pairs.is_empty()) {
        (true, true) => None,
        (false, false) => Some(Lines::merge(&pairs)?),
        (true, false) => return Err(Violations::from(("items", "must be empty with from_cart")).into()),
        (false, true) => {
            return Err(Violations::from((
                "items",
                "must be one or more; with from_cart, the cart is ordered",
            ))
            .into());
        }
    };
    let address =
        request.shipping_address.ok_or_else(|| Violations::from(("shipping_address", "is missing")))?;
    if request.expected_total.is_some_and(|total| total < 0) {
        return Err(Violations::from(("expected_total", "must not be negative")).into());
    }
    Ok(Wish {
        user_id: caller.user_id(),
        lines,
        address: view::parse_address(address).check()?,
        expected_total: request.expected_total,
        key,
    })
}

fn key(key: Option<String>) -> Result<Option<String>, Error> {
    if let Some(key) = &key {
        check_key(key).map_err(Error::Malformed)?;
    }
    Ok(key)
}

/// An order's id; what is none names no order.
fn order_id(id: &str) -> Result<Uuid, Error> {
    id.parse().map_err(|_| Error::NotFound)
}

fn filter(caller: &Caller, request: &ListOrdersRequest) -> Result<store::Filter, Error> {
    let user_id = if request.everyone { request.user_id } else { Some(caller.user_id()) };
    let status = match request.status {
        None => None,
        Some(number) => Some(
            order::Status::ALL
                .into_iter()
                .find(|status| i32::from(view::status(*status)) == number)
                .ok_or_else(|| Error::Malformed(("status", "is not a status of orders").into()))?,
        ),
    };
    Ok(store::Filter {
        user_id,
        status,
        before: request.cursor.as_deref().map(view::parse_cursor).transpose()?,
        limit: page(request.limit, PAGE, LARGEST_PAGE)?,
    })
}

fn page(asked: Option<i32>, default: i64, most: i64) -> Result<i64, Error> {
    let limit = asked.map_or(default, i64::from);
    if (1..=most).contains(&limit) {
        Ok(limit)
    } else {
        Err(Error::Malformed(Violations::from(("limit", format!("must be 1 to {most}").as_str()))))
    }
}

async fn list(orders: &Orders, filter: store::Filter) -> Result<ListOrdersResponse, Error> {
    let mut conn = orders.pool.acquire().await?;
    // One more than asked for tells whether there is another page.
    let mut rows = store::list(&mut conn, store::Filter { limit: filter.limit + 1, ..filter }).await?;
    let more = i64::try_from(rows.len()).is_ok_and(|found| found > filter.limit);
    if more {
        rows.pop();
    }
    let keys: Vec<_> = rows.iter().map(|row| (row.user_id, row.id)).collect();
    let lines = store::lines(&mut conn, &keys).await?;
    Ok(ListOrdersResponse {
        items: rows.iter().map(|row| view::order(row, &lines)).collect::<Result<_, _>>()?,
        next_cursor: rows.last().filter(|_| more).map(|row| view::cursor_after(row.id)),
    })
}
