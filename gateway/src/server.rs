//! The listening socket. axum's own loop knows no time limits; this one closes whoever is slow to send the
//! head of a request, bounds how many connections there are and what HTTP/2 may ask for, and ends each
//! politely at a stop.

mod activity;
mod unsent;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{Router, body::Body, extract::ConnectInfo};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Version, header::CONNECTION};
use hyper::{body::Incoming, service::service_fn, upgrade::Upgraded};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use shoppee_kit::{process::Process, readiness::Readiness};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::Settings;
use activity::{ActiveRequest, Expired, Timeouts, Watched};
use unsent::{Accounted, Accounts, Ledger, OpenAccount};

/// A mark in a request's extensions: its client does not take the answers that it was sent before.
#[derive(Clone, Copy, Debug)]
pub struct Overdrawn;

/// Head of a request: a token, an ETag, an idempotency key, a long query. More is 431.
const LARGEST_HEAD: usize = 32 * 1024;
/// Headers of one request; more is 431.
const MOST_HEADERS: usize = 64;
/// Requests at once on one HTTP/2 connection.
const STREAMS: u32 = 128;
/// Streams that a client opened and reset before they were looked at; more ends the connection
/// (CVE-2023-44487).
const RESETS: usize = 32;
/// Bytes of one answer that hyper takes from it before the client has room for them.
const UNSENT: usize = 64 * 1024;
/// Bytes of a body that a client may send before they are read: on one stream, and on all of a connection.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// How soon a silent HTTP/2 peer is asked whether it is still there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(20);
/// How long a client may leave what it is sent lying.
const SLOW_READER: Duration = Duration::from_secs(25);
/// Bounds the other requests of a connection that ends.
const CLOSE_GRACE: Duration = Duration::from_secs(5);
/// After the stop, how long a request that is on its way to a connection may take to arrive.
const ON_ITS_WAY: Duration = Duration::from_secs(1);
/// How long a start may take until requests are answered, whatever is still missing.
const STARTING: Duration = Duration::from_secs(1);
/// The interval between two looks for connections without a request while there is no room for another.
const EVICTION_INTERVAL: Duration = Duration::from_millis(200);
/// After an error of `accept`, as when files run out.
const PAUSE: Duration = Duration::from_millis(50);

/// Starts to serve `app`.
pub async fn serve(settings: &Settings, app: Router, process: &Process) -> anyhow::Result<()> {
    let addr = settings.listen_addr;
    let listener = TcpListener::bind(addr).await.with_context(|| format!("LISTEN_ADDR {addr}"))?;
    let connections = Arc::new(Semaphore::new(usize::try_from(settings.max_connections)?));
    let timeouts = Timeouts {
        header: settings.header_timeout,
        idle: settings.idle_timeout,
        send: settings.send_timeout,
    };
    let accounts = Accounts::new(usize::try_from(settings.max_unsent_bytes)?);
    let (server, process) = (Server { builder: builder(timeouts), timeouts, app }, process.clone());
    metrics::gauge!("http_connections").set(0.0);
    for reason in ["head", "idle", "stalled", "unsent", "full"] {
        metrics::counter!("http_connections_closed_total", "reason" => reason).increment(0);
    }
    let stop = process.tasks.stopping();
    process.clone().tasks.spawn("http", async move {
        let begin = |stream, peer, place| {
            let connection =
                connection(server.clone(), stream, peer, accounts.open(timeouts), process.clone());
            process.tasks.track(async move {
                metrics::gauge!("http_connections").increment(1.0);
                connection.await;
                metrics::gauge!("http_connections").decrement(1.0);
                drop(place);
            });
        };
        // A proxy sends requests to whoever listens. While the keys of tokens are on their way, they wait in the kernel's
        // queue; where auth is away, they are told so.
        let mut serving = process.readiness.serving();
        tokio::select! {
            _ = timeout(STARTING, serving.wait_for(|serving| *serving)) => {}
            () = stop.cancelled() => {}
        }
        loop {
            let accepting = async { (take_place(&connections, &accounts).await, listener.accept().await) };
            let (place, accepted) = tokio::select! {
                accepted = accepting => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => begin(stream, peer, place?),
                Err(error) => {
                    tracing::warn!(%error, "no connection accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        // Whoever the kernel let in before would be hung up on together with the listener.
        let listener = listener.into_std()?;
        while let Ok((stream, peer)) = listener.accept()
            && let Ok(place) = connections.clone().try_acquire_owned()
        {
            stream.set_nonblocking(true)?;
            begin(TcpStream::from_std(stream)?, peer, place);
        }
        Ok(())
    });
    Ok(())
}

/// The listener accepts no more connections than can be held. The rest waits in the kernel's queue while those without
/// a request are closed. Else these would keep out liveness probes.
async fn take_place(
    connections: &Arc<Semaphore>,
    accounts: &Accounts,
) -> Result<OwnedSemaphorePermit, AcquireError> {
    loop {
        if connections.available_permits() == 0 {
            accounts.evict_idle();
        }
        if let Ok(place) = timeout(EVICTION_INTERVAL, connections.clone().acquire_owned()).await {
            return place;
        }
    }
}

/// The parts that serve each connection. Cheap to clone.
#[derive(Clone)]
struct Server {
    builder: auto::Builder<TokioExecutor>,
    timeouts: Timeouts,
    app: Router,
}

fn builder(timeouts: Timeouts) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // From the end of the last answer: `Activity` tells a head that has begun from an idle connection.
        .header_read_timeout(timeouts.idle + timeouts.header)
        .max_headers(MOST_HEADERS)
        .max_buf_size(LARGEST_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(RESETS)
        .max_send_buf_size(UNSENT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(LARGEST_HEAD).unwrap_or(u32::MAX))
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
}

/// Returns the TCP stream below an upgraded connection, with the bytes that were read from it before.
pub fn into_stream(upgraded: Upgraded) -> Option<(TcpStream, Bytes)> {
    let parts = auto::upgrade::downcast::<TokioIo<Watched<TcpStream>>>(upgraded).ok()?;
    Some((parts.io.into_inner().stream, parts.read_buf))
}

/// Serves one connection to its end.
async fn connection(
    server: Server,
    stream: TcpStream,
    peer: SocketAddr,
    account: OpenAccount,
    process: Process,
) {
    // Small answers would wait for an acknowledgement otherwise, up to 45 ms.
    let _ = stream.set_nodelay(true);
    // The kernel gives up on a peer that takes nothing of what it is sent.
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(SLOW_READER));
    let activity = account.activity.clone();
    let begun = CancellationToken::new();
    let service = {
        let (activity, begun, ledger) = (activity.clone(), begun.clone(), activity.ledger.clone());
        let readiness = process.readiness.clone();
        service_fn(move |request: Request<Incoming>| {
            begun.cancel();
            let active = activity.begin_request(request.version() == Version::HTTP_2);
            answer(server.app.clone(), request, peer, readiness.clone(), ledger.clone(), active)
        })
    };
    let watched = Watched { stream, activity: activity.clone() };
    let connection = server.builder.serve_connection_with_upgrades(TokioIo::new(watched), service);
    tokio::pin!(connection);
    let stop = process.tasks.stopping();

    let expired = activity.expired();
    tokio::pin!(expired);
    // An error is a client that went away or talked nonsense; hyper has answered what can be answered. What was read is
    // noted before the deadlines are looked at.
    tokio::select! {
        biased;
        _ = &mut connection => return,
        () = activity.ledger.evicted() => return,
        () = stop.cancelled() => {}
        expired = &mut expired => {
            metrics::counter!("http_connections_closed_total", "reason" => expired.as_str()).increment(1);
            if expired != Expired::Head {
                connection.as_mut().graceful_shutdown();
                let _ = timeout(CLOSE_GRACE.min(server.timeouts.send), connection).await;
            }
            return;
        }
    }
    // hyper hangs up at once where it has read nothing yet: a proxy that has just connected could not send its request
    // to anybody else any more.
    tokio::select! {
        _ = &mut connection => return,
        () = begun.cancelled() => {}
        () = tokio::time::sleep(ON_ITS_WAY) => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        biased;
        _ = &mut connection => {}
        _ = &mut expired => {}
    }
}

async fn answer(
    app: Router,
    request: Request<Incoming>,
    peer: SocketAddr,
    readiness: Readiness,
    ledger: Arc<Ledger>,
    active: ActiveRequest,
) -> Result<Response<Accounted>, Infallible> {
    let mut request = request.map(Body::new);
    let is_http1 = request.version() <= Version::HTTP_11;
    request.extensions_mut().insert(ConnectInfo(peer));
    if !ledger.has_room() {
        request.extensions_mut().insert(Overdrawn);
    }
    let mut response = app.oneshot(request).await?;
    // Before the stop, clients that keep their connection are made to come back on another one, which a load balancer
    // gives to another gateway.
    if is_http1 && readiness.is_stopping() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| Accounted { body, ledger, _request: active }))
}
