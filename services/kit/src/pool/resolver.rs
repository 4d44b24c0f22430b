//! Resolves the name in a URL to addresses.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use http::Uri;
use tokio::time::timeout;

use super::member::host;

/// Bounds a look-up. A name server on the same network answers in milliseconds; the known addresses are used until it
/// does. With the time of a health check it is below the time that readiness waits.
pub(super) const LOOK_UP_TIMEOUT: Duration = Duration::from_millis(400);
/// Bounds the addresses of a name: more than a service has replicas.
const MAX_ADDRESSES: usize = 64;

type LookUp = dyn Fn(Uri) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync;

/// Looks names up; in tests, where they say.
#[derive(Clone)]
pub(super) struct Resolver(Arc<LookUp>);

impl Resolver {
    pub(super) fn new(
        look_up: impl Fn(Uri) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(look_up))
    }

    /// The addresses that the name of `url` has now.
    pub(super) async fn look_up(&self, url: &Uri) -> io::Result<Vec<SocketAddr>> {
        timeout(LOOK_UP_TIMEOUT, self.0(url.clone())).await?
    }
}

impl Default for Resolver {
    /// The resolver of the system.
    fn default() -> Self {
        Self::new(|url| {
            Box::pin(async move {
                let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
                Ok(tokio::net::lookup_host((host(&url), port)).await?.take(MAX_ADDRESSES).collect())
            })
        })
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}
