//! PostgreSQL: a private one, or the one that DATABASE_URL names; and in either the shop's database with a role for
//! each service.

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
/// Debian's place, a folder a major version.
const INSTALLED: &str = "/usr/lib/postgresql";
/// Where the data goes when PostgreSQL's user cannot reach the checkout, as one below /root.
const ELSEWHERE: &str = "/var/lib/shoppee";
/// 16 a service, and as many again for whoever looks into it.
const MAX_CONNECTIONS: u32 = 200;
/// The first major version that can.
const SYNCS_AT_ONCE: u32 = 14;
/// A fast shutdown writes a checkpoint: seconds at most.
const STOP: Stop = Stop { signal: Signal::INT, name: "INT", patience: Duration::from_secs(20) };

/// A server of our own.
#[derive(Debug)]
pub struct Private {
    home: PathBuf,
    log: PathBuf,
    binaries: PathBuf,
    major: u32,
    owner: Option<Owner>,
    port: u16,
}

impl Private {
    /// Makes its data folder where there is none.
    pub fn prepare(state: &State, port: u16, password: &str) -> anyhow::Result<Self> {
        let owner = owner()?;
        let home = home(state, owner.as_ref())?;
        let version = major(&home);
        let binaries = binaries(version)?;
        let mut server = Self { home, log: state.log(NAME), binaries, major: 0, owner, port };
        if version.is_none() {
            server.init(password)?;
        }
        server.major = major(&server.home).context("PostgreSQL's data has no version")?;
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
        // A socket's path may have 107 bytes, and a checkout lies where it lies.
        arguments.extend(setting("unix_socket_directories", ""));
        if self.major >= SYNCS_AT_ONCE {
            // After a kill, one call for the file system instead of one a file: back in one second instead of five.
            arguments.extend(setting("recovery_init_sync_method", "syncfs"));
        }
        arguments.extend(setting("max_connections", &MAX_CONNECTIONS.to_string()));
        arguments.extend(setting("log_line_prefix", "%m [%p] %u "));
        Program {
            name: NAME.to_owned(),
            executable: self.binaries.join("postgres"),
            arguments,
            environment: Environment::Neutral,
            folder: self.data(),
            log: self.log.clone(),
            owner: self.owner.clone(),
            stop: STOP,
            // Its process id may be a stranger's by now.
            stale: Some("postmaster.pid"),
        }
    }

    fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Into a folder beside it first: what was interrupted is never taken for a database.
    fn init(&self, password: &str) -> anyhow::Result<()> {
        let (unfinished, secret) = (self.home.join("unfinished"), self.home.join("secret"));
        let _ = fs::remove_dir_all(&unfinished);
        state::write(&secret, password, 0o600)?;
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
        let made = command
            .args(["--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8"])
            .arg(pwfile)
            .arg("-D")
            .arg(&unfinished)
            .current_dir(&self.home)
            .output()
            .context("initdb")?;
        fs::remove_file(&secret)?;
        if !made.status.success() {
            bail!("initdb: {}", String::from_utf8_lossy(&made.stderr).trim());
        }
        fs::rename(&unfinished, self.data())?;
        Ok(())
    }
}

/// PostgreSQL does not run as root: where we are, its package's user runs it.
fn owner() -> anyhow::Result<Option<Owner>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let mut fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let user = fields.find(|fields| fields[0] == "postgres").context("there is no user postgres")?;
    Ok(Some(Owner { name: "postgres", uid: user[2].parse()?, gid: user[3].parse()? }))
}

/// The folder of its data, `.shoppee/postgres`, or a link there to one that its user can reach.
fn home(state: &State, owner: Option<&Owner>) -> anyhow::Result<PathBuf> {
    let home = state.of(NAME);
    if !home.exists() {
        match owner {
            Some(owner) if !reaches(owner, state.folder()) => {
                // A link that leads nowhere is all that is left of data somebody removed.
                let _ = fs::remove_file(&home);
                let elsewhere = Path::new(ELSEWHERE).join(format!("{:016x}", rand::random::<u64>()));
                fs::create_dir_all(&elsewhere)?;
                symlink(&elsewhere, &home)?;
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

fn reaches(owner: &Owner, folder: &Path) -> bool {
    let test = Command::new("runuser").args(["-u", owner.name, "--", "test", "-x"]).arg(folder).output();
    test.is_ok_and(|test| test.status.success())
}

/// The major version whose data is there.
fn major(home: &Path) -> Option<u32> {
    fs::read_to_string(home.join("data/PG_VERSION")).ok()?.trim().parse().ok()
}

/// The programs of that major version, or of the newest.
fn binaries(wanted: Option<u32>) -> anyhow::Result<PathBuf> {
    let mut installed: Vec<(u32, PathBuf)> = fs::read_dir(INSTALLED)
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
    if let Some(major) = wanted {
        let found = installed.into_iter().find(|(installed, _)| *installed == major);
        return found
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

/// The superuser's URL with the shop's database where it names none.
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

/// The same server and database for another role.
pub fn for_role(url: &str, role: &str, password: &str) -> anyhow::Result<String> {
    let (scheme, _, rest) = split(url)?;
    Ok(format!("{scheme}://{role}:{password}@{rest}"))
}

/// Scheme, user with password, and the rest.
fn split(url: &str) -> anyhow::Result<(&str, &str, &str)> {
    let (scheme, rest) = url.split_once("://").context("DATABASE_URL is not a PostgreSQL URL")?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => Ok((scheme, &rest[..at], &rest[at + 1..])),
        None => Ok((scheme, "", rest)),
    }
}

/// Whether the server lets the superuser in.
pub async fn answers(url: &str) -> Result<(), sqlx::Error> {
    let server: PgConnectOptions = url.parse()?;
    PgConnection::connect_with(&server.database("postgres")).await?.close().await
}

/// Makes the database where it is missing, and the services' roles and schemas in it.
pub async fn bootstrap(url: &str, secrets: &Secrets) -> anyhow::Result<()> {
    let server: PgConnectOptions = url.parse()?;
    let database = server.get_database().unwrap_or(DATABASE).to_owned();
    let quoted = format!("\"{}\"", database.replace('"', "\"\""));

    let mut connection = PgConnection::connect_with(&server.clone().database("postgres")).await?;
    let known = sqlx::query_scalar::<_, bool>("select exists (select from pg_database where datname = $1)")
        .bind(&database)
        .fetch_one(&mut connection)
        .await?;
    if !known {
        sqlx::raw_sql(AssertSqlSafe(format!("create database {quoted}"))).execute(&mut connection).await?;
    }
    connection.close().await?;

    // The passwords are our own, of hexadecimal digits.
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
    fn a_role_gets_the_url_of_the_same_database() {
        let url = for_role("postgres://root:p@ss@db.example:5433/shop?sslmode=require", "shoppee_auth", "x");
        assert_eq!(url.unwrap(), "postgres://shoppee_auth:x@db.example:5433/shop?sslmode=require");
        assert_eq!(for_role("postgres://db/shop", "a", "b").unwrap(), "postgres://a:b@db/shop");
    }

    #[test]
    fn a_url_without_a_database_means_ours() {
        assert_eq!(with_database("postgres://u@h:1").unwrap(), "postgres://u@h:1/shoppee");
        assert_eq!(with_database("postgres://u@h/?a=b").unwrap(), "postgres://u@h/shoppee?a=b");
        assert_eq!(with_database("postgres://u@h/own").unwrap(), "postgres://u@h/own");
        assert!(with_database("h:5432").is_err());
    }
}
