//! A name resolver: resolves the host of a URL to socket addresses.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use http::Uri;
use tokio::time::timeout;

use super::endpoint::host;

/// Bounds one resolution. A name server on the same network answers in milliseconds; until it does, the current
/// addresses are used. Together with a health check it takes less time than readiness waits.
pub(super) const RESOLVE_TIMEOUT: Duration = Duration::from_millis(400);
/// Bounds the addresses of a name: more than a service has replicas.
const MAX_ADDRESSES: usize = 64;

type ResolveFn = dyn Fn(Uri) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync;

/// A resolver, which tests can replace.
#[derive(Clone)]
pub(super) struct Resolver(Arc<ResolveFn>);

impl Resolver {
    pub(super) fn new(
        resolve: impl Fn(Uri) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(resolve))
    }

    /// Returns the current addresses of the host of `url`.
    pub(super) async fn resolve(&self, url: &Uri) -> io::Result<Vec<SocketAddr>> {
        timeout(RESOLVE_TIMEOUT, self.0(url.clone())).await?
    }
}

impl Default for Resolver {
    /// The resolver of the operating system.
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
