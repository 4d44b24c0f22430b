//! What stands between a client and a handler, and what each part of it costs. The route is `/.well-known/jwks.json`,
//! which passes every layer and calls nobody. Each row is a gateway of its own with one thing more than the row
//! above it, so that the difference is what that thing costs this process; what Redis spends on limits shows in the
//! rate alone. Who keeps less than one core busy could do more: then wrk is the limit.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;
use shoppee_kit::{
    caller::{Kind, Verifier},
    client,
    clock::Clock,
};
use shoppee_proto::auth::v1::{GetJwksRequest, LoginRequest, auth_service_client::AuthServiceClient};
use tokio::process::{Child, Command};

use crate::{
    load::{self, Seen, Target},
    table,
};

const ROUTE: &str = "/.well-known/jwks.json";
/// Never reached: what is measured is the counting.
const FAR_LIMITS: &str = "user=1000000/1s,anonymous=1000000/1s";
/// Looks at each server, in turns.
const ROUNDS: usize = 3;
/// Of the small loops inside this process.
const REPEATS: usize = 200_000;
/// Verifiers that have never seen the token.
const FRESH: usize = 1000;
const START: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub struct Options {
    /// The gateway's binary
    #[arg(long)]
    gateway: PathBuf,
    /// The run.json of the system that runs
    #[arg(long)]
    run: PathBuf,
    /// How long each look lasts
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
}

/// The parts of run.json that matter here.
#[derive(Debug, Deserialize)]
struct Running {
    services: Services,
    redis: Server,
    admin: SignIn,
}

#[derive(Debug, Deserialize)]
struct Services {
    auth: Service,
    product: Service,
    order: Service,
}

#[derive(Debug, Deserialize)]
struct Service {
    grpc: String,
}

#[derive(Debug, Deserialize)]
struct Server {
    url: String,
}

#[derive(Debug, Deserialize)]
struct SignIn {
    username: String,
    password: String,
}

/// A server that ends with this program.
struct Started {
    name: &'static str,
    target: Target,
    _process: Child,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    let running: Running = serde_json::from_str(&fs::read_to_string(&options.run)?)?;
    let token = sign_in(&running).await?;
    let bearer = Some(format!("Authorization: Bearer {token}"));
    let variants = [
        ("gateway, no limits, no logs", "off", "off", None),
        ("+ logs and traces, to nowhere", "off", "info", None),
        ("+ limits in Redis", FAR_LIMITS, "info", None),
        ("+ a token", FAR_LIMITS, "info", bearer),
    ];
    let mut servers = Vec::new();
    for (name, limits, log, header) in variants {
        servers.push(gateway(&options, &running, name, limits, log, header).await?);
    }
    servers.insert(0, bare(&servers[0].target.url).await?);

    let mut seen: Vec<Vec<Seen>> = vec![Vec::new(); servers.len()];
    for _ in 0..ROUNDS {
        for (server, seen) in servers.iter().zip(&mut seen) {
            seen.push(load::look(&server.target, Duration::from_secs(options.seconds)).await?);
        }
    }
    report(&servers, seen)?;
    inside(&running, &token).await
}

fn report(servers: &[Started], seen: Vec<Vec<Seen>>) -> anyhow::Result<()> {
    let medians: Vec<Seen> = seen.into_iter().map(load::median).collect::<Option<_>>().context("no looks")?;
    let limit = medians.first().context("no limit")?;
    let mut rows = Vec::new();
    let mut before = None;
    for (server, seen) in servers.iter().zip(&medians) {
        let more = before.map_or_else(String::new, |before| format!("{:+.1}", seen.cost - before));
        before = Some(seen.cost);
        rows.push(vec![
            server.name.to_owned(),
            format!("{:.0}", seen.rate),
            format!("{:.2}", seen.rate / limit.rate),
            format!("{:.1}", seen.cost),
            more,
            format!("{:.2}", seen.rate * seen.cost / 1e6),
            format!("{:.2}", seen.p99),
        ]);
    }
    table::print(&["", "requests/s", "of bare", "µs cpu each", "more", "cores busy", "p99 ms"], &rows);
    Ok(())
}

async fn sign_in(running: &Running) -> anyhow::Result<String> {
    let request = LoginRequest {
        username: running.admin.username.clone(),
        password: running.admin.password.clone(),
        user_agent: "scripts/bench".to_owned(),
    };
    let mut auth = AuthServiceClient::new(client::channel(&running.services.auth.grpc)?);
    Ok(auth.login(request).await?.into_inner().access_token)
}

async fn gateway(
    options: &Options,
    running: &Running,
    name: &'static str,
    limits: &str,
    log: &str,
    header: Option<String>,
) -> anyhow::Result<Started> {
    let addr = free_addr()?;
    let services = &running.services;
    let process = Command::new(&options.gateway)
        .env_clear()
        .envs([("SHOPPEE_ENV", "development"), ("RATE_LIMITS", limits), ("LOG", log)])
        .envs([("REDIS_URL", &running.redis.url), ("LISTEN_ADDR", &addr.to_string())])
        .envs([("AUTH_URL", &services.auth.grpc), ("PRODUCT_URL", &services.product.grpc)])
        .env("ORDER_URL", &services.order.grpc)
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("the gateway")?;
    started(name, format!("http://{addr}{ROUTE}"), process, header).await
}

async fn bare(url: &str) -> anyhow::Result<Started> {
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
    let process = Command::new(std::env::current_exe()?)
        .args(["bare", "--listen", &addr.to_string(), "--answer"])
        .arg(&file)
        .args(headers)
        .kill_on_drop(true)
        .spawn()?;
    let started = started("a bare axum handler", format!("http://{addr}/"), process, None).await;
    fs::remove_file(file)?;
    started
}

async fn started(
    name: &'static str,
    url: String,
    process: Child,
    header: Option<String>,
) -> anyhow::Result<Started> {
    let pid = process.id().context("it ended at once")?;
    let give_up = Instant::now() + START;
    while !reqwest::get(&url).await.is_ok_and(|answer| answer.status().is_success()) {
        anyhow::ensure!(Instant::now() < give_up, "{name} does not answer on {url}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(Started { name, target: Target { url, pid, header }, _process: process })
}

fn free_addr() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// The small things, in loops of their own.
async fn inside(running: &Running, token: &str) -> anyhow::Result<()> {
    let mut auth = AuthServiceClient::new(client::channel(&running.services.auth.grpc)?);
    let keys = auth.get_jwks(GetJwksRequest { watermark: None }).await?.into_inner();
    let verifier = Verifier::new(Clock::default());
    verifier.update(keys.clone());
    verifier.verify(token, Kind::Access)?;
    let cached = each(REPEATS, || drop(std::hint::black_box(verifier.verify(token, Kind::Access))));
    let fresh: Vec<_> = std::iter::repeat_with(|| Verifier::new(Clock::default())).take(FRESH).collect();
    for verifier in &fresh {
        verifier.update(keys.clone());
    }
    let mut fresh = fresh.iter().cycle();
    let first =
        each(FRESH, || drop(std::hint::black_box(fresh.next().map(|new| new.verify(token, Kind::Access)))));
    metrics_exporter_prometheus::PrometheusBuilder::new()
        .set_buckets(&[0.001, 0.01, 0.1])?
        .install_recorder()?;
    // With labels made for each request, as the gateway does it.
    let counted = each(REPEATS, || {
        metrics::histogram!(
            "measured", "method" => "GET", "route" => ROUTE.to_string(), "status" => 200.to_string()
        )
        .record(0.001);
    });
    table::say("");
    table::print(
        &["inside the gateway", "µs"],
        &[
            vec!["a token that was seen before (at most 3)".to_owned(), format!("{cached:.2}")],
            vec!["a token for the first time".to_owned(), format!("{first:.1}")],
            vec!["one histogram of three labels".to_owned(), format!("{counted:.2}")],
        ],
    );
    anyhow::ensure!(cached <= 3.0, "a token that was seen before takes more than 3 µs");
    Ok(())
}

/// Microseconds that one call takes.
#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
fn each(repeats: usize, mut what: impl FnMut()) -> f64 {
    let began = Instant::now();
    for _ in 0..repeats {
        what();
    }
    began.elapsed().as_secs_f64() * 1e6 / repeats as f64
}
