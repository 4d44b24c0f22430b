//! One address of a service: its connection, and the known state of its health.

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

/// Bounds the health check of a service that is well.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);

/// The known state of an address; callers prefer the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Health {
    Well,
    /// An address that is new, and not asked yet.
    Unknown,
    Unwell,
}

impl Health {
    pub(super) const BEST_FIRST: [Self; 3] = [Self::Well, Self::Unknown, Self::Unwell];
}

/// One connection.
#[derive(Debug)]
pub struct Member {
    /// The address; absent for a member that connects to any address of the name.
    pub(super) at: Option<(SocketAddr, Uri)>,
    channel: Channel,
    health: AtomicU8,
    /// The state of an address that was asked for its health and said nothing at all. One that is about to stop still
    /// answers.
    silent: watch::Sender<bool>,
    throttle: LogThrottle,
}

impl Member {
    /// Makes a member that connects to `addr` when it is first used, as the service at `url`. Without an address it
    /// connects wherever the name of `url` leads.
    pub(super) fn connect(addr: Option<SocketAddr>, url: &Uri, tls: &GrpcTls) -> anyhow::Result<Self> {
        let scheme = url.scheme_str().unwrap_or("http");
        let endpoint = match addr {
            Some(addr) => client::endpoint(&format!("{scheme}://{addr}"))?.origin(url.clone()),
            None => client::endpoint(&url.to_string())?,
        };
        let endpoint = match scheme {
            // The certificate is for the name that the settings have, whichever address it led to.
            "https" => endpoint.tls_config(tls.client(host(url)))?,
            _ => endpoint,
        };
        Ok(Self {
            at: addr.map(|addr| (addr, url.clone())),
            channel: endpoint.connect_lazy(),
            health: AtomicU8::new(Health::Unknown as u8),
            silent: watch::Sender::new(false),
            throttle: LogThrottle::default(),
        })
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Ends when the member is silent.
    pub async fn falls_silent(&self) {
        // It cannot fail: the sender lives in here.
        let _ = self.silent.subscribe().wait_for(|silent| *silent).await;
    }

    pub(super) fn addr(&self) -> Option<SocketAddr> {
        self.at.as_ref().map(|(addr, _)| *addr)
    }

    pub(super) fn is(&self, health: Health) -> bool {
        self.health.load(Ordering::Relaxed) == health as u8
    }

    pub(super) fn becomes(&self, health: Health) {
        self.health.store(health as u8, Ordering::Relaxed);
    }

    /// Asks the member for its health; returns whether it is well.
    pub(super) async fn ask(&self) -> bool {
        let mut health = HealthClient::new(self.channel.clone());
        let asked = client::within(HEALTH_TIMEOUT, health.check(HealthCheckRequest::default())).await;
        let silent = asked.as_ref().is_err_and(|error| error.code() == Code::DeadlineExceeded);
        match &asked {
            Ok(_) => _ = self.throttle.reset(),
            Err(status) => self.log(status),
        }
        let well = asked.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving);
        self.silent.send_if_modified(|before| std::mem::replace(before, silent) != silent);
        self.becomes(if well { Health::Well } else { Health::Unwell });
        well
    }

    /// Logs the TLS failure of the connection. An address that does not answer is no news: the readiness of the service
    /// is.
    fn log(&self, status: &Status) {
        let Some(failure) = Failure::find(status) else { return };
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
