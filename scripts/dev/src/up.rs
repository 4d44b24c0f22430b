//! `scripts/up`: brings a whole Shoppee up, keeps it up, and takes it down in order.

mod background;
mod summary;
pub mod system;

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

use crate::{
    down, parts,
    ports::Ports,
    run_file::RunFile,
    screen::{done, say},
    state::State,
};
use system::System;

/// What the options do not say.
pub const AFTER_HELP: &str = "DATABASE_URL (a superuser's) and REDIS_URL in the environment use existing servers. \
    Settings of the processes, such as ORDER_TTL, RATE_LIMITS or LOG, are handed on.";

/// Starts PostgreSQL, Redis, the three services and the gateways, and keeps them running
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Returns when everything is ready; scripts/down stops it
    #[arg(long)]
    pub detach: bool,
    /// How many gateways
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=32))]
    pub gateways: u16,
    /// How many replicas of each service
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=3))]
    pub replicas: u16,
    /// The first gateway's port; 8080 or the next free one where none is asked for
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// The gRPC port of auth; product and order take the next two, and further replicas the ports 10 above. 30051, or
    /// other free ports, where none is asked for
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..))]
    pub grpc_port_base: Option<u16>,
    /// How many products the demo shop has in all
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub products: u32,
    /// Starts with an empty shop: no products, no customers
    #[arg(long)]
    pub no_seed: bool,
    /// How to build
    #[arg(long, default_value = "dev", value_parser = ["dev", "release"])]
    pub profile: String,
    /// Where the binaries are
    #[arg(long, hide = true)]
    pub binaries: PathBuf,
    /// The half of --detach that stays
    #[arg(long, hide = true)]
    pub background: bool,
    #[command(flatten)]
    pub settings: Settings,
}

/// Settings of the processes that are looked at here; all others are handed on as they are.
#[derive(Clone, Debug, Default, Args)]
pub struct Settings {
    #[arg(long, env = "DATABASE_URL", hide = true, hide_env_values = true)]
    pub database_url: Option<String>,
    #[arg(long, env = "REDIS_URL", hide = true, hide_env_values = true)]
    pub redis_url: Option<String>,
    #[arg(long, env = "SHOPPEE_ENV", default_value = "development", hide = true)]
    pub shoppee_env: String,
    #[arg(long, env = "LOG_FORMAT", default_value = "json", hide = true)]
    pub log_format: String,
    #[arg(long, env = "GRPC_REFLECTION", hide = true)]
    pub grpc_reflection: Option<String>,
    #[arg(long, env = "JWT_SECRET", hide = true, hide_env_values = true)]
    pub jwt_secret: Option<String>,
    #[arg(long, env = "SERVICE_CLIENTS", hide = true, hide_env_values = true)]
    pub service_clients: Option<String>,
    #[arg(long, env = "SERVICE_CLIENT_ID", hide = true)]
    pub service_client_id: Option<String>,
    #[arg(long, env = "SERVICE_CLIENT_SECRET", hide = true, hide_env_values = true)]
    pub service_client_secret: Option<String>,
    #[arg(long, env = "ADMIN_USERNAME", hide = true)]
    pub admin_username: Option<String>,
    #[arg(long, env = "ADMIN_EMAIL", hide = true)]
    pub admin_email: Option<String>,
    #[arg(long, env = "ADMIN_PASSWORD", hide = true, hide_env_values = true)]
    pub admin_password: Option<String>,
    /// With it, the processes speak TLS; it is for `localhost`.
    #[arg(long, env = "GRPC_TLS_CERT_FILE", hide = true)]
    pub grpc_tls_cert_file: Option<String>,
    /// What every process is told besides.
    #[arg(skip)]
    pub also: Vec<(&'static str, String)>,
}

pub async fn run(state: State, options: Options) -> anyhow::Result<()> {
    if let Some(missing) = parts::missing(&options.binaries) {
        bail!("{} is not built", missing.display());
    }
    if options.detach {
        // What the one in the background would say where nobody reads it.
        Ports::default().gateway(options.port)?;
        return background::start(&state).await;
    }
    if options.background {
        rustix::process::setsid()?;
    }
    let Some(_lock) = state.lock()? else {
        bail!("a system of this checkout runs already; scripts/down stops it");
    };
    let began = Instant::now();
    let (mut int, mut term, mut hup) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    let left = down::clear(&state).await?;
    if left > 0 {
        done("cleared away", &format!("{left} processes that a killed run left behind"));
    }
    let background = options.background;
    let mut system = System::plan(state, options)?;
    let mut asked_to_stop = async || {
        tokio::select! { _ = int.recv() => {}, _ = term.recv() => {}, _ = hup.recv() => {} }
    };

    let outcome = tokio::select! {
        outcome = system.live(began) => outcome,
        () = asked_to_stop() => Ok(()),
    };
    RunFile::remove(&system.state);
    say("stopping");
    let hurry = system.hurry.clone();
    let state = system.state.clone();
    tokio::select! {
        () = system.stop() => {}
        // A second Ctrl-C: without patience.
        () = async { asked_to_stop().await; hurry.cancel(); std::future::pending().await } => {}
    }
    let _ = std::fs::remove_file(state.dev_cli());
    match &outcome {
        Ok(()) => done("stopped", ""),
        // Whoever started it may have gone long ago.
        Err(error) if background => say(&format!("{error:#}")),
        Err(_) => {}
    }
    outcome
}

fn seconds(since: Instant) -> String {
    format!("{:.1} s", since.elapsed().as_secs_f64())
}
