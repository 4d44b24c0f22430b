//! The target of the demo: the shop of `scripts/up`, or a deployed one.

use std::path::Path;

use anyhow::{Context as _, bail};
use http::Uri;

use crate::{
    rest::{Rest, is_transient},
    run_file::RunFile,
    secrets::SignIn,
    state::State,
    transport,
};

#[derive(Debug)]
pub struct Target {
    pub rest: String,
    /// The URL of another gateway if there are several: events must reach all of them.
    pub socket: String,
    pub admin: SignIn,
}

impl Target {
    pub fn of_this_checkout(state: &Path) -> anyhow::Result<Self> {
        let state = State::open(state)?;
        if state.supervisor()?.is_none() {
            bail!("no system of this checkout runs; scripts/up starts one");
        }
        let run = RunFile::read(&state).context("the system is not ready yet")?;
        let socket = run.gateways.get(1).unwrap_or(&run.gateways[0]).url.clone();
        Ok(Self { rest: run.gateways[0].url.clone(), socket, admin: run.admin })
    }

    /// Returns a deployed shop.
    ///
    /// # Errors
    /// If no shop answers at the URLs, or ADMIN_PASSWORD is not set.
    pub async fn deployed(urls: &[String], admin: &str) -> anyhow::Result<Self> {
        let (rest, socket) = match urls {
            [shop] => (shop, shop),
            [rest, socket] => (rest, socket),
            _ => bail!("--url may be given twice: for REST, and for the socket"),
        };
        let (rest, socket) = (parse_address(rest)?, parse_address(socket)?);
        // Not a clap setting, which would be an argument too: other processes of the host can read arguments.
        let password = std::env::var_os("ADMIN_PASSWORD").unwrap_or_default();
        let password = password.into_string().ok().filter(|password| !password.is_empty());
        let password = password.with_context(|| {
            format!("ADMIN_PASSWORD is not set: the demo signs in as {admin} to ship the order")
        })?;
        check(&rest).await?;
        if socket != rest {
            check(&socket).await?;
        }
        Ok(Self { rest, socket, admin: SignIn { username: admin.to_owned(), password } })
    }
}

/// Parses a URL of scheme, host and optional port, and removes the slash at its end.
pub fn parse_address(url: &str) -> anyhow::Result<String> {
    let error = || format!("--url {url}: not the address of a shop, like https://shop.example");
    let parsed: Uri = url.parse().ok().with_context(error)?;
    let scheme = parsed.scheme_str().filter(|scheme| ["http", "https"].contains(scheme));
    let host = parsed.authority().filter(|host| !host.host().is_empty() && !host.as_str().contains('@'));
    let path = parsed.path_and_query().map_or("/", |path| path.as_str());
    match (scheme, host, path) {
        (Some(scheme), Some(host), "/") => Ok(format!("{scheme}://{host}")),
        _ => bail!(error()),
    }
}

/// Requests a product list once.
async fn check(url: &str) -> anyhow::Result<()> {
    match Rest::new(url)?.get("/products?limit=1").send_once().await {
        Ok((status, body)) if body["items"].is_array() || is_transient(status, &body) => Ok(()),
        Ok((status, _)) => bail!("--url {url}: no Shoppee answers there, but something with {status}"),
        Err(error) => bail!("--url {url}: {}", transport::root_cause(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_address;

    #[test]
    fn an_address_is_scheme_and_host() {
        for (url, expected) in [
            ("https://shop.example", "https://shop.example"),
            ("https://shop.example/", "https://shop.example"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://[::1]:8080/", "http://[::1]:8080"),
        ] {
            assert_eq!(parse_address(url).expect(url), expected);
        }
    }

    #[test]
    fn a_url_with_other_parts_is_an_error_of_one_line() {
        for url in [
            "",
            "shop.example",
            "shop.example:443",
            "ftp://shop.example",
            "wss://shop.example",
            "https://",
            "https://shop.example/api/v1",
            "https://shop.example/?a=b",
            "https://admin:secret@shop.example",
            "https://shop example",
        ] {
            let message = parse_address(url).expect_err(url).to_string();
            let is_one_line = message.lines().count() == 1;
            assert!(message.contains("like https://shop.example") && is_one_line, "{message}");
        }
    }
}
