//! Random faults from a seed: processes and servers are killed, frozen and disconnected, one fault at a time, under load.
//! The run passes if everything recovers by itself and the audit finds no violation.

use std::time::Duration;

use anyhow::{Context as _, bail};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection as _, PgConnection};
use tokio::time::{Instant, sleep, timeout};

use super::{
    Options, audit,
    buyers::{Buyers, wait_for_successes},
    customers::restock,
};
use crate::{
    output::{Style, print_line, print_step, styled},
    postgres, readiness, redis,
    rest::Rest,
    up::system::System,
};

/// Bounds the time from the end of a fault until everything is ready. It counts from the first answer of the affected
/// servers.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Bounds the restart of PostgreSQL or Redis. PostgreSQL replays its log after a kill, which takes seconds on a slow disk.
const SERVER_RESTART_TIMEOUT: Duration = Duration::from_mins(1);
/// The range of the duration of a freeze. Milliseconds.
const FREEZE_TIME_MS: std::ops::Range<u64> = 2_000..12_000;
/// The range of the time from the recovery to the next fault. Milliseconds.
const FAULT_INTERVAL_MS: std::ops::Range<u64> = 500..3_000;
/// The minimum of successes of each kind of operation between two faults: a fault without load proves nothing.
const MIN_SUCCESSES: u64 = 20;
const SUCCESS_TIMEOUT: Duration = Duration::from_mins(1);
/// The time before the audit, in which workers finish interrupted operations: a payment attempt takes longest.
const SETTLE_TIME: Duration = Duration::from_secs(45);
/// The stock of each product: some sell out during a run.
const SUPPLY: i64 = 3_000;
const MAX_SHOWN_VIOLATIONS: usize = 20;

#[derive(Clone, Debug)]
enum Fault {
    Kill {
        name: String,
    },
    Freeze {
        name: String,
        time: Duration,
    },
    /// Closes all connections to PostgreSQL.
    ResetPostgres,
    /// Closes all connections to Redis.
    ResetRedis,
}

pub async fn run(system: &mut System, options: &Options, seed: u64) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    // nginx spreads the buyers over all gateways, also after a fault.
    let url = super::behind_nginx(system, &client).await?;
    let rest = Rest::new(&url)?;
    let goods = restock(&rest, &system.secrets.admin, SUPPLY).await?;
    let buyers = Buyers::start(&url, &goods, options.customers, seed).await?;
    let mut random = StdRng::seed_from_u64(seed);
    let names = target_names(system);
    let end = Instant::now() + options.time;
    let (mut faults, mut max_recovery) = (0_u32, Duration::ZERO);
    while Instant::now() < end {
        let fault = choose_fault(&mut random, &names);
        let before = buyers.record.successes();
        let recovery = inject(system, &client, &fault).await.with_context(|| format!("{fault:?}"))?;
        max_recovery = max_recovery.max(recovery);
        faults += 1;
        let deadline = Instant::now() + SUCCESS_TIMEOUT;
        if !wait_for_successes(&buyers.record, &before, MIN_SUCCESSES, deadline).await {
            bail!(
                "{fault:?}: not every kind of operation succeeded {MIN_SUCCESSES} times within {SUCCESS_TIMEOUT:?}"
            );
        }
        print_line(&format!("  {faults:>4}  {fault:?}: ready after {:.1} s", recovery.as_secs_f64()));
        sleep(Duration::from_millis(random.random_range(FAULT_INTERVAL_MS))).await;
    }
    let (record, ids) = (buyers.record.clone(), buyers.ids.clone());
    let (events, mut violations) = buyers.stop().await?;
    print_line(&format!("  quiet for {} s, then the audit", SETTLE_TIME.as_secs()));
    sleep(SETTLE_TIME).await;
    let orders = record.orders();
    violations.extend(audit::run(system.postgres_url(), &ids, &orders).await?);
    let counts: Vec<String> =
        record.successes().iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    print_line(&format!("  {}", styled(Style::Dim, &counts.join(", "))));
    print_step(
        "audit",
        &format!(
            "{faults} faults, {} orders, {events} events, {} retries, slowest recovery {:.1} s, {} violations",
            orders.len(),
            record.retries(),
            max_recovery.as_secs_f64(),
            violations.len()
        ),
    );
    if !violations.is_empty() {
        let shown = &violations[..violations.len().min(MAX_SHOWN_VIOLATIONS)];
        bail!("{} violations:\n  {}", violations.len(), shown.join("\n  "));
    }
    Ok(())
}

/// Returns the names of all processes and servers.
fn target_names(system: &System) -> Vec<String> {
    let mut names: Vec<String> = system.topology.urls().into_iter().map(|(name, _)| name).collect();
    names.extend([postgres::NAME.to_owned(), redis::NAME.to_owned()]);
    names
}

fn choose_fault(random: &mut StdRng, names: &[String]) -> Fault {
    // Servers are chosen more often than their share, as everything depends on them.
    let server = *[postgres::NAME, redis::NAME].choose(random).unwrap_or(&redis::NAME);
    let process = names.choose(random).map_or(server, String::as_str);
    let name = if random.random_bool(0.3) { server } else { process }.to_owned();
    match random.random_range(0..10) {
        0..=3 => Fault::Kill { name },
        4..=7 => Fault::Freeze { name, time: Duration::from_millis(random.random_range(FREEZE_TIME_MS)) },
        8 => Fault::ResetPostgres,
        _ => Fault::ResetRedis,
    }
}

/// Injects one fault and waits until everything is ready. Returns the time from the end of the fault to readiness.
async fn inject(system: &mut System, client: &reqwest::Client, fault: &Fault) -> anyhow::Result<Duration> {
    match fault {
        Fault::Kill { name } => {
            let pid = pid(system, name)?;
            kill_process(pid, Signal::KILL)?;
            // The supervisor restarts it.
            timeout(SERVER_RESTART_TIMEOUT, async {
                while system.pid(name).is_none_or(|now| now.cast_signed() == pid.as_raw_nonzero().get()) {
                    system.next_event().await?;
                }
                anyhow::Ok(())
            })
            .await
            .context("is not restarted")??;
        }
        Fault::Freeze { name, time } => {
            let pid = pid(system, name)?;
            signal_tree(pid, Signal::STOP);
            sleep(*time).await;
            signal_tree(pid, Signal::CONT);
        }
        Fault::ResetPostgres => reset_postgres(system.postgres_url()).await?,
        Fault::ResetRedis => {
            let command = "CLIENT KILL TYPE normal SKIPME yes";
            redis::run_admin_command(system.topology.redis, &system.secrets.redis, command).await?;
        }
    }
    timeout(SERVER_RESTART_TIMEOUT, async {
        readiness::wait_until(|| async { postgres::ping(system.postgres_url()).await.is_ok() }).await;
        readiness::wait_until(|| async { redis::ping(system.topology.redis).await.unwrap_or(false) }).await;
    })
    .await
    .context("PostgreSQL or Redis does not answer again")?;
    let reachable_since = Instant::now();
    for (name, url) in system.topology.urls() {
        let is_ready = readiness::wait_until(|| async { readiness::check(client, &url).await.is_ok() });
        let remaining = RECOVERY_TIMEOUT.saturating_sub(reachable_since.elapsed());
        if timeout(remaining, is_ready).await.is_err() {
            let reason = readiness::check(client, &url).await.err().unwrap_or_default();
            bail!("{name} is not ready within {RECOVERY_TIMEOUT:?}: {reason}");
        }
    }
    Ok(reachable_since.elapsed())
}

fn pid(system: &System, name: &str) -> anyhow::Result<Pid> {
    let pid = system.pid(name).and_then(|pid| Pid::from_raw(pid.cast_signed()));
    pid.with_context(|| format!("{name} does not run"))
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

async fn reset_postgres(url: &str) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    sqlx::query("select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and usename like 'shoppee%'")
        .execute(&mut connection)
        .await?;
    connection.close().await?;
    Ok(())
}
