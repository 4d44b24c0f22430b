//! `--detach`: starts the same program in a session of its own, and shows its progress until the system is ready.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::bail;
use tokio::{io::AsyncReadExt as _, time::Instant};

use super::{seconds, summary};
use crate::{output::print_partial, program, run_file::RunFile, secrets::Secrets, state::State};

const POLL_INTERVAL: Duration = Duration::from_millis(50);

pub async fn start(state: &State) -> anyhow::Result<()> {
    if state.supervisor()?.is_some() {
        bail!("a system of this checkout runs already; scripts/down stops it");
    }
    let began = Instant::now();
    RunFile::remove(state);
    let path = state.log("supervisor");
    let log = program::open_log(&path)?;
    let mut log_reader = File::open(&path)?;
    log_reader.seek(SeekFrom::End(0))?;
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--detach");
    let mut supervisor = tokio::process::Command::new(std::env::current_exe()?)
        .args(arguments)
        .arg("--background")
        .stdin(Stdio::null())
        .stdout(log)
        // The error of a failed start; later errors are written to the log alone.
        .stderr(Stdio::piped())
        .spawn()?;
    let status: ExitStatus = loop {
        let ready = state.run_file().exists();
        show_progress(&mut log_reader)?;
        if ready {
            let run = RunFile::read(state)?;
            let title = format!("Ready after {}", seconds(began));
            summary::show(&run, &Secrets::open(state)?, &title, "scripts/down");
            return Ok(());
        }
        tokio::select! {
            status = supervisor.wait() => break status?,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
            _ = tokio::signal::ctrl_c() => {
                if let Some(pid) = supervisor.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
                    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
                }
                break supervisor.wait().await?;
            }
        }
    };
    show_progress(&mut log_reader)?;
    let mut message = String::new();
    if let Some(mut stderr) = supervisor.stderr.take() {
        stderr.read_to_string(&mut message).await?;
    }
    match status.signal() {
        Some(signal) => bail!("the supervisor ended by signal {signal}; see {}", path.display()),
        None => bail!("Shoppee did not start: {message}"),
    }
}

/// Prints the supervisor's output since the last call.
fn show_progress(log: &mut File) -> std::io::Result<()> {
    let mut text = String::new();
    log.read_to_string(&mut text)?;
    print_partial(&text);
    Ok(())
}
