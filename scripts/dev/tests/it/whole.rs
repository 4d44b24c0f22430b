//! The scripts, as a person uses them: a system is started, used, hurt and stopped. Its state lies in a folder of its
//! own, so that a system that runs in this checkout is not disturbed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// One that was killed must be back within it.
const BACK: Duration = Duration::from_secs(5);
/// Twice what is promised, as other tests run beside this one.
const SECOND_START: Duration = Duration::from_secs(20);

pub struct Checkout {
    state: PathBuf,
    environment: Vec<(&'static str, String)>,
}

impl Checkout {
    pub fn new(name: &str) -> Self {
        let state = std::env::temp_dir().join(format!("shoppee-{name}-{}", std::process::id()));
        Self { state, environment: Vec::new() }
    }

    /// The same, with a setting that scripts/up hands on.
    pub fn with(mut self, name: &'static str, value: String) -> Self {
        self.environment.push((name, value));
        self
    }

    /// Runs a script with the binaries that were built for these tests.
    fn script(&self, name: &str, arguments: &[&str]) -> Output {
        let binaries = Path::new(env!("CARGO_BIN_EXE_shoppee-dev")).parent().expect("a folder");
        assert!(binaries.join("shoppee-gateway").exists(), "build the whole workspace: run scripts/test");
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        Command::new(scripts.join(name))
            .args(arguments)
            .env("SHOPPEE_STATE", &self.state)
            .env("SHOPPEE_BINARIES", binaries)
            .env_remove("DATABASE_URL")
            .env_remove("REDIS_URL")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .output()
            .expect("a script")
    }

    pub fn succeeds(&self, name: &str, arguments: &[&str]) -> String {
        let output = self.script(name, arguments);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "scripts/{name} {arguments:?}:\n{said}\n{complained}");
        said
    }

    /// Fails; returns its last words.
    pub fn fails(&self, name: &str, arguments: &[&str]) -> String {
        let output = self.script(name, arguments);
        assert!(!output.status.success(), "scripts/{name} {arguments:?} should fail");
        String::from_utf8_lossy(&output.stderr).trim().to_owned()
    }

    pub fn run_file(&self) -> Value {
        let text = fs::read_to_string(self.state.join("run.json")).expect("run.json");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Kills the process at that place of run.json, and waits for another there.
    fn kill(&self, pointer: &str) {
        let pid = |run: &Value| run.pointer(pointer).and_then(Value::as_i64).expect("a process id");
        let before = pid(&self.run_file());
        kill(before);
        let killed = Instant::now();
        while pid(&self.run_file()) == before {
            assert!(killed.elapsed() < BACK, "{pointer} is not back");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Checkout {
    /// The answer of Redis to its administrator.
    fn redis(&self, command: &[&str]) -> String {
        let run = self.run_file();
        let url = run["redis"]["url"].as_str().expect("an address");
        let output = Command::new("redis-cli")
            .args(["--no-auth-warning", "-e", "-u", url])
            .args(command)
            .output()
            .expect("redis-cli is installed");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    }
}

fn kill(pid: i64) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("small")).expect("not 0");
    kill_process(pid, Signal::KILL).expect("it lives");
}

impl Drop for Checkout {
    fn drop(&mut self) {
        self.script("down", &["--wipe"]);
    }
}

#[test]
fn a_shop_is_started_used_hurt_and_stopped() {
    let checkout = Checkout::new("whole");
    checkout.succeeds("up", &["--detach", "--gateways", "3", "--products", "40"]);

    let run = checkout.run_file();
    assert_eq!(run["gateways"].as_array().expect("gateways").len(), 3);
    for pointer in [
        "/gateways/0/pid",
        "/gateways/2/pid",
        "/services/auth/pid",
        "/services/product/pid",
        "/services/order/pid",
        "/postgres/pid",
        "/redis/pid",
    ] {
        let pid = run.pointer(pointer).and_then(Value::as_u64).expect(pointer);
        assert!(Path::new(&format!("/proc/{pid}")).exists(), "{pointer}");
    }
    for pointer in [
        "/gateways/1/url",
        "/services/order/grpc",
        "/services/auth/metrics",
        "/postgres/url",
        "/redis/url",
        "/admin/password",
        "/customer/username",
        "/logs",
    ] {
        assert!(run.pointer(pointer).is_some_and(Value::is_string), "{pointer}");
    }

    let said = checkout.fails("up", &["--detach"]);
    assert!(said.contains("runs already") && said.lines().count() == 1, "{said}");

    assert!(checkout.succeeds("demo", &[]).contains("all 4 events seen"));
    assert_eq!(checkout.redis(&["acl", "log"]).trim(), "", "Redis has refused a process a command");
    // Whatever is killed is back, and the demo gets through meanwhile.
    for pointer in ["/services/order/pid", "/postgres/pid", "/redis/pid", "/gateways/1/pid"] {
        checkout.kill(pointer);
        let said = checkout.succeeds("demo", &[]);
        assert!(said.contains("all 4 events seen"), "after {pointer}:\n{said}");
    }
    assert_eq!(checkout.redis(&["acl", "log"]).trim(), "", "Redis has refused a process a command");

    checkout.succeeds("down", &[]);
    assert!(!checkout.state.join("run.json").exists());
    assert!(checkout.fails("demo", &[]).contains("scripts/up"));

    // Orders, users and sign-ins are still there.
    let began = Instant::now();
    let said = checkout.succeeds("up", &["--detach"]);
    assert!(began.elapsed() < SECOND_START, "a second start took {:?}", began.elapsed());
    assert!(said.contains("960 products added"), "{said}");
    assert_eq!(checkout.run_file()["customer"], run["customer"]);
    assert!(checkout.succeeds("demo", &[]).contains("all 4 events seen"));

    // The supervisor itself is killed: what it left is out of the way at the next start.
    let supervisor = fs::read_to_string(checkout.state.join("lock")).expect("lock");
    kill(supervisor.parse().expect("a process id"));
    assert!(checkout.fails("demo", &[]).contains("scripts/up"));
    checkout.succeeds("up", &["--detach"]);
    assert!(checkout.succeeds("demo", &[]).contains("all 4 events seen"));
}

#[test]
fn a_taken_port_is_one_clear_line() {
    let checkout = Checkout::new("port");
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = other.local_addr().expect("an address").port().to_string();
    let said = checkout.fails("up", &["--detach", "--port", &port]);
    assert_eq!(said, format!("port {port} is taken by another program"));
    assert!(!checkout.state.join("run.json").exists());
}

#[test]
fn a_rolling_restart_fails_no_request_and_loses_no_event() {
    let checkout = Checkout::new("rolling");
    let said = checkout.succeeds("chaos", &["rolling", "--quick"]);
    assert!(said.contains(" 0 failed") && said.contains(" 0 event problems"), "{said}");
}

#[test]
fn every_script_explains_itself() {
    let checkout = Checkout::new("help");
    for script in ["up", "down", "demo", "chaos"] {
        assert!(checkout.succeeds(script, &["--help"]).contains("--help"), "{script}");
    }
}
