//! Connections over TLS, for a server.

use std::{io, sync::Arc};

use rustls::ServerConfig;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::Failure;
use crate::{listener::Connection, log_throttle::LogThrottle};

/// Makes the handshake of TLS on each connection. What is no TLS, or has not the certificate that is asked for, is
/// logged.
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
        let accepted = self.acceptor.accept(connection).await;
        // A connection that is closed without a word, as by a probe, is none of TLS.
        if let Err(error) = &accepted
            && Failure::find(error).is_some()
            && let Some(suppressed) = self.throttle.admit()
        {
            tracing::warn!(%peer, %error, suppressed, "caller refused: TLS");
        }
        accepted
    }
}
