//! The nginx in front of the gateways, with the rules of `docker/nginx.conf`, on loopback and without TLS.

use std::{fs, time::Duration};

use rustix::process::Signal;

use crate::{
    program::{Environment, Program, Stop},
    state::State,
};

const NAME: &str = "nginx";
const STOP: Stop = Stop { signal: Signal::TERM, name: "TERM", timeout: Duration::from_secs(5) };
/// The deployed configuration.
const DEPLOYED_CONFIG: &str = include_str!("../../../../docker/nginx.conf");

pub fn program(state: &State, port: u16, gateways: &[u16]) -> anyhow::Result<Program> {
    let folder = state.process_folder(NAME);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("nginx.conf"), configuration(port, gateways))?;
    let arguments = ["-p", ".", "-e", "stderr", "-c", "nginx.conf"];
    Ok(Program {
        name: NAME.to_owned(),
        executable: "/usr/sbin/nginx".into(),
        arguments: arguments.map(Into::into).to_vec(),
        environment: Environment::Minimal,
        log: state.log(NAME),
        folder,
        owner: None,
        stop: STOP,
        lock_file: None,
    })
}

/// Adapts the deployed configuration: other addresses, no TLS, and no limits per client address, as all load comes from one.
fn configuration(port: u16, gateways: &[u16]) -> String {
    let servers: Vec<String> =
        gateways.iter().map(|port| format!("server 127.0.0.1:{port} max_fails=0;")).collect();
    // Without it, an nginx that root starts runs its workers as a user that cannot write to this folder.
    let user = if rustix::process::getuid().is_root() { "user root;\n" } else { "" };
    let mut deployed = DEPLOYED_CONFIG.to_owned();
    for (from, to) in [
        ("/tmp/", ""),
        ("/dev/stderr", "stderr"),
        (REDIRECT, ""),
        ("listen 8443 ssl;", &format!("listen 127.0.0.1:{port};")),
        ("server gateway:8080 resolve max_fails=0;", &servers.join(" ")),
        ("limit_conn requests_of_client 64;", ""),
        ("limit_conn sockets_of_client 512;", ""),
    ] {
        deployed = deployed.replace(from, to);
    }
    let is_tls = |line: &str| line.starts_with("ssl_") || line == "http2 on;";
    let lines: Vec<&str> = deployed.lines().filter(|line| !is_tls(line.trim())).collect();
    format!("{user}daemon off;\n{}\n", lines.join("\n"))
}

/// The server block that redirects from HTTP to HTTPS.
const REDIRECT: &str = "    server {
        listen 8080;
        return 308 https://$host$request_uri;
    }
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_keeps_the_deployed_rules() {
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
