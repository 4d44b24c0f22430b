//! The nginx that stands in front of the gateways, with the rules of `docker/nginx.conf`; on loopback, without TLS.

use std::{fs, time::Duration};

use rustix::process::Signal;

use crate::{
    program::{Environment, Program, Stop},
    state::State,
};

const NAME: &str = "nginx";
const STOP: Stop = Stop { signal: Signal::TERM, name: "TERM", patience: Duration::from_secs(5) };
/// What is deployed.
const DEPLOYED: &str = include_str!("../../../../docker/nginx.conf");

pub fn program(state: &State, port: u16, gateways: &[u16]) -> anyhow::Result<Program> {
    let folder = state.of(NAME);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("nginx.conf"), configuration(port, gateways))?;
    let arguments = ["-p", ".", "-e", "stderr", "-c", "nginx.conf"];
    Ok(Program {
        name: NAME.to_owned(),
        executable: "/usr/sbin/nginx".into(),
        arguments: arguments.map(Into::into).to_vec(),
        environment: Environment::Neutral,
        log: state.log(NAME),
        folder,
        owner: None,
        stop: STOP,
        stale: None,
    })
}

/// The deployed configuration with other addresses, without TLS, and with bounds for a load that comes from one address.
fn configuration(port: u16, gateways: &[u16]) -> String {
    let servers: Vec<String> =
        gateways.iter().map(|port| format!("server 127.0.0.1:{port} max_fails=0;")).collect();
    // Where its workers may read and write what it may.
    let user = if rustix::process::getuid().is_root() { "user root;\n" } else { "" };
    let mut deployed = DEPLOYED.to_owned();
    for (there, here) in [
        ("/tmp/", ""),
        ("/dev/stderr", "stderr"),
        (REDIRECT, ""),
        ("listen 8443 ssl;", &format!("listen 127.0.0.1:{port};")),
        ("server gateway:8080 resolve max_fails=0;", &servers.join(" ")),
        ("limit_conn requests_of_client 64;", ""),
        ("limit_conn sockets_of_client 512;", ""),
    ] {
        deployed = deployed.replace(there, here);
    }
    let is_tls = |line: &str| line.starts_with("ssl_") || line == "http2 on;";
    let lines: Vec<&str> = deployed.lines().filter(|line| !is_tls(line.trim())).collect();
    format!("{user}daemon off;\n{}\n", lines.join("\n"))
}

/// The server that sends a client from HTTP to HTTPS.
const REDIRECT: &str = "    server {
        listen 8080;
        return 308 https://$host$request_uri;
    }
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_are_those_that_are_deployed() {
        let configuration = configuration(1, &[2, 3]);
        for part in [
            "proxy_pass http://gateways;",
            "proxy_next_upstream error timeout;",
            "default upgrade;",
            "keepalive 128;",
            "server 127.0.0.1:2 max_fails=0; server 127.0.0.1:3 max_fails=0;",
            "listen 127.0.0.1:1;",
        ] {
            assert!(configuration.contains(part), "{part} in\n{configuration}");
        }
        for part in ["8443", "8080", "ssl", "resolve ", "of_client 64", "/tmp/"] {
            assert!(!configuration.contains(part), "{part} in\n{configuration}");
        }
    }
}
