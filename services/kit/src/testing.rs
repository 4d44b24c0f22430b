//! A database and a Redis of its own for each test, on real servers. `scripts/test` starts the PostgreSQL that
//! `SHOPPEE_TEST_POSTGRES` names (a superuser's URL); each Redis is started here, so that a test may kill it.

mod stalls;

use std::{
    io::Read as _,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use fred::clients::Client;
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, postgres::PgConnectOptions};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::{
    clock::Clock, process::Process, readiness::Readiness, redis, settings, tasks::Tasks, tls::GrpcTls,
};

pub use stalls::Stalls;

const WAIT: Duration = Duration::from_secs(20);
/// How long a process may take to find out that it cannot start.
const REFUSAL: Duration = Duration::from_secs(10);

/// A fresh database with the roles and schemas that `services/bootstrap.sql` makes.
#[derive(Debug)]
pub struct Database {
    host: String,
    port: u16,
    name: String,
}

impl Database {
    /// # Panics
    /// Where no test server answers.
    #[expect(clippy::disallowed_methods, reason = "where the test server is comes from scripts/test")]
    pub async fn create() -> Self {
        let server = std::env::var("SHOPPEE_TEST_POSTGRES").expect("run the tests by scripts/test");
        let admin: PgConnectOptions = server.parse().expect("SHOPPEE_TEST_POSTGRES is a URL");
        let name = format!("test_{}", Uuid::new_v4().simple());
        let mut server = PgConnection::connect_with(&admin).await.expect("test server answers");
        server.execute(AssertSqlSafe(format!("create database {name}"))).await.expect("create database");
        // Roles belong to the whole server: tests that start at once must make them one after the other.
        server.execute("select pg_advisory_lock(1)").await.expect("lock");
        let mut database = PgConnection::connect_with(&admin.clone().database(&name)).await.expect("connect");
        database.execute(AssertSqlSafe(bootstrap(&name))).await.expect("bootstrap");
        database.close().await.expect("close");
        server.close().await.expect("close");
        Self { host: admin.get_host().to_owned(), port: admin.get_port(), name }
    }

    /// Lets nobody in any more, and throws out who is in.
    ///
    /// # Panics
    /// Where the test server does not answer.
    pub async fn shut(&self) {
        self.alter("with allow_connections false").await;
    }

    /// Runs `alter database … {how}` as a superuser, and ends all sessions.
    ///
    /// # Panics
    /// Panics where the test server does not answer.
    pub async fn alter(&self, how: &str) {
        self.alter_for_new_sessions(how).await;
        let name = &self.name;
        let end = format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'");
        server().await.execute(AssertSqlSafe(end)).await.expect("ends");
    }

    /// Runs `alter database … {how}` as a superuser.
    ///
    /// # Panics
    /// Panics where the test server does not answer.
    pub async fn alter_for_new_sessions(&self, how: &str) {
        let altered = format!("alter database {} {how}", self.name);
        server().await.execute(AssertSqlSafe(altered)).await.expect("alters");
    }

    /// The settings of the service called `service` (auth, product or order).
    pub fn settings(&self, service: &str) -> settings::Postgres {
        settings::Postgres { database_url: SecretString::from(self.url(service)), database_pool_size: 8 }
    }

    /// The URL the service called `service` connects with.
    pub fn url(&self, service: &str) -> String {
        self.url_at(service, &format!("{}:{}", self.host, self.port))
    }

    /// The same, where the server is met at another address.
    pub fn url_at(&self, service: &str, address: &str) -> String {
        format!("postgres://shoppee_{service}:{service}@{address}/{}", self.name)
    }

    /// Where the server is.
    ///
    /// # Panics
    /// Where its name is not known.
    pub async fn address(&self) -> SocketAddr {
        let mut found = tokio::net::lookup_host((&*self.host, self.port)).await.expect("an address");
        found.next().expect("an address")
    }
}

/// The test server, as a superuser.
#[expect(clippy::disallowed_methods, reason = "where the test server is comes from scripts/test")]
async fn server() -> PgConnection {
    let server = std::env::var("SHOPPEE_TEST_POSTGRES").expect("run the tests by scripts/test");
    PgConnection::connect(&server).await.expect("test server answers")
}

/// The bootstrap of all services in one database, each with its name as its role's password.
fn bootstrap(database: &str) -> String {
    let of = |(service, schema): (&str, &str)| {
        include_str!("../../bootstrap.sql")
            .replace(":\"database\"", database)
            .replace(":\"role\"", &format!("shoppee_{service}"))
            .replace(":'role'", &format!("'shoppee_{service}'"))
            .replace(":\"schema\"", schema)
            .replace(":'schema'", &format!("'{schema}'"))
            .replace(":'password'", &format!("'{service}'"))
    };
    [("auth", "auth"), ("product", "product"), ("order", "orders")].map(of).concat()
}

/// A Redis without persistence, gone when dropped.
#[derive(Debug)]
pub struct RedisServer {
    process: Child,
    port: u16,
}

impl RedisServer {
    /// # Panics
    /// Where `redis-server` is not installed.
    pub async fn start() -> Self {
        Self::start_on(free_port()).await
    }

    /// # Panics
    /// Where `redis-server` is not installed, or the port is taken.
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

    /// The process, for a test that sends it signals.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// As `kill -9` does it.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    pub fn settings(&self) -> settings::Redis {
        settings::Redis::at(format!("redis://127.0.0.1:{}", self.port))
    }

    /// A connection to it.
    ///
    /// # Panics
    /// Where it does not answer.
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

/// Runs `binary` with these settings and nothing else, which must end it in one line before it opens a port; the line.
///
/// # Panics
/// Where it goes on, or says more or less than a line.
pub fn refuses_to_start(binary: &str, settings: &[(&str, &str)]) -> String {
    // Whoever opens a port before all settings were looked at trips over these.
    let taken = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let (listen, metrics) = (taken(), taken());
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
        if started.elapsed() > REFUSAL {
            let _ = process.kill();
            panic!("goes on with {settings:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(!status.success(), "{settings:?}");
    let mut said = String::new();
    process.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    assert_eq!(said.lines().count(), 1, "one line: {said}");
    said
}

/// What a process of a test is made of; stops when dropped.
#[derive(Debug)]
pub struct TestProcess {
    pub process: Process,
    ended: mpsc::UnboundedReceiver<anyhow::Error>,
}

impl Default for TestProcess {
    fn default() -> Self {
        let (tasks, ended) = Tasks::new();
        let (clock, readiness, tls) = (Clock::default(), Readiness::default(), GrpcTls::default());
        Self { process: Process { clock, tasks, readiness, tls }, ended }
    }
}

impl TestProcess {
    /// Waits until it serves.
    ///
    /// # Panics
    /// Where it does not within 20 s.
    pub async fn serves(&mut self) {
        let mut serving = self.process.readiness.serving();
        tokio::select! {
            ready = tokio::time::timeout(WAIT, serving.wait_for(|serving| *serving)) => {
                ready.unwrap_or_else(|_| panic!("not ready: {:?}", self.process.readiness.missing())).expect("runs");
            }
            Some(error) = self.ended.recv() => panic!("{error:#}"),
        }
    }

    /// Stops it as SIGTERM does.
    pub async fn stop(&self) {
        self.process.readiness.stop();
        self.process.tasks.stop().await;
    }
}

impl Drop for TestProcess {
    fn drop(&mut self) {
        self.process.tasks.stopping().cancel();
    }
}

/// Settings that every process of a test starts with.
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

/// An address on this machine that nobody listens on.
///
/// # Panics
/// Where there is none.
pub fn free_addr() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

/// Below the range from which Linux gives ports to outgoing connections, one of which would take it before it is used;
/// and another one each time, also in tests that run beside this one.
fn free_port() -> u16 {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Processes that start one after the other begin far apart.
    let own = std::process::id().wrapping_mul(7919);
    let mut tried = (0..COUNT).map(|_| {
        let number = own.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % u32::from(COUNT);
        FIRST + u16::try_from(number).unwrap_or_default()
    });
    tried.find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()).expect("a free port")
}

/// Waits until `holds`, looking every 20 ms.
///
/// # Panics
/// Where it does not within 20 s.
pub async fn eventually<F, Fut>(what: &str, holds: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = bool>,
{
    let looking = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(WAIT, looking).await.unwrap_or_else(|_| panic!("never: {what}"));
}
