//! The topology of a system (replicas and their addresses), and the launcher that builds the environment of each process.

use std::path::{Path, PathBuf};

use rustix::process::Signal;

use super::{Options, PostgresAccess, Settings};
use crate::{
    ports::Ports,
    postgres,
    program::{Environment, Program, Stop},
    redis,
    secrets::Secrets,
    state::State,
};

pub const SERVICES: [&str; 3] = ["auth", "product", "order"];
/// A process drains for at most 18 s after its SHUTDOWN_LAG, which is 5 s in production.
const STOP: Stop = Stop { signal: Signal::TERM, name: "TERM", timeout: std::time::Duration::from_secs(25) };
/// The default client id of the order service at the auth service.
const ORDER_CLIENT_ID: &str = "order";

/// Settings that only one process may receive. The launcher sets these values itself and passes no `_FILE` variants.
const PROCESS_SETTINGS: [(&str, &str); 19] = [
    ("JWT_SECRET", "auth"),
    ("JWT_SECRET_PREVIOUS", "auth"),
    ("SERVICE_CLIENTS", "auth"),
    ("ADMIN_USERNAME", "auth"),
    ("ADMIN_EMAIL", "auth"),
    ("ADMIN_PASSWORD", "auth"),
    ("DATABASE_READ_URLS", "product"),
    ("SERVICE_CLIENT_ID", "order"),
    ("SERVICE_CLIENT_SECRET", "order"),
    ("DEMO_CONTROL_URL", "gateway"),
    ("DATABASE_URL", "no process: it is the superuser's"),
    ("JWT_SECRET_PREVIOUS_FILE", "auth"),
    ("DATABASE_READ_URLS_FILE", "product"),
    ("DATABASE_URL_FILE", "no process"),
    ("REDIS_URL_FILE", "no process"),
    ("JWT_SECRET_FILE", "no process"),
    ("SERVICE_CLIENTS_FILE", "no process"),
    ("SERVICE_CLIENT_SECRET_FILE", "no process"),
    ("ADMIN_PASSWORD_FILE", "no process"),
];

/// The ports of a replica of a service.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub grpc: u16,
    pub metrics: u16,
}

/// The ports of every process, which stay the same while the system runs.
#[derive(Clone, Debug)]
pub struct Topology {
    /// The replicas of each service, in the order of [`SERVICES`].
    pub services: [Vec<Addresses>; 3],
    pub gateways: Vec<u16>,
    pub postgres: u16,
    /// The port of a proxy in front of the private PostgreSQL, which the services use.
    pub postgres_proxy: Option<u16>,
    pub redis: u16,
    /// The control port of the supervisor.
    pub control: u16,
}

impl Topology {
    pub fn allocate(options: &Options) -> anyhow::Result<Self> {
        let mut ports = Ports::default();
        let mut gateways = vec![ports.gateway(options.port)?];
        for _ in 1..options.gateways {
            gateways.push(ports.free()?);
        }
        let mut replica = |service, replica| {
            let grpc = ports.grpc(options.grpc_port_base, service, replica)?;
            anyhow::Ok(Addresses { grpc, metrics: ports.free()? })
        };
        let mut service = |service| {
            let replicas = 0..usize::from(options.replicas);
            replicas.map(|index| replica(service, index)).collect::<anyhow::Result<Vec<_>>>()
        };
        let services = [service(0)?, service(1)?, service(2)?];
        let postgres_proxy = match options.postgres_access {
            PostgresAccess::Direct => None,
            PostgresAccess::Proxied => Some(ports.free()?),
        };
        let (postgres, redis, control) = (ports.free()?, ports.free()?, ports.free()?);
        Ok(Self { services, gateways, postgres, postgres_proxy, redis, control })
    }

    /// Returns every process with the base URL of its `/readyz` and `/metrics`.
    pub fn urls(&self) -> Vec<(String, String)> {
        let services = self.replicas().map(|(name, _, at)| (name, loopback_url(at.metrics)));
        let gateways = self.gateways.iter().enumerate();
        services.chain(gateways.map(|(index, port)| (gateway_name(index), loopback_url(*port)))).collect()
    }

    /// Iterates over the replicas of all services: name, service and ports.
    pub fn replicas(&self) -> impl Iterator<Item = (String, &'static str, Addresses)> {
        SERVICES.into_iter().zip(&self.services).flat_map(|(service, replicas)| {
            replicas.iter().enumerate().map(move |(index, at)| (replica_name(service, index), service, *at))
        })
    }
}

pub fn gateway_name(index: usize) -> String {
    format!("gateway-{}", index + 1)
}

/// Returns the name of a replica; the first has the name of its service.
fn replica_name(service: &str, index: usize) -> String {
    if index == 0 { service.to_owned() } else { format!("{service}-{}", index + 1) }
}

pub fn loopback_url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// A launcher: builds the program specification of every process.
#[derive(Clone, Debug)]
pub struct Launcher<'a> {
    pub state: &'a State,
    pub binaries: &'a Path,
    pub topology: &'a Topology,
    pub secrets: &'a Secrets,
    pub settings: &'a Settings,
    /// The gateways serve the page of the control port.
    pub has_control: bool,
    /// The URL of the superuser.
    pub postgres_url: &'a str,
}

impl Launcher<'_> {
    pub fn programs(&self) -> anyhow::Result<Vec<Program>> {
        let mut programs = Vec::new();
        for (name, kind, at) in self.topology.replicas() {
            let (password, environment) = match kind {
                "auth" => (&self.secrets.auth_role, self.auth()),
                "product" => (&self.secrets.product_role, self.urls()),
                _ => (&self.secrets.order_role, self.order()),
            };
            programs.push(self.service(&name, kind, at, password, environment)?);
        }
        for (index, port) in self.topology.gateways.iter().enumerate() {
            let mut environment = self.urls();
            environment.push(("LISTEN_ADDR", format!("127.0.0.1:{port}")));
            if self.has_control {
                environment.push(("DEMO_CONTROL_URL", loopback_url(self.topology.control)));
            }
            // The gateway serves /metrics on LISTEN_ADDR.
            programs.push(self.program(&gateway_name(index), "gateway", environment, &["METRICS_ADDR"]));
        }
        Ok(programs)
    }

    fn service(
        &self,
        name: &str,
        kind: &'static str,
        at: Addresses,
        password: &str,
        mut environment: Vec<(&'static str, String)>,
    ) -> anyhow::Result<Program> {
        let mut database = postgres::for_role(self.postgres_url, &format!("shoppee_{kind}"), password)?;
        if let Some(proxy) = self.topology.postgres_proxy {
            database = database.replace(&format!(":{}/", self.topology.postgres), &format!(":{proxy}/"));
        }
        environment.push(("DATABASE_URL", database));
        environment.push(("LISTEN_ADDR", format!("127.0.0.1:{}", at.grpc)));
        environment.push(("METRICS_ADDR", format!("127.0.0.1:{}", at.metrics)));
        let reflection = self.settings.grpc_reflection.clone();
        environment.push(("GRPC_REFLECTION", reflection.unwrap_or_else(|| "true".to_owned())));
        Ok(self.program(name, kind, environment, &[]))
    }

    fn program(
        &self,
        name: &str,
        kind: &'static str,
        mut environment: Vec<(&'static str, String)>,
        also_unset: &[&'static str],
    ) -> Program {
        let private_redis = || redis::url(self.topology.redis, kind, &self.secrets.redis);
        environment.push(("REDIS_URL", self.settings.redis_url.clone().unwrap_or_else(private_redis)));
        environment.push(("SHOPPEE_ENV", self.settings.shoppee_env.clone()));
        environment.push(("LOG_FORMAT", self.settings.log_format.clone()));
        environment.extend(self.settings.extra.iter().cloned());
        let others = PROCESS_SETTINGS.iter().filter(|(_, owner)| *owner != kind).map(|(name, _)| *name);
        Program {
            name: name.to_owned(),
            executable: self.binaries.join(format!("shoppee-{kind}")),
            arguments: Vec::new(),
            environment: Environment::Modified {
                unset: others.chain(also_unset.iter().copied()).collect(),
                set: environment,
            },
            folder: self.state.process_folder(name),
            log: self.state.log(name),
            owner: None,
            stop: STOP,
            lock_file: None,
        }
    }

    fn urls(&self) -> Vec<(&'static str, String)> {
        // A certificate names a host, not an address.
        let tls = self.settings.grpc_tls_cert_file.as_deref().is_some_and(|file| !file.is_empty());
        let url = |port| if tls { format!("https://localhost:{port}") } else { loopback_url(port) };
        let all =
            |replicas: &[Addresses]| replicas.iter().map(|at| url(at.grpc)).collect::<Vec<_>>().join(",");
        let [auth, product, order] = &self.topology.services;
        vec![("AUTH_URL", all(auth)), ("PRODUCT_URL", all(product)), ("ORDER_URL", all(order))]
    }

    fn auth(&self) -> Vec<(&'static str, String)> {
        let admin = &self.secrets.admin;
        let configured = self.settings.service_clients.as_deref().unwrap_or_default();
        let (client, secret) = self.order_client();
        let clients = if configured.split(',').any(|entry| entry.starts_with(&format!("{client}="))) {
            configured.to_owned()
        } else {
            format!("{configured},{client}={secret}").trim_start_matches(',').to_owned()
        };
        let secret = self.settings.jwt_secret.as_ref().unwrap_or(&self.secrets.jwt_secret);
        let email = self.settings.admin_email.clone();
        vec![
            ("JWT_SECRET", secret.clone()),
            ("SERVICE_CLIENTS", clients),
            ("ADMIN_USERNAME", admin.username.clone()),
            ("ADMIN_EMAIL", email.unwrap_or_else(|| format!("{}@shoppee.example", admin.username))),
            ("ADMIN_PASSWORD", admin.password.clone()),
        ]
    }

    fn order(&self) -> Vec<(&'static str, String)> {
        let mut environment = self.urls();
        let (client, secret) = self.order_client();
        environment.push(("SERVICE_CLIENT_ID", client));
        environment.push(("SERVICE_CLIENT_SECRET", secret));
        environment
    }

    fn order_client(&self) -> (String, String) {
        let client = self.settings.service_client_id.clone().unwrap_or_else(|| ORDER_CLIENT_ID.to_owned());
        let clients = self.settings.service_clients.as_deref().unwrap_or_default();
        let listed = clients.split(',').find_map(|entry| entry.strip_prefix(&format!("{client}=")));
        let configured = self.settings.service_client_secret.as_deref();
        let secret = configured.or(listed).unwrap_or(&self.secrets.order_client);
        (client, secret.to_owned())
    }
}

/// Returns the first binary that is missing.
pub fn missing_binary(binaries: &Path) -> Option<PathBuf> {
    let kinds = SERVICES.into_iter().chain(["gateway"]);
    kinds.map(|kind| binaries.join(format!("shoppee-{kind}"))).find(|binary| !binary.exists())
}
