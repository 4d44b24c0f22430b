//! The folder in which everything of a running system is kept, and who may touch it: one supervisor at a time.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

#[derive(Clone, Debug)]
pub struct State {
    folder: PathBuf,
}

/// Held by the supervisor for as long as it lives; the kernel lets go of it whatever ends the process.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "open is what it must be")] File);

impl State {
    /// Makes the folder where it is missing. Others may pass through it (PostgreSQL's own user must); what is secret in
    /// it says so itself.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let folder = folder.canonicalize()?;
        Ok(Self { folder })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of one process: its working directory, by which it is known again.
    pub fn of(&self, part: &str) -> PathBuf {
        self.folder.join(part)
    }

    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    pub fn log(&self, part: &str) -> PathBuf {
        self.logs().join(format!("{part}.log"))
    }

    pub fn run_file(&self) -> PathBuf {
        self.folder.join("run.json")
    }

    pub fn secrets(&self) -> PathBuf {
        self.folder.join("secrets")
    }

    /// The program that supervises, for the scripts that talk to the running system.
    pub fn dev_cli(&self) -> PathBuf {
        self.folder.join("dev-cli")
    }

    /// Makes this process the supervisor; `None` where there is one.
    pub fn lock(&self) -> anyhow::Result<Option<Lock>> {
        let mut file = self.lock_file()?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0)?;
                write!(file, "{}", std::process::id())?;
                Ok(Some(Lock(file)))
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }

    /// The process id of the supervisor; `None` where there is none.
    pub fn supervisor(&self) -> anyhow::Result<Option<i32>> {
        let mut file = self.lock_file()?;
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                file.rewind()?;
                file.read_to_string(&mut pid)?;
                match pid.trim().parse() {
                    Ok(pid) => Ok(Some(pid)),
                    Err(_) => bail!("the supervisor is only just starting; try again"),
                }
            }
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }

    fn lock_file(&self) -> anyhow::Result<File> {
        let path = self.folder.join("lock");
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| path.display().to_string())
    }
}

/// Writes a file whole or not at all.
pub fn write(path: &Path, content: &str, mode: u32) -> anyhow::Result<()> {
    let unfinished = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&unfinished)?;
    // One that a crash left may have other rights.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    fs::rename(&unfinished, path).with_context(|| path.display().to_string())
}
