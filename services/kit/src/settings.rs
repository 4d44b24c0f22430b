//! Settings that several processes share, and parsers of their values. Each setting is an environment variable and a
//! flag; its doc comment is its help text.

use std::time::Duration;

use clap::{Args, ValueEnum};
use secrecy::SecretString;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Environment {
    Production,
    /// On a developer's machine: example secrets are accepted, and a shutdown does not wait for load balancers.
    Development,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Json,
    Pretty,
}

/// The settings of every process.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Which safeguards apply
    #[arg(long, env = "SHOPPEE_ENV", default_value = "production")]
    pub shoppee_env: Environment,
    /// Log filter, as in `info,shoppee_order=debug`
    #[arg(long, env = "LOG", default_value = "info")]
    pub log: String,
    #[arg(long, env = "LOG_FORMAT", default_value = "json")]
    pub log_format: LogFormat,
    /// The OTLP/gRPC endpoint that traces are exported to; not set: none are exported
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otel_exporter_otlp_endpoint: Option<String>,
    /// The share of traces that are sampled, from 0 to 1. It applies to those that start in this process or come from an
    /// untrusted client
    #[arg(long, env = "TRACE_SAMPLE_RATIO", default_value = "1", value_parser = share)]
    pub trace_sample_ratio: f64,
    /// The delay between "not ready" and the end of serving at a shutdown, for load balancers to notice; 5s in
    /// production, none in development
    #[arg(long, env = "SHUTDOWN_LAG", value_parser = duration)]
    pub shutdown_lag: Option<Duration>,
    /// Probes the running process with the same settings instead of starting one, and exits with 0 if it is ready; for
    /// health checks of containers
    #[arg(long)]
    pub probe: bool,
    #[command(flatten)]
    pub grpc_tls: GrpcTls,
}

/// The TLS settings of gRPC between processes. Files are PEM, and read at the start.
#[derive(Clone, Debug, Default, Args)]
pub struct GrpcTls {
    /// The certificate chain of this process. A service with it serves gRPC over TLS, else in plaintext; a client of
    /// https:// services presents it to them
    #[arg(long, env = "GRPC_TLS_CERT_FILE", value_name = "FILE")]
    pub grpc_tls_cert_file: Option<String>,
    /// The private key of GRPC_TLS_CERT_FILE
    #[arg(long, env = "GRPC_TLS_KEY_FILE", value_name = "FILE")]
    pub grpc_tls_key_file: Option<String>,
    /// The authorities that sign the certificates of https:// services; not set: those of the system
    #[arg(long, env = "GRPC_TLS_CA_FILE", value_name = "FILE")]
    pub grpc_tls_ca_file: Option<String>,
    /// The authorities that sign the certificates of callers; if set, a service requires a certificate of its callers
    #[arg(long, env = "GRPC_TLS_CLIENT_CA_FILE", value_name = "FILE")]
    pub grpc_tls_client_ca_file: Option<String>,
}

/// The shutdown delay in production: the time in which Kubernetes removes an endpoint from every proxy.
const DEFAULT_SHUTDOWN_LAG: Duration = Duration::from_secs(5);

impl Common {
    pub fn shutdown_lag(&self) -> Duration {
        self.shutdown_lag.unwrap_or(match self.shoppee_env {
            Environment::Production => DEFAULT_SHUTDOWN_LAG,
            Environment::Development => Duration::ZERO,
        })
    }
}

/// The settings of a process with a schema in PostgreSQL.
#[derive(Clone, Debug, Args)]
pub struct Postgres {
    /// postgres://role:password@host:port/database, with the role of the service. TLS as in
    /// ?sslmode=verify-full&sslrootcert=ca.pem; also sslmode=disable, prefer (the default), require, verify-ca, and
    /// sslcert and sslkey for a client certificate
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_parser = secret)]
    pub database_url: SecretString,
    /// The maximum number of connections of this process; the sum over all processes must stay below the server's
    /// max_connections
    #[arg(long, env = "DATABASE_POOL_SIZE", default_value_t = 16)]
    pub database_pool_size: u32,
}

#[derive(Clone, Debug, Args)]
pub struct Redis {
    /// `redis://[user:password@]host:port[/db]`, with TLS `rediss://`; also `redis-sentinel://` and `redis-cluster://`,
    /// with TLS `rediss-sentinel://` and `rediss-cluster://`
    #[arg(long, env = "REDIS_URL", hide_env_values = true, value_parser = secret)]
    pub redis_url: SecretString,
    /// The authorities that sign the certificate of Redis, PEM; not set: those of the system
    #[arg(long, env = "REDIS_CA_FILE", value_name = "FILE")]
    pub redis_ca_file: Option<String>,
    /// The certificate chain that this process presents to Redis, PEM
    #[arg(long, env = "REDIS_CERT_FILE", value_name = "FILE")]
    pub redis_cert_file: Option<String>,
    /// The private key of REDIS_CERT_FILE
    #[arg(long, env = "REDIS_KEY_FILE", value_name = "FILE")]
    pub redis_key_file: Option<String>,
}

impl Redis {
    /// Returns the settings of a Redis at `url`, with the system's authorities.
    pub fn at(url: impl Into<String>) -> Self {
        Self {
            redis_url: SecretString::from(url.into()),
            redis_ca_file: None,
            redis_cert_file: None,
            redis_key_file: None,
        }
    }
}

/// The settings of a process with an audit log.
#[derive(Clone, Debug, Args)]
pub struct AuditLog {
    /// The time after which an audit record is deleted, at least a day
    #[arg(long, env = "AUDIT_RETENTION", default_value = "400d", value_parser = audit_retention)]
    pub audit_retention: Duration,
}

impl Default for AuditLog {
    fn default() -> Self {
        Self { audit_retention: Duration::from_hours(400 * 24) }
    }
}

/// The lower bound of the retention of audit records: a shorter one is a mistake.
const MIN_AUDIT_RETENTION: Duration = Duration::from_hours(24);

fn audit_retention(value: &str) -> Result<Duration, String> {
    let retention = duration(value)?;
    if retention >= MIN_AUDIT_RETENTION { Ok(retention) } else { Err("less than a day".to_owned()) }
}

/// The client credentials of a process that calls other services in its own name.
#[derive(Clone, Debug, Args)]
pub struct ServiceClient {
    /// The gRPC URL of the auth service; calls are balanced over a list with commas, and over all addresses of a name
    #[arg(long, env = "AUTH_URL", default_value = "http://127.0.0.1:50051", value_parser = service_urls)]
    pub auth_url: String,
    /// The name of this service in the SERVICE_CLIENTS of the auth service
    #[arg(long, env = "SERVICE_CLIENT_ID")]
    pub service_client_id: String,
    #[arg(long, env = "SERVICE_CLIENT_SECRET", hide_env_values = true, value_parser = secret)]
    pub service_client_secret: SecretString,
}

/// Validates the gRPC URLs of a service: `http://auth:50051`, with TLS `https://auth:50051`, or a list with commas.
pub fn service_urls(value: &str) -> Result<String, String> {
    let urls = value.split(',').map(|url| {
        let url = url.trim().trim_end_matches('/');
        let uri: http::Uri = url.parse().map_err(|_| "not a URL".to_owned())?;
        match (uri.scheme_str(), uri.host()) {
            (Some("http" | "https"), Some(_)) if matches!(uri.path(), "" | "/") && uri.query().is_none() => {
                Ok(url)
            }
            _ => Err("not a URL such as http://127.0.0.1:50051 or https://auth:50051".to_owned()),
        }
    });
    Ok(urls.collect::<Result<Vec<_>, String>>()?.join(","))
}

/// Parses a duration, such as `5s`, `15m`, `24h`.
pub fn duration(value: &str) -> Result<Duration, String> {
    humantime::parse_duration(value).map_err(|_| "not a duration such as 5s, 15m or 24h".to_owned())
}

/// Parses a number from 0 to 1.
pub fn share(value: &str) -> Result<f64, String> {
    let share = value.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "not a number from 0 to 1".to_owned())
}

/// Parses a secret. Error messages do not repeat it.
pub fn secret(value: &str) -> Result<SecretString, String> {
    if value.is_empty() { Err("empty".to_owned()) } else { Ok(SecretString::from(value)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retention_of_audit_records_is_at_least_a_day() {
        assert_eq!(audit_retention("400d"), Ok(AuditLog::default().audit_retention));
        assert_eq!(audit_retention("24h"), Ok(MIN_AUDIT_RETENTION));
        for invalid in ["23h", "0s", "forever", "-1d", ""] {
            assert!(audit_retention(invalid).is_err(), "{invalid}");
        }
    }
}
