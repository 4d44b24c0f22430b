//! What is measured and what it is measured against, each a process that ends with this program.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde::Deserialize;
use shoppee_kit::client;
use shoppee_proto::auth::v1::{LoginRequest, auth_service_client::AuthServiceClient};
use tokio::process::{Child, Command};

use crate::{envoy, load::Target};

/// Never reached: what is measured is the counting.
pub const FAR_LIMITS: &str = "user=1000000/1s,anonymous=1000000/1s";
const START: Duration = Duration::from_secs(20);

/// The parts of run.json that matter here.
#[derive(Debug, Deserialize)]
pub struct Running {
    pub gateways: Vec<Server>,
    pub services: Services,
    pub postgres: Server,
    pub redis: Server,
    admin: SignIn,
}

#[derive(Debug, Deserialize)]
pub struct Services {
    pub auth: Service,
    pub product: Service,
    pub order: Service,
}

#[derive(Debug, Deserialize)]
pub struct Service {
    pub grpc: String,
    pub metrics: String,
    pub pid: u32,
}

#[derive(Debug, Deserialize)]
pub struct Server {
    pub url: String,
    pub pid: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct SignIn {
    username: String,
    password: String,
}

impl Running {
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        Ok(serde_json::from_str(&fs::read_to_string(file)?)?)
    }

    /// The admin's access token.
    pub async fn sign_in(&self) -> anyhow::Result<String> {
        let request = LoginRequest {
            username: self.admin.username.clone(),
            password: self.admin.password.clone(),
            user_agent: "scripts/bench".to_owned(),
            ..LoginRequest::default()
        };
        let mut auth = AuthServiceClient::new(client::channel(&self.services.auth.grpc)?);
        Ok(auth.login(request).await?.into_inner().access_token)
    }

    /// The address of its first gateway.
    pub fn gateway(&self) -> anyhow::Result<&str> {
        Ok(&self.gateways.first().context("no gateway")?.url)
    }
}

/// How a gateway of our own is started, beside a system that runs.
#[derive(Clone, Copy, Debug)]
pub struct Gateway<'a> {
    pub binary: &'a Path,
    pub limits: &'a str,
    pub log: &'a str,
    pub settings: &'a [(&'a str, &'a str)],
}

impl Gateway<'_> {
    pub async fn start(
        self,
        running: &Running,
        name: &'static str,
        route: &str,
        header: Option<String>,
    ) -> anyhow::Result<Started> {
        let addr = free_addr()?;
        let services = &running.services;
        let process = Command::new(self.binary)
            .env_clear()
            .envs([("SHOPPEE_ENV", "development"), ("RATE_LIMITS", self.limits), ("LOG", self.log)])
            .envs([("REDIS_URL", &running.redis.url), ("LISTEN_ADDR", &addr.to_string())])
            .envs([("AUTH_URL", &services.auth.grpc), ("PRODUCT_URL", &services.product.grpc)])
            .env("ORDER_URL", &services.order.grpc)
            .envs(self.settings.iter().copied())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("the gateway")?;
        Started::wait(name, format!("http://{addr}{route}"), process, header).await
    }
}

/// A server that ends with this program.
#[derive(Debug)]
pub struct Started {
    pub name: &'static str,
    pub target: Target,
    _process: Child,
}

impl Started {
    /// A bare handler that answers what `url` answers.
    pub async fn bare(url: &str) -> anyhow::Result<Self> {
        let answer = reqwest::get(url).await?;
        let mut headers = Vec::new();
        for (name, value) in answer.headers() {
            // These two the bare one writes itself.
            if !["date", "content-length"].contains(&name.as_str()) {
                headers.push(format!("--header={name}: {}", value.to_str()?));
            }
        }
        let file = std::env::temp_dir().join(format!("shoppee-bench-{}", std::process::id()));
        fs::write(&file, answer.bytes().await?)?;
        let addr = free_addr()?;
        let process = own("bare", addr).arg("--answer").arg(&file).args(headers).spawn()?;
        let started = Self::wait("a bare axum handler", format!("http://{addr}/"), process, None).await;
        fs::remove_file(file)?;
        started
    }

    /// A bare handler that asks the service at `service`.
    pub async fn bare_hop(name: &'static str, service: &str) -> anyhow::Result<Self> {
        let addr = free_addr()?;
        let process = own("bare-hop", addr).args(["--service-url", service]).spawn()?;
        Self::wait(name, format!("http://{addr}/"), process, None).await
    }

    /// Envoy before the product service, asked for `route`.
    pub async fn envoy(binary: &Path, service: &str, route: &str) -> anyhow::Result<Self> {
        let addr = free_addr()?;
        let file = std::env::temp_dir().join(format!("shoppee-bench-{}.descriptors", std::process::id()));
        let process =
            envoy::command(binary, addr, service, &file)?.kill_on_drop(true).spawn().context("Envoy")?;
        let started = Self::wait("Envoy", format!("http://{addr}{route}"), process, None).await;
        fs::remove_file(file)?;
        started
    }

    /// Where it answers with a thing by its number: lets the load ask for those up to `numbers`, in turn.
    pub fn in_turn(mut self, numbers: u32) -> Self {
        if let Some((things, _)) = self.target.url.rsplit_once('/') {
            self.target.url = format!("{things}/");
        }
        self.target.numbers = Some(numbers);
        self
    }

    async fn wait(
        name: &'static str,
        url: String,
        process: Child,
        header: Option<String>,
    ) -> anyhow::Result<Self> {
        let pid = process.id().context("it ended at once")?;
        let give_up = Instant::now() + START;
        while !reqwest::get(&url).await.is_ok_and(|answer| answer.status().is_success()) {
            anyhow::ensure!(Instant::now() < give_up, "{name} does not answer on {url}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Self { name, target: Target { url, pid, header, numbers: None }, _process: process })
    }
}

/// A bare gRPC service that answers the product that the real one has, and its address.
pub fn bare_service(product: &str, id: i64) -> anyhow::Result<(Child, String)> {
    let addr = free_addr()?;
    let process =
        own("bare-service", addr).args(["--product-url", product, "--id", &id.to_string()]).spawn()?;
    Ok((process, format!("http://{addr}")))
}

/// This program, as one of the bare servers.
fn own(what: &str, listen: SocketAddr) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap_or_default());
    command.args([what, "--listen", &listen.to_string()]).kill_on_drop(true);
    command
}

fn free_addr() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Memory that a process has. MiB.
pub fn resident(pid: u32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = kib.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
