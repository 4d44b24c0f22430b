//! From `main` to the exit code: settings, logs, the run, the signal to stop, the deadline after it.

use std::{io::Write as _, net::SocketAddr, process::ExitCode, sync::mpsc, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::disable_transparent_huge_pages,
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    clock::Clock,
    probe,
    readiness::Readiness,
    resources, secret_files,
    settings::Common,
    tasks::Tasks,
    telemetry,
    tls::{self, GrpcTls},
};

/// A request allocates a few hundred times; this one takes a third of the time for it, and gives memory back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// After the lag, how long requests and sockets may take to end. With the lag it stays below the 25 s that a
/// rolling restart grants.
const DRAIN: Duration = Duration::from_secs(18);

/// The time that a process which ends in an error gives to the line that says so.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);

/// What a process hands to its parts; cheap to clone.
#[derive(Clone, Debug)]
pub struct Process {
    pub clock: Clock,
    pub tasks: Tasks,
    pub readiness: Readiness,
    /// The TLS of gRPC, both served and spoken to other processes.
    pub tls: GrpcTls,
}

/// Settings of a process.
pub trait Settings: Parser {
    fn common(&self) -> &Common;

    /// Where `/readyz` is answered; what `--probe` asks.
    fn ops_addr(&self) -> Option<SocketAddr> {
        None
    }
}

/// Runs the process called `name`: `start` wires its parts and spawns its tasks, which then run until SIGTERM, Ctrl-C
/// or the end of one of them.
pub fn main<S, F, Fut>(name: &'static str, start: F) -> ExitCode
where
    S: Settings,
    F: FnOnce(S, Process) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let (settings, given): (S, _) = match secret_files::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        Err(error) if !error.use_stderr() => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(name, &one_line(&error.render().to_string())),
    };
    if settings.common().probe {
        let asked = settings.ops_addr().context("answers no /readyz").and_then(probe::ask);
        return asked.map_or_else(|error| fail(name, &format!("{error:#}")), |()| ExitCode::SUCCESS);
    }
    open_more_files();
    use_small_pages();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(name, &error.to_string()),
    };
    let outcome = runtime.block_on(run(name, settings, &given, start));
    // What still runs has had its time.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(name, &format!("{error:#}")),
    }
}

/// Lets this process open as many files as it may: each connection is one, and many systems start with 1024 for the sake of
/// programs that use `select`.
fn open_more_files() {
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised, connections are refused earlier.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// At rest a process needs a few MiB, which in pages of 2 MiB are three times as many; under load it is as fast without. The
/// allocator asks for none, but some systems give them unasked.
fn use_small_pages() {
    // Where that is refused, it takes more memory.
    let _ = disable_transparent_huge_pages(true);
}

async fn run<S, F, Fut>(name: &'static str, settings: S, given: &str, start: F) -> anyhow::Result<()>
where
    S: Settings,
    F: FnOnce(S, Process) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let lag = settings.common().shutdown_lag();
    tls::install_provider();
    let tls = GrpcTls::load(&settings.common().grpc_tls)?;
    let telemetry = telemetry::install(name, settings.common())?;
    let (tasks, mut ended) = Tasks::new();
    let process =
        Process { clock: Clock::default(), tasks: tasks.clone(), readiness: Readiness::default(), tls };
    telemetry::start_upkeep(&process);
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);

    resources::export(&process);
    if let Err(error) = start(settings, process.clone()).await {
        telemetry.shut_down();
        return Err(error);
    }
    // Not before: a start that fails is one line, which says why.
    tracing::info!(version = env!("CARGO_PKG_VERSION"), settings = given, "started");

    let outcome = tokio::select! {
        _ = term.recv() => Ok(()),
        _ = int.recv() => Ok(()),
        Some(error) = ended.recv() => Err(error),
    };
    tracing::info!("stopping");
    process.readiness.stop();
    if outcome.is_ok() {
        tokio::time::sleep(lag).await;
    }
    if tokio::time::timeout(DRAIN, tasks.stop()).await.is_err() {
        tracing::warn!("not all had ended at the deadline");
    }
    telemetry.shut_down();
    outcome
}

/// The last words of a process that cannot run: one line, on standard error. A standard error that takes nothing does
/// not keep the process from its end.
fn fail(name: &str, why: &str) -> ExitCode {
    let line = format!("{name}: {why}").replace('\n', " ");
    let (written, writing) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = writeln!(std::io::stderr(), "{line}");
        let _ = written.send(());
    });
    let _ = writing.recv_timeout(LAST_WORDS_TIMEOUT);
    ExitCode::FAILURE
}

/// The part of clap's message that says what is wrong, without its usage and tips.
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
    fn a_wrong_setting_is_one_line() {
        let message =
            "error: the following required arguments were not provided:\n  --database-url <URL>\n\nUsage: x";
        assert_eq!(
            one_line(message),
            "the following required arguments were not provided: --database-url <URL>"
        );
    }
}
