//! The gRPC handlers of `OrderService`. Each method parses the request, runs the use case and converts the result. The
//! server has checked the caller by the rule in the proto.

mod status;

use shoppee_kit::{
    caller::{self, Caller},
    cursor,
    grpc::Services,
    idempotency::{check_key, respond, stored_key},
    readiness::Readiness,
    status::Violations,
};
use shoppee_proto::order::v1::{
    AddCartItemRequest, CancelOrderRequest, Cart, ClearCartRequest, CompleteOrderRequest, CreateOrderRequest,
    GetCartRequest, GetEventPositionsRequest, GetEventPositionsResponse, GetOrderRequest, ListEventsRequest,
    ListEventsResponse, ListOrderEventsRequest, ListOrderEventsResponse, ListOrdersRequest,
    ListOrdersResponse, Order, PayOrderRequest, RemoveCartItemRequest, SetCartItemRequest, ShipOrderRequest,
    WatchEventsRequest,
    order_service_server::{OrderService, OrderServiceServer},
    status_service_server::StatusServiceServer,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{
    OrderContext, cart, checkout,
    checkout::PlaceOrder,
    convert,
    error::Error,
    event_log::{EventStreams, Messages, Start},
    order::{self, Line, Lines, Quantity, Shipment},
    order_rate::OrderRate,
    payment,
    provider::PaymentToken,
    store::{event, order as store},
    transitions::{self, OrderAction, TransitionRequest},
};
use status::ProcessStatus;

const DEFAULT_PAGE_SIZE: i64 = 20;
const MAX_PAGE_SIZE: i64 = 100;
/// Bounds the events of a response to the length of a user's history in Redis.
const MAX_EVENTS: i64 = 500;
/// Bounds the users of a request for positions.
const MAX_POSITIONS: usize = 1_000;

pub fn services(context: &OrderContext, event_streams: EventStreams, readiness: &Readiness) -> Services {
    let status = ProcessStatus {
        context: context.clone(),
        readiness: readiness.clone(),
        order_rate: OrderRate::default(),
    };
    Services::default()
        .with(OrderServiceServer::new(Service { context: context.clone(), event_streams }))
        .with(StatusServiceServer::new(status))
}

#[derive(Debug)]
struct Service {
    context: OrderContext,
    event_streams: EventStreams,
}

#[tonic::async_trait]
impl OrderService for Service {
    #[tracing::instrument(name = "cart.get", skip_all)]
    async fn get_cart(&self, request: Request<GetCartRequest>) -> Result<Response<Cart>, Status> {
        let caller = caller::require(&request)?;
        Ok(Response::new(cart::get(&self.context, caller.user_id()).await?))
    }

    #[tracing::instrument(name = "cart.add", skip_all)]
    async fn add_cart_item(&self, request: Request<AddCartItemRequest>) -> Result<Response<Cart>, Status> {
        let caller = caller::require(&request)?;
        let item = request.into_inner();
        let line = Line::new(item.product_id, item.quantity).map_err(Error::from)?;
        let key = key(item.idempotency_key)?;
        let (cart, replayed) = cart::add(&self.context, caller.user_id(), line, key).await?;
        Ok(respond(cart, replayed))
    }

    #[tracing::instrument(name = "cart.set", skip_all)]
    async fn set_cart_item(&self, request: Request<SetCartItemRequest>) -> Result<Response<Cart>, Status> {
        let caller = caller::require(&request)?;
        let item = request.into_inner();
        let quantity = match item.quantity {
            0 => None,
            number => {
                let violation = |_| Error::from(Violations::from(("quantity", "must be 0 to 1000")));
                Some(Quantity::new(number).map_err(violation)?)
            }
        };
        Ok(Response::new(cart::set(&self.context, caller.user_id(), item.product_id, quantity).await?))
    }

    #[tracing::instrument(name = "cart.remove", skip_all)]
    async fn remove_cart_item(
        &self,
        request: Request<RemoveCartItemRequest>,
    ) -> Result<Response<Cart>, Status> {
        let caller = caller::require(&request)?;
        let product_id = request.into_inner().product_id;
        Ok(Response::new(cart::set(&self.context, caller.user_id(), product_id, None).await?))
    }

    #[tracing::instrument(name = "cart.clear", skip_all)]
    async fn clear_cart(&self, request: Request<ClearCartRequest>) -> Result<Response<()>, Status> {
        let caller = caller::require(&request)?;
        Ok(Response::new(cart::clear(&self.context, caller.user_id()).await?))
    }

    #[tracing::instrument(name = "order.place", skip_all)]
    async fn create_order(&self, request: Request<CreateOrderRequest>) -> Result<Response<Order>, Status> {
        let caller = caller::require(&request)?;
        let command = parse_place_order(&caller, request.into_inner())?;
        let (order, replayed) = checkout::place(&self.context, command).await?;
        Ok(respond(order, replayed))
    }

    #[tracing::instrument(name = "order.get", skip_all)]
    async fn get_order(&self, request: Request<GetOrderRequest>) -> Result<Response<Order>, Status> {
        let caller = caller::require(&request)?;
        let id = order_id(&request.into_inner().id)?;
        Ok(Response::new(transitions::get_order(&self.context, &caller, id).await?))
    }

    #[tracing::instrument(name = "order.list", skip_all)]
    async fn list_orders(
        &self,
        request: Request<ListOrdersRequest>,
    ) -> Result<Response<ListOrdersResponse>, Status> {
        let caller = caller::require(&request)?;
        let (filter, cursors) = filter(&caller, request.get_ref())?;
        Ok(Response::new(list(&self.context, filter, cursors).await?))
    }

    #[tracing::instrument(name = "order.history", skip_all)]
    async fn list_order_events(
        &self,
        request: Request<ListOrderEventsRequest>,
    ) -> Result<Response<ListOrderEventsResponse>, Status> {
        let caller = caller::require(&request)?;
        let id = order_id(&request.into_inner().id)?;
        let mut conn = self.context.pool.acquire().await.map_err(Error::from)?;
        let (owner, _) = transitions::find_owner(&mut conn, &caller, id).await?;
        let events = event::list_by_order(&mut conn, owner, id).await.map_err(Error::from)?;
        Ok(Response::new(ListOrderEventsResponse {
            items: events.into_iter().map(convert::history_event).collect(),
            next_cursor: None,
        }))
    }

    #[tracing::instrument(name = "order.pay", skip_all)]
    async fn pay_order(&self, request: Request<PayOrderRequest>) -> Result<Response<Order>, Status> {
        let caller = caller::require(&request)?;
        let payment = request.into_inner();
        let id = order_id(&payment.id)?;
        let token = PaymentToken::parse(&payment.payment_token).map_err(Error::from)?;
        let key = key(payment.idempotency_key)?;
        let (order, replayed) = payment::pay(&self.context, &caller, id, token, key).await?;
        Ok(respond(order, replayed))
    }

    #[tracing::instrument(name = "order.cancel", skip_all)]
    async fn cancel_order(&self, request: Request<CancelOrderRequest>) -> Result<Response<Order>, Status> {
        let caller = caller::require(&request)?;
        let request = request.into_inner();
        let reason = order::parse_reason(request.reason).map_err(Error::from)?;
        let action = OrderAction::Cancel { reason };
        self.transition(&caller, &request.id, request.idempotency_key, action).await
    }

    #[tracing::instrument(name = "order.ship", skip_all)]
    async fn ship_order(&self, request: Request<ShipOrderRequest>) -> Result<Response<Order>, Status> {
        let caller = caller::require(&request)?;
        let request = request.into_inner();
        let shipment = Shipment::new(request.carrier, request.tracking_number).map_err(Error::from)?;
        self.transition(&caller, &request.id, request.idempotency_key, OrderAction::Ship(shipment)).await
    }

    #[tracing::instrument(name = "order.complete", skip_all)]
    async fn complete_order(
        &self,
        request: Request<CompleteOrderRequest>,
    ) -> Result<Response<Order>, Status> {
        let caller = caller::require(&request)?;
        let request = request.into_inner();
        self.transition(&caller, &request.id, request.idempotency_key, OrderAction::Complete).await
    }

    #[tracing::instrument(name = "events.list", skip_all)]
    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        let user_id = caller::require(&request)?.user_id();
        let request = request.into_inner();
        let limit = page_size(request.limit, MAX_EVENTS, MAX_EVENTS)?;
        let mut conn = self.context.pool.acquire().await.map_err(Error::from)?;
        let last_seq = event::last_seq(&mut conn, user_id).await.map_err(Error::from)?;
        let events = match request.after_seq {
            Some(after) => {
                event::list_after(&mut conn, user_id, after.max(0), limit).await.map_err(Error::from)?
            }
            None => Vec::new(),
        };
        // An event may have been committed between the two queries.
        let last_seq = events.last().map_or(last_seq, |event| event.seq.max(last_seq));
        Ok(Response::new(ListEventsResponse {
            events: events.iter().map(convert::event).collect(),
            last_seq,
        }))
    }

    #[tracing::instrument(name = "events.positions", skip_all)]
    async fn get_event_positions(
        &self,
        request: Request<GetEventPositionsRequest>,
    ) -> Result<Response<GetEventPositionsResponse>, Status> {
        let user_ids = request.into_inner().user_ids;
        if user_ids.len() > MAX_POSITIONS {
            return Err(Error::from(Violations::from(("user_ids", "must be at most 1000"))).into());
        }
        let mut conn = self.context.pool.acquire().await.map_err(Error::from)?;
        let last_seqs = event::last_seqs(&mut conn, &user_ids).await.map_err(Error::from)?;
        Ok(Response::new(GetEventPositionsResponse { last_seqs }))
    }

    type WatchEventsStream = Messages;

    #[tracing::instrument(name = "events.watch", skip_all)]
    async fn watch_events(&self, request: Request<WatchEventsRequest>) -> Result<Response<Messages>, Status> {
        let caller = caller::require(&request)?;
        let WatchEventsRequest { cursor, from_now, statuses } = request.into_inner();
        let start = match (cursor.as_str(), from_now) {
            ("", true) => Start::Now,
            ("", false) => Start::Oldest,
            (cursor, false) => Start::After(convert::parse_log_cursor(cursor)?),
            (_, true) => {
                return Err(Error::Malformed(("from_now", "must not be set with a cursor").into()).into());
            }
        };
        let statuses = statuses.into_iter().map(convert::parse_status).collect::<Result<Vec<_>, _>>()?;
        Ok(Response::new(self.event_streams.open(caller, start, &statuses).await?))
    }
}

impl Service {
    async fn transition(
        &self,
        caller: &Caller,
        id: &str,
        idempotency_key: Option<String>,
        action: OrderAction,
    ) -> Result<Response<Order>, Status> {
        let key = key(idempotency_key)?.map(|key| stored_key(caller, key));
        let request = TransitionRequest { order_id: order_id(id)?, key, action };
        let (order, replayed) = transitions::run_transition(&self.context, caller, request).await?;
        Ok(respond(order, replayed))
    }
}

fn parse_place_order(caller: &Caller, request: CreateOrderRequest) -> Result<PlaceOrder, Error> {
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
    Ok(PlaceOrder {
        user_id: caller.user_id(),
        lines,
        address: convert::parse_address(address).validate()?,
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

/// Parses an order's id. An invalid id names no order.
fn order_id(id: &str) -> Result<Uuid, Error> {
    id.parse().map_err(|_| Error::NotFound)
}

/// Returns the selection of a list, and the list to which its cursors belong.
fn filter(caller: &Caller, request: &ListOrdersRequest) -> Result<(store::Filter, cursor::List), Error> {
    let user_id = match request.everyone {
        true if caller.is_staff() => request.user_id,
        false if !caller.is_service() => Some(caller.user_id()),
        // A service has no orders of its own.
        true | false => return Err(Error::Forbidden),
    };
    let status = request.status.map(convert::parse_status).transpose()?;
    let list = cursor::List::new(&("orders", request.everyone, user_id, request.status));
    let before = request.cursor.as_deref().map(|cursor| list.decode(cursor)).transpose();
    let filter = store::Filter {
        user_id,
        status,
        before: before.map_err(Error::Malformed)?,
        limit: page_size(request.limit, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)?,
    };
    Ok((filter, list))
}

fn page_size(limit: Option<i32>, default: i64, max: i64) -> Result<i64, Error> {
    let limit = limit.map_or(default, i64::from);
    if (1..=max).contains(&limit) {
        Ok(limit)
    } else {
        Err(Error::Malformed(Violations::from(("limit", format!("must be 1 to {max}").as_str()))))
    }
}

async fn list(
    context: &OrderContext,
    filter: store::Filter,
    cursors: cursor::List,
) -> Result<ListOrdersResponse, Error> {
    let mut conn = context.pool.acquire().await?;
    // One more row than requested shows whether there is another page.
    let mut rows = store::list(&mut conn, store::Filter { limit: filter.limit + 1, ..filter }).await?;
    let has_more = i64::try_from(rows.len()).is_ok_and(|count| count > filter.limit);
    if has_more {
        rows.pop();
    }
    let keys: Vec<_> = rows.iter().map(|row| (row.user_id, row.id)).collect();
    let lines = store::lines(&mut conn, &keys).await?;
    Ok(ListOrdersResponse {
        items: rows.iter().map(|row| convert::order(row, &lines)).collect::<Result<_, _>>()?,
        next_cursor: rows.last().filter(|_| has_more).map(|row| cursors.encode(&row.id)),
    })
}
