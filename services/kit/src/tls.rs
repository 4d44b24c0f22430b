//! TLS configuration: the crypto provider, certificates and keys from files, and the TLS of gRPC servers and clients.
//! [`Failure`] classifies TLS failures of PostgreSQL, Redis and gRPC connections.

pub(crate) mod acceptor;
mod failure;
mod redis;

use std::{
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
    sign::CertifiedKey,
};
use tonic::transport::ClientTlsConfig;

pub use failure::Failure;
pub(crate) use redis::redis;

use crate::settings;

/// Bounds the TLS handshake of a gRPC client. It needs CPU time of the peer, which may be busy.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(1);

/// Installs ring as the crypto provider of the process.
pub fn install_provider() {
    // It fails if one is installed already, such as by another test in the same process.
    let _ = ring::default_provider().install_default();
}

/// A file from a setting. Compose sets a variable without a value to the empty string, which counts as not set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct File<'a> {
    pub setting: &'static str,
    pub path: &'a str,
}

impl<'a> File<'a> {
    pub fn from_setting(setting: &'static str, path: Option<&'a String>) -> Option<Self> {
        path.filter(|path| !path.is_empty()).map(|path| Self { setting, path })
    }

    fn read(self) -> anyhow::Result<Vec<u8>> {
        std::fs::read(Path::new(self.path)).with_context(|| self.to_string())
    }

    /// Reads the certificates in the file; at least one is required.
    pub fn certificates(self) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let pem = self.read()?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let certificates = certificates.with_context(|| format!("{self}: not a certificate in PEM"))?;
        ensure!(!certificates.is_empty(), "{self}: has no certificate in PEM");
        Ok(certificates)
    }

    pub fn key(self) -> anyhow::Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(&self.read()?)
            .map_err(|_| anyhow::anyhow!("{self}: has no private key in PEM"))
    }

    /// Reads the certificates of authorities in the file.
    pub fn roots(self) -> anyhow::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates()? {
            roots.add(certificate).with_context(|| format!("{self}: not a certificate of an authority"))?;
        }
        Ok(roots)
    }
}

impl std::fmt::Display for File<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.setting, self.path)
    }
}

/// A certificate chain with its private key.
#[derive(Debug)]
pub(crate) struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Loads the identity from both settings, or none if neither is set. Returns an error if one is missing, or the key
    /// is not that of the certificate.
    pub fn load(
        (cert_setting, cert): (&'static str, Option<&String>),
        (key_setting, key): (&'static str, Option<&String>),
    ) -> anyhow::Result<Option<Self>> {
        let (cert, key) = match (File::from_setting(cert_setting, cert), File::from_setting(key_setting, key))
        {
            (None, None) => return Ok(None),
            (Some(cert), Some(key)) => (cert, key),
            _ => bail!("{cert_setting} and {key_setting} belong together: set both or none"),
        };
        let identity = Self { chain: cert.certificates()?, key: key.key()? };
        let loaded = CertifiedKey::from_der(
            identity.chain.clone(),
            identity.key.clone_key(),
            &ring::default_provider(),
        );
        loaded.map_err(|_| anyhow::anyhow!("{key}: not the key of the certificate in {cert_setting}"))?;
        Ok(Some(identity))
    }
}

/// Returns the authorities that the system trusts; they are read once.
pub(crate) fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let loaded = rustls_native_certs::load_native_certs();
        for error in loaded.errors {
            tracing::warn!(%error, "certificates of the system");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(loaded.certs);
        roots
    })
}

/// The TLS configuration of gRPC servers and clients; plaintext by default.
#[derive(Clone, Default)]
pub struct GrpcTls {
    server: Option<Arc<ServerConfig>>,
    /// The authorities of https:// services; those of the system if absent.
    roots: Option<Arc<RootCertStore>>,
    /// The certificate and key that are presented to https:// services, in PEM.
    client_identity: Option<Arc<tonic::transport::Identity>>,
}

impl std::fmt::Debug for GrpcTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrpcTls").field("server", &self.server.is_some()).finish_non_exhaustive()
    }
}

impl GrpcTls {
    /// Loads the files. Returns an error if one is invalid.
    pub fn load(settings: &settings::GrpcTls) -> anyhow::Result<Self> {
        let (cert, key) = (settings.grpc_tls_cert_file.as_ref(), settings.grpc_tls_key_file.as_ref());
        let identity = Identity::load(("GRPC_TLS_CERT_FILE", cert), ("GRPC_TLS_KEY_FILE", key))?;
        let authorities = File::from_setting("GRPC_TLS_CA_FILE", settings.grpc_tls_ca_file.as_ref());
        let client_authorities =
            File::from_setting("GRPC_TLS_CLIENT_CA_FILE", settings.grpc_tls_client_ca_file.as_ref());
        ensure!(
            client_authorities.is_none() || identity.is_some(),
            "GRPC_TLS_CLIENT_CA_FILE needs GRPC_TLS_CERT_FILE: callers present certificates over TLS only"
        );
        let client_identity = match (cert, key) {
            (Some(cert), Some(key)) if identity.is_some() => {
                let identity =
                    tonic::transport::Identity::from_pem(std::fs::read(cert)?, std::fs::read(key)?);
                Some(Arc::new(identity))
            }
            _ => None,
        };
        Ok(Self {
            server: identity
                .map(|identity| server_config(identity, client_authorities))
                .transpose()?
                .map(Arc::new),
            roots: authorities.map(File::roots).transpose()?.map(Arc::new),
            client_identity,
        })
    }

    /// Returns the configuration of the server; none for plaintext.
    pub(crate) fn server(&self) -> Option<Arc<ServerConfig>> {
        self.server.clone()
    }

    /// Returns the configuration of a client of a service whose certificate must be for `host`.
    pub(crate) fn client(&self, host: &str) -> ClientTlsConfig {
        let roots = self.roots.as_deref().unwrap_or_else(|| system_roots());
        let config = ClientTlsConfig::new()
            .domain_name(host)
            .timeout(HANDSHAKE_TIMEOUT)
            .trust_anchors(roots.roots.iter().cloned());
        match &self.client_identity {
            Some(identity) => config.identity(identity.as_ref().clone()),
            None => config,
        }
    }
}

fn server_config(identity: Identity, client_authorities: Option<File<'_>>) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match client_authorities {
        Some(file) => {
            let roots = Arc::new(file.roots()?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                .build()
                .with_context(|| file.to_string())?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(identity.chain, identity.key).context("GRPC_TLS_CERT_FILE")?;
    config.alpn_protocols.push(b"h2".to_vec());
    Ok(config)
}
