//! A PostgreSQL and a Redis that accept only TLS, and servers that close after the TLS handshake.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{
    ServerConfig, ServerConnection,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use shoppee_kit::testing::free_addr;

use super::certificates::{Authority, Certificate, Folder};

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A PostgreSQL that requires TLS, a client certificate and a password.
pub struct Postgres {
    data: PathBuf,
    pub port: u16,
}

impl Postgres {
    pub fn start(folder: &Folder, server: &Certificate, clients: &Authority, password: &str) -> Self {
        let home = folder.0.join("postgres");
        fs::create_dir(&home).expect("a folder");
        let secret = home.join("password");
        fs::write(&secret, password).expect("written");
        fs::copy(&server.chain, home.join("chain.pem")).expect("copied");
        fs::copy(&server.key, home.join("key.pem")).expect("copied");
        run(Command::new("chmod").arg("0600").arg(home.join("key.pem")));
        if rustix::process::geteuid().is_root() {
            run(Command::new("chown").args(["-R", "postgres"]).arg(&home));
        }
        let postgres = Self { data: home.join("data"), port: free_addr().port() };
        let pwfile = format!("--pwfile={}", secret.display());
        let options =
            ["-U", "postgres", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"];
        run(postgres.command("initdb").args(options).arg(pwfile));
        let access = "hostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-ca\n";
        fs::write(postgres.data.join("pg_hba.conf"), access).expect("written");
        let settings = [
            ("port", postgres.port.to_string()),
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("unix_socket_directories", String::new()),
            ("fsync", "off".to_owned()),
            ("ssl", "on".to_owned()),
            ("ssl_cert_file", home.join("chain.pem").display().to_string()),
            ("ssl_key_file", home.join("key.pem").display().to_string()),
            ("ssl_ca_file", clients.path()),
        ];
        let settings: Vec<_> = settings.iter().map(|(name, value)| format!("-c {name}='{value}'")).collect();
        let log = home.join("log");
        run(postgres.command("pg_ctl").args(["-s", "-w", "start", "-o", &settings.join(" "), "-l"]).arg(log));
        postgres
    }

    /// Builds the command of one of the server's programs for its data, run as the server's user.
    fn command(&self, name: &str) -> Command {
        let installed = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
        let newest = installed.map(|entry| entry.expect("a folder").path()).max().expect("a version");
        let program = newest.join("bin").join(name);
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir("/").arg("-D").arg(&self.data);
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.command("pg_ctl").args(["-s", "stop", "-m", "immediate"]).output();
    }
}

fn run(command: &mut Command) {
    // A daemon that the command starts must not keep the test's stdout open.
    let status = command.stdout(Stdio::null()).status().expect("runs");
    assert!(status.success(), "{command:?}");
}

/// A Redis without a plain port, with one user.
pub struct Redis {
    process: Child,
    pub port: u16,
}

impl Redis {
    pub fn start(
        folder: &Folder,
        server: &Certificate,
        clients: &Authority,
        user: &str,
        password: &str,
    ) -> Self {
        let port = free_addr().port();
        let acl = format!("user default off\nuser {user} on >{password} ~* &* +@all\n");
        let config = format!(
            "port 0\ntls-port {port}\nbind 127.0.0.1\nsave \"\"\ntls-cert-file {}\ntls-key-file {}\n\
             tls-ca-cert-file {}\ntls-auth-clients yes\n{acl}",
            server.chain,
            server.key,
            clients.path(),
        );
        let path = folder.0.join("redis.conf");
        fs::write(&path, config).expect("written");
        let process = Command::new("redis-server").arg(&path).stdout(Stdio::null()).spawn();
        let redis = Self { process: process.expect("redis-server is installed"), port };
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < START_TIMEOUT, "Redis does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        redis
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The protocol before the TLS handshake.
#[derive(Clone, Copy, Debug)]
pub enum Protocol {
    Postgres,
    Redis,
    Grpc,
}

/// Starts a server that closes each connection after the TLS handshake, and returns its port. Without a certificate, the
/// server has no TLS.
pub fn start_handshake_server(protocol: Protocol, certificate: Option<&Certificate>) -> u16 {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let config = certificate.map(config);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let config = config.clone();
            std::thread::spawn(move || handshake(stream?, protocol, config));
        }
    });
    port
}

fn config(certificate: &Certificate) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = CertificateDer::pem_file_iter(Path::new(&certificate.chain)).expect("a file");
    let key = PrivateKeyDer::from_pem_file(Path::new(&certificate.key)).expect("a key");
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain.collect::<Result<_, _>>().expect("a chain"), key)
        .expect("a certificate");
    config.alpn_protocols.push(b"h2".to_vec());
    Arc::new(config)
}

fn handshake(
    mut stream: TcpStream,
    protocol: Protocol,
    config: Option<Arc<ServerConfig>>,
) -> std::io::Result<()> {
    if matches!(protocol, Protocol::Postgres) {
        stream.read_exact(&mut [0; 8])?;
        stream.write_all(if config.is_some() { b"S" } else { b"N" })?;
    }
    if let Some(config) = config {
        let mut connection = ServerConnection::new(config).expect("a configuration");
        connection.complete_io(&mut stream)?;
    } else {
        let _ = stream.read(&mut [0; 1024])?;
        stream.write_all(b"-ERR Protocol error: none of mine\r\n")?;
    }
    Ok(())
}
