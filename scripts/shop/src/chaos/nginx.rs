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

fn configuration(port: u16, gateways: &[u16]) -> String {
    // Like a name that is looked up anew for each request: nobody is remembered as gone.
    let servers: Vec<String> =
        gateways.iter().map(|port| format!("server 127.0.0.1:{port} max_fails=0;")).collect();
    let servers = servers.join(" ");
    // Where its workers may read and write what it may.
    let user = if rustix::process::getuid().is_root() { "user root;\n" } else { "" };
    let map = block("map $http_upgrade");
    let rules = block("location / {").replace("set $gateway http://gateway:8080;", "");
    let rules = rules.replace("$gateway;", "http://gateways;");
    format!(
        "{user}daemon off;\npid nginx.pid;\nerror_log stderr warn;\nevents {{ worker_connections 4096; }}\nhttp {{\n\
         client_body_temp_path body;\nproxy_temp_path proxy;\nfastcgi_temp_path fastcgi;\nuwsgi_temp_path uwsgi;\n\
         scgi_temp_path scgi;\naccess_log off;\ntcp_nodelay on;\n{map}\nupstream gateways {{ {servers} }}\n\
         server {{\nlisten 127.0.0.1:{port};\n{rules}\n}}\n}}\n"
    )
}

/// The block of the deployed configuration that begins so, to its brace.
fn block(begins: &str) -> String {
    let mut lines = Vec::new();
    for line in DEPLOYED.lines().map(str::trim).skip_while(|line| !line.starts_with(begins)) {
        lines.push(line);
        if line == "}" {
            break;
        }
    }
    lines.join("\n")
}

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
            "127.0.0.1:3",
        ] {
            assert!(configuration.contains(part), "{part} in\n{configuration}");
        }
    }
}
