//! All that runs, from the first process to the last.

use std::{collections::BTreeMap, os::unix::fs::symlink, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use futures_util::future::join_all;
use shoppee_kit::clock::Clock;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Options, seconds, summary};
use crate::{
    keeper::{Keeper, News, What},
    parts::{Plan, Shop, gateway_name, local},
    postgres,
    program::Program,
    ready, redis,
    run_file::{RunFile, Server, Service},
    screen::{Ink, done, ink, say},
    secrets::Secrets,
    seed,
    state::State,
};

/// The bound from the first process to the last one's readiness. A start takes seconds; on a machine whose cores are
/// taken by others it takes minutes. A process that cannot start ends at once, so that only one that hangs reaches this
/// bound.
const READY_TIMEOUT: Duration = Duration::from_mins(10);
/// The interval at which a start that takes its time says what it waits for.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(15);
/// A million products.
const SEEDED_WITHIN: Duration = Duration::from_mins(15);
/// The lines of a log that are shown when its process failed.
const LAST_WORDS: usize = 6;
/// And how much of each. Characters.
const SHOWN: usize = 200;

/// All that runs.
#[derive(Debug)]
pub struct System {
    pub state: State,
    options: Options,
    pub plan: Plan,
    pub secrets: Secrets,
    keepers: Vec<Keeper>,
    /// Stop without patience.
    pub hurry: CancellationToken,
    tell: mpsc::UnboundedSender<News>,
    news: mpsc::UnboundedReceiver<News>,
    pids: BTreeMap<String, u32>,
    /// The superuser's.
    postgres_url: String,
    /// The administrator's, or of all where REDIS_URL is set.
    redis_url: String,
}

impl System {
    pub fn plan(state: State, options: Options) -> anyhow::Result<Self> {
        let plan = Plan::make(&options)?;
        let mut secrets = Secrets::open(&state)?;
        if let Some(username) = &options.settings.admin_username {
            secrets.admin.username.clone_from(username);
        }
        if let Some(password) = &options.settings.admin_password {
            secrets.admin.password.clone_from(password);
        }
        if options.settings.database_url.is_none() {
            // The first admin of our own database, also at the next start.
            secrets.keep(&state)?;
        }
        let (tell, news) = mpsc::unbounded_channel();
        let (keepers, hurry, pids) = (Vec::new(), CancellationToken::new(), BTreeMap::new());
        let (postgres_url, redis_url) = (String::new(), String::new());
        Ok(Self { state, options, plan, secrets, keepers, hurry, tell, news, pids, postgres_url, redis_url })
    }

    /// Brings everything up, then tells of what ends and comes back; returns only with an error.
    pub async fn live(&mut self, began: Instant) -> anyhow::Result<()> {
        self.boot().await?;
        // Those that started while the last were waited for.
        while let Ok(news) = self.news.try_recv() {
            self.note(&news);
        }
        let run = self.run_file();
        let link = self.state.dev_cli();
        let _ = std::fs::remove_file(&link);
        symlink(self.options.binaries.canonicalize()?.join("shoppee-dev"), link)?;
        run.write(&self.state)?;
        if self.options.background {
            say(&format!("ready after {}", seconds(began)));
        } else {
            summary::show(&run, &self.secrets, &format!("Ready after {}", seconds(began)), "Ctrl-C");
        }
        while let Some(news) = self.news.recv().await {
            report(&news);
            if self.note(&news) {
                self.run_file().write(&self.state)?;
            }
        }
        bail!("the keepers have ended")
    }

    /// From nothing to ready.
    pub async fn boot(&mut self) -> anyhow::Result<()> {
        self.boot_stores().await?;
        self.boot_processes().await?;
        if !self.options.no_seed {
            let began = Instant::now();
            // However many products there are, they may take their time.
            let deadline = Instant::now() + SEEDED_WITHIN;
            let gateway = local(self.plan.gateways[0]);
            let seeding =
                seed::run(self.postgres_url.clone(), gateway, self.options.products, self.secrets.clone());
            let added = self.unless_one_ends(deadline, seeding).await?;
            let added = added.context("too slow").flatten().context("the demo shop")?;
            done("demo shop", &format!("{added}, {}", seconds(began)));
        }
        Ok(())
    }

    /// Starts PostgreSQL and Redis, and makes the database where it is missing.
    async fn boot_stores(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        let began = Instant::now();
        self.start_stores()?;
        let private_redis = self.options.settings.redis_url.is_none().then_some(self.plan.redis);
        let stores = stores(self.postgres_url.clone(), private_redis);
        let Some(stores) = self.unless_one_ends(deadline, stores).await? else {
            bail!("PostgreSQL or Redis does not answer\n{}", self.last_words(postgres::NAME));
        };
        stores?;
        postgres::bootstrap(&self.postgres_url, &self.secrets).await?;
        done("PostgreSQL and Redis", &seconds(began));
        Ok(())
    }

    /// Starts services and gateways, all at once, and waits until all are ready: each waits for those it needs.
    pub async fn boot_processes(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        let client = reqwest::Client::builder().no_proxy().build()?;
        let began = Instant::now();
        let programs = self.shop().programs()?;
        self.keep(programs);
        let all_ready = join_all(self.plan.urls().into_iter().map(|(_, url)| {
            let client = client.clone();
            async move { ready::until(|| async { ready::ready(&client, &url).await.is_ok() }).await }
        }));
        tokio::pin!(all_ready);
        loop {
            let next_progress = deadline.min(Instant::now() + PROGRESS_INTERVAL);
            if self.unless_one_ends(next_progress, &mut all_ready).await?.is_some() {
                break;
            }
            if Instant::now() >= deadline {
                return Err(self.what_is_missing(&client).await);
            }
            if let Some((name, reason)) = self.first_unready(&client).await {
                say(&format!("  … {name} is not ready after {}: {reason}", seconds(began)));
            }
        }
        let gateways = self.plan.gateways.len();
        let plural = if gateways == 1 { "" } else { "s" };
        let services = match self.options.replicas {
            1 => "three services".to_owned(),
            replicas => format!("three services, {replicas} times each,"),
        };
        done(&format!("{services} and {gateways} gateway{plural}"), &seconds(began));
        Ok(())
    }

    /// The settings that every process of it is started with.
    pub fn shop(&self) -> Shop<'_> {
        Shop {
            state: &self.state,
            binaries: &self.options.binaries,
            plan: &self.plan,
            secrets: &self.secrets,
            settings: &self.options.settings,
            postgres_url: &self.postgres_url,
        }
    }

    /// PostgreSQL and Redis, but for those that the environment names.
    fn start_stores(&mut self) -> anyhow::Result<()> {
        let mut programs = Vec::new();
        if let Some(url) = &self.options.settings.database_url {
            self.postgres_url = postgres::with_database(url)?;
        } else {
            let server = postgres::Private::prepare(&self.state, self.plan.postgres, &self.secrets.postgres)?;
            self.postgres_url = server.url(&self.secrets.postgres);
            programs.push(server.program());
        }
        if let Some(url) = &self.options.settings.redis_url {
            self.redis_url.clone_from(url);
        } else {
            self.redis_url = redis::url(self.plan.redis, redis::ADMINISTRATOR, &self.secrets.redis);
            programs.push(redis::program(&self.state, self.plan.redis, &self.secrets.redis)?);
        }
        self.keep(programs);
        Ok(())
    }

    /// Starts these too, and keeps them running.
    pub fn keep(&mut self, programs: Vec<Program>) {
        for program in programs {
            self.keepers.push(Keeper::keep(program, self.tell.clone(), self.hurry.clone()));
        }
    }

    /// Returns the URL of PostgreSQL with the superuser's password.
    pub fn postgres_url(&self) -> &str {
        &self.postgres_url
    }

    /// What happens next to one of the processes.
    pub async fn hear(&mut self) -> anyhow::Result<News> {
        let news = self.news.recv().await.context("the keepers have ended")?;
        self.note(&news);
        Ok(news)
    }

    /// The process that bears the name now.
    pub fn pid(&self, name: &str) -> Option<u32> {
        self.pids.get(name).copied()
    }

    /// Does it, unless a process ends meanwhile: at the start that is no mishap but a mistake. `None` when time is up.
    async fn unless_one_ends<T>(
        &mut self,
        deadline: Instant,
        doing: impl Future<Output = T>,
    ) -> anyhow::Result<Option<T>> {
        tokio::pin!(doing);
        loop {
            tokio::select! {
                outcome = &mut doing => return Ok(Some(outcome)),
                () = tokio::time::sleep_until(deadline) => return Ok(None),
                Some(news) = self.news.recv() => {
                    self.note(&news);
                    if let What::Ended { how } = &news.what {
                        bail!("{} does not run: {how}\n{}", news.part, self.last_words(&news.part));
                    }
                }
            }
        }
    }

    async fn what_is_missing(&self, client: &reqwest::Client) -> anyhow::Error {
        match self.first_unready(client).await {
            Some((name, reason)) => anyhow!("{name} is not ready: {reason}\n{}", self.last_words(&name)),
            None => anyhow!("not ready in time"),
        }
    }

    /// Returns the first process that is not ready, with the reason that its `/readyz` gives.
    async fn first_unready(&self, client: &reqwest::Client) -> Option<(String, String)> {
        for (name, url) in self.plan.urls() {
            if let Err(reason) = ready::ready(client, &url).await {
                return Some((name, reason));
            }
        }
        None
    }

    fn last_words(&self, part: &str) -> String {
        let path = self.state.log(part);
        let log = std::fs::read(&path).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().rev().take(LAST_WORDS).collect();
        let shown: Vec<String> = lines
            .into_iter()
            .rev()
            .map(|line| format!("    {}", line.chars().take(SHOWN).collect::<String>()))
            .collect();
        format!("the end of {}:\n{}", path.display(), shown.join("\n"))
    }

    /// Keeps the process ids up to date; whether one has changed.
    fn note(&mut self, news: &News) -> bool {
        match &news.what {
            What::Started { pid } => self.pids.insert(news.part.clone(), *pid) != Some(*pid),
            What::Ended { .. } => false,
        }
    }

    fn run_file(&self) -> RunFile {
        let pid = |name: &str| self.pids.get(name).copied();
        let services = self.plan.replicas().map(|(name, _, at)| {
            let service = Service { grpc: local(at.grpc), metrics: local(at.metrics), pid: pid(&name) };
            (name, service)
        });
        let gateways = self.plan.gateways.iter().enumerate();
        RunFile {
            gateways: gateways
                .map(|(index, port)| Server { url: local(*port), pid: pid(&gateway_name(index)) })
                .collect(),
            services: services.collect(),
            postgres: Server { url: self.postgres_url.clone(), pid: pid(postgres::NAME) },
            redis: Server { url: self.redis_url.clone(), pid: pid(redis::NAME) },
            admin: self.secrets.admin.clone(),
            customer: self.secrets.customers[0].clone(),
            logs: self.state.logs().display().to_string(),
        }
    }

    /// Stops gateways, then services; PostgreSQL and Redis go on.
    pub async fn stop_processes(&mut self) {
        let (stores, processes): (Vec<Keeper>, Vec<Keeper>) =
            std::mem::take(&mut self.keepers).into_iter().partition(|keeper| is_store(&keeper.name));
        self.keepers = stores;
        let (edge, services): (Vec<Keeper>, Vec<Keeper>) =
            processes.into_iter().partition(|keeper| is_edge(&keeper.name));
        for group in [edge, services] {
            join_all(group.into_iter().map(Keeper::stop)).await;
        }
    }

    /// First those that serve customers, last those that keep the data.
    pub async fn stop(mut self) {
        self.stop_processes().await;
        join_all(self.keepers.into_iter().map(Keeper::stop)).await;
    }
}

fn is_store(name: &str) -> bool {
    [postgres::NAME, redis::NAME].contains(&name)
}

fn is_edge(name: &str) -> bool {
    name.starts_with("gateway-") || name == "nginx"
}

/// Waits until both answer; a refusal is final.
async fn stores(postgres_url: String, private_redis: Option<u16>) -> anyhow::Result<()> {
    let refused = std::cell::RefCell::new(None);
    let postgres = ready::until(|| async {
        match postgres::answers(&postgres_url).await {
            Ok(()) => true,
            Err(error) => {
                // 28: role or password; anything else may pass.
                let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
                let refusal = code.is_some_and(|code| code.starts_with("28"));
                if refusal {
                    refused.replace(Some(error));
                }
                refusal
            }
        }
    });
    let redis = async {
        if let Some(port) = private_redis {
            ready::until(|| async { redis::answers(port).await.unwrap_or(false) }).await;
        }
    };
    tokio::join!(postgres, redis);
    match refused.take() {
        Some(error) => Err(anyhow!("PostgreSQL refuses DATABASE_URL: {error}")),
        None => Ok(()),
    }
}

fn report(news: &News) {
    let at = Clock::default().now();
    let (hour, minute, second) = (at.hour(), at.minute(), at.second());
    let what = match &news.what {
        What::Started { pid } => ink(Ink::Good, &format!("started again, process {pid}")),
        What::Ended { how } => ink(Ink::Bad, &format!("ended ({how})")),
    };
    say(&format!("  {hour:02}:{minute:02}:{second:02} {} {what}", news.part));
}
