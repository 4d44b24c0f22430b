//! TLS: the one crypto provider, certificates and keys by file, and gRPC served and called with them. [`Failure`] names
//! the reason for which a connection fails, for PostgreSQL, Redis and gRPC alike.

mod failure;
pub(crate) mod incoming;
mod redis;

use std::{
    path::Path,
    sync::{Arc, OnceLock},
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

use crate::{client, settings};

/// Makes ring the crypto provider of the process, whichever library asks for one.
pub fn install_provider() {
    // Refused where one is installed already, as by another test of the same process.
    let _ = ring::default_provider().install_default();
}

/// A file that a setting names; one that is set to nothing, as Compose does it, is not set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct File<'a> {
    pub setting: &'static str,
    pub path: &'a str,
}

impl<'a> File<'a> {
    pub fn given(setting: &'static str, path: Option<&'a String>) -> Option<Self> {
        path.filter(|path| !path.is_empty()).map(|path| Self { setting, path })
    }

    fn read(self) -> anyhow::Result<Vec<u8>> {
        std::fs::read(Path::new(self.path)).with_context(|| self.to_string())
    }

    /// Reads the certificates in the file, of which there is at least one.
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

    /// Reads the authorities in the file.
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

/// A certificate with the authorities between it and a root, and its key.
#[derive(Debug)]
pub(crate) struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Identity {
    /// The identity that both settings name, or none; an error where one is missing, or they do not belong together.
    pub fn load(
        (cert_setting, cert): (&'static str, Option<&String>),
        (key_setting, key): (&'static str, Option<&String>),
    ) -> anyhow::Result<Option<Self>> {
        let (cert, key) = match (File::given(cert_setting, cert), File::given(key_setting, key)) {
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

/// The authorities that the system trusts; read once.
pub(crate) fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in found.errors {
            tracing::warn!(%error, "certificates of the system");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        roots
    })
}

/// The TLS of gRPC, served and called: plain text unless the settings say otherwise. Cheap to clone.
#[derive(Clone, Default)]
pub struct GrpcTls {
    server: Option<Arc<ServerConfig>>,
    /// The authorities of https:// services; the system's where absent.
    roots: Option<Arc<RootCertStore>>,
    /// The certificate and key presented to https:// services, in PEM.
    presented: Option<Arc<tonic::transport::Identity>>,
}

impl std::fmt::Debug for GrpcTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrpcTls").field("server", &self.server.is_some()).finish_non_exhaustive()
    }
}

impl GrpcTls {
    /// Reads the files; an error where one cannot be used.
    pub fn load(settings: &settings::GrpcTls) -> anyhow::Result<Self> {
        let (cert, key) = (settings.grpc_tls_cert_file.as_ref(), settings.grpc_tls_key_file.as_ref());
        let identity = Identity::load(("GRPC_TLS_CERT_FILE", cert), ("GRPC_TLS_KEY_FILE", key))?;
        let authorities = File::given("GRPC_TLS_CA_FILE", settings.grpc_tls_ca_file.as_ref());
        let of_clients = File::given("GRPC_TLS_CLIENT_CA_FILE", settings.grpc_tls_client_ca_file.as_ref());
        ensure!(
            of_clients.is_none() || identity.is_some(),
            "GRPC_TLS_CLIENT_CA_FILE needs GRPC_TLS_CERT_FILE: callers present certificates over TLS only"
        );
        let presented = match (cert, key) {
            (Some(cert), Some(key)) if identity.is_some() => {
                let identity =
                    tonic::transport::Identity::from_pem(std::fs::read(cert)?, std::fs::read(key)?);
                Some(Arc::new(identity))
            }
            _ => None,
        };
        Ok(Self {
            server: identity.map(|identity| server(identity, of_clients)).transpose()?.map(Arc::new),
            roots: authorities.map(File::roots).transpose()?.map(Arc::new),
            presented,
        })
    }

    /// Returns the configuration that accepts connections; absent for plain text.
    pub(crate) fn server(&self) -> Option<Arc<ServerConfig>> {
        self.server.clone()
    }

    /// Returns the configuration that calls a service whose certificate must be for `host`.
    pub(crate) fn client(&self, host: &str) -> ClientTlsConfig {
        let roots = self.roots.as_deref().unwrap_or_else(|| system_roots());
        let config = ClientTlsConfig::new()
            .domain_name(host)
            .timeout(client::TLS_TIMEOUT)
            .trust_anchors(roots.roots.iter().cloned());
        match &self.presented {
            Some(identity) => config.identity(identity.as_ref().clone()),
            None => config,
        }
    }
}

fn server(identity: Identity, of_clients: Option<File<'_>>) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match of_clients {
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
