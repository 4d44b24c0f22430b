//! A running system: starts, supervises and stops all its processes.

use std::{collections::BTreeMap, os::unix::fs::symlink, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use futures_util::future::join_all;
use shoppee_kit::clock::Clock;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Options,
    processes::{Launcher, Topology, gateway_name, loopback_url},
    seconds, summary,
};
use crate::{
    control::{Control, Gateway, Shop},
    output::{Style, print_line, print_step, styled},
    postgres,
    program::Program,
    readiness, redis,
    run_file::{RunFile, Server, Service},
    secrets::Secrets,
    seed,
    state::State,
    supervisor::{Event, EventKind, Supervisor},
};

/// Bounds the time from the first start until all processes are ready. A start takes seconds, and minutes on a busy machine.
/// A process that cannot start exits at once, so that only one that hangs reaches this bound.
const READY_TIMEOUT: Duration = Duration::from_mins(10);
/// The interval at which a slow start reports the process that is not ready.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(15);
/// Bounds the seeding of a million products.
const SEED_TIMEOUT: Duration = Duration::from_mins(15);
/// Lines of the log that are shown when a process fails.
const LOG_TAIL_LINES: usize = 6;
const MAX_LOG_LINE_CHARS: usize = 200;

/// A system with its supervised processes.
#[derive(Debug)]
pub struct System {
    pub state: State,
    options: Options,
    pub topology: Topology,
    pub secrets: Secrets,
    supervisors: Vec<Supervisor>,
    /// Kills the processes that have not stopped yet.
    pub force_stop: CancellationToken,
    event_sender: mpsc::UnboundedSender<Event>,
    events: mpsc::UnboundedReceiver<Event>,
    pids: BTreeMap<String, u32>,
    /// The page of the flash sale is served, in development.
    has_control: bool,
    control: Option<Control>,
    /// The URL of the superuser.
    postgres_url: String,
    /// The URL of the private Redis' administrator, or REDIS_URL if it is set.
    redis_url: String,
}

impl System {
    pub fn new(state: State, options: Options) -> anyhow::Result<Self> {
        let topology = Topology::allocate(&options)?;
        let mut secrets = Secrets::open(&state)?;
        if let Some(username) = &options.settings.admin_username {
            secrets.admin.username.clone_from(username);
        }
        if let Some(password) = &options.settings.admin_password {
            secrets.admin.password.clone_from(password);
        }
        if options.settings.database_url.is_none() {
            // The private database keeps its first admin at the next start.
            secrets.save(&state)?;
        }
        let (event_sender, events) = mpsc::unbounded_channel();
        let (supervisors, force_stop, pids) = (Vec::new(), CancellationToken::new(), BTreeMap::new());
        let (postgres_url, redis_url) = (String::new(), String::new());
        Ok(Self {
            state,
            options,
            topology,
            secrets,
            supervisors,
            force_stop,
            event_sender,
            events,
            pids,
            has_control: false,
            control: None,
            postgres_url,
            redis_url,
        })
    }

    /// Starts everything, then reports exits and restarts. Returns only with an error.
    pub async fn run(&mut self, began: Instant) -> anyhow::Result<()> {
        self.has_control = self.options.settings.allows_control();
        self.boot().await?;
        // Processes may have started while the last ones became ready.
        while let Ok(event) = self.events.try_recv() {
            self.record_pid(&event);
        }
        let mut page = self.start_control().await?;
        let run = self.run_file();
        let link = self.state.dev_cli();
        let _ = std::fs::remove_file(&link);
        symlink(self.options.binaries.canonicalize()?.join("shoppee-dev"), link)?;
        run.write(&self.state)?;
        if self.options.background {
            print_line(&format!("ready after {}", seconds(began)));
        } else {
            summary::show(&run, &self.secrets, &format!("Ready after {}", seconds(began)), "Ctrl-C");
        }
        loop {
            tokio::select! {
                event = self.events.recv() => {
                    let event = event.context("the supervisors have ended")?;
                    report(&event);
                    if let Some(control) = &self.control {
                        control.report(&event);
                    }
                    if self.record_pid(&event) {
                        self.run_file().write(&self.state)?;
                    }
                }
                Ok(()) = page.changed() => {
                    summary::row("flash sale", &page.borrow_and_update());
                    self.run_file().write(&self.state)?;
                }
            }
        }
    }

    /// Starts the control port, if there is one. Returns the address of its page.
    async fn start_control(&mut self) -> anyhow::Result<watch::Receiver<String>> {
        if !self.has_control {
            // The address never changes.
            return Ok(watch::channel(String::new()).1);
        }
        let urls: Vec<String> = self.topology.gateways.iter().copied().map(loopback_url).collect();
        let gateway = |(index, url): (usize, &String)| {
            let name = gateway_name(index);
            let supervisor = self.supervisors.iter().find(|supervisor| supervisor.name == name)?;
            Some(Gateway {
                pid: self.pid(&name),
                name,
                url: url.clone(),
                kill_switch: supervisor.kill_switch.clone(),
            })
        };
        let gateways = urls.iter().enumerate().filter_map(gateway).collect();
        let auth_url = loopback_url(self.topology.services[0][0].grpc);
        let shop = Shop::new(urls, auth_url, self.postgres_url.clone(), &self.secrets)?;
        let control = Control::serve(self.topology.control, shop, gateways).await?;
        let page = control.page();
        self.control = Some(control);
        Ok(page)
    }

    /// Starts and seeds the system, and waits until it is ready.
    pub async fn boot(&mut self) -> anyhow::Result<()> {
        self.boot_stores().await?;
        self.boot_processes().await?;
        if !self.options.no_seed {
            let began = Instant::now();
            let deadline = Instant::now() + SEED_TIMEOUT;
            let gateway = loopback_url(self.topology.gateways[0]);
            let seeding =
                seed::run(self.postgres_url.clone(), gateway, self.options.products, self.secrets.clone());
            let added = self.unless_exited(deadline, seeding).await?;
            let added = added.context("too slow").flatten().context("the demo shop")?;
            print_step("demo shop", &format!("{added}, {}", seconds(began)));
        }
        Ok(())
    }

    /// Starts PostgreSQL and Redis, and creates the database if it is missing.
    async fn boot_stores(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        let began = Instant::now();
        self.start_stores()?;
        let private_redis = self.options.settings.redis_url.is_none().then_some(self.topology.redis);
        let stores = wait_for_stores(self.postgres_url.clone(), private_redis);
        let Some(stores) = self.unless_exited(deadline, stores).await? else {
            bail!("PostgreSQL or Redis does not answer\n{}", self.log_tail(postgres::NAME));
        };
        stores?;
        postgres::bootstrap(&self.postgres_url, &self.secrets).await?;
        print_step("PostgreSQL and Redis", &seconds(began));
        Ok(())
    }

    /// Starts services and gateways at the same time and waits until all are ready. Each waits for its dependencies itself.
    pub async fn boot_processes(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        let client = reqwest::Client::builder().no_proxy().build()?;
        let began = Instant::now();
        let programs = self.launcher().programs()?;
        self.start_programs(programs);
        let all_ready = join_all(self.topology.urls().into_iter().map(|(_, url)| {
            let client = client.clone();
            async move {
                readiness::wait_until(|| async { readiness::check(&client, &url).await.is_ok() }).await;
            }
        }));
        tokio::pin!(all_ready);
        loop {
            let next_progress = deadline.min(Instant::now() + PROGRESS_INTERVAL);
            if self.unless_exited(next_progress, &mut all_ready).await?.is_some() {
                break;
            }
            if Instant::now() >= deadline {
                return Err(self.not_ready_error(&client).await);
            }
            if let Some((name, reason)) = self.first_unready(&client).await {
                print_line(&format!("  … {name} is not ready after {}: {reason}", seconds(began)));
            }
        }
        let gateways = self.topology.gateways.len();
        let plural = if gateways == 1 { "" } else { "s" };
        let services = match self.options.replicas {
            1 => "three services".to_owned(),
            replicas => format!("three services, {replicas} times each,"),
        };
        print_step(&format!("{services} and {gateways} gateway{plural}"), &seconds(began));
        Ok(())
    }

    /// Returns the launcher of this system's processes.
    pub fn launcher(&self) -> Launcher<'_> {
        Launcher {
            state: &self.state,
            binaries: &self.options.binaries,
            topology: &self.topology,
            secrets: &self.secrets,
            settings: &self.options.settings,
            has_control: self.has_control,
            postgres_url: &self.postgres_url,
        }
    }

    /// Starts PostgreSQL and Redis, except for a server that the environment names.
    fn start_stores(&mut self) -> anyhow::Result<()> {
        let mut programs = Vec::new();
        if let Some(url) = &self.options.settings.database_url {
            self.postgres_url = postgres::with_database(url)?;
        } else {
            let server = postgres::PrivateServer::prepare(
                &self.state,
                self.topology.postgres,
                &self.secrets.postgres,
            )?;
            self.postgres_url = server.url(&self.secrets.postgres);
            programs.push(server.program());
        }
        if let Some(url) = &self.options.settings.redis_url {
            self.redis_url.clone_from(url);
        } else {
            self.redis_url = redis::url(self.topology.redis, redis::ADMIN_USER, &self.secrets.redis);
            programs.push(redis::program(&self.state, self.topology.redis, &self.secrets.redis)?);
        }
        self.start_programs(programs);
        Ok(())
    }

    /// Starts and supervises further programs.
    pub fn start_programs(&mut self, programs: Vec<Program>) {
        for program in programs {
            self.supervisors.push(Supervisor::spawn(
                program,
                self.event_sender.clone(),
                self.force_stop.clone(),
            ));
        }
    }

    /// Returns the URL of PostgreSQL with the superuser's password.
    pub fn postgres_url(&self) -> &str {
        &self.postgres_url
    }

    /// Waits for the next event of a process.
    pub async fn next_event(&mut self) -> anyhow::Result<Event> {
        let event = self.events.recv().await.context("the supervisors have ended")?;
        self.record_pid(&event);
        Ok(event)
    }

    /// Returns the current process id of a name.
    pub fn pid(&self, name: &str) -> Option<u32> {
        self.pids.get(name).copied()
    }

    /// Runs `operation` until the deadline, and returns `None` if it passes.
    ///
    /// # Errors
    /// If a process exits meanwhile: a process that exits during the start is misconfigured.
    async fn unless_exited<T>(
        &mut self,
        deadline: Instant,
        operation: impl Future<Output = T>,
    ) -> anyhow::Result<Option<T>> {
        tokio::pin!(operation);
        loop {
            tokio::select! {
                outcome = &mut operation => return Ok(Some(outcome)),
                () = tokio::time::sleep_until(deadline) => return Ok(None),
                Some(event) = self.events.recv() => {
                    self.record_pid(&event);
                    if let EventKind::Exited { reason } = &event.kind {
                        bail!("{} does not run: {reason}\n{}", event.process, self.log_tail(&event.process));
                    }
                }
            }
        }
    }

    async fn not_ready_error(&self, client: &reqwest::Client) -> anyhow::Error {
        match self.first_unready(client).await {
            Some((name, reason)) => anyhow!("{name} is not ready: {reason}\n{}", self.log_tail(&name)),
            None => anyhow!("not ready in time"),
        }
    }

    /// Returns the first process that is not ready, with the reason that its `/readyz` gives.
    async fn first_unready(&self, client: &reqwest::Client) -> Option<(String, String)> {
        for (name, url) in self.topology.urls() {
            if let Err(reason) = readiness::check(client, &url).await {
                return Some((name, reason));
            }
        }
        None
    }

    fn log_tail(&self, part: &str) -> String {
        let path = self.state.log(part);
        let log = std::fs::read(&path).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().rev().take(LOG_TAIL_LINES).collect();
        let shown: Vec<String> = lines
            .into_iter()
            .rev()
            .map(|line| format!("    {}", line.chars().take(MAX_LOG_LINE_CHARS).collect::<String>()))
            .collect();
        format!("the end of {}:\n{}", path.display(), shown.join("\n"))
    }

    /// Updates the process ids and reports whether one has changed.
    fn record_pid(&mut self, event: &Event) -> bool {
        match &event.kind {
            EventKind::Started { pid } => self.pids.insert(event.process.clone(), *pid) != Some(*pid),
            EventKind::Exited { .. } => false,
        }
    }

    fn run_file(&self) -> RunFile {
        let pid = |name: &str| self.pids.get(name).copied();
        let services = self.topology.replicas().map(|(name, _, at)| {
            let service =
                Service { grpc: loopback_url(at.grpc), metrics: loopback_url(at.metrics), pid: pid(&name) };
            (name, service)
        });
        let gateways = self.topology.gateways.iter().enumerate();
        RunFile {
            gateways: gateways
                .map(|(index, port)| Server { url: loopback_url(*port), pid: pid(&gateway_name(index)) })
                .collect(),
            services: services.collect(),
            postgres: Server { url: self.postgres_url.clone(), pid: pid(postgres::NAME) },
            redis: Server { url: self.redis_url.clone(), pid: pid(redis::NAME) },
            admin: self.secrets.admin.clone(),
            customer: self.secrets.customers[0].clone(),
            demo: self.control.as_ref().map(|control| control.page().borrow().clone()),
            logs: self.state.logs().display().to_string(),
        }
    }

    /// Stops the gateways, then the services; PostgreSQL and Redis keep running.
    pub async fn stop_processes(&mut self) {
        let (stores, processes): (Vec<Supervisor>, Vec<Supervisor>) = std::mem::take(&mut self.supervisors)
            .into_iter()
            .partition(|supervisor| is_store(&supervisor.name));
        self.supervisors = stores;
        let (front_end, services): (Vec<Supervisor>, Vec<Supervisor>) =
            processes.into_iter().partition(|supervisor| is_front_end(&supervisor.name));
        for group in [front_end, services] {
            join_all(group.into_iter().map(Supervisor::stop)).await;
        }
    }

    /// Stops gateways, services, and then PostgreSQL and Redis.
    pub async fn stop(mut self) {
        self.stop_processes().await;
        join_all(self.supervisors.into_iter().map(Supervisor::stop)).await;
    }
}

fn is_store(name: &str) -> bool {
    [postgres::NAME, redis::NAME].contains(&name)
}

fn is_front_end(name: &str) -> bool {
    name.starts_with("gateway-") || name == "nginx"
}

/// Waits until PostgreSQL and Redis answer.
///
/// # Errors
/// If PostgreSQL refuses the role or the password.
async fn wait_for_stores(postgres_url: String, private_redis: Option<u16>) -> anyhow::Result<()> {
    let refusal = std::cell::RefCell::new(None);
    let postgres = readiness::wait_until(|| async {
        match postgres::ping(&postgres_url).await {
            Ok(()) => true,
            Err(error) => {
                // SQLSTATE class 28 refuses the role or the password; other errors are transient.
                let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
                let is_refused = code.is_some_and(|code| code.starts_with("28"));
                if is_refused {
                    refusal.replace(Some(error));
                }
                is_refused
            }
        }
    });
    let redis = async {
        if let Some(port) = private_redis {
            readiness::wait_until(|| async { redis::ping(port).await.unwrap_or(false) }).await;
        }
    };
    tokio::join!(postgres, redis);
    match refusal.take() {
        Some(error) => Err(anyhow!("PostgreSQL refuses DATABASE_URL: {error}")),
        None => Ok(()),
    }
}

fn report(event: &Event) {
    let at = Clock::default().now();
    let (hour, minute, second) = (at.hour(), at.minute(), at.second());
    let change = match &event.kind {
        EventKind::Started { pid } => styled(Style::Good, &format!("started again, process {pid}")),
        EventKind::Exited { reason } => styled(Style::Bad, &format!("ended ({reason})")),
    };
    print_line(&format!("  {hour:02}:{minute:02}:{second:02} {} {change}", event.process));
}
