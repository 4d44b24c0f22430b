//! Random faults from a seed: processes and servers are killed, frozen, disconnected, emptied and made read-only, and
//! responses of PostgreSQL are delayed and lost, one fault at a time, under load. The run passes if everything recovers by
//! itself, the buyers got responses during each fault, and the audit finds no violation.

mod fault;
mod orphans;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, bail};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::{Instant, sleep, timeout};

use self::{
    fault::{Fault, Target},
    orphans::OrphanMonitor,
};
use super::{
    Options, audit,
    buyers::{Buyers, wait_for_successes},
    customers::restock,
    proxy::Proxy,
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
/// The range of the time from the recovery to the next fault. Milliseconds.
const FAULT_INTERVAL_MS: std::ops::Range<u64> = 500..3_000;
/// The minimum of successes of each kind of operation between two faults: a fault without load proves nothing.
const MIN_SUCCESSES: u64 = 20;
const SUCCESS_TIMEOUT: Duration = Duration::from_mins(1);
/// The time before the audit, in which workers finish interrupted operations: longest the sweep of orphan holds.
const SETTLE_TIME: Duration = Duration::from_secs(35);
/// Bounds the age of a hold without an order: 30 s, and the longest fault with its recovery.
const MAX_ORPHAN_AGE: Duration = Duration::from_mins(1);
/// The stock of each product: some sell out during a run.
const SUPPLY: i64 = 3_000;
const MAX_SHOWN_VIOLATIONS: usize = 20;

pub async fn run(system: &mut System, proxy: &Proxy, options: &Options, seed: u64) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    // nginx spreads the buyers over all gateways, also after a fault.
    let url = super::behind_nginx(system, &client).await?;
    let rest = Rest::new(&url)?;
    let goods = restock(&rest, &system.secrets.admin, SUPPLY).await?;
    let buyers = Buyers::start(&url, &goods, options.customers(), seed).await?;
    let orphans = OrphanMonitor::start(system.postgres_url()).await?;
    let mut random = StdRng::seed_from_u64(seed);
    let names = target_names(system);
    let end = Instant::now() + options.random_time();
    let (mut counts, mut max_recovery) = (BTreeMap::<&str, u32>::new(), Duration::ZERO);
    while Instant::now() < end {
        let fault = Fault::choose(&mut random, &names);
        let before = buyers.record.successes();
        let mut target = Target { system, proxy, record: &buyers.record };
        fault.inject(&mut target).await.with_context(|| format!("{fault:?}"))?;
        let recovery = wait_recovered(system, &client).await.with_context(|| format!("{fault:?}"))?;
        max_recovery = max_recovery.max(recovery);
        *counts.entry(fault.kind()).or_default() += 1;
        let faults: u32 = counts.values().sum();
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
    audit::wait_until_settled(system.postgres_url()).await?;
    let max_orphan_age = orphans.stop().await?;
    if max_orphan_age > MAX_ORPHAN_AGE {
        violations.push(format!("a hold without an order lived for {:.0} s", max_orphan_age.as_secs_f64()));
    }
    let orders = record.orders();
    violations.extend(audit::run(system.postgres_url(), &ids, &orders).await?);
    let list = |counts: Vec<(&str, u64)>| {
        let counts: Vec<String> = counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        print_line(&format!("  {}", styled(Style::Dim, &counts.join(", "))));
    };
    list(record.successes().into_iter().collect());
    list(counts.iter().map(|(kind, count)| (*kind, u64::from(*count))).collect());
    print_step(
        "audit",
        &format!(
            "{} faults, {} lost responses of PostgreSQL, {} orders, {events} events, {} retries, \
             slowest recovery {:.1} s, oldest hold without an order {:.0} s, {} violations",
            counts.values().sum::<u32>(),
            proxy.lost_responses(),
            orders.len(),
            record.retries(),
            max_recovery.as_secs_f64(),
            max_orphan_age.as_secs_f64(),
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

/// Waits until everything is ready again, and returns the time from the first answer of the servers.
async fn wait_recovered(system: &System, client: &reqwest::Client) -> anyhow::Result<Duration> {
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
