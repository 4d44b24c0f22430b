//! PostgreSQL: a private server or the one of DATABASE_URL, and the bootstrap of the shop's database with a role for each
//! service.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustix::process::Signal;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, postgres::PgConnectOptions};

use crate::{
    program::{Environment, Owner, Program, Stop},
    secrets::Secrets,
    state::{self, State},
};

pub const NAME: &str = "postgres";
const DATABASE: &str = "shoppee";
const BOOTSTRAP: &str = include_str!("../../../services/bootstrap.sql");
/// Debian's installation folder, with a subfolder for each major version.
const INSTALL_FOLDER: &str = "/usr/lib/postgresql";
/// The folder of the data if PostgreSQL's user cannot traverse the checkout, for example below a home directory.
const FALLBACK_FOLDER: &str = "/var/lib/shoppee";
/// Each replica of a service has a pool of up to 16 connections; the rest is for other clients.
const MAX_CONNECTIONS: u32 = 200;
/// The first major version with `recovery_init_sync_method`.
const MIN_SYNCFS_VERSION: u32 = 14;
/// A fast shutdown (SIGINT) writes a checkpoint, which takes seconds at most.
const STOP: Stop = Stop { signal: Signal::INT, name: "INT", timeout: Duration::from_secs(20) };

/// The private server of a system.
#[derive(Debug)]
pub struct PrivateServer {
    home: PathBuf,
    log: PathBuf,
    binaries: PathBuf,
    major: u32,
    owner: Option<Owner>,
    port: u16,
}

impl PrivateServer {
    /// Prepares the server, and creates its data folder if there is none.
    pub fn prepare(state: &State, port: u16, password: &str) -> anyhow::Result<Self> {
        let owner = owner()?;
        let home = home(state, owner.as_ref())?;
        let version = major_version(&home);
        let binaries = binaries(version)?;
        let mut server = Self { home, log: state.log(NAME), binaries, major: 0, owner, port };
        if version.is_none() {
            server.init(password)?;
        }
        server.major = major_version(&server.home).context("PostgreSQL's data has no version")?;
        Ok(server)
    }

    pub fn url(&self, password: &str) -> String {
        format!("postgres://postgres:{password}@127.0.0.1:{}/{DATABASE}", self.port)
    }

    pub fn program(&self) -> Program {
        let setting = |name: &str, value: &str| [OsString::from("-c"), format!("{name}={value}").into()];
        let mut arguments = vec![OsString::from("-D"), self.data().into()];
        arguments.extend(setting("port", &self.port.to_string()));
        arguments.extend(setting("listen_addresses", "127.0.0.1"));
        // The path of a socket has at most 107 bytes, which a checkout's path may exceed.
        arguments.extend(setting("unix_socket_directories", ""));
        if self.major >= MIN_SYNCFS_VERSION {
            // Recovery after a kill syncs the file system once instead of every file: one second instead of five.
            arguments.extend(setting("recovery_init_sync_method", "syncfs"));
        }
        arguments.extend(setting("max_connections", &MAX_CONNECTIONS.to_string()));
        arguments.extend(setting("log_line_prefix", "%m [%p] %u "));
        Program {
            name: NAME.to_owned(),
            executable: self.binaries.join("postgres"),
            arguments,
            environment: Environment::Minimal,
            folder: self.data(),
            log: self.log.clone(),
            owner: self.owner.clone(),
            stop: STOP,
            // The process id in a stale file may belong to another process.
            lock_file: Some("postmaster.pid"),
        }
    }

    fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Creates the database cluster in a temporary folder and renames it, so that an interrupted initdb leaves none.
    fn init(&self, password: &str) -> anyhow::Result<()> {
        let (temporary, secret) = (self.home.join("unfinished"), self.home.join("secret"));
        let _ = fs::remove_dir_all(&temporary);
        state::write_atomically(&secret, password, 0o600)?;
        if let Some(owner) = &self.owner {
            chown(&secret, Some(owner.uid), Some(owner.gid))?;
        }
        let mut command = match &self.owner {
            Some(owner) => {
                let mut command = Command::new("runuser");
                command.args(["-u", owner.name, "--"]).arg(self.binaries.join("initdb"));
                command
            }
            None => Command::new(self.binaries.join("initdb")),
        };
        let mut pwfile = OsString::from("--pwfile=");
        pwfile.push(&secret);
        let output = command
            .args(["--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8"])
            .arg(pwfile)
            .arg("-D")
            .arg(&temporary)
            .current_dir(&self.home)
            .output()
            .context("initdb")?;
        fs::remove_file(&secret)?;
        if !output.status.success() {
            bail!("initdb: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        fs::rename(&temporary, self.data())?;
        Ok(())
    }
}

/// Returns the package's user if this process is root, as PostgreSQL refuses to run as root.
fn owner() -> anyhow::Result<Option<Owner>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let mut fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let user = fields.find(|fields| fields[0] == "postgres").context("there is no user postgres")?;
    Ok(Some(Owner { name: "postgres", uid: user[2].parse()?, gid: user[3].parse()? }))
}

/// Creates the server's folder `.shoppee/postgres`, or a link there to a folder that its user can traverse.
fn home(state: &State, owner: Option<&Owner>) -> anyhow::Result<PathBuf> {
    let home = state.process_folder(NAME);
    if !home.exists() {
        match owner {
            Some(owner) if !can_traverse(owner, state.folder()) => {
                // The link may dangle because its target was removed.
                let _ = fs::remove_file(&home);
                let target = Path::new(FALLBACK_FOLDER).join(format!("{:016x}", rand::random::<u64>()));
                fs::create_dir_all(&target)?;
                symlink(&target, &home)?;
            }
            Some(_) | None => fs::create_dir_all(&home)?,
        }
        if let Some(owner) = owner {
            chown(&home, Some(owner.uid), Some(owner.gid))?;
        }
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700))?;
    }
    Ok(home.canonicalize()?)
}

fn can_traverse(owner: &Owner, folder: &Path) -> bool {
    let test = Command::new("runuser").args(["-u", owner.name, "--", "test", "-x"]).arg(folder).output();
    test.is_ok_and(|test| test.status.success())
}

/// Returns the major version of the data in a folder.
fn major_version(home: &Path) -> Option<u32> {
    fs::read_to_string(home.join("data/PG_VERSION")).ok()?.trim().parse().ok()
}

/// Returns the folder of the programs of a major version, or of the newest one.
fn binaries(version: Option<u32>) -> anyhow::Result<PathBuf> {
    let mut installed: Vec<(u32, PathBuf)> = fs::read_dir(INSTALL_FOLDER)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let folder = entry.ok()?;
            let major = folder.file_name().to_str()?.parse().ok()?;
            let binaries = folder.path().join("bin");
            binaries.join("initdb").exists().then_some((major, binaries))
        })
        .collect();
    installed.sort();
    if let Some(major) = version {
        let matching = installed.into_iter().find(|(installed, _)| *installed == major);
        return matching
            .map(|(_, binaries)| binaries)
            .with_context(|| format!("the data here is PostgreSQL {major}'s, which is not installed"));
    }
    if let Some((_, binaries)) = installed.pop() {
        return Ok(binaries);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).find(|folder| folder.join("initdb").exists());
    on_path.context("PostgreSQL is not installed")
}

/// Adds the shop's database to the superuser's URL if the URL names none.
pub fn with_database(url: &str) -> anyhow::Result<String> {
    let (_, _, rest) = split(url)?;
    let (host, query) = rest.split_once('?').map_or((rest, None), |(host, query)| (host, Some(query)));
    if host.split_once('/').is_some_and(|(_, database)| !database.is_empty()) {
        return Ok(url.to_owned());
    }
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let start = &url[..url.len() - rest.len()];
    Ok(format!("{start}{}/{DATABASE}{query}", host.trim_end_matches('/')))
}

/// Returns the URL of the same server and database for another role.
pub fn for_role(url: &str, role: &str, password: &str) -> anyhow::Result<String> {
    let (scheme, _, rest) = split(url)?;
    Ok(format!("{scheme}://{role}:{password}@{rest}"))
}

/// Splits a URL into scheme, user with password, and the rest.
fn split(url: &str) -> anyhow::Result<(&str, &str, &str)> {
    let (scheme, rest) = url.split_once("://").context("DATABASE_URL is not a PostgreSQL URL")?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => Ok((scheme, &rest[..at], &rest[at + 1..])),
        None => Ok((scheme, "", rest)),
    }
}

/// Connects to the server as the superuser.
pub async fn ping(url: &str) -> Result<(), sqlx::Error> {
    let server: PgConnectOptions = url.parse()?;
    PgConnection::connect_with(&server.database("postgres")).await?.close().await
}

/// Creates the database if it is missing, and the roles and schemas of the services in it.
pub async fn bootstrap(url: &str, secrets: &Secrets) -> anyhow::Result<()> {
    let server: PgConnectOptions = url.parse()?;
    let database = server.get_database().unwrap_or(DATABASE).to_owned();
    let quoted = format!("\"{}\"", database.replace('"', "\"\""));

    let mut connection = PgConnection::connect_with(&server.clone().database("postgres")).await?;
    let exists = sqlx::query_scalar::<_, bool>("select exists (select from pg_database where datname = $1)")
        .bind(&database)
        .fetch_one(&mut connection)
        .await?;
    if !exists {
        sqlx::raw_sql(AssertSqlSafe(format!("create database {quoted}"))).execute(&mut connection).await?;
    }
    connection.close().await?;

    // The generated passwords are hexadecimal digits, which need no quoting.
    let services = [
        ("shoppee_auth", "auth", &secrets.auth_role),
        ("shoppee_product", "product", &secrets.product_role),
        ("shoppee_order", "orders", &secrets.order_role),
    ];
    let script = services.map(|(role, schema, password)| {
        BOOTSTRAP
            .replace(":\"database\"", &quoted)
            .replace(":\"role\"", role)
            .replace(":'role'", &format!("'{role}'"))
            .replace(":\"schema\"", schema)
            .replace(":'schema'", &format!("'{schema}'"))
            .replace(":'password'", &format!("'{password}'"))
    });
    let mut connection = PgConnection::connect_with(&server).await?;
    sqlx::raw_sql(AssertSqlSafe(script.concat()))
        .execute(&mut connection)
        .await
        .context("services/bootstrap.sql")?;
    connection.close().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_for_a_role_keeps_server_and_database() {
        let url = for_role("postgres://root:p@ss@db.example:5433/shop?sslmode=require", "shoppee_auth", "x");
        assert_eq!(url.unwrap(), "postgres://shoppee_auth:x@db.example:5433/shop?sslmode=require");
        assert_eq!(for_role("postgres://db/shop", "a", "b").unwrap(), "postgres://a:b@db/shop");
    }

    #[test]
    fn a_url_without_a_database_gets_the_default_one() {
        assert_eq!(with_database("postgres://u@h:1").unwrap(), "postgres://u@h:1/shoppee");
        assert_eq!(with_database("postgres://u@h/?a=b").unwrap(), "postgres://u@h/shoppee?a=b");
        assert_eq!(with_database("postgres://u@h/own").unwrap(), "postgres://u@h/own");
        assert!(with_database("h:5432").is_err());
    }
}
