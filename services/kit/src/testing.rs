//! Test fixtures: a database and a Redis server for each test, on real servers. `scripts/test` starts the PostgreSQL of
//! `SHOPPEE_TEST_POSTGRES` (a superuser's URL); each Redis is started here, so that a test can kill it.

mod stalls;

use std::{
    collections::BTreeSet,
    io::Read as _,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use fred::clients::Client;
use secrecy::SecretString;
use shoppee_proto::{
    Object,
    audit::v1::{AuditRecord, ListAuditRecordsRequest, audit_service_client::AuditServiceClient},
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, postgres::PgConnectOptions};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::{
    access::{self, Method},
    client,
    clock::Clock,
    process::Process,
    readiness::Readiness,
    redis, settings,
    tasks::Tasks,
    tls::GrpcTls,
};

pub use stalls::Stalls;

/// Bounds the wait for a condition.
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
/// Bounds the failed start of a process.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// A new database with the roles and schemas of `services/bootstrap.sql`.
#[derive(Debug)]
pub struct Database {
    host: String,
    port: u16,
    name: String,
}

impl Database {
    /// # Panics
    /// Panics if the test server does not answer.
    #[expect(clippy::disallowed_methods, reason = "scripts/test sets the URL of the test server")]
    pub async fn create() -> Self {
        let server = std::env::var("SHOPPEE_TEST_POSTGRES").expect("run the tests by scripts/test");
        let admin: PgConnectOptions = server.parse().expect("SHOPPEE_TEST_POSTGRES is a URL");
        let name = format!("test_{}", Uuid::new_v4().simple());
        let mut server = PgConnection::connect_with(&admin).await.expect("test server answers");
        server.execute(AssertSqlSafe(format!("create database {name}"))).await.expect("create database");
        // Roles belong to the whole server: concurrent tests must create them one after the other.
        server.execute("select pg_advisory_lock(1)").await.expect("lock");
        let mut database = PgConnection::connect_with(&admin.clone().database(&name)).await.expect("connect");
        database.execute(AssertSqlSafe(bootstrap(&name))).await.expect("bootstrap");
        database.close().await.expect("close");
        server.close().await.expect("close");
        Self { host: admin.get_host().to_owned(), port: admin.get_port(), name }
    }

    /// Refuses new connections, and ends all sessions.
    ///
    /// # Panics
    /// Panics if the test server does not answer.
    pub async fn block_connections(&self) {
        self.alter("with allow_connections false").await;
    }

    /// Runs `alter database … {how}` as a superuser, and ends all sessions.
    ///
    /// # Panics
    /// Panics if the test server does not answer.
    pub async fn alter(&self, how: &str) {
        self.alter_for_new_sessions(how).await;
        let name = &self.name;
        let end = format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'");
        server().await.execute(AssertSqlSafe(end)).await.expect("ends");
    }

    /// Runs `alter database … {how}` as a superuser.
    ///
    /// # Panics
    /// Panics if the test server does not answer.
    pub async fn alter_for_new_sessions(&self, how: &str) {
        let altered = format!("alter database {} {how}", self.name);
        server().await.execute(AssertSqlSafe(altered)).await.expect("alters");
    }

    /// Returns the settings of the service called `service` (auth, product or order).
    pub fn settings(&self, service: &str) -> settings::Postgres {
        settings::Postgres { database_url: SecretString::from(self.url(service)), database_pool_size: 8 }
    }

    /// Returns the URL with the role of the service called `service`.
    pub fn url(&self, service: &str) -> String {
        self.url_at(service, &format!("{}:{}", self.host, self.port))
    }

    /// Returns the same URL with another address, such as that of a proxy.
    pub fn url_at(&self, service: &str, address: &str) -> String {
        format!("postgres://shoppee_{service}:{service}@{address}/{}", self.name)
    }

    /// Returns the address of the server.
    ///
    /// # Panics
    /// Panics if its name cannot be resolved.
    pub async fn address(&self) -> SocketAddr {
        let mut addresses = tokio::net::lookup_host((&*self.host, self.port)).await.expect("an address");
        addresses.next().expect("an address")
    }
}

/// Connects to the test server as a superuser.
#[expect(clippy::disallowed_methods, reason = "scripts/test sets the URL of the test server")]
async fn server() -> PgConnection {
    let server = std::env::var("SHOPPEE_TEST_POSTGRES").expect("run the tests by scripts/test");
    PgConnection::connect(&server).await.expect("test server answers")
}

/// Returns the bootstrap SQL of all services in one database; the password of a role is the name of its service.
fn bootstrap(database: &str) -> String {
    let service_sql = |(service, schema): (&str, &str)| {
        include_str!("../../bootstrap.sql")
            .replace(":\"database\"", database)
            .replace(":\"role\"", &format!("shoppee_{service}"))
            .replace(":'role'", &format!("'shoppee_{service}'"))
            .replace(":\"schema\"", schema)
            .replace(":'schema'", &format!("'{schema}'"))
            .replace(":'password'", &format!("'{service}'"))
    };
    [("auth", "auth"), ("product", "product"), ("order", "orders")].map(service_sql).concat()
}

/// A Redis server without persistence, which is killed on drop.
#[derive(Debug)]
pub struct RedisServer {
    process: Child,
    port: u16,
}

impl RedisServer {
    /// # Panics
    /// Panics if `redis-server` is not installed.
    pub async fn start() -> Self {
        Self::start_on(free_port()).await
    }

    /// # Panics
    /// Panics if `redis-server` is not installed, or the port is in use.
    pub async fn start_on(port: u16) -> Self {
        let process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let server = Self { process, port };
        eventually("redis answers", || async { tokio::net::TcpStream::connect(server.addr()).await.is_ok() })
            .await;
        server
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the process id, for a test that sends signals.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    pub fn settings(&self) -> settings::Redis {
        settings::Redis::at(format!("redis://127.0.0.1:{}", self.port))
    }

    /// Connects to the server.
    ///
    /// # Panics
    /// Panics if it does not answer.
    pub async fn client(&self) -> Client {
        let clients =
            redis::Clients::open(&self.settings(), &TestProcess::default().process).await.expect("a URL");
        clients.connector("test").connect().await.expect("connects").0
    }

    fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs `binary` with these settings only, and asserts that it exits with an error before it opens a port. Returns the
/// one line that it writes.
///
/// # Panics
/// Panics if it does not exit, or does not write exactly one line.
pub fn refuses_to_start(binary: &str, settings: &[(&str, &str)]) -> String {
    // A process that opens a port before it has validated all settings fails on these.
    let occupied = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let (listen, metrics) = (occupied(), occupied());
    let addr = |listener: &TcpListener| listener.local_addr().expect("bound").to_string();
    let mut process = Command::new(binary)
        .env_clear()
        .envs([("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none"), ("REDIS_URL", "redis://127.0.0.1:1")])
        .envs([("LISTEN_ADDR", addr(&listen)), ("METRICS_ADDR", addr(&metrics))])
        .envs(settings.iter().copied())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    let started = Instant::now();
    let status = loop {
        if let Some(status) = process.try_wait().expect("is waited for") {
            break status;
        }
        if started.elapsed() > EXIT_TIMEOUT {
            let _ = process.kill();
            panic!("does not exit with {settings:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(!status.success(), "{settings:?}");
    let mut output = String::new();
    process.stderr.take().expect("piped").read_to_string(&mut output).expect("text");
    assert_eq!(output.lines().count(), 1, "one line: {output}");
    output
}

/// The prefixes of methods that only read.
const READ_PREFIXES: [&str; 6] = ["Get", "List", "Search", "BatchGet", "Lookup", "Watch"];

/// Returns the methods of a package, such as `shoppee.order.v1`, that change state and admit users, admins or services.
pub fn mutating_methods(package: &str) -> BTreeSet<String> {
    let methods = access::methods().values().filter_map(|Method { name, rule }| {
        let (service, method) = name.split_once('/')?;
        let is_read = READ_PREFIXES.iter().any(|prefix| method.starts_with(prefix));
        let admits = rule.user || rule.admin || !rule.scope.is_empty();
        (service.rsplit_once('.')?.0 == package && admits && !is_read).then(|| method.to_owned())
    });
    methods.collect()
}

/// Returns the newest audit records of the service at a gRPC URL, as an admin.
///
/// # Panics
/// Panics if the service does not answer.
pub async fn audit_records(url: &str, admin: &SecretString) -> Vec<AuditRecord> {
    let channel = client::channel(url).expect("a URL");
    let request = ListAuditRecordsRequest { limit: Some(100), ..ListAuditRecordsRequest::default() };
    let request = client::request(request, Some(admin), WAIT_TIMEOUT);
    let response = AuditServiceClient::new(channel).list_audit_records(request).await;
    response.expect("lists audit records").into_inner().items
}

/// Returns the fields of a change in an audit record as JSON.
///
/// # Panics
/// Panics if they are no JSON.
pub fn audited_fields(fields: Option<&Object>) -> serde_json::Value {
    serde_json::to_value(fields).expect("JSON")
}

/// The process context of a test; it is shut down on drop.
#[derive(Debug)]
pub struct TestProcess {
    pub process: Process,
    failures: mpsc::UnboundedReceiver<anyhow::Error>,
}

impl Default for TestProcess {
    fn default() -> Self {
        let (tasks, failures) = Tasks::new();
        let (clock, readiness, tls) = (Clock::default(), Readiness::default(), GrpcTls::default());
        Self { process: Process { clock, tasks, readiness, tls }, failures }
    }
}

impl TestProcess {
    /// Waits until all required dependencies are up.
    ///
    /// # Panics
    /// Panics if they are not within 20 s.
    pub async fn wait_ready(&mut self) {
        let mut serving = self.process.readiness.serving();
        tokio::select! {
            ready = tokio::time::timeout(WAIT_TIMEOUT, serving.wait_for(|serving| *serving)) => {
                ready.unwrap_or_else(|_| panic!("not ready: {:?}", self.process.readiness.failing())).expect("runs");
            }
            Some(error) = self.failures.recv() => panic!("{error:#}"),
        }
    }

    /// Shuts the process down as SIGTERM does.
    pub async fn stop(&self) {
        self.process.readiness.stop();
        self.process.tasks.stop().await;
    }
}

impl Drop for TestProcess {
    fn drop(&mut self) {
        self.process.tasks.shutdown_token().cancel();
    }
}

/// Returns the common settings of a process under test.
pub fn common() -> settings::Common {
    settings::Common {
        shoppee_env: settings::Environment::Development,
        log: "warn".to_owned(),
        log_format: settings::LogFormat::Pretty,
        otel_exporter_otlp_endpoint: None,
        trace_sample_ratio: 1.0,
        shutdown_lag: None,
        probe: false,
        grpc_tls: settings::GrpcTls::default(),
    }
}

/// Returns a loopback address without a listener.
///
/// # Panics
/// Panics if there is none.
pub fn free_addr() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

/// Returns a free port below the ephemeral range of Linux, from which an outgoing connection could take it. Each call
/// returns another port, also in concurrent tests.
fn free_port() -> u16 {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Processes with consecutive ids start far apart.
    let offset = std::process::id().wrapping_mul(7919);
    let mut candidates = (0..COUNT).map(|_| {
        let number = offset.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % u32::from(COUNT);
        FIRST + u16::try_from(number).unwrap_or_default()
    });
    candidates.find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()).expect("a free port")
}

/// Polls `condition` every 20 ms until it is true.
///
/// # Panics
/// Panics with `description` if it is not true within 20 s.
pub async fn eventually<F, Fut>(description: &str, condition: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = bool>,
{
    let polling = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(WAIT_TIMEOUT, polling).await.unwrap_or_else(|_| panic!("never: {description}"));
}
