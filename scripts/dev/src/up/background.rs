//! `--detach`: the same program once more, in a session of its own; this one shows its progress until it is ready.

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
use crate::{program, run_file::RunFile, screen::begin, secrets::Secrets, state::State};

const LOOK: Duration = Duration::from_millis(50);

pub async fn start(state: &State) -> anyhow::Result<()> {
    if state.supervisor()?.is_some() {
        bail!("a system of this checkout runs already; scripts/down stops it");
    }
    let began = Instant::now();
    RunFile::remove(state);
    let path = state.log("shop");
    let log = program::open_log(&path)?;
    let mut shown = File::open(&path)?;
    shown.seek(SeekFrom::End(0))?;
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--detach");
    let mut supervisor = tokio::process::Command::new(std::env::current_exe()?)
        .args(arguments)
        .arg("--background")
        .stdin(Stdio::null())
        .stdout(log)
        // Its last words, should it not get ready; later ones stand in the log alone.
        .stderr(Stdio::piped())
        .spawn()?;
    let ended: ExitStatus = loop {
        let ready = state.run_file().exists();
        show(&mut shown)?;
        if ready {
            let run = RunFile::read(state)?;
            let title = format!("Ready after {}", seconds(began));
            summary::show(&run, &Secrets::open(state)?, &title, "scripts/down");
            return Ok(());
        }
        tokio::select! {
            status = supervisor.wait() => break status?,
            () = tokio::time::sleep(LOOK) => {}
            _ = tokio::signal::ctrl_c() => {
                if let Some(pid) = supervisor.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
                    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
                }
                break supervisor.wait().await?;
            }
        }
    };
    show(&mut shown)?;
    let mut why = String::new();
    if let Some(mut complaint) = supervisor.stderr.take() {
        complaint.read_to_string(&mut why).await?;
    }
    match ended.signal() {
        Some(signal) => bail!("the supervisor ended by signal {signal}; see {}", path.display()),
        None => bail!("Shoppee did not start: {why}"),
    }
}

/// What the supervisor has said since.
fn show(log: &mut File) -> std::io::Result<()> {
    let mut said = String::new();
    log.read_to_string(&mut said)?;
    begin(&said);
    Ok(())
}
