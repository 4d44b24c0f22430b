//! The kinds of random faults. To add one, add a variant to [`Fault`] and an arm to [`Fault::inject`].

use std::time::Duration;

use anyhow::{Context as _, ensure};
use rand::{Rng as _, rngs::StdRng, seq::IndexedRandom as _};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection as _, PgConnection};
use tokio::time::{Instant, sleep, timeout};

use super::SERVER_RESTART_TIMEOUT;
use crate::{
    chaos::{
        buyers::Record,
        proxy::{Mode, Proxy},
    },
    postgres, redis,
    up::system::System,
};

/// The range of the duration of a fault. Milliseconds.
const FAULT_TIME_MS: std::ops::Range<u64> = 5_000..15_000;
/// The range of the latency of each message of PostgreSQL. Milliseconds.
const LATENCY_MS: std::ops::Range<u64> = 5..60;
/// The range of the responses of which one is lost.
const LOSS: std::ops::Range<u64> = 20..200;
/// The interval at which the connections to PostgreSQL are closed repeatedly.
const RESET_INTERVAL: Duration = Duration::from_secs(2);
/// The number of repeated resets of one fault.
const RESETS: u32 = 4;
/// The minimum of responses during a fault, successes and documented refusals: a fault without load proves nothing.
const MIN_RESPONSES: u64 = 20;
/// Bounds the wait for these responses after the time of the fault.
const RESPONSES_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Clone, Debug)]
pub enum Fault {
    /// Kills a process or a server with SIGKILL. PostgreSQL then recovers as after an immediate restart.
    Kill {
        name: String,
    },
    Freeze {
        name: String,
        time: Duration,
    },
    /// Closes all connections to PostgreSQL, every two seconds.
    ResetPostgres,
    /// Closes all connections to Redis.
    ResetRedis,
    FlushRedis,
    /// Redis refuses writes, as its memory is full.
    FillRedis {
        time: Duration,
    },
    /// PostgreSQL refuses writes, as after a failover to a replica.
    ReadOnlyPostgres {
        time: Duration,
    },
    /// PostgreSQL accepts connections and bytes, and nothing comes back.
    BlackHolePostgres {
        time: Duration,
    },
    DelayPostgres {
        time: Duration,
        latency: Duration,
    },
    /// One in `one_in` responses of PostgreSQL is lost after the statement or the COMMIT was done.
    LoseResponses {
        time: Duration,
        one_in: u64,
    },
}

/// The system that a fault is injected into.
pub struct Target<'a> {
    pub system: &'a mut System,
    /// The proxy between the services and PostgreSQL.
    pub proxy: &'a Proxy,
    /// The responses of the buyers.
    pub record: &'a Record,
}

impl Fault {
    pub fn choose(random: &mut StdRng, names: &[String]) -> Self {
        // Servers are chosen more often than their share, as everything depends on them.
        let server = *[postgres::NAME, redis::NAME].choose(random).unwrap_or(&redis::NAME);
        let process = names.choose(random).map_or(server, String::as_str);
        let name = if random.random_bool(0.3) { server } else { process }.to_owned();
        let time = Duration::from_millis(random.random_range(FAULT_TIME_MS));
        match random.random_range(0..16) {
            0..=4 => Self::Kill { name },
            5..=7 => Self::Freeze { name, time },
            8 => Self::ResetPostgres,
            9 => Self::ResetRedis,
            10 => Self::FlushRedis,
            11 => Self::FillRedis { time },
            12 => Self::ReadOnlyPostgres { time },
            13 => Self::BlackHolePostgres { time },
            14 => {
                let latency = Duration::from_millis(random.random_range(LATENCY_MS));
                Self::DelayPostgres { time, latency }
            }
            _ => Self::LoseResponses { time, one_in: random.random_range(LOSS) },
        }
    }

    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill { .. } => "kill",
            Self::Freeze { .. } => "freeze",
            Self::ResetPostgres => "reset PostgreSQL",
            Self::ResetRedis => "reset Redis",
            Self::FlushRedis => "flush Redis",
            Self::FillRedis { .. } => "full Redis",
            Self::ReadOnlyPostgres { .. } => "read-only PostgreSQL",
            Self::BlackHolePostgres { .. } => "black hole",
            Self::DelayPostgres { .. } => "latency",
            Self::LoseResponses { .. } => "lost responses",
        }
    }

    /// Injects the fault, and returns at its end.
    pub async fn inject(&self, target: &mut Target<'_>) -> anyhow::Result<()> {
        match self {
            Self::Kill { name } => target.kill(name).await?,
            Self::Freeze { name, time } => {
                let pid = target.pid(name)?;
                signal_tree(pid, Signal::STOP);
                target.wait(*time).await?;
                signal_tree(pid, Signal::CONT);
            }
            Self::ResetPostgres => {
                for _ in 0..RESETS {
                    let reset = "select pg_terminate_backend(pid) from pg_stat_activity
                                 where pid <> pg_backend_pid() and usename like 'shoppee%'";
                    target.run_sql(&[reset]).await?;
                    target.wait(RESET_INTERVAL).await?;
                }
            }
            Self::ResetRedis => target.run_redis("CLIENT KILL TYPE normal SKIPME yes").await?,
            Self::FlushRedis => target.run_redis("FLUSHALL").await?,
            Self::FillRedis { time } => {
                target.run_redis("CONFIG SET maxmemory 1").await?;
                target.wait(*time).await?;
                target.run_redis("CONFIG SET maxmemory 0").await?;
            }
            Self::ReadOnlyPostgres { time } => {
                let setting = "alter system set default_transaction_read_only = on";
                target.run_sql(&[setting, "select pg_reload_conf()"]).await?;
                target.wait(*time).await?;
                let setting = "alter system reset default_transaction_read_only";
                target.run_sql(&[setting, "select pg_reload_conf()"]).await?;
            }
            Self::BlackHolePostgres { time } => {
                target.proxy.set_mode(Mode::Frozen);
                target.wait(*time).await?;
                target.proxy.set_mode(Mode::Pass);
            }
            Self::DelayPostgres { time, latency } => {
                target.proxy.set_latency(*latency);
                target.wait(*time).await?;
                target.proxy.set_latency(Duration::ZERO);
            }
            Self::LoseResponses { time, one_in } => {
                target.proxy.lose_responses(*one_in);
                target.wait(*time).await?;
                target.proxy.lose_responses(0);
            }
        }
        Ok(())
    }
}

impl Target<'_> {
    /// Waits for the time of a fault, and until the buyers got responses during it.
    async fn wait(&self, time: Duration) -> anyhow::Result<()> {
        let before = self.record.responses();
        sleep(time).await;
        let deadline = Instant::now() + RESPONSES_TIMEOUT;
        while self.record.responses() < before + MIN_RESPONSES {
            ensure!(
                Instant::now() < deadline,
                "the buyers got {} responses during the fault, less than {MIN_RESPONSES}",
                self.record.responses() - before
            );
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Kills a process, and waits until the supervisor has restarted it.
    async fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        let pid = self.pid(name)?;
        kill_process(pid, Signal::KILL)?;
        timeout(SERVER_RESTART_TIMEOUT, async {
            while self.system.pid(name).is_none_or(|now| now.cast_signed() == pid.as_raw_nonzero().get()) {
                self.system.next_event().await?;
            }
            anyhow::Ok(())
        })
        .await
        .context("is not restarted")?
    }

    fn pid(&self, name: &str) -> anyhow::Result<Pid> {
        let pid = self.system.pid(name).and_then(|pid| Pid::from_raw(pid.cast_signed()));
        pid.with_context(|| format!("{name} does not run"))
    }

    /// Runs statements as the superuser, without the proxy.
    async fn run_sql(&self, statements: &[&'static str]) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(self.system.postgres_url()).await?;
        for statement in statements {
            sqlx::query(*statement).execute(&mut connection).await?;
        }
        connection.close().await?;
        Ok(())
    }

    async fn run_redis(&self, command: &str) -> anyhow::Result<()> {
        let System { topology, secrets, .. } = &*self.system;
        redis::run_admin_command(topology.redis, &secrets.redis, command).await.map(drop)
    }
}

/// Sends a signal to a process and its children: PostgreSQL has one for each connection.
fn signal_tree(pid: Pid, signal: Signal) {
    let children = format!("/proc/{0}/task/{0}/children", pid.as_raw_nonzero());
    let children = std::fs::read_to_string(children).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| Pid::from_raw(child.parse().ok()?));
    for process in std::iter::once(pid).chain(children) {
        // A child may have exited meanwhile.
        let _ = kill_process(process, signal);
    }
}
