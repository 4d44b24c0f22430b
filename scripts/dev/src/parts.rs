//! The processes of Shoppee itself: which there are, where each answers, and what each is told.

use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::{
    ports::Ports,
    postgres,
    program::{Environment, Program, Stop},
    redis,
    secrets::Secrets,
    state::State,
    up::{Options, Settings},
};

pub const SERVICES: [&str; 3] = ["auth", "product", "order"];
/// They end of their own accord within 18 s after their SHUTDOWN_LAG, which is 5 s in production.
const STOP: Stop = Stop { signal: Signal::TERM, name: "TERM", patience: std::time::Duration::from_secs(25) };
/// The order service's name at the auth service, where the environment says no other.
const ORDER_CLIENT: &str = "order";

/// Settings that belong to one process, and must not be seen by another. Values set here come from no file.
const OWN: [(&str, &str); 18] = [
    ("JWT_SECRET", "auth"),
    ("JWT_SECRET_PREVIOUS", "auth"),
    ("SERVICE_CLIENTS", "auth"),
    ("ADMIN_USERNAME", "auth"),
    ("ADMIN_EMAIL", "auth"),
    ("ADMIN_PASSWORD", "auth"),
    ("DATABASE_READ_URLS", "product"),
    ("SERVICE_CLIENT_ID", "order"),
    ("SERVICE_CLIENT_SECRET", "order"),
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

/// Where a replica of a service answers.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub grpc: u16,
    pub metrics: u16,
}

/// Who listens where; the same for as long as the system runs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The replicas of each service, in the order of [`SERVICES`].
    pub services: [Vec<Addresses>; 3],
    pub gateways: Vec<u16>,
    pub postgres: u16,
    pub redis: u16,
}

impl Plan {
    pub fn make(options: &Options) -> anyhow::Result<Self> {
        let mut ports = Ports::default();
        let mut listening = vec![ports.gateway(options.port)?];
        for _ in 1..options.gateways {
            listening.push(ports.free()?);
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
        Ok(Self { services, gateways: listening, postgres: ports.free()?, redis: ports.free()? })
    }

    /// Every process with the URL that tells whether it is ready.
    pub fn urls(&self) -> Vec<(String, String)> {
        let services = self.replicas().map(|(name, _, at)| (name, local(at.metrics)));
        let gateways = self.gateways.iter().enumerate();
        services.chain(gateways.map(|(index, port)| (gateway_name(index), local(*port)))).collect()
    }

    /// Every replica of every service: its name, which service, and where.
    pub fn replicas(&self) -> impl Iterator<Item = (String, &'static str, Addresses)> {
        SERVICES.into_iter().zip(&self.services).flat_map(|(service, replicas)| {
            replicas.iter().enumerate().map(move |(index, at)| (replica_name(service, index), service, *at))
        })
    }
}

pub fn gateway_name(index: usize) -> String {
    format!("gateway-{}", index + 1)
}

/// The first goes by the service's own name.
fn replica_name(service: &str, index: usize) -> String {
    if index == 0 { service.to_owned() } else { format!("{service}-{}", index + 1) }
}

pub fn local(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// What every process of Shoppee is started with.
#[derive(Clone, Debug)]
pub struct Shop<'a> {
    pub state: &'a State,
    pub binaries: &'a Path,
    pub plan: &'a Plan,
    pub secrets: &'a Secrets,
    pub settings: &'a Settings,
    /// The superuser's.
    pub postgres_url: &'a str,
}

impl Shop<'_> {
    pub fn programs(&self) -> anyhow::Result<Vec<Program>> {
        let mut programs = Vec::new();
        for (name, kind, at) in self.plan.replicas() {
            let (password, with) = match kind {
                "auth" => (&self.secrets.auth_role, self.auth()),
                "product" => (&self.secrets.product_role, self.urls()),
                _ => (&self.secrets.order_role, self.order()),
            };
            programs.push(self.service(&name, kind, at, password, with)?);
        }
        for (index, port) in self.plan.gateways.iter().enumerate() {
            let mut with = self.urls();
            with.push(("LISTEN_ADDR", format!("127.0.0.1:{port}")));
            // It answers /metrics beside everything else.
            programs.push(self.program(&gateway_name(index), "gateway", with, &["METRICS_ADDR"]));
        }
        Ok(programs)
    }

    fn service(
        &self,
        name: &str,
        kind: &'static str,
        at: Addresses,
        password: &str,
        mut with: Vec<(&'static str, String)>,
    ) -> anyhow::Result<Program> {
        let database = postgres::for_role(self.postgres_url, &format!("shoppee_{kind}"), password)?;
        with.push(("DATABASE_URL", database));
        with.push(("LISTEN_ADDR", format!("127.0.0.1:{}", at.grpc)));
        with.push(("METRICS_ADDR", format!("127.0.0.1:{}", at.metrics)));
        let reflection = self.settings.grpc_reflection.clone();
        with.push(("GRPC_REFLECTION", reflection.unwrap_or_else(|| "true".to_owned())));
        Ok(self.program(name, kind, with, &[]))
    }

    fn program(
        &self,
        name: &str,
        kind: &'static str,
        mut with: Vec<(&'static str, String)>,
        also_without: &[&'static str],
    ) -> Program {
        let private_redis = || redis::url(self.plan.redis, kind, &self.secrets.redis);
        with.push(("REDIS_URL", self.settings.redis_url.clone().unwrap_or_else(private_redis)));
        with.push(("SHOPPEE_ENV", self.settings.shoppee_env.clone()));
        with.push(("LOG_FORMAT", self.settings.log_format.clone()));
        with.extend(self.settings.also.iter().cloned());
        let others = OWN.iter().filter(|(_, whose)| *whose != kind).map(|(name, _)| *name);
        Program {
            name: name.to_owned(),
            executable: self.binaries.join(format!("shoppee-{kind}")),
            arguments: Vec::new(),
            environment: Environment::Ours {
                without: others.chain(also_without.iter().copied()).collect(),
                with,
            },
            folder: self.state.of(name),
            log: self.state.log(name),
            owner: None,
            stop: STOP,
            stale: None,
        }
    }

    fn urls(&self) -> Vec<(&'static str, String)> {
        // A certificate is for a name.
        let tls = self.settings.grpc_tls_cert_file.as_deref().is_some_and(|file| !file.is_empty());
        let url = |port| if tls { format!("https://localhost:{port}") } else { local(port) };
        let all =
            |replicas: &[Addresses]| replicas.iter().map(|at| url(at.grpc)).collect::<Vec<_>>().join(",");
        let [auth, product, order] = &self.plan.services;
        vec![("AUTH_URL", all(auth)), ("PRODUCT_URL", all(product)), ("ORDER_URL", all(order))]
    }

    fn auth(&self) -> Vec<(&'static str, String)> {
        let admin = &self.secrets.admin;
        let given = self.settings.service_clients.as_deref().unwrap_or_default();
        let (client, secret) = self.order_client();
        let clients = if given.split(',').any(|entry| entry.starts_with(&format!("{client}="))) {
            given.to_owned()
        } else {
            format!("{given},{client}={secret}").trim_start_matches(',').to_owned()
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
        let mut with = self.urls();
        let (client, secret) = self.order_client();
        with.push(("SERVICE_CLIENT_ID", client));
        with.push(("SERVICE_CLIENT_SECRET", secret));
        with
    }

    fn order_client(&self) -> (String, String) {
        let client = self.settings.service_client_id.clone().unwrap_or_else(|| ORDER_CLIENT.to_owned());
        let clients = self.settings.service_clients.as_deref().unwrap_or_default();
        let listed = clients.split(',').find_map(|entry| entry.strip_prefix(&format!("{client}=")));
        let given = self.settings.service_client_secret.as_deref();
        let secret = given.or(listed).unwrap_or(&self.secrets.order_client);
        (client, secret.to_owned())
    }
}

/// The binaries that must be there.
pub fn missing(binaries: &Path) -> Option<PathBuf> {
    let kinds = SERVICES.into_iter().chain(["gateway"]);
    kinds.map(|kind| binaries.join(format!("shoppee-{kind}"))).find(|binary| !binary.exists())
}
