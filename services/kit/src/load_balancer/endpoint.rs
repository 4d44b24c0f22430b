//! An endpoint of a service: the connection to one address, and its last known health.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use http::Uri;
use tokio::sync::watch;
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    client,
    log_throttle::LogThrottle,
    tls::{Failure, GrpcTls},
};

/// Bounds a health check.
const HEALTH_CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// The last known health of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Health {
    Healthy,
    /// A new endpoint, before its first health check.
    Unknown,
    Unhealthy,
}

impl Health {
    pub(super) const BEST_FIRST: [Self; 3] = [Self::Healthy, Self::Unknown, Self::Unhealthy];
}

/// An endpoint with its connection.
#[derive(Debug)]
pub struct Endpoint {
    /// The address with its URL; absent for an endpoint that connects to any address of a name.
    pub(super) at: Option<(SocketAddr, Uri)>,
    channel: Channel,
    health: AtomicU8,
    /// True if the last health check timed out. An endpoint that is shutting down still answers.
    unresponsive: watch::Sender<bool>,
    throttle: LogThrottle,
}

impl Endpoint {
    /// Creates an endpoint that connects to `addr` on first use, as the service at `url`. Without an address it connects
    /// to any address of the host of `url`.
    pub(super) fn connect(addr: Option<SocketAddr>, url: &Uri, tls: &GrpcTls) -> anyhow::Result<Self> {
        let scheme = url.scheme_str().unwrap_or("http");
        let endpoint = match addr {
            Some(addr) => client::endpoint(&format!("{scheme}://{addr}"))?.origin(url.clone()),
            None => client::endpoint(&url.to_string())?,
        };
        let endpoint = match scheme {
            // The certificate is for the host in the settings, whichever address it resolves to.
            "https" => endpoint.tls_config(tls.client(host(url)))?,
            _ => endpoint,
        };
        Ok(Self {
            at: addr.map(|addr| (addr, url.clone())),
            channel: endpoint.connect_lazy(),
            health: AtomicU8::new(Health::Unknown as u8),
            unresponsive: watch::Sender::new(false),
            throttle: LogThrottle::default(),
        })
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Waits until the endpoint is unresponsive: its last health check timed out.
    pub async fn wait_unresponsive(&self) {
        // The sender lives as long as `self`, so that the wait cannot fail.
        let _ = self.unresponsive.subscribe().wait_for(|unresponsive| *unresponsive).await;
    }

    pub(super) fn addr(&self) -> Option<SocketAddr> {
        self.at.as_ref().map(|(addr, _)| *addr)
    }

    pub(super) fn has_health(&self, health: Health) -> bool {
        self.health.load(Ordering::Relaxed) == health as u8
    }

    pub(super) fn set_health(&self, health: Health) {
        self.health.store(health as u8, Ordering::Relaxed);
    }

    /// Checks the health of the endpoint (`grpc.health.v1`). Returns whether it is healthy.
    pub(super) async fn check_health(&self) -> bool {
        let mut client = HealthClient::new(self.channel.clone());
        let check = client.check(HealthCheckRequest::default());
        let response = client::with_deadline(HEALTH_CHECK_TIMEOUT, check).await;
        let unresponsive = response.as_ref().is_err_and(|error| error.code() == Code::DeadlineExceeded);
        match &response {
            Ok(_) => _ = self.throttle.reset(),
            Err(status) => self.log_tls_failure(status),
        }
        let healthy = response.is_ok_and(|response| response.into_inner().status() == ServingStatus::Serving);
        self.unresponsive.send_if_modified(|before| std::mem::replace(before, unresponsive) != unresponsive);
        self.set_health(if healthy { Health::Healthy } else { Health::Unhealthy });
        healthy
    }

    /// Logs a TLS failure of the connection. An address that does not answer is not logged here, but by the readiness
    /// check of the service.
    fn log_tls_failure(&self, status: &Status) {
        let Some(failure) = Failure::from_error(status) else { return };
        let Some(suppressed) = self.throttle.admit() else { return };
        let (addr, url) = self.at.as_ref().map_or((None, None), |(addr, url)| (Some(addr), Some(url)));
        tracing::warn!(
            url = url.map(tracing::field::display),
            addr = addr.map(tracing::field::display),
            suppressed,
            "service not called: {failure}"
        );
    }
}

pub(super) fn host(url: &Uri) -> &str {
    url.host().unwrap_or_default().trim_matches(['[', ']'])
}
