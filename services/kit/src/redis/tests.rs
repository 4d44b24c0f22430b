//! Clients of a Redis that is late, frozen, full, or refuses the password.

use std::time::Instant;

use fred::{
    interfaces::{ClientInterface as _, KeysInterface as _},
    types::CustomCommand,
};
use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::testing::{RedisServer, TestProcess, eventually, free_addr};

/// Every client is connected within this after Redis is back.
const BACK: Duration = Duration::from_secs(5);

/// The clients of a process that has one of each kind.
struct Stage {
    process: TestProcess,
    clients: Clients,
    commands: Client,
    reads: Client,
}

impl Stage {
    async fn start(url: &str) -> anyhow::Result<Self> {
        let process = TestProcess::default();
        let clients = Clients::open(&Redis::at(url), &process.process).await?;
        let (commands, reads) = (clients.client("commands")?, clients.blocking_client("reads")?);
        let (connector, stop) = (clients.connector("cache"), process.process.tasks.stopping());
        process.process.tasks.spawn("cache", async move {
            while !stop.is_cancelled() {
                if let Ok((_client, over)) = connector.connect().await {
                    let _ = over.await;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(())
        });
        Ok(Self { process, clients, commands, reads })
    }

    fn missing(&self) -> String {
        self.process.process.readiness.missing_with_reasons(false).join(", ")
    }

    async fn says(&self, missing: &str) {
        let what = format!("/readyz says {missing:?}");
        eventually(&what, || async { self.missing() == missing }).await;
    }

    /// Waits until all are connected, which must be soon.
    async fn recovers(&self) {
        let began = Instant::now();
        self.says("").await;
        assert!(began.elapsed() < BACK, "after {:?}", began.elapsed());
        self.commands.set::<(), _, _>("key", "value", None, None, false).await.expect("commands work");
        self.reads.get::<String, _>("key").await.expect("reads work");
    }
}

/// Sends Redis a command that the client has no function for.
async fn command(client: &Client, line: &str) {
    let mut words = line.split(' ').map(str::to_owned);
    let name = CustomCommand::new(words.next().unwrap_or_default(), None::<u16>, false);
    let () = client.custom(name, words.collect()).await.expect("Redis obeys");
}

fn url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}")
}

#[tokio::test]
async fn clients_of_a_redis_that_starts_late_connect_when_it_has_started() {
    let port = free_addr().port();
    let stage = Stage::start(&url(port)).await.unwrap();
    stage.says("redis (commands, reads, cache: connection refused)").await;
    let mut redis = RedisServer::start_on(port).await;
    stage.recovers().await;
    redis.kill();
    stage.says("redis (commands, reads, cache: connection refused)").await;
    let _redis = RedisServer::start_on(port).await;
    stage.recovers().await;
}

#[tokio::test]
async fn clients_of_a_redis_that_is_frozen_at_the_start_connect_when_it_thaws() {
    let redis = RedisServer::start().await;
    let pid = Pid::from_raw(i32::try_from(redis.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let stage = Stage::start(&url(redis.port())).await.unwrap();
    stage.says("redis (commands, reads, cache: timed out)").await;
    kill_process(pid, Signal::CONT).unwrap();
    stage.recovers().await;
}

#[tokio::test]
async fn a_refused_password_ends_the_start_and_is_tried_again_after_it_was_accepted() {
    let redis = RedisServer::start().await;
    let admin = redis.client().await;
    let stage = Stage::start(&url(redis.port())).await.unwrap();
    stage.recovers().await;
    command(&admin, "CONFIG SET requirepass right").await;
    for wrong in [url(redis.port()), format!("redis://:hunter22@127.0.0.1:{}", redis.port())] {
        let error = Stage::start(&wrong).await.err().expect("is refused").to_string();
        assert!(error.starts_with("Redis refuses REDIS_URL: ") && !error.contains("hunter22"), "{error}");
    }
    // Redis keeps the connections that were let in.
    command(&admin, "CLIENT KILL TYPE normal SKIPME yes").await;
    stage.says("redis (commands, reads, cache: authentication)").await;
    command(&admin, "CONFIG SET requirepass ").await;
    stage.recovers().await;
}

#[tokio::test]
async fn a_client_that_alone_is_not_connected_is_named() {
    let redis = RedisServer::start().await;
    let admin = redis.client().await;
    let stage = Stage::start(&url(redis.port())).await.unwrap();
    stage.recovers().await;
    let id = stage.reads.client_id::<i64>().await.unwrap();
    let clients: String = admin.client_list::<_, i64>(None, None).await.unwrap();
    command(&admin, &format!("CONFIG SET maxclients {}", clients.lines().count() - 1)).await;
    command(&admin, &format!("CLIENT KILL ID {id}")).await;
    stage.says("redis (reads: too many connections)").await;
    command(&admin, "CONFIG SET maxclients 100").await;
    stage.recovers().await;
}

#[tokio::test]
async fn a_client_whose_task_ended_is_started_anew() {
    let redis = RedisServer::start().await;
    let stage = Stage::start(&url(redis.port())).await.unwrap();
    stage.recovers().await;
    let _ = stage.commands.quit().await;
    eventually("the task has ended", || async { !stage.commands.is_connected() }).await;
    stage.recovers().await;
    assert_eq!(stage.clients.connections.lock().unwrap().len(), 3);
}
