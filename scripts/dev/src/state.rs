//! The state directory of a running system, with a lock for its one supervisor.

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

/// A file lock that the supervisor holds. The kernel releases it when the process exits.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the open file holds the lock")] File);

impl State {
    /// Opens the directory and creates it if it is missing. Other users may traverse it, as PostgreSQL's user must;
    /// files with secrets have their own permissions.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let folder = folder.canonicalize()?;
        Ok(Self { folder })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the folder of a process: its working directory, by which orphans are recognised.
    pub fn process_folder(&self, process: &str) -> PathBuf {
        self.folder.join(process)
    }

    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    pub fn log(&self, process: &str) -> PathBuf {
        self.logs().join(format!("{process}.log"))
    }

    pub fn run_file(&self) -> PathBuf {
        self.folder.join("run.json")
    }

    pub fn secrets(&self) -> PathBuf {
        self.folder.join("secrets")
    }

    /// Returns the link to the running supervisor's program, which `scripts/dev-cli` executes.
    pub fn dev_cli(&self) -> PathBuf {
        self.folder.join("dev-cli")
    }

    /// Makes this process the supervisor. Returns `None` if another process holds the lock.
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

    /// Returns the process id of the supervisor, or `None` if there is none.
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

/// Writes a file atomically.
pub fn write_atomically(path: &Path, content: &str, mode: u32) -> anyhow::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    // A file that a crash left may have other permissions.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path).with_context(|| path.display().to_string())
}
