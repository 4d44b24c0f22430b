//! Connections over TLS, for a server.

use std::{io, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::Failure;
use crate::{log_throttle::LogThrottle, tasks::Tasks};

/// Bounds a handshake: two round trips and a few milliseconds of computing. A peer that takes longer is not one of
/// ours.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes at once; more connections wait to be accepted.
const MAX_HANDSHAKES: usize = 128;
/// The pause after a connection could not be accepted, as for want of file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Accepts connections on `listener` until the tasks stop; what is no TLS, or has not the certificate that is asked
/// for, is logged and closed.
pub(crate) fn incoming(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    tasks: &Tasks,
) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> + use<> {
    let (ready, mut accepted) = mpsc::channel(MAX_HANDSHAKES);
    let acceptor = TlsAcceptor::from(config);
    let (places, throttle) = (Arc::new(Semaphore::new(MAX_HANDSHAKES)), Arc::new(LogThrottle::default()));
    let stop = tasks.stopping();
    tasks.spawn("grpc tls", async move {
        loop {
            let place = places.clone().acquire_owned().await?;
            let (stream, peer) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::debug!(%error, "not accepted");
                        tokio::time::sleep(ACCEPT_BACKOFF).await;
                        continue;
                    }
                },
                () = stop.cancelled() => return Ok(()),
            };
            let (acceptor, ready, throttle) = (acceptor.clone(), ready.clone(), throttle.clone());
            tokio::spawn(async move {
                let _place = place;
                // It costs latency only.
                let _ = stream.set_nodelay(true);
                match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                    // Refused where the server has stopped.
                    Ok(Ok(stream)) => drop(ready.send(Ok(stream)).await),
                    // A connection that is closed without a word, as by a probe, is none of TLS.
                    Ok(Err(error)) => {
                        let Some(suppressed) = Failure::find(&error).and_then(|_| throttle.admit()) else {
                            return;
                        };
                        tracing::warn!(%peer, %error, suppressed, "caller refused: TLS");
                    }
                    Err(_elapsed) => tracing::debug!(%peer, "no TLS handshake"),
                }
            });
        }
    });
    stream::poll_fn(move |context| accepted.poll_recv(context))
}
