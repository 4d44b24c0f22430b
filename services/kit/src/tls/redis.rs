//! The TLS configuration of Redis clients.

use std::sync::Arc;

use anyhow::ensure;
use fred::types::config::{TlsConfig, TlsConnector};
use rustls::{ClientConfig, crypto::ring};

use super::{File, Identity, system_roots};
use crate::settings::Redis;

/// Returns the URL without TLS, and the TLS configuration if the URL requires it (`rediss://`, `rediss-sentinel://`,
/// `rediss-cluster://`). With the URL alone, fred would use the system's authorities only.
pub(crate) fn redis(settings: &Redis, url: &str) -> anyhow::Result<(String, Option<TlsConfig>)> {
    let identity = Identity::load(
        ("REDIS_CERT_FILE", settings.redis_cert_file.as_ref()),
        ("REDIS_KEY_FILE", settings.redis_key_file.as_ref()),
    )?;
    let authorities = File::from_setting("REDIS_CA_FILE", settings.redis_ca_file.as_ref());
    let Some(rest) = strip_tls_scheme(url) else {
        ensure!(
            authorities.is_none() && identity.is_none(),
            "REDIS_CA_FILE and REDIS_CERT_FILE are for TLS, which REDIS_URL does not ask for: rediss://"
        );
        return Ok((url.to_owned(), None));
    };
    let roots = authorities.map_or_else(|| Ok(system_roots().clone()), File::roots)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain, identity.key)?,
        None => builder.with_no_client_auth(),
    };
    Ok((format!("redis{rest}"), Some(TlsConnector::from(config).into())))
}

/// Returns the text after `rediss`.
fn strip_tls_scheme(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_at_checked("rediss".len())?;
    (scheme.eq_ignore_ascii_case("rediss") && rest.starts_with([':', '-'])).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_is_used_if_the_url_requires_it() {
        for (url, plain) in [
            ("rediss://user:p@host:1/2", "redis://user:p@host:1/2"),
            ("REDISS://host", "redis://host"),
            ("rediss-sentinel://host?node=a:1", "redis-sentinel://host?node=a:1"),
            ("rediss-cluster://host", "redis-cluster://host"),
        ] {
            let (url, tls) = redis(&Redis::at(url), url).unwrap();
            assert_eq!((url.as_str(), tls.is_some()), (plain, true));
        }
        for url in ["redis://host", "redis-cluster://host", "", "redissimo://host"] {
            let (same, tls) = redis(&Redis::at(url), url).unwrap();
            assert_eq!((same.as_str(), tls.is_some()), (url, false));
        }
    }

    #[test]
    fn an_unusable_file_is_reported_in_a_line() {
        let file = |path: &str| Some(path.to_owned());
        let with = |url: &str, change: &dyn Fn(&mut Redis)| {
            let mut settings = Redis::at(url);
            change(&mut settings);
            format!("{:#}", redis(&settings, url).unwrap_err())
        };
        let ca = with("redis://host", &|settings| settings.redis_ca_file = file("/etc/hostname"));
        assert!(ca.contains("which REDIS_URL does not ask for"), "{ca}");
        let ca = with("rediss://host", &|settings| settings.redis_ca_file = file("/none/such"));
        assert!(ca.starts_with("REDIS_CA_FILE /none/such: No such file"), "{ca}");
        let cert = with("rediss://host", &|settings| settings.redis_cert_file = file("/none/such"));
        assert!(cert.contains("REDIS_CERT_FILE and REDIS_KEY_FILE belong together"), "{cert}");
    }
}
