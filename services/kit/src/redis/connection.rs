//! The health check of one Redis client: the state of its connection, and the last connect error.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use fred::{
    clients::Client,
    error::Error,
    interfaces::{ClientLike as _, EventInterface as _},
    types::config::Options,
};
use tokio::sync::{broadcast::error::RecvError, watch};

use super::error_class::{self, ErrorClass};
use crate::readiness::Down;

/// Bounds a ping, below the timeout of a readiness check.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// Bounds the wait of a check for the first connect of a new client.
const FIRST_OUTCOME_TIMEOUT: Duration = Duration::from_millis(300);

/// The method of a health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// Sends a PING.
    Ping,
    /// Inspects the state of the client, as a command would wait behind a blocking read.
    State,
}

#[derive(Debug)]
pub(super) struct Connection {
    name: String,
    check: Check,
    client: Mutex<Option<Client>>,
    /// The outcome of the last connect; none before the first.
    outcome: watch::Sender<Option<Result<(), Error>>>,
}

impl Connection {
    pub fn new(name: String, check: Check) -> Self {
        Self { name, check, client: Mutex::default(), outcome: watch::channel(None).0 }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Observes the connects of a new `client`, which replaces an earlier one.
    pub fn observe(&self, client: &Client) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
        let (mut errors, mut connects) = (client.error_rx(), client.reconnect_rx());
        let outcome = self.outcome.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    error = errors.recv() => match error {
                        Ok((error, _)) => {
                            metrics::counter!("redis_errors_total", "class" => ErrorClass::from_error(&error).as_str()).increment(1);
                            outcome.send_replace(Some(Err(error)));
                        }
                        Err(RecvError::Lagged(_)) => {}
                        Err(RecvError::Closed) => return,
                    },
                    connect = connects.recv() => match connect {
                        Ok(_) | Err(RecvError::Lagged(_)) => {
                            outcome.send_replace(Some(Ok(())));
                        }
                        Err(RecvError::Closed) => return,
                    },
                }
            }
        });
    }

    /// Checks that the client is connected.
    pub async fn check(&self) -> Result<(), Down> {
        let mut outcome = self.outcome.subscribe();
        let _ = tokio::time::timeout(FIRST_OUTCOME_TIMEOUT, outcome.wait_for(Option::is_some)).await;
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(client) = client else { return Err(self.down(None)) };
        if !client.is_connected() {
            return Err(self.down(None));
        }
        match self.check {
            Check::State => Ok(()),
            Check::Ping => {
                let ping_options = Options {
                    timeout: Some(PING_TIMEOUT),
                    max_attempts: Some(1),
                    fail_fast: true,
                    ..Options::default()
                };
                let pong = client.with_options(&ping_options).ping::<String>(None).await;
                pong.map(drop).map_err(|error| self.down(Some(error)))
            }
        }
    }

    /// Returns the reason for which the connection is down: the last connect error, else `error`.
    fn down(&self, error: Option<Error>) -> Down {
        let connect_error =
            self.outcome.borrow().as_ref().and_then(|outcome| outcome.as_ref().err().cloned());
        let (class, text) = match connect_error.or(error) {
            Some(error) => {
                (ErrorClass::from_error(&error).description(), error_class::redact(&error).to_owned())
            }
            None => ("connecting", String::new()),
        };
        Down { class, reason: class.to_owned(), detail: text }
    }
}
