//! Redis: a private one, unless REDIS_URL names another.

use std::{net::Ipv4Addr, time::Duration};

use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    program::{Environment, Program, Stop},
    state::State,
};

pub const NAME: &str = "redis";
/// It finishes writing its log of changes.
const STOP: Stop = Stop { signal: Signal::TERM, name: "TERM", patience: Duration::from_secs(10) };

pub fn url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}")
}

pub fn program(state: &State, port: u16) -> Program {
    let port = port.to_string();
    // Every change is written down, once a second to the disk: a restart loses a second at most.
    let arguments =
        ["--bind", "127.0.0.1", "--port", &port, "--dir", ".", "--appendonly", "yes", "--save", ""];
    Program {
        name: NAME.to_owned(),
        executable: "redis-server".into(),
        arguments: arguments.map(Into::into).to_vec(),
        environment: Environment::Neutral,
        folder: state.of(NAME),
        log: state.log(NAME),
        owner: None,
        stop: STOP,
        stale: None,
    }
}

/// Whether it has loaded its data and answers.
pub async fn answers(port: u16) -> std::io::Result<bool> {
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    connection.write_all(b"PING\r\n").await?;
    let mut answer = [0; 5];
    connection.read_exact(&mut answer).await?;
    Ok(&answer == b"+PONG")
}
