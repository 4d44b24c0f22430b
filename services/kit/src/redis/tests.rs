//! Tests of clients whose Redis starts late, freezes, is full, or refuses the password.

use std::time::Instant;

use fred::{
    interfaces::{ClientInterface as _, KeysInterface as _},
    types::CustomCommand,
};
use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::testing::{RedisServer, TestProcess, eventually, free_addr};

/// The time within which every client reconnects after Redis has returned.
const MAX_RECONNECT_TIME: Duration = Duration::from_secs(5);

/// A process with one client of each kind.
struct Fixture {
    process: TestProcess,
    clients: Clients,
    commands: Client,
    reads: Client,
}

impl Fixture {
    async fn start(url: &str) -> anyhow::Result<Self> {
        let process = TestProcess::default();
        let clients = Clients::open(&Redis::at(url), &process.process).await?;
        let (commands, reads) = (clients.client("commands")?, clients.blocking_client("reads")?);
        let (connector, shutdown) = (clients.connector("cache"), process.process.tasks.shutdown_token());
        process.process.tasks.spawn("cache", async move {
            while !shutdown.is_cancelled() {
                if let Ok((_client, ended)) = connector.connect().await {
                    let _ = ended.await;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(())
        });
        Ok(Self { process, clients, commands, reads })
    }

    fn failing(&self) -> String {
        self.process.process.readiness.failing_with_reasons(false).join(", ")
    }

    async fn wait_failing(&self, failing: &str) {
        let condition = format!("/readyz reports {failing:?}");
        eventually(&condition, || async { self.failing() == failing }).await;
    }

    /// Waits until all clients are connected, and asserts that they were in time.
    async fn assert_recovery(&self) {
        let started = Instant::now();
        self.wait_failing("").await;
        assert!(started.elapsed() < MAX_RECONNECT_TIME, "after {:?}", started.elapsed());
        self.commands.set::<(), _, _>("key", "value", None, None, false).await.expect("commands work");
        self.reads.get::<String, _>("key").await.expect("reads work");
    }
}

/// Sends a command for which the client has no function.
async fn command(client: &Client, line: &str) {
    let mut words = line.split(' ').map(str::to_owned);
    let name = CustomCommand::new(words.next().unwrap_or_default(), None::<u16>, false);
    let () = client.custom(name, words.collect()).await.expect("Redis obeys");
}

fn url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}")
}

#[tokio::test]
async fn redis_is_not_ready_before_a_process_opens_its_first_client() {
    let process = TestProcess::default();
    let _clients = Clients::open(&Redis::at(url(free_addr().port())), &process.process).await.unwrap();
    // Enough for the first round of a check that has no client to ask.
    for _ in 0..100 {
        tokio::task::yield_now().await;
        assert_eq!(process.process.readiness.failing(), ["redis"]);
    }
}

#[tokio::test]
async fn clients_of_a_redis_that_starts_late_connect_when_it_has_started() {
    let port = free_addr().port();
    let fixture = Fixture::start(&url(port)).await.unwrap();
    fixture.wait_failing("redis (commands, reads, cache: connection refused)").await;
    let mut redis = RedisServer::start_on(port).await;
    fixture.assert_recovery().await;
    redis.kill();
    fixture.wait_failing("redis (commands, reads, cache: connection refused)").await;
    let _redis = RedisServer::start_on(port).await;
    fixture.assert_recovery().await;
}

#[tokio::test]
async fn clients_of_a_redis_that_is_frozen_at_the_start_connect_when_it_thaws() {
    let redis = RedisServer::start().await;
    let pid = Pid::from_raw(i32::try_from(redis.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let fixture = Fixture::start(&url(redis.port())).await.unwrap();
    fixture.wait_failing("redis (commands, reads, cache: timed out)").await;
    kill_process(pid, Signal::CONT).unwrap();
    fixture.assert_recovery().await;
}

#[tokio::test]
async fn a_refused_password_ends_the_start_but_is_retried_after_the_start() {
    let redis = RedisServer::start().await;
    let admin = redis.client().await;
    let fixture = Fixture::start(&url(redis.port())).await.unwrap();
    fixture.assert_recovery().await;
    command(&admin, "CONFIG SET requirepass right").await;
    for wrong in [url(redis.port()), format!("redis://:hunter22@127.0.0.1:{}", redis.port())] {
        let error = Fixture::start(&wrong).await.err().expect("is refused").to_string();
        assert!(error.starts_with("Redis refuses REDIS_URL: ") && !error.contains("hunter22"), "{error}");
    }
    // Redis keeps authenticated connections.
    command(&admin, "CLIENT KILL TYPE normal SKIPME yes").await;
    fixture.wait_failing("redis (commands, reads, cache: authentication)").await;
    command(&admin, "CONFIG SET requirepass ").await;
    fixture.assert_recovery().await;
}

#[tokio::test]
async fn a_single_disconnected_client_is_reported_by_name() {
    let redis = RedisServer::start().await;
    let admin = redis.client().await;
    let fixture = Fixture::start(&url(redis.port())).await.unwrap();
    fixture.assert_recovery().await;
    let id = fixture.reads.client_id::<i64>().await.unwrap();
    let clients: String = admin.client_list::<_, i64>(None, None).await.unwrap();
    command(&admin, &format!("CONFIG SET maxclients {}", clients.lines().count() - 1)).await;
    command(&admin, &format!("CLIENT KILL ID {id}")).await;
    fixture.wait_failing("redis (reads: too many connections)").await;
    command(&admin, "CONFIG SET maxclients 100").await;
    fixture.assert_recovery().await;
}

#[tokio::test]
async fn a_client_whose_task_ended_is_restarted() {
    let redis = RedisServer::start().await;
    let fixture = Fixture::start(&url(redis.port())).await.unwrap();
    fixture.assert_recovery().await;
    let _ = fixture.commands.quit().await;
    eventually("the task has ended", || async { !fixture.commands.is_connected() }).await;
    fixture.assert_recovery().await;
    assert_eq!(fixture.clients.connections.lock().unwrap().len(), 3);
}
