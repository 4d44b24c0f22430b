//! The start matrix: starts every process while one of its dependencies is absent, frozen, slow on one connection or refuses
//! the password. Later the dependency becomes unavailable again. A pair passes if the process keeps running, names the
//! dependency in `/readyz`, is ready soon after the dependency's return, and logs few lines.
//!
//! Every pair has a process and a proxy of its own beside a running system. All pairs run at the same time.

use std::{fs, time::Duration};

use anyhow::{Context as _, bail, ensure};
use futures_util::future::join_all;
use tokio::{
    process::Child,
    time::{Instant, sleep, timeout},
};

use super::{
    Options,
    proxy::{Mode, Proxy},
};
use crate::{
    output::{Style, print_line, print_step, styled},
    ports::Ports,
    program::{Environment, Program},
    readiness,
    up::{processes::loopback_url, system::System},
};

mod store;
use store::Store;

/// The delay between the starts of two pairs, so that they do not compete for the processor.
const START_STAGGER: Duration = Duration::from_millis(300);
/// Bounds the time until `/readyz` of a starting process names the dependency, beside a dozen other starts.
const NOT_READY_TIMEOUT: Duration = Duration::from_secs(20);
/// Bounds a start while all pairs start.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Bounds the exit of a process that cannot start.
const REFUSED_START_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The delay of a slow connection.
const SLOW_CONNECTION_DELAY: Duration = Duration::from_secs(2);
/// The interval at which a process logs a lasting failure again.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// The duration of each condition of a dependency.
#[derive(Clone, Copy, Debug)]
struct Times {
    absent_at_start: Duration,
    frozen: Duration,
    absent_later: Duration,
    refusing: Duration,
    /// Bounds the time from the dependency's return to readiness.
    recovery_timeout: Duration,
    /// The numbers of the connections that are slow in turn, counted from 1.
    slow_connections: &'static [usize],
}

const QUICK: Times = Times {
    absent_at_start: Duration::from_secs(2),
    // Longer than a start waits for Redis, so that the process logs it.
    frozen: Duration::from_secs(6),
    absent_later: Duration::from_secs(3),
    refusing: Duration::from_secs(1),
    // Twice the guaranteed time: other tests may use the processor.
    recovery_timeout: Duration::from_secs(10),
    slow_connections: &[2],
};

const FULL: Times = Times {
    absent_at_start: Duration::from_secs(10),
    frozen: Duration::from_secs(30),
    absent_later: Duration::from_mins(1),
    refusing: Duration::from_secs(10),
    recovery_timeout: Duration::from_secs(5),
    slow_connections: &[1, 2, 3, 4, 5, 6, 7, 8],
};

/// Every process with the dependencies that it names in `/readyz`.
const PAIRS: [(&str, &[&str]); 4] = [
    ("auth", &["postgres", "redis"]),
    ("product", &["postgres", "redis", "auth"]),
    ("order", &["postgres", "redis", "auth", "product"]),
    ("gateway", &["redis", "auth", "product", "order"]),
];

pub async fn run(system: &System, options: &Options) -> anyhow::Result<()> {
    let times = if options.quick { QUICK } else { FULL };
    let mut ports = Ports::default();
    let mut pairs = Vec::new();
    for (process, dependencies) in PAIRS {
        for dependency in dependencies {
            pairs.push(Pair::prepare(system, &mut ports, process, dependency, times).await?);
        }
    }
    let began = Instant::now();
    let count = pairs.len();
    let outcomes = join_all((0..).zip(pairs).map(|(place, mut pair): (u32, Pair)| async move {
        sleep(START_STAGGER * place).await;
        let outcome = pair.run().await;
        outcome.with_context(|| format!("{} and {}\n{}", pair.process, pair.dependency, pair.log_tail()))
    }))
    .await;
    let failures: Vec<String> =
        outcomes.into_iter().filter_map(|outcome| Some(format!("{:#}", outcome.err()?))).collect();
    ensure!(failures.is_empty(), "{} of {count} pairs:\n{}", failures.len(), failures.join("\n"));
    print_step("start matrix", &format!("{count} pairs, {} s", began.elapsed().as_secs()));
    Ok(())
}

/// A process and its impaired dependency.
struct Pair {
    process: &'static str,
    dependency: &'static str,
    times: Times,
    program: Program,
    proxy: Proxy,
    store: Option<Store>,
    /// The base URL of its `/readyz`.
    health_url: String,
    client: reqwest::Client,
    child: Option<Child>,
    started: Instant,
    /// The number of outages of the dependency since the start.
    outages: usize,
}

impl Pair {
    async fn prepare(
        system: &System,
        ports: &mut Ports,
        process: &'static str,
        dependency: &'static str,
        times: Times,
    ) -> anyhow::Result<Self> {
        let launcher = system.launcher();
        let base = if process == "gateway" { "gateway-1" } else { process };
        let mut program = launcher
            .programs()?
            .into_iter()
            .find(|program| program.name == base)
            .context("no such process")?;
        program.name = format!("{process}-without-{dependency}");
        program.folder = system.state.process_folder(&program.name);
        program.log = system.state.log(&program.name);
        let (listen, metrics) = (ports.free()?, ports.free()?);
        let health_url = loopback_url(if process == "gateway" { listen } else { metrics });
        let [auth, product, order] = &system.topology.services;
        let target = match dependency {
            "postgres" => system.topology.postgres,
            "redis" => system.topology.redis,
            "auth" => auth[0].grpc,
            "product" => product[0].grpc,
            _ => order[0].grpc,
        };
        let proxy = Proxy::start(ports.free()?, target, Mode::Absent, SLOW_CONNECTION_DELAY);
        let store = Store::prepare(system, process, dependency, proxy.port).await?;
        let mut pair = Self {
            process,
            dependency,
            times,
            program,
            proxy,
            store,
            health_url,
            client: reqwest::Client::builder().no_proxy().build()?,
            child: None,
            started: Instant::now(),
            outages: 0,
        };
        pair.set_variable("LISTEN_ADDR", format!("127.0.0.1:{listen}"));
        pair.set_variable("METRICS_ADDR", format!("127.0.0.1:{metrics}"));
        match (pair.dependency, pair.store.as_ref().map(Store::url)) {
            ("postgres", Some(url)) => pair.set_variable("DATABASE_URL", url),
            ("redis", Some(url)) => pair.set_variable("REDIS_URL", url),
            ("auth", _) => pair.set_variable("AUTH_URL", loopback_url(pair.proxy.port)),
            ("product", _) => pair.set_variable("PRODUCT_URL", loopback_url(pair.proxy.port)),
            _ => pair.set_variable("ORDER_URL", loopback_url(pair.proxy.port)),
        }
        Ok(pair)
    }

    /// Sets or replaces an environment variable of the process.
    fn set_variable(&mut self, name: &'static str, value: String) {
        if let Environment::Modified { unset, set } = &mut self.program.environment {
            unset.retain(|variable| *variable != name);
            set.retain(|(variable, _)| *variable != name);
            set.push((name, value));
        }
    }

    async fn run(&mut self) -> anyhow::Result<()> {
        self.absent_at_start_and_later().await?;
        self.frozen().await.context("frozen at the start")?;
        for nth in self.times.slow_connections {
            self.slow(*nth).await.with_context(|| format!("connection {nth} slow at the start"))?;
        }
        self.refused_at_start().await.context("wrong password at the start")?;
        print_line(&format!(
            "  {}",
            styled(Style::Dim, &format!("{} and {}", self.process, self.dependency))
        ));
        Ok(())
    }

    async fn absent_at_start_and_later(&mut self) -> anyhow::Result<()> {
        self.proxy.set_mode(Mode::Absent);
        self.start().await?;
        self.expect_outage(self.times.absent_at_start, "").await.context("absent at the start")?;
        self.proxy.set_mode(Mode::Pass);
        self.expect_ready(self.times.recovery_timeout).await.context("recovery from absence at the start")?;

        self.proxy.set_mode(Mode::Absent);
        self.expect_outage(self.times.absent_later, "").await.context("absent later")?;
        self.proxy.set_mode(Mode::Pass);
        self.expect_ready(self.times.recovery_timeout).await.context("recovery from absence later")?;

        if let Some(store) = self.store.take() {
            store.refuse().await?;
            self.proxy.disconnect_all();
            let refused = self.expect_outage(self.times.refusing, "authentication").await;
            store.accept().await?;
            refused.context("password changed")?;
            self.expect_ready(self.times.recovery_timeout)
                .await
                .context("recovery from the changed password")?;
            self.store = Some(store);
        }
        self.expect_few_log_lines()?;
        self.stop().await
    }

    async fn frozen(&mut self) -> anyhow::Result<()> {
        self.proxy.set_mode(Mode::Frozen);
        self.start().await?;
        self.expect_outage(self.times.frozen, "").await?;
        self.proxy.set_mode(Mode::Pass);
        self.expect_ready(self.times.recovery_timeout).await?;
        self.expect_few_log_lines()?;
        self.stop().await
    }

    async fn slow(&mut self, nth: usize) -> anyhow::Result<()> {
        self.proxy.set_mode(Mode::Pass);
        self.proxy.slow_down(nth);
        self.start().await?;
        self.expect_ready(START_TIMEOUT).await?;
        // A connection that the process abandoned would show by now.
        sleep(SLOW_CONNECTION_DELAY).await;
        self.expect_ready(self.times.recovery_timeout).await?;
        self.proxy.slow_down(0);
        self.stop().await
    }

    async fn refused_at_start(&mut self) -> anyhow::Result<()> {
        let Some(store) = self.store.take() else { return Ok(()) };
        store.refuse().await?;
        self.start().await?;
        let child = self.child.as_mut().context("started")?;
        let exit = timeout(REFUSED_START_TIMEOUT, child.wait()).await;
        store.accept().await?;
        let status = exit.context("it keeps running")??;
        ensure!(!status.success(), "it exits with code 0");
        let log = fs::read_to_string(&self.program.log)?;
        ensure!(log.lines().count() == 1, "one line: {log}");
        ensure!(log.contains("refuses") && !log.contains(&store.password), "{log}");
        self.child = None;
        self.store = Some(store);
        Ok(())
    }

    async fn start(&mut self) -> anyhow::Result<()> {
        let _ = fs::remove_file(&self.program.log);
        self.child = Some(self.program.start().await?);
        (self.started, self.outages) = (Instant::now(), 0);
        Ok(())
    }

    async fn stop(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("started")?;
        ensure!(child.try_wait()?.is_none(), "it has ended by itself");
        Ok(child.kill().await?)
    }

    fn expect_running(&mut self) -> anyhow::Result<()> {
        let child = self.child.as_mut().context("started")?;
        match child.try_wait()? {
            Some(status) => bail!("it has ended: {status}"),
            None => Ok(()),
        }
    }

    /// Waits until `/readyz` names the dependency and `reason`, and then until the outage has lasted `duration`.
    async fn expect_outage(&mut self, duration: Duration, reason: &str) -> anyhow::Result<()> {
        let began = Instant::now();
        self.outages += 1;
        let name = self.dependency;
        self.poll_readiness(NOT_READY_TIMEOUT, |response| {
            response.as_ref().is_err_and(|missing| {
                let named = missing.split("not ready: ").nth(1).is_some_and(|missing| {
                    missing.starts_with(name) || missing.contains(&format!(", {name}"))
                });
                named && missing.contains(reason)
            })
        })
        .await
        .with_context(|| format!("/readyz does not name {name}"))?;
        sleep(duration.saturating_sub(began.elapsed())).await;
        self.expect_running()
    }

    async fn expect_ready(&mut self, limit: Duration) -> anyhow::Result<()> {
        self.poll_readiness(limit, Result::is_ok).await.context("it is not ready")
    }

    /// Polls `/readyz` until a condition holds.
    async fn poll_readiness(
        &mut self,
        limit: Duration,
        condition: impl Fn(&Result<(), String>) -> bool,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            self.expect_running()?;
            let response = readiness::check(&self.client, &self.health_url).await;
            if condition(&response) {
                return Ok(());
            }
            ensure!(began.elapsed() < limit, "/readyz after {:?}: {response:?}", began.elapsed());
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Checks that each outage was logged, and each cause at most once a minute.
    fn expect_few_log_lines(&self) -> anyhow::Result<()> {
        let log = fs::read_to_string(&self.program.log)?;
        let named = format!("\"dependency\":\"{}\"", self.dependency);
        let mut causes: Vec<String> = log
            .lines()
            .filter(|line| line.contains("dependency does not answer") && line.contains(&named))
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .map(|line| cause(&line))
            .collect();
        ensure!(!causes.is_empty(), "no line about {}", self.dependency);
        let minutes = usize::try_from(self.started.elapsed().as_secs() / LOG_INTERVAL.as_secs())?;
        causes.sort_unstable();
        for same in causes.chunk_by(|one, other| one == other) {
            ensure!(same.len() <= self.outages + minutes, "{} lines {:?}", same.len(), same[0]);
        }
        Ok(())
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.program.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().filter(|line| !line.contains("/readyz")).take(8).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

/// Returns the cause in a log line about a dependency, which follows the names of connections.
fn cause(line: &serde_json::Value) -> String {
    let reason = line.pointer("/fields/reason").or_else(|| line.get("reason"));
    let reason = reason.and_then(serde_json::Value::as_str).unwrap_or_default();
    reason.rsplit(": ").next().unwrap_or_default().to_owned()
}
