//! Validation of a PostgreSQL URL at the start. TLS follows libpq: `sslmode` (`disable`, `prefer`, `require`,
//! `verify-ca`, `verify-full`), `sslrootcert`, `sslcert`, `sslkey`.
//!
//! sqlx differs from libpq: it has no `allow`, verifies nothing with `require` and `sslrootcert`, does not support
//! `sslrootcert=system`, and reads the files only when it connects. `allow` is rejected here; the other differences are
//! removed. sqlx also trusts the system's authorities besides those of `sslrootcert`: only `verify-full` compares names.

use std::str::FromStr as _;

use anyhow::{bail, ensure};
use sqlx::{
    Connection as _,
    postgres::{PgConnectOptions, PgSslMode},
};

use crate::tls::{Failure, File, Identity};

const MODES: [&str; 5] = ["disable", "prefer", "require", "verify-ca", "verify-full"];

/// Parses a URL. Returns an error if it is invalid, or its TLS parameters cannot work.
pub(super) fn parse(url: &str) -> anyhow::Result<PgConnectOptions> {
    const INVALID_URL: &str = "not a PostgreSQL URL (postgres://user:password@host:port/database)";
    // sqlx accepts URLs of other servers, too.
    let is_postgres = url.split_once("://").is_some_and(|(scheme, _)| {
        ["postgres", "postgresql"].iter().any(|expected| scheme.eq_ignore_ascii_case(expected))
    });
    ensure!(is_postgres, INVALID_URL);
    let (address, query) = url.split_once('?').unwrap_or((url, ""));
    let mut parameters: Vec<(String, String)> =
        form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let last = |parameters: &[(String, String)], names: &[&str]| {
        parameters.iter().rfind(|(name, _)| names.contains(&name.as_str())).map(|(_, value)| value.clone())
    };

    let mode = last(&parameters, &["sslmode", "ssl-mode"]);
    if let Some(mode) = &mode {
        ensure!(MODES.contains(&mode.as_str()), "sslmode={mode}: not one of {}", MODES.join(", "));
    }
    let roots = ["sslrootcert", "ssl-root-cert", "ssl-ca"];
    let mut authorities = last(&parameters, &roots);
    let system = authorities.as_deref() == Some("system");
    if system {
        ensure!(
            matches!(mode.as_deref(), None | Some("verify-full")),
            "sslrootcert=system needs sslmode=verify-full: any host can get a certificate for its own name"
        );
        parameters.retain(|(name, _)| !roots.contains(&name.as_str()));
        authorities = None;
    }
    if let Some(file) = File::from_setting("sslrootcert", authorities.as_ref()) {
        file.roots()?;
    }
    let (cert, key) =
        (last(&parameters, &["sslcert", "ssl-cert"]), last(&parameters, &["sslkey", "ssl-key"]));
    Identity::load(("sslcert", cert.as_ref()), ("sslkey", key.as_ref()))?;

    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(&parameters).finish();
    let url = if query.is_empty() { address.to_owned() } else { format!("{address}?{query}") };
    let Ok(options) = PgConnectOptions::from_str(&url) else { bail!(INVALID_URL) };
    Ok(match mode.as_deref() {
        None | Some("verify-full") if system => options.ssl_mode(PgSslMode::VerifyFull),
        Some("require") if authorities.is_some() => options.ssl_mode(PgSslMode::VerifyCa),
        _ => options,
    })
}

/// Describes an error in one line; a TLS failure by its own description instead of the library's.
pub(super) fn describe(error: &sqlx::Error) -> String {
    Failure::from_error(error).map_or_else(|| error.to_string(), |failure| failure.to_string())
}

/// Returns the reason of a permanent TLS failure, which lasts until settings or certificates change.
pub(super) fn permanent_tls_failure(error: &sqlx::Error) -> Option<String> {
    if let sqlx::Error::Tls(error) = error {
        return Some(format!("TLS: {error}"));
    }
    let failure = Failure::from_error(error).filter(|failure| failure.is_permanent())?;
    Some(format!("TLS: {failure}"))
}

/// Logs that `sslmode=prefer`, the default, results in a plaintext connection.
pub(super) async fn log_plain_text(setting: &str, options: &PgConnectOptions) {
    if !matches!(options.get_ssl_mode(), PgSslMode::Prefer) || options.get_socket().is_some() {
        return;
    }
    let required = options.clone().ssl_mode(PgSslMode::Require);
    match super::connect(&required, super::FIRST_CONNECT_TIMEOUT).await {
        Err(sqlx::Error::Tls(_)) => tracing::info!(
            host = options.get_host(),
            "{setting}: PostgreSQL does not speak TLS, and is spoken to in plain text; sslmode=require refuses that"
        ),
        Ok(connection) => drop(connection.close().await),
        // The pool fails with the same error.
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_of_another_database_is_rejected() {
        for url in ["postgres://user:secret@host:5432/shop", "postgresql://host/shop"] {
            assert!(parse(url).is_ok(), "{url}");
        }
        for url in [
            "mysql://user:secret@host/shop",
            "http://host",
            "host:5432",
            "postgres",
            "",
            "postgres://host:x/",
        ] {
            let error = parse(url).unwrap_err().to_string();
            assert!(error.contains("not a PostgreSQL URL") && !error.contains("secret@"), "{error}");
        }
    }

    #[test]
    fn invalid_tls_parameters_are_reported_in_a_line() {
        for (query, line) in [
            ("sslmode=allow", "sslmode=allow: not one of disable, prefer, require, verify-ca, verify-full"),
            ("sslmode=verify-full&sslrootcert=/none/such", "sslrootcert /none/such: No such file"),
            ("sslmode=verify-ca&sslrootcert=/dev/null", "sslrootcert /dev/null: has no certificate in PEM"),
            ("sslcert=/none/such", "sslcert and sslkey belong together: set both or none"),
            ("sslmode=require&sslrootcert=system", "sslrootcert=system needs sslmode=verify-full"),
        ] {
            let error =
                format!("{:#}", parse(&format!("postgres://user:secret@host/shop?{query}")).unwrap_err());
            assert!(error.starts_with(line) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_ssl_mode_is_that_of_libpq() {
        let mode = |query: &str| parse(&format!("postgres://host/shop{query}")).unwrap().get_ssl_mode();
        assert!(matches!(mode(""), PgSslMode::Prefer));
        assert!(matches!(mode("?sslmode=disable&application_name=a%20b"), PgSslMode::Disable));
        assert!(matches!(mode("?sslmode=require"), PgSslMode::Require));
        assert!(matches!(mode("?sslrootcert=system"), PgSslMode::VerifyFull));
    }
}
