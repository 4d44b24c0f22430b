//! The specification of a supervised program: executable, arguments, environment, working directory and user.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::orphans;

/// A larger log is rotated to `.log.1` at the next start. Bytes.
const MAX_LOG_BYTES: u64 = 16 << 20;
/// The variables that a third-party program inherits.
const INHERITED_VARIABLES: [&str; 4] = ["PATH", "HOME", "LANG", "TZ"];

#[derive(Clone, Debug)]
pub struct Program {
    pub name: String,
    pub executable: PathBuf,
    pub arguments: Vec<OsString>,
    pub environment: Environment,
    /// The working directory, which no other process shares: orphans are recognised by it.
    pub folder: PathBuf,
    pub log: PathBuf,
    /// The user to run as; set only if the supervisor is root and the program must not be.
    pub owner: Option<Owner>,
    pub stop: Stop,
    /// A file that a killed process leaves in its folder and that prevents the next start.
    pub lock_file: Option<&'static str>,
}

#[derive(Clone, Debug)]
pub enum Environment {
    /// The supervisor's environment, with some variables unset and others set.
    Modified { unset: Vec<&'static str>, set: Vec<(&'static str, String)> },
    /// [`INHERITED_VARIABLES`] only: no settings and no secrets.
    Minimal,
}

#[derive(Clone, Debug)]
pub struct Owner {
    pub name: &'static str,
    pub uid: u32,
    pub gid: u32,
}

/// The stop signal of a program, and the time that it has before SIGKILL.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    pub signal: Signal,
    pub name: &'static str,
    pub timeout: Duration,
}

impl Program {
    /// Starts the program, after it has removed the orphans and the lock file of a killed predecessor.
    pub async fn start(&self) -> anyhow::Result<Child> {
        fs::create_dir_all(&self.folder)?;
        orphans::kill(&self.folder).await?;
        if let Some(lock_file) = self.lock_file {
            // Usually there is none.
            let _ = fs::remove_file(self.folder.join(lock_file));
        }
        let log = open_log(&self.log)?;
        // The kernel sends the stop signal if the supervisor is killed. `setpriv` execs the program, which keeps the
        // process id.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", self.stop.name]);
        if let Some(owner) = &self.owner {
            command.args(["--reuid", owner.name, "--regid", &owner.gid.to_string(), "--init-groups"]);
        }
        command.arg("--").arg(&self.executable).args(&self.arguments);
        match &self.environment {
            Environment::Modified { unset, set } => {
                for name in unset {
                    command.env_remove(name);
                }
                command.envs(set.iter().map(|(name, value)| (name, value)));
            }
            Environment::Minimal => {
                command.env_clear();
                command.envs(
                    INHERITED_VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))),
                );
            }
        }
        command
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C reaches the supervisor alone, which stops the programs in order.
            .process_group(0);
        command.spawn().with_context(|| format!("setpriv, which starts {}", self.name))
    }

    /// Sends the stop signal, and SIGKILL after the timeout or once `force_stop` completes.
    pub async fn stop(&self, mut child: Child, force_stop: impl Future<Output = ()>) {
        if let Some(pid) = pid(&child) {
            // The process may have exited meanwhile.
            let _ = kill_process(pid, self.stop.signal);
        }
        tokio::select! {
            _ = child.wait() => return,
            () = tokio::time::sleep(self.stop.timeout) => {}
            () = force_stop => {}
        }
        let _ = child.kill().await;
        // PostgreSQL's children exit shortly after the postmaster.
        let _ = orphans::kill(&self.folder).await;
    }
}

fn pid(child: &Child) -> Option<Pid> {
    child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
}

pub fn open_log(path: &Path) -> anyhow::Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    if fs::metadata(path).is_ok_and(|log| log.len() > MAX_LOG_BYTES) {
        fs::rename(path, path.with_extension("log.1"))?;
    }
    let log = OpenOptions::new().append(true).create(true).open(path);
    log.with_context(|| path.display().to_string())
}

/// Describes an exit, as `exit code 1` or `signal 9`.
pub fn exit_reason(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no reason known".to_owned(),
    }
}
