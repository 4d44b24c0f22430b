//! Which shop the demo drives: the one that `scripts/up` runs, or a deployed one.

use std::path::Path;

use anyhow::{Context as _, bail};
use http::Uri;

use crate::{
    rest::{Rest, passing},
    run_file::RunFile,
    secrets::SignIn,
    state::State,
    wire,
};

#[derive(Debug)]
pub struct Shop {
    pub rest: String,
    /// Of another gateway where there is one: events must reach every one of them.
    pub socket: String,
    pub admin: SignIn,
}

impl Shop {
    pub fn of_this_checkout(state: &Path) -> anyhow::Result<Self> {
        let state = State::open(state)?;
        if state.supervisor()?.is_none() {
            bail!("no system of this checkout runs; scripts/up starts one");
        }
        let run = RunFile::read(&state).context("the system is not ready yet")?;
        let socket = run.gateways.get(1).unwrap_or(&run.gateways[0]).url.clone();
        Ok(Self { rest: run.gateways[0].url.clone(), socket, admin: run.admin })
    }

    /// Looks whether it is there, before anything is done in it.
    pub async fn deployed(urls: &[String], admin: &str) -> anyhow::Result<Self> {
        let (rest, socket) = match urls {
            [shop] => (shop, shop),
            [rest, socket] => (rest, socket),
            _ => bail!("--url may be given twice: for REST, and for the socket"),
        };
        let (rest, socket) = (address(rest)?, address(socket)?);
        // Not by clap, which would take it as an argument too: those can be read by every process of the host.
        let password = std::env::var_os("ADMIN_PASSWORD").unwrap_or_default();
        let password = password.into_string().ok().filter(|password| !password.is_empty());
        let password = password
            .with_context(|| format!("ADMIN_PASSWORD is not set: {admin}, who ships the order, needs it"))?;
        look(&rest).await?;
        if socket != rest {
            look(&socket).await?;
        }
        Ok(Self { rest, socket, admin: SignIn { username: admin.to_owned(), password } })
    }
}

/// Scheme, host and perhaps a port, without a slash at the end.
fn address(url: &str) -> anyhow::Result<String> {
    let wrong = || format!("--url {url}: not the address of a shop, like https://shop.example");
    let parsed: Uri = url.parse().ok().with_context(wrong)?;
    let scheme = parsed.scheme_str().filter(|scheme| ["http", "https"].contains(scheme));
    let host = parsed.authority().filter(|host| !host.host().is_empty() && !host.as_str().contains('@'));
    let path = parsed.path_and_query().map_or("/", |path| path.as_str());
    match (scheme, host, path) {
        (Some(scheme), Some(host), "/") => Ok(format!("{scheme}://{host}")),
        _ => bail!(wrong()),
    }
}

async fn look(url: &str) -> anyhow::Result<()> {
    match Rest::new(url)?.get("/products?limit=1").once().await {
        Ok((status, body)) if body["items"].is_array() || passing(status, &body) => Ok(()),
        Ok((status, _)) => bail!("--url {url}: no Shoppee answers there, but something with {status}"),
        Err(error) => bail!("--url {url}: {}", wire::cause(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn an_address_is_scheme_and_host() {
        for (given, taken) in [
            ("https://shop.example", "https://shop.example"),
            ("https://shop.example/", "https://shop.example"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://[::1]:8080/", "http://[::1]:8080"),
        ] {
            assert_eq!(address(given).expect(given), taken);
        }
    }

    #[test]
    fn everything_else_is_refused_in_a_line() {
        for given in [
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
            let said = address(given).expect_err(given).to_string();
            assert!(said.contains("like https://shop.example") && said.lines().count() == 1, "{said}");
        }
    }
}
