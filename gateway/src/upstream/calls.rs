//! Every call the gateway makes: the message, its answer, the method, and what kind of call it is. To add
//! one, add a line to the table.

use std::time::Duration;

use shoppee_kit::pool::Pool;
use shoppee_proto::{
    PRODUCT_REVISION,
    auth::v1::{
        ChangePasswordRequest, CreateWsTicketRequest, GetUserInfoRequest, GetUserRequest,
        ListSessionsRequest, ListSessionsResponse, ListUsersRequest, ListUsersResponse, LoginRequest,
        LogoutAllRequest, LogoutRequest, RedeemWsTicketRequest, RefreshRequest, RegisterRequest,
        RevokeSessionRequest, SocketToken, Tokens, UpdateUserRequest, User, WsTicket,
    },
    order::v1::{
        AddCartItemRequest, CancelOrderRequest, Cart, ClearCartRequest, CompleteOrderRequest,
        CreateOrderRequest, GetCartRequest, GetOrderRequest, ListEventsRequest, ListEventsResponse,
        ListOrderEventsRequest, ListOrderEventsResponse, ListOrdersRequest, ListOrdersResponse, Order,
        PayOrderRequest, RemoveCartItemRequest, SetCartItemRequest, ShipOrderRequest,
    },
    product::v1::{
        AdjustStockRequest, ArchiveProductRequest, BatchUpdateProductsRequest, BatchUpdateProductsResponse,
        Category, CreateCategoryRequest, CreateProductRequest, DeleteCategoryRequest, GetPageRequest,
        GetPageResponse, GetProductRequest, ListCategoriesRequest, ListCategoriesResponse,
        ListProductsRequest, ListProductsResponse, LookupRequest, LookupResponse, Product, ProductAsOf,
        SearchProductsRequest, SearchProductsResponse, UpdateCategoryRequest, UpdateProductRequest,
    },
};
use tonic::{Request, Response, Status, transport::Channel};

use super::{Upstream, auth, order, product, product_cache};

/// What kinds of calls there are.
#[derive(Clone, Copy, Debug)]
pub struct Class {
    /// How long the answer may take, retry included; the service is told.
    pub deadline: Duration,
    /// Whether it changes anything, and so must not be broken off half-way.
    pub changes: bool,
}

/// What is in memory is told at once, or asked for by a call of the next kind: together that is within 2.5 s.
const AT_ONCE: Class = Class { deadline: Duration::from_millis(200), changes: false };
const READ: Class = Class { deadline: Duration::from_secs(2), changes: false };
const WRITE: Class = Class { deadline: Duration::from_secs(2), changes: true };
/// A password is hashed, and waits up to 1.5 s for its turn before.
const SIGN_IN: Class = Class { deadline: Duration::from_millis(2400), changes: true };
/// The payment provider takes its time.
const PAY: Class = Class { deadline: Duration::from_secs(10), changes: true };
/// Ten thousand rows.
const BATCH: Class = Class { deadline: Duration::from_secs(30), changes: true };

/// A request message that stands for the one method that takes it.
pub trait Call: Clone + Send + Sync + 'static {
    type Answer: Send + 'static;
    const CLASS: Class;

    /// Whether doing it twice is the same as once.
    fn repeatable(&self) -> bool;

    /// The service that answers it.
    fn pool(of: &Upstream) -> &Pool;

    /// Sends it once.
    fn send(
        over: Channel,
        request: Request<Self>,
    ) -> impl Future<Output = Result<Response<Self::Answer>, Status>> + Send;
}

impl Call for ProductAsOf {
    type Answer = Product;
    const CLASS: Class = READ;

    fn repeatable(&self) -> bool {
        true
    }

    fn pool(of: &Upstream) -> &Pool {
        &of.0.product
    }

    async fn send(over: Channel, request: Request<Self>) -> Result<Response<Product>, Status> {
        let (mut metadata, extensions, Self { id, revision }) = request.into_parts();
        if revision > 0 {
            metadata.insert(PRODUCT_REVISION, revision.into());
        }
        product(over).get_product(Request::from_parts(metadata, extensions, GetProductRequest { id })).await
    }
}

impl Call for LookupRequest {
    type Answer = LookupResponse;
    const CLASS: Class = AT_ONCE;

    fn repeatable(&self) -> bool {
        false
    }

    fn pool(of: &Upstream) -> &Pool {
        &of.0.product
    }

    async fn send(over: Channel, request: Request<Self>) -> Result<Response<LookupResponse>, Status> {
        product_cache(over).lookup(request).await
    }
}

impl Call for GetPageRequest {
    type Answer = GetPageResponse;
    const CLASS: Class = READ;

    fn repeatable(&self) -> bool {
        true
    }

    fn pool(of: &Upstream) -> &Pool {
        &of.0.product
    }

    async fn send(over: Channel, request: Request<Self>) -> Result<Response<GetPageResponse>, Status> {
        product_cache(over).get_page(request).await
    }
}

macro_rules! calls {
    ($(
        $message:ident => $answer:ty: $service:ident.$method:ident, $class:ident $(, keyed by $key:ident)?;
    )*) => {$(
        impl Call for $message {
            type Answer = $answer;
            const CLASS: Class = $class;

            fn repeatable(&self) -> bool {
                !Self::CLASS.changes $(|| self.$key.is_some())?
            }

            fn pool(of: &Upstream) -> &Pool {
                &of.0.$service
            }

            async fn send(over: Channel, request: Request<Self>) -> Result<Response<$answer>, Status> {
                $service(over).$method(request).await
            }
        }
    )*};
}

calls! {
    RegisterRequest => User: auth.register, SIGN_IN, keyed by idempotency_key;
    LoginRequest => Tokens: auth.login, SIGN_IN;
    RefreshRequest => Tokens: auth.refresh, WRITE;
    LogoutRequest => (): auth.logout, WRITE;
    LogoutAllRequest => (): auth.logout_all, WRITE;
    GetUserInfoRequest => User: auth.get_user_info, READ;
    ChangePasswordRequest => (): auth.change_password, SIGN_IN;
    ListSessionsRequest => ListSessionsResponse: auth.list_sessions, READ;
    RevokeSessionRequest => (): auth.revoke_session, WRITE;
    CreateWsTicketRequest => WsTicket: auth.create_ws_ticket, WRITE;
    RedeemWsTicketRequest => SocketToken: auth.redeem_ws_ticket, WRITE;
    ListUsersRequest => ListUsersResponse: auth.list_users, READ;
    GetUserRequest => User: auth.get_user, READ;
    UpdateUserRequest => User: auth.update_user, WRITE;

    GetProductRequest => Product: product.get_product, READ;
    ListProductsRequest => ListProductsResponse: product.list_products, READ;
    SearchProductsRequest => SearchProductsResponse: product.search_products, READ;
    CreateProductRequest => Product: product.create_product, WRITE;
    UpdateProductRequest => Product: product.update_product, WRITE;
    ArchiveProductRequest => (): product.archive_product, WRITE;
    AdjustStockRequest => Product: product.adjust_stock, WRITE;
    BatchUpdateProductsRequest => BatchUpdateProductsResponse: product.batch_update_products, BATCH;
    ListCategoriesRequest => ListCategoriesResponse: product.list_categories, READ;
    CreateCategoryRequest => Category: product.create_category, WRITE;
    UpdateCategoryRequest => Category: product.update_category, WRITE;
    DeleteCategoryRequest => (): product.delete_category, WRITE;

    GetCartRequest => Cart: order.get_cart, READ;
    AddCartItemRequest => Cart: order.add_cart_item, WRITE, keyed by idempotency_key;
    SetCartItemRequest => Cart: order.set_cart_item, WRITE;
    RemoveCartItemRequest => Cart: order.remove_cart_item, WRITE;
    ClearCartRequest => (): order.clear_cart, WRITE;
    CreateOrderRequest => Order: order.create_order, WRITE, keyed by idempotency_key;
    GetOrderRequest => Order: order.get_order, READ;
    ListEventsRequest => ListEventsResponse: order.list_events, READ;
    ListOrdersRequest => ListOrdersResponse: order.list_orders, READ;
    ListOrderEventsRequest => ListOrderEventsResponse: order.list_order_events, READ;
    PayOrderRequest => Order: order.pay_order, PAY, keyed by idempotency_key;
    CancelOrderRequest => Order: order.cancel_order, WRITE, keyed by idempotency_key;
    ShipOrderRequest => Order: order.ship_order, WRITE, keyed by idempotency_key;
    CompleteOrderRequest => Order: order.complete_order, WRITE, keyed by idempotency_key;
}
