//! Redis: a private server with a user for each process, unless REDIS_URL names another server.

use std::{collections::BTreeMap, fs, net::Ipv4Addr, time::Duration};

use anyhow::ensure;
use rustix::process::Signal;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use crate::{
    program::{Environment, Program, Stop},
    state::{self, State},
};

pub const NAME: &str = "redis";
/// Redis flushes its append-only file before it exits.
const STOP: Stop = Stop { signal: Signal::TERM, name: "TERM", timeout: Duration::from_secs(10) };

/// The ACL rules of each user, without passwords.
const ACL_RULES: &str = include_str!("../../../services/redis.acl");
const USERS_FILE: &str = "users.acl";
/// The user with all rights.
pub const ADMIN_USER: &str = "default";

/// Iterates over the names of the users.
pub fn users() -> impl Iterator<Item = &'static str> {
    rules().map(|(name, _)| name)
}

/// Iterates over the users with their rules.
fn rules() -> impl Iterator<Item = (&'static str, &'static str)> {
    ACL_RULES.lines().filter_map(|line| line.strip_prefix("user ")?.split_once(' '))
}

/// Returns the URL of the private Redis for a user.
pub fn url(port: u16, user: &str, passwords: &BTreeMap<String, String>) -> String {
    let password = passwords.get(user).map(String::as_str).unwrap_or_default();
    format!("redis://{user}:{password}@127.0.0.1:{port}")
}

/// Writes the users file, and returns the program of the private Redis.
pub fn program(state: &State, port: u16, passwords: &BTreeMap<String, String>) -> anyhow::Result<Program> {
    let lines = rules().filter_map(|(name, rules)| {
        passwords.get(name).map(|password| format!("user {name} on >{password} {rules}\n"))
    });
    fs::create_dir_all(state.process_folder(NAME))?;
    state::write_atomically(&state.process_folder(NAME).join(USERS_FILE), &lines.collect::<String>(), 0o600)?;
    let port = port.to_string();
    // The append-only file is synced once a second: a crash loses at most the last second.
    let arguments = ["--bind", "127.0.0.1", "--port", &port, "--dir", ".", "--aclfile", USERS_FILE];
    let arguments = arguments.into_iter().chain(["--appendonly", "yes", "--save", ""]);
    Ok(Program {
        name: NAME.to_owned(),
        executable: "redis-server".into(),
        arguments: arguments.map(Into::into).collect(),
        environment: Environment::Minimal,
        folder: state.process_folder(NAME),
        log: state.log(NAME),
        owner: None,
        stop: STOP,
        lock_file: None,
    })
}

/// Sends the private Redis a command as its administrator. Returns the first line of the reply.
///
/// # Errors
/// If Redis refuses the password or the command.
pub async fn run_admin_command(
    port: u16,
    passwords: &BTreeMap<String, String>,
    command: &str,
) -> anyhow::Result<String> {
    let password = passwords.get(ADMIN_USER).map(String::as_str).unwrap_or_default();
    let mut connection = BufReader::new(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?);
    connection.write_all(format!("AUTH {ADMIN_USER} {password}\r\n{command}\r\n").as_bytes()).await?;
    let mut reply = String::new();
    for _ in ["AUTH", command] {
        reply.clear();
        connection.read_line(&mut reply).await?;
        ensure!(!reply.is_empty() && !reply.starts_with('-'), "Redis: {reply}");
    }
    Ok(reply)
}

/// Reports whether Redis has loaded its data and answers.
pub async fn ping(port: u16) -> std::io::Result<bool> {
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    connection.write_all(b"PING\r\n").await?;
    // An unauthenticated connection gets `-NOAUTH`; while Redis loads its data, it replies `-LOADING`.
    let mut reply = [0; 7];
    connection.read_exact(&mut reply).await?;
    Ok(matches!(&reply, b"+PONG\r\n" | b"-NOAUTH"))
}
