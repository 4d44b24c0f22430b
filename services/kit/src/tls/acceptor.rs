//! A TLS acceptor: performs the server side of the handshake.

use std::{io, sync::Arc};

use rustls::ServerConfig;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::Failure;
use crate::{listener::Connection, log_throttle::LogThrottle};

/// An acceptor that logs failed handshakes, such as of callers without the required certificate.
#[derive(Clone)]
pub(crate) struct Acceptor {
    acceptor: TlsAcceptor,
    throttle: Arc<LogThrottle>,
}

impl Acceptor {
    pub(crate) fn new(config: Arc<ServerConfig>) -> Self {
        Self { acceptor: TlsAcceptor::from(config), throttle: Arc::default() }
    }

    pub(crate) async fn accept(self, connection: Connection) -> io::Result<TlsStream<Connection>> {
        let peer = connection.peer();
        let outcome = self.acceptor.accept(connection).await;
        // A connection that closes without sending, such as of a probe, is not a TLS failure.
        if let Err(error) = &outcome
            && Failure::from_error(error).is_some()
            && let Some(suppressed) = self.throttle.admit()
        {
            tracing::warn!(%peer, %error, suppressed, "caller refused: TLS");
        }
        outcome
    }
}
