//! The process: invalid settings, which it reports in one line before anything else, and its life cycle.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use shoppee_auth::EXAMPLE_SECRET;
use shoppee_kit::testing::{Database, TestProcess, eventually, free_addr, refuses_to_start};
use shoppee_proto::auth::v1::{
    GetUserInfoRequest, LoginRequest, RegisterRequest, auth_service_client::AuthServiceClient,
};
use sqlx::{Connection as _, PgConnection};

use crate::shop::{PASSWORD, SECRET, settings, with};

/// Bounds the time in which the process has to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

#[test]
fn invalid_settings_end_the_start_with_one_clear_line() {
    let short = "a short secret";
    for (settings, clue) in [
        (vec![], "JWT_SECRET"),
        (vec![("JWT_SECRET", "")], "JWT_SECRET"),
        (vec![("JWT_SECRET", short)], "JWT_SECRET is shorter than 32 bytes"),
        (vec![("JWT_SECRET", EXAMPLE_SECRET)], "JWT_SECRET is the example value"),
        (vec![("JWT_SECRET", SECRET), ("JWT_SECRET_PREVIOUS", short)], "JWT_SECRET_PREVIOUS"),
        (vec![("JWT_SECRET", SECRET), ("ACCESS_TOKEN_TTL", "soon")], "ACCESS_TOKEN_TTL"),
        (vec![("JWT_SECRET", SECRET), ("ADMIN_USERNAME", "root")], "ADMIN_PASSWORD"),
        (
            vec![
                ("JWT_SECRET", SECRET),
                ("ADMIN_USERNAME", "root"),
                ("ADMIN_EMAIL", "root@shop.example"),
                ("ADMIN_PASSWORD", "change-me"),
            ],
            "ADMIN_PASSWORD is the example value",
        ),
        (vec![("JWT_SECRET", SECRET), ("SERVICE_CLIENTS", "order=a short secret")], "SERVICE_CLIENTS"),
        (vec![("JWT_SECRET", SECRET), ("DATABASE_URL", "no url")], "DATABASE_URL"),
        (vec![("JWT_SECRET", SECRET), ("REDIS_URL", "x")], "REDIS_URL"),
    ] {
        let output = refuses_to_start(env!("CARGO_BIN_EXE_shoppee-auth"), &settings);
        assert!(output.contains(clue), "{clue}: {output}");
        assert!(!output.contains(short) && !output.contains(SECRET), "shows a secret: {output}");
    }
}

#[tokio::test]
async fn a_database_that_rejects_the_login_ends_the_start() {
    let database = Database::create().await;
    for (url, clue) in [
        // The server may not check passwords, but it always rejects an unknown role.
        (database.url("auth").replace("//shoppee_auth:auth@", "//nobody_at_all:hunter22@"), "nobody_at_all"),
        (format!("{}_gone", database.url("auth")), "does not exist"),
    ] {
        let mut settings = settings(&database);
        settings.postgres.database_url = url.into();
        let process = TestProcess::default();
        let error = shoppee_auth::start(settings, process.process.clone()).await.expect_err(clue);
        let output = format!("{error:#}");
        assert!(output.contains("DATABASE_URL") && output.contains(clue), "{output}");
        assert!(!output.contains("hunter22"), "{output}");
    }
}

#[tokio::test]
async fn a_schema_of_a_newer_version_is_accepted() {
    let database = Database::create().await;
    let (mut before, mut after) = (TestProcess::default(), TestProcess::default());
    shoppee_auth::start(settings(&database), before.process.clone()).await.expect("starts");
    before.wait_ready().await;
    let mut conn = PgConnection::connect(&database.url("auth")).await.expect("connects");
    sqlx::query(
        "insert into auth._sqlx_migrations (version, description, success, checksum, execution_time)
         values (99999, 'of tomorrow', true, 'x', 1)",
    )
    .execute(&mut conn)
    .await
    .expect("inserted");
    shoppee_auth::start(settings(&database), after.process.clone()).await.expect("starts beside it");
    after.wait_ready().await;
}

/// A process that is killed at the end of the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads the output of a process in a thread, so that the process never blocks.
fn spawn_reader(mut from: impl std::io::Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut output = String::new();
        from.read_to_string(&mut output).expect("text");
        output
    })
}

fn get(addr: SocketAddr, path: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(addr) {
        let _ = write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let _ = stream.read_to_string(&mut answer);
    }
    answer
}

#[tokio::test]
async fn the_process_serves_exports_metrics_logs_no_secret_and_stops() {
    let database = Database::create().await;
    let (listen, metrics) = (free_addr(), free_addr());
    let process = Command::new(env!("CARGO_BIN_EXE_shoppee-auth"))
        .env_clear()
        .envs([("DATABASE_URL", database.url("auth").as_str()), ("REDIS_URL", "redis://127.0.0.1:1")])
        .envs([("LISTEN_ADDR", listen.to_string()), ("METRICS_ADDR", metrics.to_string())])
        .envs([("JWT_SECRET", SECRET), ("SHOPPEE_ENV", "development"), ("LOG", "debug")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    let mut running = Running(process);
    let output = [
        spawn_reader(running.0.stdout.take().expect("piped")),
        spawn_reader(running.0.stderr.take().expect("piped")),
    ];
    let serves = || async { get(metrics, "/readyz?need=vital").starts_with("HTTP/1.1 200") };
    eventually("it serves", serves).await;
    assert!(get(metrics, "/healthz").starts_with("HTTP/1.1 200"));

    let channel = shoppee_kit::client::channel(&format!("http://{listen}")).expect("a URL");
    let mut client = AuthServiceClient::new(channel);
    let register = RegisterRequest {
        username: "ann".to_owned(),
        email: "ann@example.com".to_owned(),
        password: PASSWORD.to_owned(),
        idempotency_key: None,
    };
    client.register(register).await.expect("registers");
    let login = LoginRequest {
        username: "ann".to_owned(),
        password: PASSWORD.to_owned(),
        user_agent: "x\r\ninjected line".to_owned(),
        device_token: None,
    };
    let tokens = client.login(login.clone()).await.expect("signs in").into_inner();
    client.login(LoginRequest { password: "wrong horse".to_owned(), ..login }).await.expect_err("is wrong");
    client.get_user_info(with(&tokens.access_token, GetUserInfoRequest {})).await.expect("is known");

    let mut conn = PgConnection::connect(&database.url("auth")).await.expect("connects");
    let traceparent: String =
        sqlx::query_scalar("select traceparent from auth.outbox").fetch_one(&mut conn).await.expect("a row");
    assert_eq!(traceparent.split('-').map(str::len).collect::<Vec<_>>(), [2, 32, 16, 2], "{traceparent}");
    eventually("the outbox is counted", || async { get(metrics, "/metrics").contains("\noutbox_pending 1") })
        .await;
    let counted = get(metrics, "/metrics");
    for metric in
        ["outbox_lag_seconds", "rpc_server_call_duration_seconds", "db_pool_connections", "build_info"]
    {
        assert!(counted.contains(metric), "{metric}");
    }

    let pid = running.0.id().to_string();
    assert!(Command::new("kill").arg(pid).status().expect("kill").success());
    let signalled = Instant::now();
    let status = loop {
        if let Some(status) = running.0.try_wait().expect("is waited for") {
            break status;
        }
        // The runtime has to run, so that the client closes its connection.
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(signalled.elapsed() < STOP_TIMEOUT, "does not stop");
    };
    assert!(status.success(), "{status}");
    let output = output.map(|thread| thread.join().expect("is read")).concat();
    assert!(output.contains("stopping"), "logs at all: {output}");
    let device_token = tokens.device_token.expect("is given one");
    for secret in [
        PASSWORD,
        "wrong horse",
        SECRET,
        &tokens.access_token,
        &tokens.refresh_token,
        &device_token,
        "injected",
    ] {
        assert!(!output.contains(secret), "logs {secret}: {output}");
    }
}
