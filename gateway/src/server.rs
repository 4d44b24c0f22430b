//! The HTTP server: the accept loop and its connections. Unlike axum's own loop, it has deadlines for slow clients and
//! bounds for connections and HTTP/2 streams. It shuts each connection down gracefully.

mod accounted_body;
mod activity;
mod connections;
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
use accounted_body::AccountedBody;
use activity::{ActiveRequest, ExpiredDeadline, RecordedStream, Timeouts};
use connections::{ConnectionGuard, Connections};
use unsent::ConnectionAccount;

/// Marks a request, in its extensions, whose connection has too many unsent bytes of earlier responses.
#[derive(Clone, Copy, Debug)]
pub struct SendBacklogFull;

/// The head of a request: a token, an ETag, an idempotency key, a long query. More is 431.
const MAX_HEADER_BYTES: usize = 32 * 1024;
/// Headers of one request. More is 431.
const MAX_HEADERS: usize = 64;
/// Concurrent requests on one HTTP/2 connection.
const MAX_CONCURRENT_STREAMS: u32 = 128;
/// Streams that a client opened and reset, or broke, before the server handled them. More ends the connection
/// (CVE-2023-44487).
const MAX_RESET_STREAMS: usize = 32;
/// Bytes of one response that hyper buffers before the client has room for them.
const MAX_SEND_BUF_SIZE: usize = 64 * 1024;
/// Bytes of a body that a client may send before they are read: on one stream, and on all of a connection.
const STREAM_WINDOW_SIZE: u32 = 64 * 1024;
const CONNECTION_WINDOW_SIZE: u32 = 256 * 1024;
/// The interval and the timeout of HTTP/2 pings to a silent peer.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = KEEP_ALIVE_INTERVAL;
/// Bounds the time for which sent bytes may stay unacknowledged.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(25);
/// Bounds the other requests of a connection that ends.
const CLOSE_GRACE: Duration = Duration::from_secs(5);
/// Bounds, after the shutdown signal, the wait for the first request of a new connection.
const SHUTDOWN_ACCEPT_GRACE: Duration = Duration::from_secs(1);
/// Bounds the wait for readiness before the server accepts connections.
const STARTUP_GRACE: Duration = Duration::from_secs(1);
/// The interval between evictions of idle connections while the server is full.
const EVICTION_INTERVAL: Duration = Duration::from_millis(200);
/// The delay after an error of `accept`, such as too many open files.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// Binds the listener and spawns the task that serves `app`.
pub async fn serve(settings: &Settings, app: Router, process: &Process) -> anyhow::Result<()> {
    let addr = settings.listen_addr;
    let listener = TcpListener::bind(addr).await.with_context(|| format!("LISTEN_ADDR {addr}"))?;
    let permits = Arc::new(Semaphore::new(usize::try_from(settings.max_connections)?));
    let timeouts = Timeouts {
        header: settings.header_timeout,
        idle: settings.idle_timeout,
        send: settings.send_timeout,
    };
    let connections = Connections::new(usize::try_from(settings.max_unsent_bytes)?);
    let (server, process) = (Server { builder: builder(timeouts), timeouts, app }, process.clone());
    metrics::gauge!("http_connections").set(0.0);
    for reason in ["head", "idle", "stalled", "unsent", "full"] {
        metrics::counter!("http_connections_closed_total", "reason" => reason).increment(0);
    }
    let shutdown = process.tasks.shutdown_token();
    process.clone().tasks.spawn("http", async move {
        let spawn_connection = |stream, peer, permit| {
            let connection =
                serve_connection(server.clone(), stream, peer, connections.open(timeouts), process.clone());
            process.tasks.track(async move {
                metrics::gauge!("http_connections").increment(1.0);
                connection.await;
                metrics::gauge!("http_connections").decrement(1.0);
                drop(permit);
            });
        };
        // A proxy sends requests to a port that listens. Until the token keys are loaded, the requests wait in the
        // kernel's queue; if auth is unavailable, they get a 503 after the grace period.
        let mut serving = process.readiness.serving();
        tokio::select! {
            _ = timeout(STARTUP_GRACE, serving.wait_for(|serving| *serving)) => {}
            () = shutdown.cancelled() => {}
        }
        loop {
            let accepting =
                async { (acquire_connection_permit(&permits, &connections).await, listener.accept().await) };
            let (permit, accepted) = tokio::select! {
                accepted = accepting => accepted,
                () = shutdown.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => spawn_connection(stream, peer, permit?),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections");
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
        // Connections in the kernel's queue are served: dropping the listener would reset them.
        let listener = listener.into_std()?;
        while let Ok((stream, peer)) = listener.accept()
            && let Ok(permit) = permits.clone().try_acquire_owned()
        {
            stream.set_nonblocking(true)?;
            spawn_connection(TcpStream::from_std(stream)?, peer, permit);
        }
        Ok(())
    });
    Ok(())
}

/// Waits for a connection permit. While there is none, new connections wait in the kernel's queue and idle ones are
/// evicted, which would otherwise keep out liveness probes.
async fn acquire_connection_permit(
    permits: &Arc<Semaphore>,
    connections: &Connections,
) -> Result<OwnedSemaphorePermit, AcquireError> {
    loop {
        if permits.available_permits() == 0 {
            connections.evict_idle();
        }
        if let Ok(permit) = timeout(EVICTION_INTERVAL, permits.clone().acquire_owned()).await {
            return permit;
        }
    }
}

/// The parts that each connection shares. Cheap to clone.
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
        // Counted from the end of the last response; `Activity` has the exact deadlines of heads and idle connections.
        .header_read_timeout(timeouts.idle + timeouts.header)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEADER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
        .max_local_error_reset_streams(MAX_RESET_STREAMS)
        .max_send_buf_size(MAX_SEND_BUF_SIZE)
        .initial_stream_window_size(STREAM_WINDOW_SIZE)
        .initial_connection_window_size(CONNECTION_WINDOW_SIZE)
        .max_header_list_size(u32::try_from(MAX_HEADER_BYTES).unwrap_or(u32::MAX))
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    builder
}

/// Returns the TCP stream below an upgraded connection, with the bytes that were read from it before.
pub fn into_stream(upgraded: Upgraded) -> Option<(TcpStream, Bytes)> {
    let parts = auto::upgrade::downcast::<TokioIo<RecordedStream<TcpStream>>>(upgraded).ok()?;
    // A copy: the buffer that hyper read into has 8 KiB, and would live as long as the socket.
    Some((parts.io.into_inner().stream, Bytes::copy_from_slice(&parts.read_buf)))
}

/// Serves one connection to its end.
async fn serve_connection(
    server: Server,
    stream: TcpStream,
    peer: SocketAddr,
    guard: ConnectionGuard,
    process: Process,
) {
    // With Nagle's algorithm, small responses would wait for an acknowledgement, up to 45 ms.
    let _ = stream.set_nodelay(true);
    // The kernel drops a peer that acknowledges nothing.
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(TCP_USER_TIMEOUT));
    let activity = guard.activity.clone();
    let first_request = CancellationToken::new();
    let service = {
        let (activity, first_request, account) =
            (activity.clone(), first_request.clone(), activity.account.clone());
        let readiness = process.readiness.clone();
        service_fn(move |request: Request<Incoming>| {
            first_request.cancel();
            let active = activity.begin_request(request.version() == Version::HTTP_2);
            handle_request(server.app.clone(), request, peer, readiness.clone(), account.clone(), active)
        })
    };
    let recorded = RecordedStream { stream, activity: activity.clone() };
    let connection = server.builder.serve_connection_with_upgrades(TokioIo::new(recorded), service);
    tokio::pin!(connection);
    let shutdown = process.tasks.shutdown_token();

    let expired = activity.expired();
    tokio::pin!(expired);
    // An error means that the client left or broke the protocol; hyper has responded if possible. The connection is
    // polled first: reads are recorded before the deadlines are checked.
    tokio::select! {
        biased;
        _ = &mut connection => return,
        () = activity.account.evicted() => return,
        () = shutdown.cancelled() => {}
        expired = &mut expired => {
            metrics::counter!("http_connections_closed_total", "reason" => expired.as_str()).increment(1);
            if expired != ExpiredDeadline::Head {
                connection.as_mut().graceful_shutdown();
                let _ = timeout(CLOSE_GRACE.min(server.timeouts.send), connection).await;
            }
            return;
        }
    }
    // hyper closes a connection without a request at once. A proxy that has just connected could not send its request to
    // another gateway any more.
    tokio::select! {
        _ = &mut connection => return,
        () = first_request.cancelled() => {}
        () = tokio::time::sleep(SHUTDOWN_ACCEPT_GRACE) => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        biased;
        _ = &mut connection => {}
        _ = &mut expired => {}
    }
}

async fn handle_request(
    app: Router,
    request: Request<Incoming>,
    peer: SocketAddr,
    readiness: Readiness,
    account: Arc<ConnectionAccount>,
    active: ActiveRequest,
) -> Result<Response<AccountedBody>, Infallible> {
    let mut request = request.map(Body::new);
    let is_http1 = request.version() <= Version::HTTP_11;
    request.extensions_mut().insert(ConnectInfo(peer));
    if !account.has_capacity() {
        request.extensions_mut().insert(SendBacklogFull);
    }
    let mut response = app.oneshot(request).await?;
    // Before the shutdown, keep-alive clients are made to reconnect; a load balancer then picks another gateway.
    if is_http1 && readiness.is_stopping() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| AccountedBody { body, account, _request: active }))
}
