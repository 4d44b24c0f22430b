//! The settings of the auth service, and their validation.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use secrecy::{ExposeSecret as _, SecretString};
use shoppee_kit::{
    caller::MAX_TOKEN_LIFETIME,
    settings::{self, Common, Environment},
};

use crate::{
    account::{Email, Password, Username},
    service_client::ServiceClients,
};

/// The example value of the documentation, which is rejected outside development.
pub const EXAMPLE_SECRET: &str = "change-me-change-me-change-me-change-me";
/// The minimum length of a signing secret, which is the size of the derived key.
const MIN_SECRET_BYTES: usize = 32;
/// The minimum length of a client secret outside development, as attempts are not limited.
const MIN_CLIENT_SECRET_CHARS: usize = 16;
/// The minimum length of the initial admin's password outside development, as the account has all permissions.
const MIN_ADMIN_PASSWORD_CHARS: usize = 12;
/// The markers of example secrets, ignoring case, which are rejected outside development.
const EXAMPLE_MARKERS: [&str; 2] = ["change-me", "changeme"];
/// The maximum lifetime of an access token, which verifiers enforce too.
const MAX_ACCESS_TOKEN_TTL: Duration = Duration::from_secs(MAX_TOKEN_LIFETIME.unsigned_abs());
/// The maximum lifetime of a refresh token, so that all computed times fit into the database's type.
const MAX_REFRESH_TOKEN_TTL: Duration = Duration::from_hours(10 * 366 * 24);

/// Accounts, sessions and tokens of the shop
#[derive(Clone, Debug, Parser)]
#[command(name = "shoppee-auth")]
pub struct Settings {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub postgres: settings::Postgres,
    #[command(flatten)]
    pub redis: settings::Redis,
    /// The address of the gRPC server
    #[arg(long, env = "LISTEN_ADDR", default_value = "0.0.0.0:50051")]
    pub listen_addr: SocketAddr,
    /// The address of /metrics, /healthz and /readyz
    #[arg(long, env = "METRICS_ADDR", default_value = "0.0.0.0:9101")]
    pub metrics_addr: SocketAddr,
    /// Serves gRPC reflection
    #[arg(long, env = "GRPC_REFLECTION", default_value_t = false, action = clap::ArgAction::Set)]
    pub grpc_reflection: bool,
    /// The secret of the signing key: at least 32 random bytes, as from `openssl rand -base64 48`
    #[arg(long, env = "JWT_SECRET", hide_env_values = true, value_parser = settings::secret)]
    pub jwt_secret: SecretString,
    /// The previous JWT_SECRET, whose tokens stay valid
    #[arg(long, env = "JWT_SECRET_PREVIOUS", hide_env_values = true)]
    pub jwt_secret_previous: Option<SecretString>,
    /// The lifetime of an access token; at most 7d
    #[arg(long, env = "ACCESS_TOKEN_TTL", default_value = "24h", value_parser = settings::duration)]
    pub access_token_ttl: Duration,
    /// The time after which a session expires without a refresh
    #[arg(long, env = "REFRESH_TOKEN_TTL", default_value = "30d", value_parser = settings::duration)]
    pub refresh_token_ttl: Duration,
    /// The username of the initial admin, whose account is created at start unless the name or the address exists
    #[arg(long, env = "ADMIN_USERNAME")]
    pub admin_username: Option<String>,
    #[arg(long, env = "ADMIN_EMAIL")]
    pub admin_email: Option<String>,
    #[arg(long, env = "ADMIN_PASSWORD", hide_env_values = true)]
    pub admin_password: Option<SecretString>,
    /// Services that may fetch tokens of their own: `order=secret,other=secret`
    #[arg(long, env = "SERVICE_CLIENTS", hide_env_values = true)]
    pub service_clients: Option<SecretString>,
    /// The number of concurrent password hashes, each with 19 MiB and a core; by default the number of cores. A lower
    /// number leaves more of the machine to other work during many sign-ins
    #[arg(long, env = "PASSWORD_HASHES", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub password_hashes: Option<u16>,
    #[command(flatten)]
    pub audit_log: settings::AuditLog,
}

impl shoppee_kit::lifecycle::Settings for Settings {
    fn common(&self) -> &Common {
        &self.common
    }

    fn ops_addr(&self) -> Option<SocketAddr> {
        Some(self.metrics_addr)
    }
}

/// The account that ADMIN_USERNAME, ADMIN_EMAIL and ADMIN_PASSWORD describe.
#[derive(Clone, Debug)]
pub struct InitialAdmin {
    pub username: Username,
    pub email: Email,
    pub password: Password,
}

/// The secrets that keys are derived from.
#[derive(Clone, Debug)]
pub struct KeySecrets {
    pub current: SecretString,
    pub previous: Option<SecretString>,
}

impl Settings {
    /// Validates the secrets. An error names the setting, and never shows the secret.
    pub fn key_secrets(&self) -> anyhow::Result<KeySecrets> {
        self.check_secret("JWT_SECRET", &self.jwt_secret)?;
        let previous = non_empty(self.jwt_secret_previous.as_ref());
        if let Some(previous) = previous {
            self.check_secret("JWT_SECRET_PREVIOUS", previous)?;
        }
        Ok(KeySecrets { current: self.jwt_secret.clone(), previous: previous.cloned() })
    }

    fn check_secret(&self, name: &str, secret: &SecretString) -> anyhow::Result<()> {
        let secret = secret.expose_secret();
        ensure!(secret.len() >= MIN_SECRET_BYTES, "{name} is shorter than {MIN_SECRET_BYTES} bytes");
        ensure!(
            !is_example(secret) || self.is_development(),
            "{name} is the example value; set one of your own, as from `openssl rand -base64 48`"
        );
        Ok(())
    }

    /// Validates the lifetimes of access and refresh tokens.
    pub fn lifetimes(&self) -> anyhow::Result<(time::Duration, time::Duration)> {
        let lifetime = |name: &str, value: Duration, max: Duration, max_text: &str| {
            let is_valid = (Duration::from_secs(1)..=max).contains(&value);
            ensure!(is_valid, "{name} is not between 1s and {max_text}");
            // Claims have whole seconds.
            time::Duration::try_from(Duration::from_secs(value.as_secs())).context(name.to_owned())
        };
        Ok((
            lifetime("ACCESS_TOKEN_TTL", self.access_token_ttl, MAX_ACCESS_TOKEN_TTL, "7 days")?,
            lifetime("REFRESH_TOKEN_TTL", self.refresh_token_ttl, MAX_REFRESH_TOKEN_TTL, "10 years")?,
        ))
    }

    /// Validates the settings of the initial admin: all three, or none.
    pub fn initial_admin(&self) -> anyhow::Result<Option<InitialAdmin>> {
        let text = |setting: &Option<String>| setting.clone().filter(|text| !text.is_empty());
        let password = non_empty(self.admin_password.as_ref());
        let (username, email, password) =
            match (text(&self.admin_username), text(&self.admin_email), password) {
                (None, None, None) => return Ok(None),
                (Some(username), Some(email), Some(password)) => (username, email, password),
                _ => bail!(
                    "ADMIN_USERNAME, ADMIN_EMAIL and ADMIN_PASSWORD belong together: set all three or none"
                ),
            };
        if !self.is_development() {
            let password = password.expose_secret();
            ensure!(!is_example(password), "ADMIN_PASSWORD is the example value; set one of your own");
            ensure!(
                password.chars().count() >= MIN_ADMIN_PASSWORD_CHARS,
                "ADMIN_PASSWORD has less than {MIN_ADMIN_PASSWORD_CHARS} characters"
            );
        }
        let invalid = |name: &'static str| move |message| anyhow::anyhow!("{name} {message}");
        Ok(Some(InitialAdmin {
            username: Username::parse(username).map_err(invalid("ADMIN_USERNAME"))?,
            email: Email::parse(email).map_err(invalid("ADMIN_EMAIL"))?,
            password: Password::new(password.expose_secret().to_owned())
                .map_err(invalid("ADMIN_PASSWORD"))?,
        }))
    }

    pub fn service_clients(&self) -> anyhow::Result<ServiceClients> {
        let mut secrets = HashMap::new();
        let list = non_empty(self.service_clients.as_ref()).map_or("", |list| list.expose_secret());
        for entry in list.split(',').filter(|entry| !entry.trim().is_empty()) {
            let Some((id, secret)) = entry.trim().split_once('=') else {
                bail!("SERVICE_CLIENTS is not a list of id=secret with commas between");
            };
            let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            let is_valid =
                (1..=ServiceClients::MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(is_allowed);
            ensure!(is_valid, "SERVICE_CLIENTS has an id that is not 1 to 64 of A-Z a-z 0-9 - _");
            ensure!(!secret.is_empty(), "SERVICE_CLIENTS has no secret for {id}");
            ensure!(
                secret.chars().count() >= MIN_CLIENT_SECRET_CHARS || self.is_development(),
                "SERVICE_CLIENTS has a secret of less than {MIN_CLIENT_SECRET_CHARS} characters for {id}"
            );
            ensure!(
                !is_example(secret) || self.is_development(),
                "SERVICE_CLIENTS has the example value as the secret of {id}; set one of your own"
            );
            let duplicate = secrets.insert(id.to_owned(), SecretString::from(secret));
            ensure!(duplicate.is_none(), "SERVICE_CLIENTS names {id} twice");
        }
        Ok(ServiceClients::new(&secrets))
    }

    fn is_development(&self) -> bool {
        self.common.shoppee_env == Environment::Development
    }
}

fn is_example(secret: &str) -> bool {
    let secret = secret.to_lowercase();
    EXAMPLE_MARKERS.iter().any(|marker| secret.contains(marker))
}

/// Treats an empty setting as absent, as Compose sets variables to empty texts.
fn non_empty(setting: Option<&SecretString>) -> Option<&SecretString> {
    setting.filter(|secret| !secret.expose_secret().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(flags: &[&str]) -> Settings {
        let required = ["shoppee-auth", "--database-url", "postgres://x", "--redis-url", "redis://x"];
        let flags: Vec<&str> = required.iter().chain(flags).copied().collect();
        Settings::try_parse_from(flags).unwrap()
    }

    const GOOD: &str = "a secret that is longer than 32 bytes";

    #[test]
    fn short_and_example_signing_secrets_are_rejected() {
        for (flags, wrong) in [
            (vec!["--jwt-secret", GOOD], None),
            (vec!["--jwt-secret", GOOD, "--jwt-secret-previous", ""], None),
            (vec!["--jwt-secret", GOOD, "--jwt-secret-previous", GOOD], None),
            (vec!["--jwt-secret", EXAMPLE_SECRET, "--shoppee-env", "development"], None),
            (vec!["--jwt-secret", EXAMPLE_SECRET], Some("JWT_SECRET is the example value")),
            (vec!["--jwt-secret", &"x".repeat(31)], Some("JWT_SECRET is shorter than 32 bytes")),
            (
                vec!["--jwt-secret", &"x".repeat(31), "--shoppee-env", "development"],
                Some("JWT_SECRET is shorter than 32 bytes"),
            ),
            (
                vec!["--jwt-secret", GOOD, "--jwt-secret-previous", "short"],
                Some("JWT_SECRET_PREVIOUS is shorter than 32 bytes"),
            ),
            (
                vec!["--jwt-secret", GOOD, "--jwt-secret-previous", EXAMPLE_SECRET],
                Some("JWT_SECRET_PREVIOUS is the example value"),
            ),
        ] {
            match (settings(&flags).key_secrets(), wrong) {
                (Ok(_), None) => {}
                (Err(error), Some(wrong)) => assert!(error.to_string().starts_with(wrong), "{error}"),
                (outcome, _) => panic!("{flags:?}: {outcome:?}"),
            }
        }
    }

    #[test]
    fn an_initial_admin_is_complete_and_valid() {
        let whole = ["--admin-username", "root", "--admin-email", "root@shop.example", "--admin-password"];
        let with = |flags: &[&str]| settings(&[&["--jwt-secret", GOOD], flags].concat()).initial_admin();
        assert!(with(&[]).unwrap().is_none());
        assert_eq!(
            with(&[&whole[..], &["correct horse"]].concat()).unwrap().unwrap().username.as_str(),
            "root"
        );
        assert!(with(&["--admin-username", "", "--admin-password", ""]).unwrap().is_none());
        assert!(with(&whole[..4]).unwrap_err().to_string().contains("belong together"));
        let error_of = |password, more: &[&str]| {
            with(&[&whole[..], &[password], more].concat()).unwrap_err().to_string()
        };
        let development = ["--shoppee-env", "development"];
        assert_eq!(error_of("horse", &development), "ADMIN_PASSWORD must have 8 to 256 characters");
        assert_eq!(error_of("11 char pwd", &[]), "ADMIN_PASSWORD has less than 12 characters");
        for example in ["change-me", "Change-Me-2026", "please changeme now"] {
            let line = error_of(example, &[]);
            assert_eq!(line, "ADMIN_PASSWORD is the example value; set one of your own", "{example}");
            assert!(with(&[&whole[..], &[example], &development].concat()).is_ok(), "{example}");
        }
    }

    #[test]
    fn service_clients_are_a_list_with_long_secrets() {
        let with = |list: &str, more: &[&str]| {
            settings(&[&["--jwt-secret", GOOD, "--service-clients", list], more].concat()).service_clients()
        };
        let long = "0123456789abcdef";
        for good in ["", &format!("order={long}"), &format!("order={long}, other={long}=,")] {
            assert!(with(good, &[]).is_ok(), "{good}");
        }
        for bad in ["order", "=x", &format!("order={long},order={long}"), "order=", "or der=x", "order=short"]
        {
            let error = with(bad, &[]).unwrap_err().to_string();
            assert!(error.starts_with("SERVICE_CLIENTS"), "{error}");
        }
        assert!(with("order=short", &["--shoppee-env", "development"]).is_ok());
        let example = with("order=change-me-change-me", &[]).unwrap_err().to_string();
        assert!(example.starts_with("SERVICE_CLIENTS has the example value"), "{example}");
    }

    #[test]
    fn lifetimes_out_of_bounds_are_rejected() {
        let with = |flag, value| settings(&["--jwt-secret", GOOD, flag, value]).lifetimes();
        let (access, refresh) = with("--access-token-ttl", "90s").unwrap();
        assert_eq!((access.whole_seconds(), refresh.whole_days()), (90, 30));
        for (flag, value) in [
            ("--access-token-ttl", "0s"),
            ("--access-token-ttl", "8d"),
            ("--refresh-token-ttl", "10ms"),
            ("--refresh-token-ttl", "99years"),
        ] {
            assert!(with(flag, value).is_err(), "{value}");
        }
    }

    #[test]
    fn debug_output_hides_secrets() {
        let flags =
            ["--jwt-secret", GOOD, "--admin-password", "hunter22", "--service-clients", "order=hunter22"];
        let shown = format!("{:?}", settings(&flags));
        assert!(!shown.contains("hunter22") && !shown.contains(GOOD), "{shown}");
    }
}
