//! The lifecycle of a process: parses settings, installs telemetry, starts the tasks, handles SIGTERM, and drains before the
//! exit (graceful shutdown).

use std::{io::Write as _, net::SocketAddr, process::ExitCode, sync::mpsc, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread,
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    clock::Clock,
    probe,
    process::Process,
    readiness::Readiness,
    resources, secret_files,
    settings::Common,
    tasks::Tasks,
    telemetry,
    tls::{self, GrpcTls},
};

/// A request allocates a few hundred times; mimalloc takes a third of the default allocator's time, and returns memory
/// to the system.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Bounds the end of requests and sockets after the shutdown delay. Together they stay below the 25 s that a rolling
/// update grants.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(18);

/// Bounds the write of the final error message.
const ERROR_WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// The settings of a process.
pub trait Settings: Parser {
    fn common(&self) -> &Common;

    /// Returns the address that serves `/readyz`, for `--probe`.
    fn ops_addr(&self) -> Option<SocketAddr> {
        None
    }
}

/// Runs the process called `name`: `start` wires its components and spawns its tasks, which run until SIGTERM, SIGINT
/// or the end of one of them.
pub fn main<S, F, Fut>(name: &'static str, start: F) -> ExitCode
where
    S: Settings,
    F: FnOnce(S, Process) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let (settings, non_default): (S, _) = match secret_files::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        Err(error) if !error.use_stderr() => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(name, &one_line(&error.render().to_string())),
    };
    if settings.common().probe {
        let outcome = settings.ops_addr().context("answers no /readyz").and_then(probe::check_ready);
        return outcome.map_or_else(|error| fail(name, &format!("{error:#}")), |()| ExitCode::SUCCESS);
    }
    raise_nofile_limit();
    disable_huge_pages();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(name, &error.to_string()),
    };
    let outcome = runtime.block_on(run(name, settings, &non_default, start));
    // Tasks that still run have exceeded the drain timeout.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(name, &format!("{error:#}")),
    }
}

/// Raises the soft limit of open files (RLIMIT_NOFILE) to the hard limit. Each connection is a file, and the usual soft
/// limit of 1024 is there for programs that use `select`.
pub fn raise_nofile_limit() {
    let limit = getrlimit(Resource::Nofile);
    // If it cannot be raised, connections are refused earlier.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Disables transparent huge pages (THP). An idle process needs a few MiB, and three times as much in pages of 2 MiB;
/// under load they are no faster. Some systems use them for every process.
fn disable_huge_pages() {
    // If that is refused, the process takes more memory.
    let _ = thread::disable_transparent_huge_pages(true);
}

async fn run<S, F, Fut>(name: &'static str, settings: S, non_default: &str, start: F) -> anyhow::Result<()>
where
    S: Settings,
    F: FnOnce(S, Process) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let shutdown_delay = settings.common().shutdown_lag();
    tls::install_provider();
    let tls = GrpcTls::load(&settings.common().grpc_tls)?;
    let telemetry = telemetry::install(name, settings.common())?;
    let (tasks, mut failures) = Tasks::new();
    let process =
        Process { clock: Clock::default(), tasks: tasks.clone(), readiness: Readiness::default(), tls };
    telemetry::start_upkeep(&process);
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);

    resources::export(&process);
    if let Err(error) = start(settings, process.clone()).await {
        telemetry.shut_down();
        return Err(error);
    }
    // A start that fails has the error as its only line.
    tracing::info!(version = env!("CARGO_PKG_VERSION"), settings = non_default, "started");

    let outcome = tokio::select! {
        _ = term.recv() => Ok(()),
        _ = int.recv() => Ok(()),
        Some(error) = failures.recv() => Err(error),
    };
    tracing::info!("stopping");
    process.readiness.stop();
    if outcome.is_ok() {
        tokio::time::sleep(shutdown_delay).await;
    }
    if tokio::time::timeout(DRAIN_TIMEOUT, tasks.stop()).await.is_err() {
        tracing::warn!("drain timeout: some requests or tasks have not ended");
    }
    telemetry.shut_down();
    outcome
}

/// Writes the final error message, one line, to standard error. A blocked standard error does not block the exit.
fn fail(name: &str, reason: &str) -> ExitCode {
    let line = format!("{name}: {reason}").replace('\n', " ");
    let (sender, written) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = writeln!(std::io::stderr(), "{line}");
        let _ = sender.send(());
    });
    let _ = written.recv_timeout(ERROR_WRITE_TIMEOUT);
    ExitCode::FAILURE
}

/// Returns clap's message in one line, without its usage and tips.
fn one_line(message: &str) -> String {
    let lines: Vec<&str> = message
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty() && !line.starts_with("Usage"))
        .collect();
    lines.join(" ").trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn the_message_about_an_invalid_setting_is_one_line() {
        let message =
            "error: the following required arguments were not provided:\n  --database-url <URL>\n\nUsage: x";
        assert_eq!(
            one_line(message),
            "the following required arguments were not provided: --database-url <URL>"
        );
    }
}
