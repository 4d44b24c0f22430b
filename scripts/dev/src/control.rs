//! The control port of `scripts/up`, for the page `/demo`: an HTTP server on loopback that runs a flash sale and a delivery,
//! kills gateways, and streams the state of all that.
//!
//! The address of the page has a token that is good once, for a session key. A request needs the key, the own address as
//! its host (DNS rebinding), and a gateway as its origin.

mod access;
mod accounts;
mod delivery;
mod sale;
mod shop;
mod view;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use shoppee_kit::{ops, tasks::Tasks};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use self::{
    access::Access,
    accounts::{Accounts, BUYERS},
    view::View,
};
use crate::supervisor::{Event, EventKind};
pub use shop::Shop;

/// The interval of messages of an unchanged state, so that either side notices a broken connection.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// The minimum interval of messages: a state has some kilobytes.
const STREAM_INTERVAL: Duration = Duration::from_millis(100);
/// Bounds the body of a request; the largest has a token.
const MAX_BODY_BYTES: usize = 1024;
/// Bounds the time until a response begins.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The minimum number of gateways for a sale. With fewer the page names the command that starts them.
const MIN_GATEWAYS: usize = 3;
const ALLOWED_METHODS: &str = "GET, POST";
const ALLOWED_HEADERS: &str = "authorization, content-type";
/// The path that takes a token in place of a session key.
const SESSION_PATH: &str = "/session";

/// A gateway that the control port shows and kills.
#[derive(Clone, Debug)]
pub struct Gateway {
    pub name: String,
    pub url: String,
    pub pid: Option<u32>,
    pub kill_switch: Arc<Notify>,
}

/// A control port; cheap to clone.
#[derive(Clone, Debug)]
pub struct Control(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shop: Shop,
    access: Access,
    accounts: Accounts,
    view: watch::Sender<View>,
    gateways: Vec<Gateway>,
    devices: delivery::Devices,
}

impl Control {
    /// Starts to serve on `port`.
    pub async fn serve(port: u16, shop: Shop, gateways: Vec<Gateway>) -> anyhow::Result<Self> {
        let control = Self(Arc::new(Inner {
            access: Access::new(port, &shop.gateways),
            accounts: Accounts::new(&shop),
            view: watch::Sender::new(View::new(&gateways, BUYERS)),
            shop,
            gateways,
            devices: delivery::Devices::default(),
        }));
        // The server lives as long as this process.
        let (tasks, _failures) = Tasks::new();
        ops::serve_router("control", SocketAddr::from(([127, 0, 0, 1], port)), control.router(), &tasks)
            .await?;
        Ok(control)
    }

    /// Returns the address of the page, which changes when its token was used.
    pub fn page(&self) -> watch::Receiver<String> {
        self.0.access.page()
    }

    /// Shows a change of a gateway.
    pub fn report(&self, event: &Event) {
        let Some(index) = self.0.view.borrow().gateways.iter().position(|one| one.name == event.process)
        else {
            return;
        };
        match &event.kind {
            EventKind::Exited { .. } => {
                self.0.view.send_modify(|view| view.gateways[index].is_up = false);
            }
            EventKind::Started { pid } => {
                let (pid, control) = (*pid, self.clone());
                self.0.view.send_modify(|view| {
                    view.gateways[index].pid = Some(pid);
                    view.gateways[index].starts += 1;
                });
                tokio::spawn(async move {
                    control.0.shop.wait_until_ready(index).await;
                    control.0.view.send_modify(|view| {
                        // Another process may have replaced this one meanwhile.
                        let gateway = &mut view.gateways[index];
                        gateway.is_up |= gateway.pid == Some(pid);
                    });
                });
            }
        }
    }

    fn router(&self) -> Router {
        Router::new()
            .route(SESSION_PATH, post(open_session))
            .route("/state", get(stream_state))
            .route("/sale", post(start_sale))
            .route("/delivery", post(start_delivery))
            .route("/gateways/{index}/kill", post(kill_gateway))
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .layer(from_fn_with_state(self.clone(), check_access))
            .with_state(self.clone())
    }

    /// Signs the accounts in, so that the first sale begins at once.
    fn prepare(&self) {
        if self.0.gateways.len() < MIN_GATEWAYS {
            return;
        }
        let control = self.clone();
        tokio::spawn(async move {
            if let Err(error) = control.0.accounts.buyers(&control.0.view).await {
                control.0.view.send_modify(|view| view.buyers.error = Some(format!("{error:#}")));
            }
        });
    }
}

/// Refuses requests from other hosts and origins, and those without a session; answers preflights (CORS).
async fn check_access(State(control): State<Control>, request: Request, next: Next) -> Response {
    let access = &control.0.access;
    let (headers, path) = (request.headers(), request.uri().path());
    if !access.has_own_host(headers) {
        return refuse(StatusCode::MISDIRECTED_REQUEST, "this is another host");
    }
    let Some(origin) = access.allowed_origin(headers).cloned() else {
        return refuse(StatusCode::FORBIDDEN, "pages of this origin are not allowed");
    };
    let mut response = if request.method() == Method::OPTIONS {
        StatusCode::NO_CONTENT.into_response()
    } else if path == SESSION_PATH || access.has_session(headers) {
        let response = timeout(RESPONSE_TIMEOUT, next.run(request)).await;
        response.unwrap_or_else(|_| refuse(StatusCode::REQUEST_TIMEOUT, "the request is incomplete"))
    } else {
        refuse(StatusCode::UNAUTHORIZED, "the session is unknown")
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(ALLOWED_METHODS));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOWED_HEADERS));
    headers.insert(header::VARY, HeaderValue::from_static("origin"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn refuse(status: StatusCode, reason: &str) -> Response {
    (status, Json(json!({"error": reason}))).into_response()
}

#[derive(Debug, Deserialize)]
struct Token {
    token: String,
}

/// Exchanges the token of the address for a session key.
async fn open_session(State(control): State<Control>, Json(Token { token }): Json<Token>) -> Response {
    match control.0.access.redeem(&token) {
        Some(session) => {
            control.prepare();
            Json(json!({"session": session})).into_response()
        }
        None => refuse(StatusCode::UNAUTHORIZED, "the token is unknown, or was used"),
    }
}

/// Streams the state as Server-Sent Events: now, and after each change.
async fn stream_state(State(control): State<Control>) -> Response {
    let mut changes = control.0.view.subscribe();
    changes.mark_changed();
    let events = stream::unfold(changes, |mut changes| async move {
        match timeout(HEARTBEAT_INTERVAL, changes.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return None,
            Err(_) => return Some((Ok::<_, Infallible>(": heartbeat\n\n".to_owned()), changes)),
        }
        let state = serde_json::to_string(&*changes.borrow_and_update()).unwrap_or_default();
        // Changes until then are one message.
        sleep(STREAM_INTERVAL).await;
        Some((Ok(format!("data: {state}\n\n")), changes))
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}

async fn start_sale(State(control): State<Control>) -> Response {
    respond_to_start(sale::start(&control))
}

async fn start_delivery(State(control): State<Control>) -> Response {
    respond_to_start(delivery::start(&control))
}

fn respond_to_start(has_started: bool) -> Response {
    if has_started {
        StatusCode::ACCEPTED.into_response()
    } else {
        refuse(StatusCode::CONFLICT, "one is under way")
    }
}

async fn kill_gateway(State(control): State<Control>, Path(index): Path<usize>) -> Response {
    match control.0.gateways.get(index) {
        Some(gateway) => {
            // A gateway that is not running is not killed.
            gateway.kill_switch.notify_waiters();
            StatusCode::ACCEPTED.into_response()
        }
        None => refuse(StatusCode::NOT_FOUND, "there is no such gateway"),
    }
}
