//! Redis: a private one with a user for each process, unless REDIS_URL names another.

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
/// It finishes writing its log of changes.
const STOP: Stop = Stop { signal: Signal::TERM, name: "TERM", patience: Duration::from_secs(10) };

/// The rights of each user, without passwords.
const RULES: &str = include_str!("../../../services/redis.acl");
const USERS_FILE: &str = "users.acl";
/// The user that may do everything.
pub const ADMINISTRATOR: &str = "default";

/// The names of the users.
pub fn users() -> impl Iterator<Item = &'static str> {
    rules().map(|(name, _)| name)
}

/// Each user with its rules.
fn rules() -> impl Iterator<Item = (&'static str, &'static str)> {
    RULES.lines().filter_map(|line| line.strip_prefix("user ")?.split_once(' '))
}

/// The address at which a user reaches the private Redis.
pub fn url(port: u16, user: &str, passwords: &BTreeMap<String, String>) -> String {
    let password = passwords.get(user).map(String::as_str).unwrap_or_default();
    format!("redis://{user}:{password}@127.0.0.1:{port}")
}

/// The private Redis, whose users have these passwords.
pub fn program(state: &State, port: u16, passwords: &BTreeMap<String, String>) -> anyhow::Result<Program> {
    let lines = rules().filter_map(|(name, rules)| {
        passwords.get(name).map(|password| format!("user {name} on >{password} {rules}\n"))
    });
    fs::create_dir_all(state.of(NAME))?;
    state::write(&state.of(NAME).join(USERS_FILE), &lines.collect::<String>(), 0o600)?;
    let port = port.to_string();
    // Every change is written down, once a second to the disk: a restart loses a second at most.
    let arguments = ["--bind", "127.0.0.1", "--port", &port, "--dir", ".", "--aclfile", USERS_FILE];
    let arguments = arguments.into_iter().chain(["--appendonly", "yes", "--save", ""]);
    Ok(Program {
        name: NAME.to_owned(),
        executable: "redis-server".into(),
        arguments: arguments.map(Into::into).collect(),
        environment: Environment::Neutral,
        folder: state.of(NAME),
        log: state.log(NAME),
        owner: None,
        stop: STOP,
        stale: None,
    })
}

/// Sends the private Redis a command as its administrator. Returns the first line of the answer; an error where Redis
/// refuses the password or the command.
pub async fn administer(
    port: u16,
    passwords: &BTreeMap<String, String>,
    command: &str,
) -> anyhow::Result<String> {
    let password = passwords.get(ADMINISTRATOR).map(String::as_str).unwrap_or_default();
    let mut connection = BufReader::new(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?);
    connection.write_all(format!("AUTH {ADMINISTRATOR} {password}\r\n{command}\r\n").as_bytes()).await?;
    let mut answer = String::new();
    for _ in ["AUTH", command] {
        answer.clear();
        connection.read_line(&mut answer).await?;
        ensure!(!answer.is_empty() && !answer.starts_with('-'), "Redis: {answer}");
    }
    Ok(answer)
}

/// Whether it has loaded its data and answers.
pub async fn answers(port: u16) -> std::io::Result<bool> {
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    connection.write_all(b"PING\r\n").await?;
    // A connection that has not signed in is told so, with `-NOAUTH`; while Redis loads it says `-LOADING`.
    let mut answer = [0; 7];
    connection.read_exact(&mut answer).await?;
    Ok(matches!(&answer, b"+PONG\r\n" | b"-NOAUTH"))
}
