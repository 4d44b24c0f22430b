//! The transport of REST requests and WebSockets: TCP, or TLS if the URL asks for it.

use std::time::Duration;

use anyhow::Context as _;
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio::net::TcpStream;
use tower::ServiceExt as _;

pub type Connector = HttpsConnector<HttpConnector>;
pub type Connection = TokioIo<MaybeHttpsStream<TokioIo<TcpStream>>>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Builds a connector. With TLS, the server's certificate must be signed by an authority of this host or of SSL_CERT_FILE.
pub fn connector(url: &str) -> anyhow::Result<Connector> {
    let tls = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()?;
    // Plain HTTP needs no authorities, which a host may lack.
    let tls = if url.starts_with("https:") {
        tls.with_native_roots().context("the authorities that this host trusts")?
    } else {
        tls.with_root_certificates(RootCertStore::empty())
    };
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls.with_no_client_auth());
    Ok(builder.https_or_http().enable_http1().wrap_connector(tcp))
}

/// Opens a connection. `ws` and `wss` mean the same as `http` and `https`.
pub async fn connect(connector: &Connector, url: &http::Uri) -> anyhow::Result<Connection> {
    let connection = connector.clone().oneshot(url.clone()).await;
    Ok(TokioIo::new(connection.map_err(anyhow::Error::from_boxed)?))
}

/// Returns the root cause of an error, with a hint for a certificate that is not trusted.
pub fn root_cause(error: &anyhow::Error) -> String {
    let cause = error.root_cause().to_string();
    if cause.contains("certificate") {
        return format!("{cause}; SSL_CERT_FILE may name a file with the authority that issued it");
    }
    cause
}
