//! The measured servers and their baselines: child processes that exit with this program.

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

/// Rate limits that are never reached, so that only the cost of counting is measured.
pub const HIGH_LIMITS: &str = "user=1000000/1s,anonymous=1000000/1s";
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// The parts of run.json that the benchmarks need.
#[derive(Debug, Deserialize)]
pub struct RunningSystem {
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

impl RunningSystem {
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        Ok(serde_json::from_str(&fs::read_to_string(file)?)?)
    }

    /// Signs in as the admin, and returns the access token.
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

    /// Returns the URL of the first gateway.
    pub fn gateway_url(&self) -> anyhow::Result<&str> {
        Ok(&self.gateways.first().context("no gateway")?.url)
    }
}

/// The settings of a separate gateway beside the running system.
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
        running: &RunningSystem,
        name: &'static str,
        route: &str,
        header: Option<String>,
    ) -> anyhow::Result<BenchServer> {
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
        BenchServer::wait_until_ready(name, format!("http://{addr}{route}"), process, header).await
    }
}

/// A server under load, which exits with this program.
#[derive(Debug)]
pub struct BenchServer {
    pub name: &'static str,
    pub target: Target,
    _process: Child,
}

impl BenchServer {
    /// Starts a baseline handler that sends the response of `url`.
    pub async fn baseline_http(url: &str) -> anyhow::Result<Self> {
        let response = reqwest::get(url).await?;
        let mut headers = Vec::new();
        for (name, value) in response.headers() {
            // The baseline sends these headers itself.
            if !["date", "content-length"].contains(&name.as_str()) {
                headers.push(format!("--header={name}: {}", value.to_str()?));
            }
        }
        let file = std::env::temp_dir().join(format!("shoppee-bench-{}", std::process::id()));
        fs::write(&file, response.bytes().await?)?;
        let addr = free_addr()?;
        let process =
            baseline_command("baseline-http", addr).arg("--body").arg(&file).args(headers).spawn()?;
        let server =
            Self::wait_until_ready("a bare axum handler", format!("http://{addr}/"), process, None).await;
        fs::remove_file(file)?;
        server
    }

    /// Starts a baseline gateway of the service at `service`.
    pub async fn baseline_gateway(name: &'static str, service: &str) -> anyhow::Result<Self> {
        let addr = free_addr()?;
        let process = baseline_command("baseline-gateway", addr).args(["--service-url", service]).spawn()?;
        Self::wait_until_ready(name, format!("http://{addr}/"), process, None).await
    }

    /// Starts Envoy in front of the product service; the load requests `route`.
    pub async fn envoy(binary: &Path, service: &str, route: &str) -> anyhow::Result<Self> {
        let addr = free_addr()?;
        let file = std::env::temp_dir().join(format!("shoppee-bench-{}.descriptors", std::process::id()));
        let process =
            envoy::command(binary, addr, service, &file)?.kill_on_drop(true).spawn().context("Envoy")?;
        let server = Self::wait_until_ready("Envoy", format!("http://{addr}{route}"), process, None).await;
        fs::remove_file(file)?;
        server
    }

    /// Makes the load request the ids from 1 to `max_id` in turn, in place of the last segment of the URL.
    pub fn with_ids(mut self, max_id: u32) -> Self {
        if let Some((collection, _)) = self.target.url.rsplit_once('/') {
            self.target.url = format!("{collection}/");
        }
        self.target.max_id = Some(max_id);
        self
    }

    async fn wait_until_ready(
        name: &'static str,
        url: String,
        process: Child,
        header: Option<String>,
    ) -> anyhow::Result<Self> {
        let pid = process.id().context("it ended at once")?;
        let deadline = Instant::now() + START_TIMEOUT;
        while !reqwest::get(&url).await.is_ok_and(|response| response.status().is_success()) {
            anyhow::ensure!(Instant::now() < deadline, "{name} does not answer on {url}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Self { name, target: Target { url, pid, header, max_id: None }, _process: process })
    }
}

/// Starts a baseline gRPC service that returns a product of the real one. Returns the process and its URL.
pub fn baseline_service(product_url: &str, id: i64) -> anyhow::Result<(Child, String)> {
    let addr = free_addr()?;
    let process = baseline_command("baseline-service", addr)
        .args(["--product-url", product_url, "--id", &id.to_string()])
        .spawn()?;
    Ok((process, format!("http://{addr}")))
}

/// Builds the command that runs this program as a baseline server.
fn baseline_command(subcommand: &str, listen: SocketAddr) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap_or_default());
    command.args([subcommand, "--listen", &listen.to_string()]).kill_on_drop(true);
    command
}

fn free_addr() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Returns the resident memory of a process in MiB.
pub fn resident_mib(pid: u32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = kib.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// Returns the child processes of a process.
pub fn child_pids(parent: u32) -> anyhow::Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        // The process may have exited meanwhile.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent_field = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        if parent_field.and_then(|field| field.parse().ok()) == Some(parent) {
            children.push(pid);
        }
    }
    Ok(children)
}
