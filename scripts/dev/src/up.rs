//! `scripts/up`: starts a whole Shoppee, supervises it, and stops it in order.

mod background;
pub mod processes;
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
    down,
    output::{print_line, print_step},
    ports::Ports,
    run_file::RunFile,
    state::State,
};
use system::System;

/// The environment variables that `--help` describes besides the options.
pub const AFTER_HELP: &str = "DATABASE_URL (a superuser's) and REDIS_URL in the environment use existing servers. \
    Settings of the processes, such as ORDER_TTL, RATE_LIMITS or LOG, are handed on.";

/// The way of the services to the private PostgreSQL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PostgresAccess {
    #[default]
    Direct,
    /// By a proxy on a port of its own, which the caller starts.
    Proxied,
}

/// Starts PostgreSQL, Redis, the three services and the gateways, and keeps them running
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Returns when everything is ready; scripts/down stops it
    #[arg(long)]
    pub detach: bool,
    /// The number of gateways
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=32))]
    pub gateways: u16,
    /// The number of replicas of each service
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=3))]
    pub replicas: u16,
    /// The first gateway's port; by default 8080 or the next free one
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// The gRPC port of auth; product and order take the next two, and further replicas the ports 10 above. By default
    /// 30051, or other free ports
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..))]
    pub grpc_port_base: Option<u16>,
    /// The number of products in the demo shop in all
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub products: u32,
    /// Starts with an empty shop: no products, no customers
    #[arg(long)]
    pub no_seed: bool,
    /// The build profile
    #[arg(long, default_value = "dev", value_parser = ["dev", "release"])]
    pub profile: String,
    /// The folder of the binaries
    #[arg(long, hide = true)]
    pub binaries: PathBuf,
    /// The supervising process of --detach
    #[arg(long, hide = true)]
    pub background: bool,
    #[arg(skip)]
    pub postgres_access: PostgresAccess,
    #[command(flatten)]
    pub settings: Settings,
}

/// Settings of the processes that the supervisor reads; all others are passed on unchanged.
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
    /// Enables TLS between the processes; the certificate is for `localhost`.
    #[arg(long, env = "GRPC_TLS_CERT_FILE", hide = true)]
    pub grpc_tls_cert_file: Option<String>,
    /// Further variables of every process.
    #[arg(skip)]
    pub extra: Vec<(&'static str, String)>,
}

impl Settings {
    /// Reports whether the page of the flash sale is served: in development, over plain gRPC.
    fn allows_control(&self) -> bool {
        self.shoppee_env == "development" && self.grpc_tls_cert_file.as_deref().is_none_or(str::is_empty)
    }
}

pub async fn run(state: State, options: Options) -> anyhow::Result<()> {
    if let Some(missing) = processes::missing_binary(&options.binaries) {
        bail!("{} is not built", missing.display());
    }
    if options.detach {
        // Reports a port that is taken here, as the output of the background process is not shown.
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
    let orphans = down::kill_orphans(&state).await?;
    if orphans > 0 {
        print_step("cleared away", &format!("{orphans} processes that a killed run left behind"));
    }
    let background = options.background;
    let mut system = System::new(state, options)?;
    let mut stop_requested = async || {
        tokio::select! { _ = int.recv() => {}, _ = term.recv() => {}, _ = hup.recv() => {} }
    };

    let outcome = tokio::select! {
        outcome = system.run(began) => outcome,
        () = stop_requested() => Ok(()),
    };
    RunFile::remove(&system.state);
    print_line("stopping");
    let force_stop = system.force_stop.clone();
    let state = system.state.clone();
    tokio::select! {
        () = system.stop() => {}
        // A second Ctrl-C kills the processes.
        () = async { stop_requested().await; force_stop.cancel(); std::future::pending().await } => {}
    }
    let _ = std::fs::remove_file(state.dev_cli());
    match &outcome {
        Ok(()) => print_step("stopped", ""),
        // The process that started this one may have exited.
        Err(error) if background => print_line(&format!("{error:#}")),
        Err(_) => {}
    }
    outcome
}

fn seconds(since: Instant) -> String {
    format!("{:.1} s", since.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::Settings;

    #[test]
    fn the_flash_sale_is_for_development_alone() {
        let settings =
            |environment: &str| Settings { shoppee_env: environment.to_owned(), ..Settings::default() };
        assert!(settings("development").allows_control());
        assert!(!settings("production").allows_control() && !settings("").allows_control());
        let tls = Settings { grpc_tls_cert_file: Some("cert.pem".to_owned()), ..settings("development") };
        assert!(!tls.allows_control(), "its sign-ins are plain gRPC");
    }
}
