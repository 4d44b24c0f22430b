//! The start matrix: every process with each of its dependencies absent at the start, frozen, slow on one connection,
//! refusing the password, away again and back. It passes where the process lives, says what it waits for, is ready soon
//! after the dependency's return, and writes few lines about it.
//!
//! Every pair has a process and a proxy of its own beside a system that runs; all pairs go through the matrix at once.

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
    parts::local,
    ports::Ports,
    program::{Environment, Program},
    ready,
    screen::{Ink, done, ink, say},
    up::system::System,
};

mod store;
use store::Store;

/// The first steps of the pairs are so far apart: what is measured is each process, not a crowd of them.
const STAGGER: Duration = Duration::from_millis(300);
/// A process that has just been started, beside a dozen others, answers `/readyz` and says what it waits for within this.
const NAMED_WITHIN: Duration = Duration::from_secs(20);
/// All pairs start at once, on as many cores as there are.
const STARTED_WITHIN: Duration = Duration::from_secs(20);
/// A process that cannot start ends within this.
const REFUSED_WITHIN: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);
/// The delay of the first bytes of a slow connection.
const SLOW_BY: Duration = Duration::from_secs(2);
/// A lasting failure has a line again after this.
const LINE_INTERVAL: Duration = Duration::from_mins(1);

/// The duration of each trouble.
#[derive(Clone, Copy, Debug)]
struct Times {
    late: Duration,
    frozen: Duration,
    away: Duration,
    refusing: Duration,
    /// A process is ready within this after its dependency is back.
    back: Duration,
    /// The connections, counted from the first, that are slow in turn.
    slow: &'static [usize],
}

const QUICK: Times = Times {
    late: Duration::from_secs(2),
    // Longer than a start waits for Redis, so that it has a line.
    frozen: Duration::from_secs(6),
    away: Duration::from_secs(3),
    refusing: Duration::from_secs(1),
    // Twice what is promised: in a test other work may take the cores.
    back: Duration::from_secs(10),
    slow: &[2],
};

const WHOLE: Times = Times {
    late: Duration::from_secs(10),
    frozen: Duration::from_secs(30),
    away: Duration::from_mins(1),
    refusing: Duration::from_secs(10),
    back: Duration::from_secs(5),
    slow: &[1, 2, 3, 4, 5, 6, 7, 8],
};

/// Every process with the dependencies that it names in `/readyz`.
const PAIRS: [(&str, &[&str]); 4] = [
    ("auth", &["postgres", "redis"]),
    ("product", &["postgres", "redis", "auth"]),
    ("order", &["postgres", "redis", "auth", "product"]),
    ("gateway", &["redis", "auth", "product", "order"]),
];

pub async fn run(system: &System, options: &Options) -> anyhow::Result<()> {
    let times = if options.quick { QUICK } else { WHOLE };
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
        sleep(STAGGER * place).await;
        let outcome = pair.matrix().await;
        outcome.with_context(|| format!("{} and {}\n{}", pair.process, pair.dependency, pair.last_words()))
    }))
    .await;
    let failures: Vec<String> =
        outcomes.into_iter().filter_map(|outcome| Some(format!("{:#}", outcome.err()?))).collect();
    ensure!(failures.is_empty(), "{} of {count} pairs:\n{}", failures.len(), failures.join("\n"));
    done("start matrix", &format!("{count} pairs, {} s", began.elapsed().as_secs()));
    Ok(())
}

/// A process and the dependency that is in trouble.
struct Pair {
    process: &'static str,
    dependency: &'static str,
    times: Times,
    program: Program,
    proxy: Proxy,
    store: Option<Store>,
    /// The address at which it answers `/readyz`.
    health: String,
    client: reqwest::Client,
    child: Option<Child>,
    started: Instant,
    /// The number of times the dependency was in trouble since the start.
    troubles: usize,
}

impl Pair {
    async fn prepare(
        system: &System,
        ports: &mut Ports,
        process: &'static str,
        dependency: &'static str,
        times: Times,
    ) -> anyhow::Result<Self> {
        let shop = system.shop();
        let base = if process == "gateway" { "gateway-1" } else { process };
        let mut program =
            shop.programs()?.into_iter().find(|program| program.name == base).context("no such process")?;
        program.name = format!("{process}-without-{dependency}");
        program.folder = system.state.of(&program.name);
        program.log = system.state.log(&program.name);
        let (listen, metrics) = (ports.free()?, ports.free()?);
        let health = local(if process == "gateway" { listen } else { metrics });
        let [auth, product, order] = &system.plan.services;
        let target = match dependency {
            "postgres" => system.plan.postgres,
            "redis" => system.plan.redis,
            "auth" => auth[0].grpc,
            "product" => product[0].grpc,
            _ => order[0].grpc,
        };
        let proxy = Proxy::start(ports.free()?, target, Mode::Absent, SLOW_BY);
        let store = Store::prepare(system, process, dependency, proxy.port).await?;
        let mut pair = Self {
            process,
            dependency,
            times,
            program,
            proxy,
            store,
            health,
            client: reqwest::Client::builder().no_proxy().build()?,
            child: None,
            started: Instant::now(),
            troubles: 0,
        };
        pair.tell("LISTEN_ADDR", format!("127.0.0.1:{listen}"));
        pair.tell("METRICS_ADDR", format!("127.0.0.1:{metrics}"));
        match (pair.dependency, pair.store.as_ref().map(Store::url)) {
            ("postgres", Some(url)) => pair.tell("DATABASE_URL", url),
            ("redis", Some(url)) => pair.tell("REDIS_URL", url),
            ("auth", _) => pair.tell("AUTH_URL", local(pair.proxy.port)),
            ("product", _) => pair.tell("PRODUCT_URL", local(pair.proxy.port)),
            _ => pair.tell("ORDER_URL", local(pair.proxy.port)),
        }
        Ok(pair)
    }

    /// Sets a variable of the environment, in place of what it was before.
    fn tell(&mut self, name: &'static str, value: String) {
        if let Environment::Ours { without, with } = &mut self.program.environment {
            without.retain(|unset| *unset != name);
            with.retain(|(set, _)| *set != name);
            with.push((name, value));
        }
    }

    async fn matrix(&mut self) -> anyhow::Result<()> {
        self.late_then_away().await?;
        self.frozen().await.context("frozen at the start")?;
        for nth in self.times.slow {
            self.slow(*nth).await.with_context(|| format!("connection {nth} slow at the start"))?;
        }
        self.refused_at_the_start().await.context("wrong password at the start")?;
        say(&format!("  {}", ink(Ink::Dim, &format!("{} and {}", self.process, self.dependency))));
        Ok(())
    }

    async fn late_then_away(&mut self) -> anyhow::Result<()> {
        self.proxy.set(Mode::Absent);
        self.start().await?;
        self.trouble(self.times.late, "").await.context("absent at the start")?;
        self.proxy.set(Mode::Pass);
        self.is_ready(self.times.back).await.context("late")?;

        self.proxy.set(Mode::Absent);
        self.trouble(self.times.away, "").await.context("away")?;
        self.proxy.set(Mode::Pass);
        self.is_ready(self.times.back).await.context("back")?;

        if let Some(store) = self.store.take() {
            store.refuse().await?;
            self.proxy.cut();
            let refused = self.trouble(self.times.refusing, "authentication").await;
            store.accept().await?;
            refused.context("a password that became wrong")?;
            self.is_ready(self.times.back).await.context("a password that became right")?;
            self.store = Some(store);
        }
        self.few_lines()?;
        self.stop().await
    }

    async fn frozen(&mut self) -> anyhow::Result<()> {
        self.proxy.set(Mode::Frozen);
        self.start().await?;
        self.trouble(self.times.frozen, "").await?;
        self.proxy.set(Mode::Pass);
        self.is_ready(self.times.back).await?;
        self.few_lines()?;
        self.stop().await
    }

    async fn slow(&mut self, nth: usize) -> anyhow::Result<()> {
        self.proxy.set(Mode::Pass);
        self.proxy.slow_down(nth);
        self.start().await?;
        self.is_ready(STARTED_WITHIN).await?;
        // A connection that was left alone would show by now.
        sleep(SLOW_BY).await;
        self.is_ready(self.times.back).await?;
        self.proxy.slow_down(0);
        self.stop().await
    }

    async fn refused_at_the_start(&mut self) -> anyhow::Result<()> {
        let Some(store) = self.store.take() else { return Ok(()) };
        store.refuse().await?;
        self.start().await?;
        let child = self.child.as_mut().context("started")?;
        let ended = timeout(REFUSED_WITHIN, child.wait()).await;
        store.accept().await?;
        let status = ended.context("it goes on")??;
        ensure!(!status.success(), "it ends well");
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
        (self.started, self.troubles) = (Instant::now(), 0);
        Ok(())
    }

    async fn stop(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("started")?;
        ensure!(child.try_wait()?.is_none(), "it has ended by itself");
        Ok(child.kill().await?)
    }

    fn lives(&mut self) -> anyhow::Result<()> {
        let child = self.child.as_mut().context("started")?;
        match child.try_wait()? {
            Some(status) => bail!("it has ended: {status}"),
            None => Ok(()),
        }
    }

    /// Waits until `/readyz` names the dependency, with `reason` in it, and then until the trouble has lasted.
    async fn trouble(&mut self, lasts: Duration, reason: &str) -> anyhow::Result<()> {
        let began = Instant::now();
        self.troubles += 1;
        let name = self.dependency;
        self.until(NAMED_WITHIN, |answer| {
            answer.as_ref().is_err_and(|missing| {
                let named = missing.split("not ready: ").nth(1).is_some_and(|missing| {
                    missing.starts_with(name) || missing.contains(&format!(", {name}"))
                });
                named && missing.contains(reason)
            })
        })
        .await
        .with_context(|| format!("/readyz does not name {name}"))?;
        sleep(lasts.saturating_sub(began.elapsed())).await;
        self.lives()
    }

    async fn is_ready(&mut self, within: Duration) -> anyhow::Result<()> {
        self.until(within, Result::is_ok).await.context("it is not ready")
    }

    async fn until(
        &mut self,
        within: Duration,
        holds: impl Fn(&Result<(), String>) -> bool,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            self.lives()?;
            let answer = ready::ready(&self.client, &self.health).await;
            if holds(&answer) {
                return Ok(());
            }
            ensure!(began.elapsed() < within, "/readyz after {:?}: {answer:?}", began.elapsed());
            sleep(LOOK).await;
        }
    }

    /// Each trouble has a line at least, and one a minute for each of its causes at most.
    fn few_lines(&self) -> anyhow::Result<()> {
        let log = fs::read_to_string(&self.program.log)?;
        let named = format!("\"dependency\":\"{}\"", self.dependency);
        let mut causes: Vec<String> = log
            .lines()
            .filter(|line| line.contains("dependency does not answer") && line.contains(&named))
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .map(|line| cause(&line))
            .collect();
        ensure!(!causes.is_empty(), "no line about {}", self.dependency);
        let minutes = usize::try_from(self.started.elapsed().as_secs() / LINE_INTERVAL.as_secs())?;
        causes.sort_unstable();
        for same in causes.chunk_by(|one, other| one == other) {
            ensure!(same.len() <= self.troubles + minutes, "{} lines {:?}", same.len(), same[0]);
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.program.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().filter(|line| !line.contains("/readyz")).take(8).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

/// The class in a line about a dependency, which comes after the names of connections.
fn cause(line: &serde_json::Value) -> String {
    let reason = line.pointer("/fields/reason").or_else(|| line.get("reason"));
    let reason = reason.and_then(serde_json::Value::as_str).unwrap_or_default();
    reason.rsplit(": ").next().unwrap_or_default().to_owned()
}
