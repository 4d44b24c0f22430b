//! Random faults from a seed: processes and servers are killed, frozen and cut off from their connections, one fault after
//! the other, while buyers buy. Passes where everything recovers by itself and the audit finds nothing.

use std::time::Duration;

use anyhow::{Context as _, bail};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection as _, PgConnection};
use tokio::time::{Instant, sleep, timeout};

use super::{
    Options, audit,
    buyers::{Buyers, succeed_since},
    customers::stock_up,
};
use crate::{
    postgres, ready, redis,
    rest::Rest,
    screen::{Ink, done, ink, say},
    up::system::System,
};

/// The bound within which everything is ready after the end of a fault (promise P7). It counts from the moment at which
/// every server that was hit answers again.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(5);
/// PostgreSQL replays its log after a kill; on a slow disk that takes seconds.
const SERVER_TIMEOUT: Duration = Duration::from_mins(1);
/// A frozen process stays so for between these times. Milliseconds.
const FREEZE: std::ops::Range<u64> = 2_000..12_000;
/// The pause between the recovery from a fault and the next fault. Milliseconds.
const FAULT_INTERVAL: std::ops::Range<u64> = 500..3_000;
/// The successes of each kind of operation between two faults: a fault during which nothing happens proves nothing.
const MIN_SUCCESSES: u64 = 20;
const SUCCESS_TIMEOUT: Duration = Duration::from_mins(1);
/// Quiet before the audit, in which workers finish what faults left open: a payment attempt waits longest.
const SETTLE_TIME: Duration = Duration::from_secs(45);
/// Supply of each product: some sell out during a run.
const SUPPLY: i64 = 3_000;
const MAX_SHOWN_BREACHES: usize = 20;

#[derive(Clone, Debug)]
enum Fault {
    Kill {
        name: String,
    },
    Freeze {
        name: String,
        time: Duration,
    },
    /// All connections to PostgreSQL end.
    ResetPostgres,
    /// All connections to Redis end.
    ResetRedis,
}

pub async fn run(system: &mut System, options: &Options, seed: u64) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    // The buyers use the last gateway's neighbours too: each buyer connects anew after a fault.
    let url = super::behind_nginx(system, &client).await?;
    let rest = Rest::new(&url)?;
    let goods = stock_up(&rest, &system.secrets.admin, SUPPLY).await?;
    let buyers = Buyers::start(&url, &goods, options.customers, seed).await?;
    let mut random = StdRng::seed_from_u64(seed);
    let names = names(system);
    let end = Instant::now() + options.time;
    let (mut faults, mut slowest) = (0_u32, Duration::ZERO);
    while Instant::now() < end {
        let fault = choose(&mut random, &names);
        let before = buyers.record.succeeded();
        let recovery = inflict(system, &client, &fault).await.with_context(|| format!("{fault:?}"))?;
        slowest = slowest.max(recovery);
        faults += 1;
        let deadline = Instant::now() + SUCCESS_TIMEOUT;
        if !succeed_since(&buyers.record, &before, MIN_SUCCESSES, deadline).await {
            bail!(
                "{fault:?}: not every kind of operation succeeded {MIN_SUCCESSES} times within {SUCCESS_TIMEOUT:?}"
            );
        }
        say(&format!("  {faults:>4}  {fault:?}: ready after {:.1} s", recovery.as_secs_f64()));
        sleep(Duration::from_millis(random.random_range(FAULT_INTERVAL))).await;
    }
    let (record, ids) = (buyers.record.clone(), buyers.ids.clone());
    let (events, mut breaches) = buyers.stop().await?;
    say(&format!("  quiet for {} s, then the audit", SETTLE_TIME.as_secs()));
    sleep(SETTLE_TIME).await;
    let orders = record.orders();
    breaches.extend(audit::run(system.postgres_url(), &ids, &orders).await?);
    let counts: Vec<String> =
        record.succeeded().iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    say(&format!("  {}", ink(Ink::Dim, &counts.join(", "))));
    done(
        "audit",
        &format!(
            "{faults} faults, {} orders, {events} events, {} retries, slowest recovery {:.1} s, {} breaches",
            orders.len(),
            record.retries(),
            slowest.as_secs_f64(),
            breaches.len()
        ),
    );
    if !breaches.is_empty() {
        let shown = &breaches[..breaches.len().min(MAX_SHOWN_BREACHES)];
        bail!("{} breaches:\n  {}", breaches.len(), shown.join("\n  "));
    }
    Ok(())
}

/// Returns the names of everything that is killed and frozen.
fn names(system: &System) -> Vec<String> {
    let mut names: Vec<String> = system.plan.urls().into_iter().map(|(name, _)| name).collect();
    names.extend([postgres::NAME.to_owned(), redis::NAME.to_owned()]);
    names
}

fn choose(random: &mut StdRng, names: &[String]) -> Fault {
    // Servers are hit more often than their share of processes, as everything depends on them.
    let server = *[postgres::NAME, redis::NAME].choose(random).unwrap_or(&redis::NAME);
    let process = names.choose(random).map_or(server, String::as_str);
    let name = if random.random_bool(0.3) { server } else { process }.to_owned();
    match random.random_range(0..10) {
        0..=3 => Fault::Kill { name },
        4..=7 => Fault::Freeze { name, time: Duration::from_millis(random.random_range(FREEZE)) },
        8 => Fault::ResetPostgres,
        _ => Fault::ResetRedis,
    }
}

/// Inflicts one fault and waits until everything is ready again. Returns the time from the end of the fault to readiness.
async fn inflict(system: &mut System, client: &reqwest::Client, fault: &Fault) -> anyhow::Result<Duration> {
    match fault {
        Fault::Kill { name } => {
            let pid = pid(system, name)?;
            kill_process(pid, Signal::KILL)?;
            // The keeper starts it again.
            timeout(SERVER_TIMEOUT, async {
                while system.pid(name).is_none_or(|now| now.cast_signed() == pid.as_raw_nonzero().get()) {
                    system.hear().await?;
                }
                anyhow::Ok(())
            })
            .await
            .context("is not started again")??;
        }
        Fault::Freeze { name, time } => {
            let pid = pid(system, name)?;
            freeze(pid, Signal::STOP);
            sleep(*time).await;
            freeze(pid, Signal::CONT);
        }
        Fault::ResetPostgres => reset_postgres(system.postgres_url()).await?,
        Fault::ResetRedis => {
            let command = "CLIENT KILL TYPE normal SKIPME yes";
            redis::administer(system.plan.redis, &system.secrets.redis, command).await?;
        }
    }
    timeout(SERVER_TIMEOUT, async {
        ready::until(|| async { postgres::answers(system.postgres_url()).await.is_ok() }).await;
        ready::until(|| async { redis::answers(system.plan.redis).await.unwrap_or(false) }).await;
    })
    .await
    .context("PostgreSQL or Redis does not answer again")?;
    let answered = Instant::now();
    for (name, url) in system.plan.urls() {
        let is_ready = ready::until(|| async { ready::ready(client, &url).await.is_ok() });
        let remaining = RECOVERY_TIMEOUT.saturating_sub(answered.elapsed());
        if timeout(remaining, is_ready).await.is_err() {
            let reason = ready::ready(client, &url).await.err().unwrap_or_default();
            bail!("{name} is not ready within {RECOVERY_TIMEOUT:?}: {reason}");
        }
    }
    Ok(answered.elapsed())
}

fn pid(system: &System, name: &str) -> anyhow::Result<Pid> {
    let pid = system.pid(name).and_then(|pid| Pid::from_raw(pid.cast_signed()));
    pid.with_context(|| format!("{name} does not run"))
}

/// Sends a signal to a process and its children: PostgreSQL is a family.
fn freeze(pid: Pid, signal: Signal) {
    let children = format!("/proc/{0}/task/{0}/children", pid.as_raw_nonzero());
    let children = std::fs::read_to_string(children).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| Pid::from_raw(child.parse().ok()?));
    for process in std::iter::once(pid).chain(children) {
        // A child may have ended meanwhile.
        let _ = kill_process(process, signal);
    }
}

async fn reset_postgres(url: &str) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    sqlx::query("select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and usename like 'shoppee%'")
        .execute(&mut connection)
        .await?;
    connection.close().await?;
    Ok(())
}
