//! The table of routes, and the one layer that every request passes on its way to them.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{ConnectInfo, MatchedPath, Request, State as Given},
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
    auth,
    error::Problem,
    extract::{Place, Sender, refuse_query},
    observe::{Observed, UserId},
    origin::Cors,
    routes::{account, admin, cart, categories, docs, health, orders, problems, products, ws},
    server::Overdrawn,
    state::State,
};

/// The whole gateway behind its socket. Each request needs a [`ConnectInfo`] with its peer's address.
pub fn app(state: State) -> Router {
    routes()
        .fallback(health::not_found)
        .with_state(state.clone())
        .merge(ops::router(state.process.readiness.clone()))
        .method_not_allowed_fallback(health::method_not_allowed)
        // One layer for all: each of its own would cost every request a box and a copy of what is below it.
        .layer(from_fn_with_state(state, edge))
}

/// What every request passes on its way in and every answer on its way out.
async fn edge(Given(state): Given<State>, mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let trusted = peer.is_some_and(|peer| state.limits.is_trusted(peer.ip(), request.headers()));
    let observed = Observed::begin(&mut request, trusted);
    let cors = Cors::of(&request);
    let mut response = match cors.preflight() {
        Some(answer) => answer,
        None => observed.answered_by(admit(&state, request, next)).await,
    };
    cors.write(&state.origins, response.headers_mut());
    observed.end(response)
}

/// Each table becomes a router, and a list that the API's document is compared with.
macro_rules! table {
    ($router:ident, $(#[$for:meta])? $list:ident: $($method:ident $path:literal => $handler:path,)*) => {
        $(#[$for])?
        pub const $list: &[(&str, &str)] = &[$((stringify!($method), $path)),*];

        fn $router() -> Router<State> {
            Router::new()$(.route($path, $method($handler)))*
        }
    };
}

// Parameters of these queries are read by the handlers.
table! { with_query, #[cfg(test)] WITH_QUERY:
    get    "/api/v1/admin/users"     => admin::list_users,
    get    "/api/v1/admin/orders"    => admin::list_orders,
    get    "/api/v1/orders"          => orders::list,
    get    "/api/v1/auth/sessions"   => account::list_sessions,
    get    "/api/v1/categories"      => categories::list,
    get    "/api/v1/products"        => products::list,
    get    "/api/v1/products/search" => products::search,
    get    "/ws"                     => ws::upgrade,
}

// A query is refused before they are asked.
table! { without_query, WITHOUT_QUERY:
    post   "/api/v1/auth/register"           => account::register,
    post   "/api/v1/auth/login"              => account::login,
    post   "/api/v1/auth/refresh"            => account::refresh,
    post   "/api/v1/auth/logout"             => account::logout,
    post   "/api/v1/auth/logout-all"         => account::logout_all,
    get    "/api/v1/auth/me"                 => account::me,
    put    "/api/v1/auth/password"           => account::change_password,
    delete "/api/v1/auth/sessions/{id}"      => account::revoke_session,
    post   "/api/v1/auth/ws-ticket"          => account::create_ws_ticket,
    get    "/api/v1/admin/users/{id}"        => admin::show_user,
    patch  "/api/v1/admin/users/{id}"        => admin::update_user,
    post   "/api/v1/products"                => products::create,
    post   "/api/v1/products/batch"          => products::update_batch,
    get    "/api/v1/products/{id}"           => products::show,
    patch  "/api/v1/products/{id}"           => products::update,
    delete "/api/v1/products/{id}"           => products::archive,
    post   "/api/v1/products/{id}/stock"     => products::adjust_stock,
    post   "/api/v1/categories"              => categories::create,
    patch  "/api/v1/categories/{id}"         => categories::update,
    delete "/api/v1/categories/{id}"         => categories::remove,
    get    "/api/v1/cart"                    => cart::show,
    delete "/api/v1/cart"                    => cart::clear,
    post   "/api/v1/cart/items"              => cart::add,
    put    "/api/v1/cart/items/{product_id}" => cart::set,
    delete "/api/v1/cart/items/{product_id}" => cart::remove,
    post   "/api/v1/orders"                  => orders::create,
    get    "/api/v1/orders/{id}"             => orders::show,
    get    "/api/v1/orders/{id}/events"      => orders::list_events,
    post   "/api/v1/orders/{id}/pay"         => orders::pay,
    post   "/api/v1/orders/{id}/cancel"      => orders::cancel,
    post   "/api/v1/orders/{id}/ship"        => orders::ship,
    post   "/api/v1/orders/{id}/complete"    => orders::complete,
    get    "/.well-known/jwks.json"          => health::jwks,
    get    "/"                               => docs::root,
    get    "/openapi.json"                   => docs::openapi,
    get    "/asyncapi.json"                  => docs::asyncapi,
    get    "/docs"                           => docs::page_of_docs,
    get    "/docs/{file}"                    => docs::file,
    get    "/problems"                       => problems::list,
    get    "/problems/{code}"                => problems::show,
}

fn routes() -> Router<State> {
    without_query().merge(with_query())
}

/// Operators ask these, also of a gateway that is full.
fn is_ops(route: Option<&str>) -> bool {
    matches!(route, Some("/healthz" | "/readyz" | "/metrics"))
}

/// Refuses at once what could only wait: latency stays what it is for those who are let in. Then finds out who calls,
/// and whether they may call so often.
async fn admit(state: &State, mut request: Request, next: Next) -> Response {
    if !names_its_host(&request) {
        return Problem::malformed("host", "must be sent, and once").into_response();
    }
    if !is_framed_plainly(&request) {
        return Problem::malformed("transfer-encoding", "must be chunked alone").into_response();
    }
    if request.extensions().get::<Overdrawn>().is_some() {
        metrics::counter!("http_requests_shed_total").increment(1);
        return Problem::unavailable().into_response();
    }
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map(MatchedPath::as_str);
    if is_ops(route) {
        return next.run(request).await;
    }
    let place = match Place::take(&state.room) {
        Ok(place) => Arc::new(place),
        Err(problem) => return problem.into_response(),
    };
    let Some(ConnectInfo(peer)) = request.extensions().get::<ConnectInfo<SocketAddr>>().copied() else {
        return Problem::internal().into_response();
    };
    let identity = auth::identify(&state.verifier, request.headers());
    let caller = identity.0.as_ref().ok().cloned();
    let admission = state.limits.admit(route, caller.as_ref(), peer.ip(), request.headers()).await;
    let mut response = match admission.check().and_then(|()| check_query(route, &request)) {
        Ok(()) => {
            request.extensions_mut().insert(identity);
            if !request.body().is_end_stream() {
                let caller = state.limits.subject(caller.as_ref(), peer.ip(), request.headers());
                request.extensions_mut().insert(Sender { place: place.clone(), caller });
            }
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    };
    admission.write(response.headers_mut());
    if let Some(caller) = caller {
        response.extensions_mut().insert(UserId(caller.user_id()));
    }
    response
}

/// A parameter that nobody reads is a mistake of the client's.
fn check_query(route: Option<&str>, request: &Request) -> Result<(), Problem> {
    let (Some(route), Some(query)) = (route, request.uri().query()) else {
        return Ok(());
    };
    // Whoever takes GET takes HEAD.
    let method = if request.method() == Method::HEAD { "GET" } else { request.method().as_str() };
    let known =
        WITHOUT_QUERY.iter().any(|(of, without)| method.eq_ignore_ascii_case(of) && *without == route);
    if known { refuse_query(query) } else { Ok(()) }
}

/// A coding below the chunks would be taken for content (RFC 9112 §6.1): hyper takes off the chunks and no other.
fn is_framed_plainly<B>(request: &Request<B>) -> bool {
    let mut codings = request.headers().get_all(TRANSFER_ENCODING).iter();
    codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        && codings.next().is_none()
}

/// HTTP/1.1 wants the host once (RFC 9112 §3.2), or a proxy in between may take the request for another; hyper does not
/// look.
fn names_its_host<B>(request: &Request<B>) -> bool {
    request.version() != Version::HTTP_11 || request.headers().get_all(HOST).iter().count() == 1
}
