//! The way to a shop, in the clear or with TLS as its address says: the same for REST and for sockets.

use std::time::Duration;

use anyhow::Context as _;
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio::net::TcpStream;
use tower::ServiceExt as _;

pub type Connector = HttpsConnector<HttpConnector>;
pub type Wire = TokioIo<MaybeHttpsStream<TokioIo<TcpStream>>>;

/// No network takes longer to let somebody in.
const CONNECT: Duration = Duration::from_secs(5);

/// With TLS the server must be vouched for by an authority that this host trusts, or that SSL_CERT_FILE names.
pub fn connector(url: &str) -> anyhow::Result<Connector> {
    let tls = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()?;
    // Without TLS a host needs no authorities.
    let tls = if url.starts_with("https:") {
        tls.with_native_roots().context("the authorities that this host trusts")?
    } else {
        tls.with_root_certificates(RootCertStore::empty())
    };
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls.with_no_client_auth());
    Ok(builder.https_or_http().enable_http1().wrap_connector(tcp))
}

/// One connection. `ws` and `wss` are the same to it as `http` and `https`.
pub async fn connect(connector: &Connector, url: &http::Uri) -> anyhow::Result<Wire> {
    let connected = connector.clone().oneshot(url.clone()).await;
    Ok(TokioIo::new(connected.map_err(anyhow::Error::from_boxed)?))
}

/// What is at the bottom of an error: what a person can do something about.
pub fn cause(error: &anyhow::Error) -> String {
    let cause = error.root_cause().to_string();
    if cause.contains("certificate") {
        return format!("{cause}; SSL_CERT_FILE may name a file with the authority that issued it");
    }
    cause
}
