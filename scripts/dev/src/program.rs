//! One program as it is started, again after each of its ends: what, where, with which settings, as whom.

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

use crate::leftovers;

/// A log that has grown beyond this is put aside at the next start, in place of the one put aside before. Bytes.
const LOG_KEPT: u64 = 16 << 20;
/// What a program keeps of our own environment where it is not one of ours.
const NEUTRAL: [&str; 4] = ["PATH", "HOME", "LANG", "TZ"];

#[derive(Clone, Debug)]
pub struct Program {
    pub name: String,
    pub executable: PathBuf,
    pub arguments: Vec<OsString>,
    pub environment: Environment,
    /// Its working directory, and nobody else's.
    pub folder: PathBuf,
    pub log: PathBuf,
    /// Only where we are root and it must not be.
    pub owner: Option<Owner>,
    pub stop: Stop,
    /// A file that a killed one leaves in its folder and that keeps the next from starting.
    pub stale: Option<&'static str>,
}

#[derive(Clone, Debug)]
pub enum Environment {
    /// Ours, without these and then with those.
    Ours { without: Vec<&'static str>, with: Vec<(&'static str, String)> },
    /// Nothing of ours that could be a setting or a secret.
    Neutral,
}

#[derive(Clone, Debug)]
pub struct Owner {
    pub name: &'static str,
    pub uid: u32,
    pub gid: u32,
}

/// How it is asked to stop, and how long it may take before it is killed.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    pub signal: Signal,
    pub name: &'static str,
    pub patience: Duration,
}

impl Program {
    /// Starts it, after having cleared away what is left of one that was killed.
    pub async fn start(&self) -> anyhow::Result<Child> {
        fs::create_dir_all(&self.folder)?;
        leftovers::clear(&self.folder).await?;
        if let Some(stale) = self.stale {
            // Usually there is none.
            let _ = fs::remove_file(self.folder.join(stale));
        }
        let log = open_log(&self.log)?;
        // When we are killed, the kernel tells it to stop. `setpriv` becomes the program: the process id stays.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", self.stop.name]);
        if let Some(owner) = &self.owner {
            command.args(["--reuid", owner.name, "--regid", &owner.gid.to_string(), "--init-groups"]);
        }
        command.arg("--").arg(&self.executable).args(&self.arguments);
        match &self.environment {
            Environment::Ours { without, with } => {
                for name in without {
                    command.env_remove(name);
                }
                command.envs(with.iter().map(|(name, value)| (name, value)));
            }
            Environment::Neutral => {
                command.env_clear();
                command.envs(NEUTRAL.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
            }
        }
        command
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for us: we stop the others in their order.
            .process_group(0);
        command.spawn().with_context(|| format!("setpriv, which starts {}", self.name))
    }

    /// Asks it to stop, and kills it when its time is up or `hurry` ends.
    pub async fn end(&self, mut child: Child, hurry: impl Future<Output = ()>) {
        if let Some(pid) = pid(&child) {
            // It may have ended by itself meanwhile.
            let _ = kill_process(pid, self.stop.signal);
        }
        tokio::select! {
            _ = child.wait() => return,
            () = tokio::time::sleep(self.stop.patience) => {}
            () = hurry => {}
        }
        let _ = child.kill().await;
        // PostgreSQL's children end a little after it.
        let _ = leftovers::clear(&self.folder).await;
    }
}

fn pid(child: &Child) -> Option<Pid> {
    child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
}

pub fn open_log(path: &Path) -> anyhow::Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    if fs::metadata(path).is_ok_and(|log| log.len() > LOG_KEPT) {
        fs::rename(path, path.with_extension("log.1"))?;
    }
    let log = OpenOptions::new().append(true).create(true).open(path);
    log.with_context(|| path.display().to_string())
}

/// `exit code 1`, `signal 9`.
pub fn how_it_ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no reason known".to_owned(),
    }
}
