//! The listening socket. axum's own loop knows no time limits; this one closes whoever is slow to send the
//! head of a request, bounds how many connections there are and what HTTP/2 may ask for, and ends each
//! politely at a stop.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{Router, body::Body, extract::ConnectInfo};
use http::{HeaderValue, Request, Response, StatusCode, Version, header::CONNECTION};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use shoppee_kit::{process::Process, readiness::Readiness};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::Settings;

/// Head of a request: a token, an ETag, an idempotency key, a long query. More is 431.
const LARGEST_HEAD: usize = 32 * 1024;
/// Headers of one request; more is 431.
const MOST_HEADERS: usize = 64;
/// Requests at once on one HTTP/2 connection.
const STREAMS: u32 = 128;
/// Streams that a client opened and reset before they were looked at; more ends the connection
/// (CVE-2023-44487).
const RESETS: usize = 32;
/// Answers that wait to be sent on one HTTP/2 connection. Bytes.
const UNSENT: usize = 256 * 1024;
/// How soon a silent HTTP/2 peer is asked whether it is still there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(20);
/// How long a client may leave what it is sent lying.
const SLOW_READER: Duration = Duration::from_secs(25);
/// After the stop, how long a request that is on its way to a connection may take to arrive.
const ON_ITS_WAY: Duration = Duration::from_secs(1);
/// How long a start may take until requests are answered, whatever is still missing.
const STARTING: Duration = Duration::from_secs(1);
/// After an error of `accept`, as when files run out.
const PAUSE: Duration = Duration::from_millis(50);

/// Starts to serve `app`.
pub async fn serve(settings: &Settings, app: Router, process: &Process) -> anyhow::Result<()> {
    let addr = settings.listen_addr;
    let listener = TcpListener::bind(addr).await.with_context(|| format!("LISTEN_ADDR {addr}"))?;
    let connections = Arc::new(Semaphore::new(usize::try_from(settings.max_connections)?));
    let patience = settings.header_timeout;
    let (builder, process) = (builder(patience), process.clone());
    metrics::gauge!("http_connections").set(0.0);
    let stop = process.tasks.stopping();
    process.clone().tasks.spawn("http", async move {
        let begin = |stream, peer, place| {
            let connection =
                connection(builder.clone(), stream, peer, app.clone(), patience, process.clone());
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
            _ = tokio::time::timeout(STARTING, serving.wait_for(|serving| *serving)) => {}
            () = stop.cancelled() => {}
        }
        loop {
            // No more are accepted than can be held: the rest waits in the kernel's queue.
            let accepting = async { (connections.clone().acquire_owned().await, listener.accept().await) };
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

fn builder(patience: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_headers(MOST_HEADERS)
        .max_buf_size(LARGEST_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(RESETS)
        .max_send_buf_size(UNSENT)
        .max_header_list_size(u32::try_from(LARGEST_HEAD).unwrap_or(u32::MAX))
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
}

/// Serves one connection to its end.
async fn connection(
    builder: auto::Builder<TokioExecutor>,
    stream: TcpStream,
    peer: SocketAddr,
    app: Router,
    patience: Duration,
    process: Process,
) {
    // Small answers would wait for an acknowledgement otherwise, up to 45 ms.
    let _ = stream.set_nodelay(true);
    // The kernel gives up on a peer that takes nothing of what it is sent.
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(SLOW_READER));
    let begun = CancellationToken::new();
    let service = {
        let begun = begun.clone();
        let readiness = process.readiness.clone();
        service_fn(move |request: Request<Incoming>| {
            begun.cancel();
            answer(app.clone(), request, peer, readiness.clone())
        })
    };
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let stop = process.tasks.stopping();

    // hyper's own limit begins with the first byte of HTTP/1; this one covers a peer that says nothing at
    // all.
    let silent = async {
        if tokio::time::timeout(patience, begun.cancelled()).await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    tokio::pin!(silent);
    // An error is a client that went away or talked nonsense; hyper has answered what can be answered.
    tokio::select! {
        _ = &mut connection => return,
        () = &mut silent => return,
        () = stop.cancelled() => {}
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
        _ = &mut connection => {}
        () = &mut silent => {}
    }
}

async fn answer(
    app: Router,
    request: Request<Incoming>,
    peer: SocketAddr,
    readiness: Readiness,
) -> Result<Response<Body>, Infallible> {
    let mut request = request.map(Body::new);
    let is_http1 = request.version() <= Version::HTTP_11;
    request.extensions_mut().insert(ConnectInfo(peer));
    let mut response = app.oneshot(request).await?;
    // Before the stop, clients that keep their connection are made to come back on another one, which a load balancer
    // gives to another gateway.
    if is_http1 && readiness.is_stopping() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}
