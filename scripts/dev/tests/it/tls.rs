//! TLS between all processes and servers: a shop without plain connections, and the errors of invalid certificates.

mod certificates;
mod servers;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, pki_types::pem::PemObject as _};
use serde_json::Value;
use shoppee_kit::testing::{free_addr, refuses_to_start};

use crate::lifecycle::Checkout;
use certificates::{Authority, Certificate, Folder};
use servers::{Postgres, Protocol, Redis, start_handshake_server};

const LOG_TIMEOUT: Duration = Duration::from_secs(20);
const PASSWORD: &str = "a-password-for-tls";

#[test]
fn a_shop_whose_servers_accept_only_tls_places_an_order() {
    let folder = Folder::new("whole");
    let authority = Authority::new(&folder, "shop");
    let (server, process) = (authority.issue("localhost"), authority.issue("process.example"));
    let postgres = Postgres::start(&folder, &server, &authority, PASSWORD);
    let redis = Redis::start(&folder, &server, &authority, "shop", PASSWORD);

    let ca = authority.path();
    let database = format!(
        "postgres://postgres:{PASSWORD}@localhost:{}/shop?sslmode=verify-full&sslrootcert={ca}&sslcert={}&sslkey={}",
        postgres.port, process.chain, process.key
    );
    let checkout = Checkout::new("tls")
        // Replaces the host's authorities: each connection to PostgreSQL reads them, which takes a second in a debug build.
        .with("SSL_CERT_FILE", Authority::new(&folder, "stranger").path())
        .with("DATABASE_URL", database)
        .with("REDIS_URL", format!("rediss://shop:{PASSWORD}@localhost:{}", redis.port))
        .with("REDIS_CA_FILE", ca.clone())
        .with("REDIS_CERT_FILE", process.chain)
        .with("REDIS_KEY_FILE", process.key)
        .with("GRPC_TLS_CERT_FILE", server.chain.clone())
        .with("GRPC_TLS_KEY_FILE", server.key.clone())
        .with("GRPC_TLS_CA_FILE", ca.clone())
        .with("GRPC_TLS_CLIENT_CA_FILE", ca.clone());
    checkout.succeeds("up", &["--detach", "--products", "10"]);
    let output = checkout.succeeds("demo", &[]);
    assert!(output.contains("all 4 events seen"), "{output}");

    let run = checkout.run_file();
    let field = |pointer| run.pointer(pointer).and_then(Value::as_str).expect(pointer);
    let auth = field("/services/auth/grpc").rsplit_once(':').expect("a port").1.parse().expect("a port");
    assert!(send_plain_text(auth).starts_with(&[0x15]), "plain text is answered with an alert of TLS");
    assert!(connect_without_certificate(auth, &ca).contains("CertificateRequired"));
    let addr = field("/services/auth/metrics").rsplit('/').next().expect("an address");
    let probe = ["--probe", "--database-url=x", "--redis-url=x", "--jwt-secret=x", "--metrics-addr", addr];
    let probed = Command::new(binary("auth")).args(probe).status().expect("runs");
    assert!(probed.success(), "--probe asks a port that has no TLS");
}

/// Sends the connection preface of HTTP/2 without TLS, and returns the response.
fn send_plain_text(port: u16) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("written");
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response);
    response
}

/// Connects without a client certificate, and returns the server's error.
fn connect_without_certificate(port: u16, ca: &str) -> String {
    let mut roots = RootCertStore::empty();
    roots
        .add(rustls::pki_types::CertificateDer::from_pem_file(Path::new(ca)).expect("a file"))
        .expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "localhost".try_into().expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    let mut stream = StreamOwned::new(connection, stream);
    let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    let outcome = stream.read_to_end(&mut Vec::new());
    format!("{:?}", outcome.expect_err("it is refused"))
}

/// Returns invalid certificates, each with the host name to connect to and the expected error.
fn invalid_certificates(folder: &Folder) -> (Authority, [(Certificate, &'static str, &'static str); 3]) {
    let (authority, stranger) = (Authority::new(folder, "shop"), Authority::new(folder, "stranger"));
    let (unknown, expired) = (stranger.issue("localhost"), authority.issue_expired("localhost"));
    let valid = authority.issue("localhost");
    let invalid = [
        (unknown, "localhost", "its certificate is not signed by an authority that is trusted here"),
        (expired, "localhost", "its certificate has expired"),
        (valid, "127.0.0.1", "its certificate is for another name"),
    ];
    (authority, invalid)
}

#[test]
fn an_invalid_certificate_of_postgresql_fails_the_start_with_one_line() {
    let folder = Folder::new("postgres");
    let (authority, invalid) = invalid_certificates(&folder);
    let refusal = |query: &str, host: &str, port: u16| {
        let url = format!("postgres://shop:{PASSWORD}@{host}:{port}/shop?{query}");
        start_error("auth", &[("DATABASE_URL", &url), ("JWT_SECRET", "0123456789abcdef0123456789abcdef")])
    };
    let verified = format!("sslmode=verify-full&sslrootcert={}", authority.path());
    for (certificate, host, error) in &invalid {
        let port = start_handshake_server(Protocol::Postgres, Some(certificate));
        let line = refusal(&verified, host, port);
        assert!(line.contains(&format!("PostgreSQL at DATABASE_URL: TLS: {error}")), "{line}");
    }
    let line = refusal(&verified, "localhost", start_handshake_server(Protocol::Postgres, None));
    assert!(line.contains("TLS: server does not support TLS"), "{line}");
}

#[test]
fn an_invalid_certificate_of_redis_fails_the_start_with_one_line() {
    let folder = Folder::new("redis");
    let (authority, invalid) = invalid_certificates(&folder);
    let ca = authority.path();
    let refusal = |host: &str, port: u16| {
        let url = format!("rediss://:{PASSWORD}@{host}:{port}");
        start_error("gateway", &[("REDIS_URL", &url), ("REDIS_CA_FILE", &ca)])
    };
    for (certificate, host, error) in &invalid {
        let line = refusal(host, start_handshake_server(Protocol::Redis, Some(certificate)));
        assert!(line.contains(&format!("Redis at REDIS_URL: TLS: {error}")), "{line}");
    }
    let line = refusal("localhost", start_handshake_server(Protocol::Redis, None));
    assert!(line.contains("TLS: it does not speak TLS"), "{line}");
}

#[test]
fn an_invalid_certificate_of_a_service_is_logged_once_by_the_waiting_gateway() {
    let folder = Folder::new("grpc");
    let (authority, invalid) = invalid_certificates(&folder);
    let url = |(certificate, host, _): &(Certificate, &str, &str)| {
        format!("https://{host}:{}", start_handshake_server(Protocol::Grpc, Some(certificate)))
    };
    let log_file = folder.0.join("log");
    let mut gateway = Command::new(binary("gateway"))
        .env_clear()
        .env("LISTEN_ADDR", free_addr().to_string())
        .env("REDIS_URL", "redis://127.0.0.1:1")
        .env("GRPC_TLS_CA_FILE", authority.path())
        .envs(["AUTH_URL", "PRODUCT_URL", "ORDER_URL"].into_iter().zip(invalid.iter().map(url)))
        .stdout(fs::File::create(&log_file).expect("a file"))
        .stderr(Stdio::null())
        .spawn()
        .expect("runs");
    let began = Instant::now();
    let log = loop {
        let log = fs::read_to_string(&log_file).expect("a log");
        let is_complete = invalid.iter().all(|(_, _, error)| log.contains(error));
        if is_complete || began.elapsed() > LOG_TIMEOUT || gateway.try_wait().expect("a status").is_some() {
            break log;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let _ = gateway.kill();
    let _ = gateway.wait();
    for (_, _, error) in &invalid {
        assert_eq!(log.lines().filter(|line| line.contains(error)).count(), 1, "{error}:\n{log}");
    }
}

#[test]
fn an_invalid_file_fails_the_start_with_one_line() {
    let folder = Folder::new("files");
    let authority = Authority::new(&folder, "shop");
    let (one, other) = (authority.issue("one"), authority.issue("other"));
    let ca = authority.path();
    for (settings, line) in [
        (
            vec![("GRPC_TLS_CERT_FILE", &one.chain)],
            "GRPC_TLS_CERT_FILE and GRPC_TLS_KEY_FILE belong together",
        ),
        (
            vec![("GRPC_TLS_CERT_FILE", &one.chain), ("GRPC_TLS_KEY_FILE", &other.key)],
            "other-key.pem: not the key of the certificate in GRPC_TLS_CERT_FILE",
        ),
        (vec![("GRPC_TLS_CA_FILE", &one.key)], "one-key.pem: has no certificate in PEM"),
        (vec![("GRPC_TLS_CLIENT_CA_FILE", &ca)], "GRPC_TLS_CLIENT_CA_FILE needs GRPC_TLS_CERT_FILE"),
        (vec![("REDIS_CA_FILE", &ca)], "which REDIS_URL does not ask for"),
    ] {
        let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let output = start_error("gateway", &settings);
        assert!(output.contains(line), "{output}");
    }
}

/// The secrets of each process.
const SECRETS: [(&str, &[&str]); 4] = [
    (
        "auth",
        &[
            "DATABASE_URL",
            "REDIS_URL",
            "JWT_SECRET",
            "JWT_SECRET_PREVIOUS",
            "ADMIN_PASSWORD",
            "SERVICE_CLIENTS",
        ],
    ),
    ("product", &["DATABASE_URL", "REDIS_URL", "DATABASE_READ_URLS"]),
    ("order", &["DATABASE_URL", "REDIS_URL", "SERVICE_CLIENT_SECRET"]),
    ("gateway", &["REDIS_URL"]),
];

#[test]
fn every_secret_can_be_read_from_a_file_but_not_set_twice() {
    let folder = Folder::new("secrets");
    let file = folder.0.join("secret").to_str().expect("text").to_owned();
    fs::write(&file, format!("{PASSWORD}\n")).expect("written");
    for (process, secrets) in SECRETS {
        let help = Command::new(binary(process)).arg("--help").output().expect("runs");
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        for secret in secrets {
            assert!(help.contains(&format!("{secret}_FILE")), "{process}: {secret}_FILE:\n{help}");
            let by_file = format!("{secret}_FILE");
            // The order service requires this setting too.
            let id = ("SERVICE_CLIENT_ID", "order");
            let line = start_error(process, &[id, (secret, PASSWORD), (&by_file, &file)]);
            assert!(line.contains(&format!("{secret} and {by_file} are both set; set one")), "{line}");
        }
    }
    // The file is read: its content is not a URL.
    let line = start_error("gateway", &[("REDIS_URL", ""), ("REDIS_URL_FILE", &file)]);
    assert!(line.contains("REDIS_URL is not a Redis URL"), "{line}");
}

/// Returns the error line of a process that refuses its settings, and checks that the line has no password.
fn start_error(process: &str, settings: &[(&str, &str)]) -> String {
    let line = refuses_to_start(binary(process).to_str().expect("text"), settings);
    assert!(!line.contains(PASSWORD), "{line}");
    line
}

/// Returns the path of a binary, which is built with the whole workspace.
fn binary(process: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_shoppee-dev")).parent().expect("a folder");
    let binary = folder.join(format!("shoppee-{process}"));
    assert!(binary.exists(), "build the whole workspace: run scripts/test");
    binary
}
