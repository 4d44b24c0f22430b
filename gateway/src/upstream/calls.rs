//! The table of gRPC calls: request message, response message, method and call policy. A new call is one line.

use std::{collections::HashMap, sync::LazyLock, time::Duration};

use shoppee_kit::{
    access::{self, Method},
    load_balancer::LoadBalancer,
};
use shoppee_proto::{
    PRODUCT_REVISION,
    access::v1::AccessRule,
    audit::v1::{
        ListAuditRecordsRequest, ListAuditRecordsResponse, audit_service_client::AuditServiceClient,
    },
    auth::v1::{
        AuthServiceStatus, ChangePasswordRequest, CreateServiceAccountRequest, CreateWsTicketRequest,
        GetServiceAccountRequest, GetStatusRequest as GetAuthStatusRequest, GetUserInfoRequest,
        GetUserRequest, IssueServiceTokenRequest, ListServiceAccountsRequest, ListServiceAccountsResponse,
        ListSessionsRequest, ListSessionsResponse, ListUsersRequest, ListUsersResponse, LoginRequest,
        LogoutAllRequest, LogoutRequest, RedeemWsTicketRequest, RefreshRequest, RegisterRequest,
        RevokeServiceAccountRequest, RevokeSessionRequest, RotateServiceAccountRequest, ServiceAccount,
        ServiceToken, SocketToken, Tokens, UpdateUserRequest, User, WsTicket,
    },
    order::v1::{
        AddCartItemRequest, CancelOrderRequest, Cart, ClearCartRequest, CompleteOrderRequest,
        CreateOrderRequest, GetCartRequest, GetEventPositionsRequest, GetEventPositionsResponse,
        GetOrderRequest, GetStatusRequest as GetOrderStatusRequest, ListEventsRequest, ListEventsResponse,
        ListOrderEventsRequest, ListOrderEventsResponse, ListOrdersRequest, ListOrdersResponse, Order,
        OrderServiceStatus, PayOrderRequest, RemoveCartItemRequest, SetCartItemRequest, ShipOrderRequest,
    },
    product::v1::{
        AdjustStockRequest, ArchiveProductRequest, BatchUpdateProductsRequest, BatchUpdateProductsResponse,
        Category, CreateCategoryRequest, CreateProductRequest, DeleteCategoryRequest, GetPageRequest,
        GetPageResponse, GetProductRequest, GetStatusRequest as GetProductStatusRequest,
        ListCategoriesRequest, ListCategoriesResponse, ListProductsRequest, ListProductsResponse,
        ListStockChangesRequest, ListStockChangesResponse, LookupRequest, LookupResponse, Product,
        ProductAsOf, ProductServiceStatus, SearchProductsRequest, SearchProductsResponse,
        UpdateCategoryRequest, UpdateProductRequest,
    },
};
use tonic::{Request, Response, Status, transport::Channel};

use super::{Upstream, auth, auth_status, order, order_status, product, product_cache, product_status};

/// The policy of a call (gRPC: method config).
#[derive(Clone, Copy, Debug)]
pub struct CallPolicy {
    /// Bounds the call with its retry. The service gets it as its deadline.
    pub timeout: Duration,
    /// The call changes state: it is not cancelled when the client hangs up.
    pub mutates: bool,
}

/// A lookup in the service's memory. A `READ` may follow it; both together stay within 2.5 s.
const CACHE_LOOKUP: CallPolicy = CallPolicy { timeout: Duration::from_millis(200), mutates: false };
const READ: CallPolicy = CallPolicy { timeout: Duration::from_secs(2), mutates: false };
const WRITE: CallPolicy = CallPolicy { timeout: Duration::from_secs(2), mutates: true };
/// A password is hashed, after up to 1.5 s in the queue for a hashing permit.
const SIGN_IN: CallPolicy = CallPolicy { timeout: Duration::from_millis(2400), mutates: true };
/// The payment provider may be slow.
const PAY: CallPolicy = CallPolicy { timeout: Duration::from_secs(10), mutates: true };
/// A page shows the status of all services. A service that takes longer is shown as one that does not answer.
const STATUS: CallPolicy = CallPolicy { timeout: Duration::from_secs(1), mutates: false };
/// A batch has up to 10 000 rows.
const BATCH: CallPolicy = CallPolicy { timeout: Duration::from_secs(30), mutates: true };

/// The rules of all methods, by [`Call::METHOD`].
static ACCESS_RULES: LazyLock<HashMap<String, &'static AccessRule>> = LazyLock::new(|| {
    let rules = access::methods().values().filter_map(|Method { name, rule }| {
        let (service, method) = name.split_once('/')?;
        Some((format!("{}.{}", service.split('.').nth(1)?, to_snake_case(method)), rule))
    });
    rules.collect()
});

/// A rule that admits no caller.
static NO_ACCESS: LazyLock<AccessRule> = LazyLock::new(AccessRule::default);

/// Converts `ShipOrder` to `ship_order`.
fn to_snake_case(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

/// A request message, which identifies the method that takes it.
pub trait Call: Clone + Send + Sync + 'static {
    type Response: Send + 'static;
    /// The service and the method, as in `order.ship_order`.
    const METHOD: &'static str;
    const POLICY: CallPolicy;

    /// Reports whether the call may be sent again: it is idempotent.
    fn is_retryable(&self) -> bool;

    /// Returns the callers that the method admits.
    fn access_rule() -> &'static AccessRule {
        // A test finds a name without a rule.
        ACCESS_RULES.get(Self::METHOD).copied().unwrap_or(&NO_ACCESS)
    }

    /// Returns the connections to the call's service.
    fn pool(upstream: &Upstream) -> &LoadBalancer;

    /// Sends the request once.
    fn send(
        channel: Channel,
        request: Request<Self>,
    ) -> impl Future<Output = Result<Response<Self::Response>, Status>> + Send;
}

impl Call for ProductAsOf {
    type Response = Product;
    const METHOD: &'static str = "product.get_product";
    const POLICY: CallPolicy = READ;

    fn is_retryable(&self) -> bool {
        true
    }

    fn pool(upstream: &Upstream) -> &LoadBalancer {
        &upstream.0.product
    }

    async fn send(channel: Channel, request: Request<Self>) -> Result<Response<Product>, Status> {
        let (mut metadata, extensions, Self { id, revision }) = request.into_parts();
        if revision > 0 {
            metadata.insert(PRODUCT_REVISION, revision.into());
        }
        product(channel)
            .get_product(Request::from_parts(metadata, extensions, GetProductRequest { id }))
            .await
    }
}

impl Call for LookupRequest {
    type Response = LookupResponse;
    const METHOD: &'static str = "product.lookup";
    const POLICY: CallPolicy = CACHE_LOOKUP;

    fn is_retryable(&self) -> bool {
        false
    }

    fn pool(upstream: &Upstream) -> &LoadBalancer {
        &upstream.0.product
    }

    async fn send(channel: Channel, request: Request<Self>) -> Result<Response<LookupResponse>, Status> {
        product_cache(channel).lookup(request).await
    }
}

impl Call for GetPageRequest {
    type Response = GetPageResponse;
    const METHOD: &'static str = "product.get_page";
    const POLICY: CallPolicy = READ;

    fn is_retryable(&self) -> bool {
        true
    }

    fn pool(upstream: &Upstream) -> &LoadBalancer {
        &upstream.0.product
    }

    async fn send(channel: Channel, request: Request<Self>) -> Result<Response<GetPageResponse>, Status> {
        product_cache(channel).get_page(request).await
    }
}

macro_rules! audit_calls {
    ($($(#[$meta:meta])* $message:ident: $service:ident;)*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug)]
        pub struct $message(pub ListAuditRecordsRequest);

        impl Call for $message {
            type Response = ListAuditRecordsResponse;
            const METHOD: &'static str = "audit.list_audit_records";
            const POLICY: CallPolicy = READ;

            fn is_retryable(&self) -> bool {
                true
            }

            fn pool(upstream: &Upstream) -> &LoadBalancer {
                &upstream.0.$service
            }

            async fn send(channel: Channel, request: Request<Self>) -> Result<Response<Self::Response>, Status> {
                AuditServiceClient::new(channel).list_audit_records(request.map(|Self(request)| request)).await
            }
        }
    )*};
}

// Each service has the records of its own.
audit_calls! {
    /// A list of the audit records of the auth service.
    ListAuthAudit: auth;
    /// A list of the audit records of the product service.
    ListProductAudit: product;
    /// A list of the audit records of the order service.
    ListOrderAudit: order;
}

macro_rules! calls {
    ($(
        $message:ident => $response:ty: $service:ident $(($client:ident))?.$method:ident, $policy:ident
            $(, keyed by $key:ident)?;
    )*) => {$(
        impl Call for $message {
            type Response = $response;
            const METHOD: &'static str = concat!(stringify!($service), ".", stringify!($method));
            const POLICY: CallPolicy = $policy;

            fn is_retryable(&self) -> bool {
                !Self::POLICY.mutates $(|| self.$key.is_some())?
            }

            fn pool(upstream: &Upstream) -> &LoadBalancer {
                &upstream.0.$service
            }

            async fn send(channel: Channel, request: Request<Self>) -> Result<Response<$response>, Status> {
                calls!(@client $service $($client)?)(channel).$method(request).await
            }
        }
    )*

        /// The names of the calls in the table.
        #[cfg(test)]
        const METHODS: &[&str] = &[$($message::METHOD),*];
    };
    (@client $service:ident) => { $service };
    (@client $service:ident $client:ident) => { $client };
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
    CreateServiceAccountRequest => ServiceAccount: auth.create_service_account, WRITE, keyed by idempotency_key;
    ListServiceAccountsRequest => ListServiceAccountsResponse: auth.list_service_accounts, READ;
    GetServiceAccountRequest => ServiceAccount: auth.get_service_account, READ;
    RotateServiceAccountRequest => ServiceAccount: auth.rotate_service_account, WRITE, keyed by idempotency_key;
    RevokeServiceAccountRequest => (): auth.revoke_service_account, WRITE;
    IssueServiceTokenRequest => ServiceToken: auth.issue_service_token, WRITE;
    GetAuthStatusRequest => AuthServiceStatus: auth(auth_status).get_status, STATUS;

    GetProductRequest => Product: product.get_product, READ;
    ListProductsRequest => ListProductsResponse: product.list_products, READ;
    SearchProductsRequest => SearchProductsResponse: product.search_products, READ;
    CreateProductRequest => Product: product.create_product, WRITE;
    UpdateProductRequest => Product: product.update_product, WRITE;
    ArchiveProductRequest => (): product.archive_product, WRITE;
    AdjustStockRequest => Product: product.adjust_stock, WRITE;
    ListStockChangesRequest => ListStockChangesResponse: product.list_stock_changes, READ;
    BatchUpdateProductsRequest => BatchUpdateProductsResponse: product.batch_update_products, BATCH;
    ListCategoriesRequest => ListCategoriesResponse: product.list_categories, READ;
    CreateCategoryRequest => Category: product.create_category, WRITE;
    UpdateCategoryRequest => Category: product.update_category, WRITE;
    DeleteCategoryRequest => (): product.delete_category, WRITE;
    GetProductStatusRequest => ProductServiceStatus: product(product_status).get_status, STATUS;

    GetCartRequest => Cart: order.get_cart, READ;
    AddCartItemRequest => Cart: order.add_cart_item, WRITE, keyed by idempotency_key;
    SetCartItemRequest => Cart: order.set_cart_item, WRITE;
    RemoveCartItemRequest => Cart: order.remove_cart_item, WRITE;
    ClearCartRequest => (): order.clear_cart, WRITE;
    CreateOrderRequest => Order: order.create_order, WRITE, keyed by idempotency_key;
    GetOrderRequest => Order: order.get_order, READ;
    ListEventsRequest => ListEventsResponse: order.list_events, READ;
    GetEventPositionsRequest => GetEventPositionsResponse: order.get_event_positions, READ;
    ListOrdersRequest => ListOrdersResponse: order.list_orders, READ;
    ListOrderEventsRequest => ListOrderEventsResponse: order.list_order_events, READ;
    PayOrderRequest => Order: order.pay_order, PAY, keyed by idempotency_key;
    CancelOrderRequest => Order: order.cancel_order, WRITE, keyed by idempotency_key;
    ShipOrderRequest => Order: order.ship_order, WRITE, keyed by idempotency_key;
    CompleteOrderRequest => Order: order.complete_order, WRITE, keyed by idempotency_key;
    GetOrderStatusRequest => OrderServiceStatus: order(order_status).get_status, STATUS;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_of_a_call_is_that_of_its_method() {
        let ship = ShipOrderRequest::access_rule();
        assert!(ship.admin && !ship.user && ship.scope == "orders:ship", "{ship:?}");
        assert!(LoginRequest::access_rule().open);
        assert!(ProductAsOf::access_rule().anonymous);
        assert!(ListAuthAudit::access_rule().admin);
        assert!(LookupRequest::access_rule().anonymous && GetPageRequest::access_rule().anonymous);
        let missing: Vec<_> = METHODS.iter().filter(|name| !ACCESS_RULES.contains_key(**name)).collect();
        assert!(missing.is_empty(), "no method is called {missing:?}");
    }
}
