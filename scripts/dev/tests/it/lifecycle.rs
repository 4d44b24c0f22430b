//! The life cycle of a system by the scripts: start, use, faults and stop. The state is in a temporary folder, so that a
//! system of this checkout is not affected.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Bounds the restart of a killed process.
const RESTART_TIMEOUT: Duration = Duration::from_secs(5);
/// Bounds a start with existing data: twice the guaranteed time, as other tests run at the same time.
const SECOND_START_TIMEOUT: Duration = Duration::from_secs(20);
/// Bounds the time until a step is shown, with the longest delay of a reconnect.
const WATCH_TIMEOUT: Duration = Duration::from_secs(30);

pub struct Checkout {
    state: PathBuf,
    environment: Vec<(&'static str, String)>,
}

impl Checkout {
    pub fn new(name: &str) -> Self {
        let state = std::env::temp_dir().join(format!("shoppee-{name}-{}", std::process::id()));
        Self { state, environment: Vec::new() }
    }

    /// Adds an environment variable, which scripts/up passes on to the processes.
    pub fn with(mut self, name: &'static str, value: String) -> Self {
        self.environment.push((name, value));
        self
    }

    /// Returns the command of a script with the binaries that were built for these tests.
    fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let binaries = Path::new(env!("CARGO_BIN_EXE_shoppee-dev")).parent().expect("a folder");
        assert!(binaries.join("shoppee-gateway").exists(), "build the whole workspace: run scripts/test");
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut command = Command::new(scripts.join(name));
        command
            .args(arguments)
            .env("SHOPPEE_STATE", &self.state)
            .env("SHOPPEE_BINARIES", binaries)
            .env_remove("DATABASE_URL")
            .env_remove("REDIS_URL")
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn run_script(&self, name: &str, arguments: &[&str]) -> Output {
        self.command(name, arguments).output().expect("a script")
    }

    /// Runs a script that must succeed, and returns its stdout.
    pub fn succeeds(&self, name: &str, arguments: &[&str]) -> String {
        let output = self.run_script(name, arguments);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "scripts/{name} {arguments:?}:\n{stdout}\n{stderr}");
        stdout
    }

    /// Runs a script that must fail, and returns its stderr.
    pub fn fails(&self, name: &str, arguments: &[&str]) -> String {
        let output = self.run_script(name, arguments);
        assert!(!output.status.success(), "scripts/{name} {arguments:?} should fail");
        String::from_utf8_lossy(&output.stderr).trim().to_owned()
    }

    pub fn run_file(&self) -> Value {
        let text = fs::read_to_string(self.state.join("run.json")).expect("run.json");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Kills the process at a pointer into run.json, and waits until it is restarted.
    fn kill_and_wait(&self, pointer: &str) {
        let pid = |run: &Value| run.pointer(pointer).and_then(Value::as_i64).expect("a process id");
        let before = pid(&self.run_file());
        kill(before);
        let killed = Instant::now();
        while pid(&self.run_file()) == before {
            assert!(killed.elapsed() < RESTART_TIMEOUT, "{pointer} is not back");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Checkout {
    /// Runs redis-cli as the administrator, and returns its output.
    fn redis_cli(&self, command: &[&str]) -> String {
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

/// A running `scripts/watch`, with the lines that it has shown.
struct Watch {
    process: Child,
    output: PathBuf,
}

impl Watch {
    fn start(checkout: &Checkout) -> Self {
        let output = checkout.state.join("watch.txt");
        let file = fs::File::create(&output).expect("a file");
        let process = checkout.command("watch", &["--all"]).stdout(file).spawn().expect("starts");
        Self { process, output }
    }

    /// Waits until `count` steps are shown, and asserts that none is shown twice.
    fn shows(&self, count: usize) {
        let began = Instant::now();
        loop {
            let text = fs::read_to_string(&self.output).expect("text");
            // The columns after the time: the user, the order and its step.
            let steps: Vec<&str> = text
                .lines()
                .filter(|line| line.contains("  user "))
                .filter_map(|line| line.get(10..))
                .collect();
            let unique: HashSet<_> = steps.iter().collect();
            assert_eq!(unique.len(), steps.len(), "{text}");
            if steps.len() >= count {
                assert_eq!(steps.len(), count, "{text}");
                return;
            }
            assert!(began.elapsed() < WATCH_TIMEOUT, "{count} steps are not shown:\n{text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn kill(pid: i64) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("small")).expect("not 0");
    kill_process(pid, Signal::KILL).expect("it lives");
}

impl Drop for Checkout {
    fn drop(&mut self) {
        self.run_script("down", &["--wipe"]);
    }
}

#[test]
fn a_shop_survives_faults_and_keeps_its_data_over_a_restart() {
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

    let output = checkout.fails("up", &["--detach"]);
    assert!(output.contains("runs already") && output.lines().count() == 1, "{output}");

    let watch = Watch::start(&checkout);
    assert!(checkout.succeeds("demo", &[]).contains("all 4 events seen"));
    watch.shows(4);
    assert_eq!(checkout.redis_cli(&["acl", "log"]).trim(), "", "Redis has refused a process a command");
    // A killed process is restarted, and the demo succeeds meanwhile.
    let killed = ["/services/order/pid", "/postgres/pid", "/redis/pid", "/gateways/1/pid", "/gateways/0/pid"];
    for (pointer, demos) in killed.into_iter().zip(2..) {
        checkout.kill_and_wait(pointer);
        let output = checkout.succeeds("demo", &[]);
        assert!(output.contains("all 4 events seen"), "after {pointer}:\n{output}");
        watch.shows(4 * demos);
    }
    drop(watch);
    assert_eq!(checkout.redis_cli(&["acl", "log"]).trim(), "", "Redis has refused a process a command");

    checkout.succeeds("down", &[]);
    assert!(!checkout.state.join("run.json").exists());
    assert!(checkout.fails("demo", &[]).contains("scripts/up"));

    // The data survives the restart.
    let began = Instant::now();
    let output = checkout.succeeds("up", &["--detach"]);
    assert!(began.elapsed() < SECOND_START_TIMEOUT, "a second start took {:?}", began.elapsed());
    assert!(output.contains("960 products added"), "{output}");
    assert_eq!(checkout.run_file()["customer"], run["customer"]);
    assert!(checkout.succeeds("demo", &[]).contains("all 4 events seen"));

    // The next start removes the orphans of a killed supervisor.
    let supervisor = fs::read_to_string(checkout.state.join("lock")).expect("lock");
    kill(supervisor.parse().expect("a process id"));
    assert!(checkout.fails("demo", &[]).contains("scripts/up"));
    checkout.succeeds("up", &["--detach"]);
    assert!(checkout.succeeds("demo", &[]).contains("all 4 events seen"));
}

#[test]
fn a_taken_port_is_an_error_of_one_line() {
    let checkout = Checkout::new("port");
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = other.local_addr().expect("an address").port().to_string();
    let output = checkout.fails("up", &["--detach", "--port", &port]);
    assert_eq!(output, format!("port {port} is taken by another program"));
    assert!(!checkout.state.join("run.json").exists());
}

#[test]
fn a_rolling_restart_fails_no_request_and_loses_no_event() {
    let checkout = Checkout::new("rolling");
    let output = checkout.succeeds("chaos", &["rolling", "--quick"]);
    assert!(output.contains(" 0 failed") && output.contains(" 0 event problems"), "{output}");
}

#[test]
fn every_script_has_a_help_text() {
    let checkout = Checkout::new("help");
    for script in ["up", "down", "demo", "watch", "chaos"] {
        assert!(checkout.succeeds(script, &["--help"]).contains("--help"), "{script}");
    }
}
