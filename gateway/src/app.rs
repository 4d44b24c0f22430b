//! The table of routes, and the middleware in front of them.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{ConnectInfo, MatchedPath, Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse as _, Response},
    routing::{delete, get, patch, post, put},
};
use http::{
    Method, Version,
    header::{HOST, TRANSFER_ENCODING},
};
use http_body::Body as _;
use shoppee_kit::ops;

use crate::{
    access_log::RequestRecorder,
    auth,
    cors::CorsRequest,
    error::Problem,
    extract::{BodyAccount, RequestPermit, reject_query},
    routes::{
        self, admin, audit, cart, categories, docs, fallback, oauth, order_streams, orders, problems,
        products, service_accounts, status, well_known, ws,
    },
    server::SendBacklogFull,
    state::AppState,
    storefront,
};

/// Builds the router of the gateway. Each request needs a [`ConnectInfo`] with its peer's address.
pub fn app(state: AppState) -> Router {
    let control_url = state.demo_control_url.as_deref();
    let files = if state.storefront { storefront::router(control_url) } else { Router::new() };
    routes()
        .merge(files)
        .fallback(fallback::not_found)
        .with_state(state.clone())
        .merge(ops::router(state.process.readiness.clone()))
        .method_not_allowed_fallback(fallback::method_not_allowed)
        // One layer for all steps: each layer costs every request a box and a clone of the services below it.
        .layer(from_fn_with_state(state, request_middleware))
}

/// Records each request, answers CORS preflights, and passes other requests to admission control.
async fn request_middleware(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let trusted = peer.is_some_and(|peer| state.rate_limiter.is_trusted(peer.ip(), request.headers()));
    let recorder = RequestRecorder::start(&request, trusted);
    let cors = CorsRequest::from(&request);
    let mut response = match cors.preflight_response() {
        Some(response) => response,
        None => recorder.run(admit(&state, request, next)).await,
    };
    cors.write_headers(&state.allowed_origins, response.headers_mut());
    recorder.finish(response)
}

/// Makes a router of each table, and a list for comparison with the OpenAPI document.
macro_rules! table {
    ($router:ident, $(#[$for:meta])? $list:ident: $($method:ident $path:literal => $handler:path,)*) => {
        $(#[$for])?
        pub const $list: &[(&str, &str)] = &[$((stringify!($method), $path)),*];

        fn $router() -> Router<AppState> {
            Router::new()$(.route($path, $method($handler)))*
        }
    };
}

// The handlers of these routes read query parameters.
table! { with_query, #[cfg(test)] WITH_QUERY:
    get    "/api/v1/admin/users"     => admin::list_users,
    get    "/api/v1/admin/audit"     => audit::list,
    get    "/api/v1/admin/orders"    => admin::list_orders,
    get    "/api/v1/admin/orders/stream" => order_streams::stream_all,
    get    "/api/v1/admin/service-accounts" => service_accounts::list,
    get    "/api/v1/admin/products/{id}/stock-changes" => products::list_stock_changes,
    get    "/api/v1/orders"          => orders::list,
    get    "/api/v1/orders/stream/events" => order_streams::poll,
    get    "/api/v1/auth/sessions"   => routes::auth::list_sessions,
    get    "/api/v1/categories"      => categories::list,
    get    "/api/v1/products"        => products::list,
    get    "/api/v1/products/search" => products::search,
    get    "/ws"                     => ws::upgrade,
}

// The middleware refuses query parameters to these routes.
table! { without_query, WITHOUT_QUERY:
    post   "/api/v1/auth/register"           => routes::auth::register,
    post   "/api/v1/auth/login"              => routes::auth::login,
    post   "/api/v1/auth/refresh"            => routes::auth::refresh,
    post   "/api/v1/auth/logout"             => routes::auth::logout,
    post   "/api/v1/auth/logout-all"         => routes::auth::logout_all,
    get    "/api/v1/auth/me"                 => routes::auth::get_current_user,
    put    "/api/v1/auth/password"           => routes::auth::change_password,
    delete "/api/v1/auth/sessions/{id}"      => routes::auth::revoke_session,
    post   "/api/v1/auth/ws-ticket"          => routes::auth::create_ws_ticket,
    get    "/api/v1/admin/status"            => status::get,
    get    "/api/v1/admin/users/{id}"        => admin::get_user,
    patch  "/api/v1/admin/users/{id}"        => admin::update_user,
    post   "/api/v1/admin/service-accounts"  => service_accounts::create,
    get    "/api/v1/admin/service-accounts/{id}" => service_accounts::get,
    delete "/api/v1/admin/service-accounts/{id}" => service_accounts::revoke,
    post   "/api/v1/admin/service-accounts/{id}/rotate" => service_accounts::rotate,
    post   "/api/v1/products"                => products::create,
    post   "/api/v1/products/batch"          => products::update_batch,
    get    "/api/v1/products/{id}"           => products::get,
    patch  "/api/v1/products/{id}"           => products::update,
    delete "/api/v1/products/{id}"           => products::archive,
    post   "/api/v1/products/{id}/stock"     => products::adjust_stock,
    post   "/api/v1/categories"              => categories::create,
    patch  "/api/v1/categories/{id}"         => categories::update,
    delete "/api/v1/categories/{id}"         => categories::remove,
    get    "/api/v1/cart"                    => cart::get,
    delete "/api/v1/cart"                    => cart::clear,
    post   "/api/v1/cart/items"              => cart::add,
    put    "/api/v1/cart/items/{product_id}" => cart::set,
    delete "/api/v1/cart/items/{product_id}" => cart::remove,
    post   "/api/v1/orders"                  => orders::create,
    get    "/api/v1/orders/stream"           => order_streams::stream,
    get    "/api/v1/orders/{id}"             => orders::get,
    get    "/api/v1/orders/{id}/events"      => orders::list_events,
    post   "/api/v1/orders/{id}/pay"         => orders::pay,
    post   "/api/v1/orders/{id}/cancel"      => orders::cancel,
    post   "/api/v1/orders/{id}/ship"        => orders::ship,
    post   "/api/v1/orders/{id}/complete"    => orders::complete,
    post   "/oauth/token"                    => oauth::issue_token,
    get    "/.well-known/jwks.json"          => well_known::jwks,
    get    "/"                               => storefront::root,
    get    "/openapi.json"                   => docs::openapi,
    get    "/asyncapi.json"                  => docs::asyncapi,
    get    "/docs"                           => docs::page,
    get    "/docs/{file}"                    => docs::file,
    get    "/problems"                       => problems::list,
    get    "/problems/{code}"                => problems::get,
}

fn routes() -> Router<AppState> {
    without_query().merge(with_query())
}

/// The route whose requests wait without a permit.
const LONG_POLL: &str = "/api/v1/orders/stream/events";

/// Reports whether a route is for operators: it answers under overload too.
fn is_ops(route: Option<&str>) -> bool {
    matches!(route, Some("/healthz" | "/readyz" | "/metrics"))
}

/// Sheds load, authenticates the caller and applies rate limits. A request without a permit is refused at once: a queue
/// would add latency to all others.
async fn admit(state: &AppState, mut request: Request, next: Next) -> Response {
    if !has_single_host_header(&request) {
        return Problem::malformed("host", "must be sent, and once").into_response();
    }
    if !has_plain_framing(&request) {
        return Problem::malformed("transfer-encoding", "must be chunked alone").into_response();
    }
    if request.extensions().get::<SendBacklogFull>().is_some() {
        metrics::counter!("http_requests_shed_total").increment(1);
        return Problem::unavailable().into_response();
    }
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map(MatchedPath::as_str);
    if is_ops(route) {
        return next.run(request).await;
    }
    let permit = match RequestPermit::try_acquire(&state.request_permits) {
        Ok(permit) => Arc::new(permit),
        Err(problem) => return problem.into_response(),
    };
    if storefront::is_file(route) {
        return next.run(request).await;
    }
    let Some(ConnectInfo(peer)) = request.extensions().get::<ConnectInfo<SocketAddr>>().copied() else {
        return Problem::internal().into_response();
    };
    let identity = auth::authenticate(&state.verifier, request.headers());
    let caller = identity.0.as_ref().ok().cloned();
    let admission = state.rate_limiter.admit(route, caller.as_ref(), peer.ip(), request.headers()).await;
    let mut response = match admission.check().and_then(|()| check_query(route, &request)) {
        Ok(()) => {
            request.extensions_mut().insert(identity);
            if route == Some(LONG_POLL) {
                request.extensions_mut().insert(permit.clone());
            }
            if !request.body().is_end_stream() {
                let caller = state.rate_limiter.key(caller.as_ref(), peer.ip(), request.headers());
                let (limiter, permit) = (state.bodies.clone(), permit.clone());
                request.extensions_mut().insert(BodyAccount { limiter, permit, caller });
            }
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    };
    admission.write_headers(response.headers_mut());
    if let Some(caller) = caller {
        response.extensions_mut().insert(caller);
    }
    response
}

/// Refuses query parameters to a route that reads none: the client made a mistake.
fn check_query(route: Option<&str>, request: &Request) -> Result<(), Problem> {
    let (Some(route), Some(query)) = (route, request.uri().query()) else {
        return Ok(());
    };
    // A route for GET serves HEAD too.
    let method = if request.method() == Method::HEAD { "GET" } else { request.method().as_str() };
    let without_query =
        WITHOUT_QUERY.iter().any(|(verb, path)| method.eq_ignore_ascii_case(verb) && *path == route);
    if without_query { reject_query(query) } else { Ok(()) }
}

/// Reports whether the body has no transfer coding but `chunked` (RFC 9112 §6.1). hyper decodes chunks alone and would
/// take another coding for content.
fn has_plain_framing<B>(request: &Request<B>) -> bool {
    let mut codings = request.headers().get_all(TRANSFER_ENCODING).iter();
    codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        && codings.next().is_none()
}

/// Reports whether an HTTP/1.1 request has one `Host` header (RFC 9112 §3.2), which hyper does not check. A proxy might
/// otherwise route the request to another host.
fn has_single_host_header<B>(request: &Request<B>) -> bool {
    request.version() != Version::HTTP_11 || request.headers().get_all(HOST).iter().count() == 1
}
