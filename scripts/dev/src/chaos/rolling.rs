//! A rolling restart: stops every process with SIGTERM and restarts it, one after the other, under load. The run passes if
//! no request fails, no event is lost, and each process exits with code 0 in time.

use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep, timeout};

use super::{Options, behind_nginx, customers::Customers, stalled_clients};
use crate::{
    output::{Style, print_line, print_step, styled},
    readiness,
    supervisor::EventKind,
    up::{
        processes::{gateway_name, loopback_url},
        system::System,
    },
};

/// Bounds the exit of a process after SIGTERM; orchestrators kill it soon after.
const EXIT_TIMEOUT: Duration = Duration::from_secs(25);
/// Bounds the readiness of a restarted process.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// The time for the clients of a restarted process to notice it: they check its health every second.
const HEALTH_PROPAGATION_DELAY: Duration = Duration::from_millis(2500);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The minimum of successes of each kind of request between two restarts: a restart without load proves nothing.
const MIN_SUCCESSES: u64 = 20;
const MAX_SHOWN_FAILURES: usize = 20;

/// A process to restart.
#[derive(Clone, Debug)]
struct Target {
    name: String,
    /// The port of its clients.
    port: u16,
    /// The base URL of its `/readyz`.
    health_url: String,
    is_gateway: bool,
}

pub async fn run(system: &mut System, options: &Options, seed: u64) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let url = behind_nginx(system, &client).await?;
    let customers = Customers::start(&url, &system.secrets.admin, options.customers(), seed).await?;
    print_step(
        "customers",
        &format!("{} of them, each with a socket, behind nginx at {url}", options.customers()),
    );
    for with_stalled_clients in if options.quick { &[false][..] } else { &[false, true] } {
        if *with_stalled_clients {
            print_line("  the same with half-sent requests, silent peers and unread sockets:");
        }
        for target in targets(system, options.quick) {
            restart(system, &client, &customers, &target, *with_stalled_clients).await?;
        }
    }
    let log = customers.log.clone();
    let audit = customers.stop().await?;
    let (successes, failures) = (log.successes(), log.failures());
    let counts: Vec<String> = successes.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    print_line(&format!("  {}", styled(Style::Dim, &counts.join(", "))));
    print_line(&format!(
        "  {} requests, {} failed; {} events, {} event problems; sockets came back {} times",
        successes.values().sum::<u64>() + failures.len() as u64,
        failures.len(),
        audit.events,
        audit.problems.len(),
        audit.reconnects
    ));
    let problems: Vec<String> = failures.into_iter().chain(audit.problems).collect();
    if !problems.is_empty() {
        bail!(
            "{} problems:\n  {}",
            problems.len(),
            problems[..problems.len().min(MAX_SHOWN_FAILURES)].join("\n  ")
        );
    }
    Ok(())
}

fn targets(system: &System, quick: bool) -> Vec<Target> {
    let topology = &system.topology;
    let gateways = topology.gateways.iter().enumerate().map(|(index, port)| Target {
        name: gateway_name(index),
        port: *port,
        health_url: loopback_url(*port),
        is_gateway: true,
    });
    let services = topology.replicas().map(|(name, _, at)| Target {
        name,
        port: at.grpc,
        health_url: loopback_url(at.metrics),
        is_gateway: false,
    });
    // The name of the first replica of a service has no number.
    let is_included =
        |target: &Target| !quick || !target.name.contains('-') || target.name == gateway_name(0);
    gateways.chain(services).filter(is_included).collect()
}

/// Restarts one process, and waits until its clients use it again.
async fn restart(
    system: &mut System,
    client: &reqwest::Client,
    customers: &Customers,
    target: &Target,
    with_stalled_clients: bool,
) -> anyhow::Result<()> {
    let name = &target.name;
    let stalled = match (with_stalled_clients, target.is_gateway) {
        (false, _) => None,
        (true, true) => Some(stalled_clients::connect_to_gateway(target.port, customers.token()).await?),
        (true, false) => Some(stalled_clients::connect_to_service(target.port).await?),
    };
    let (before, failures_before) = (customers.log.successes(), customers.log.failures().len());
    let pid = system.pid(name).and_then(|pid| Pid::from_raw(pid.cast_signed())).context("no process")?;
    let signalled = Instant::now();
    kill_process(pid, Signal::TERM)?;
    let exit_time = loop {
        let remaining = EXIT_TIMEOUT.saturating_sub(signalled.elapsed());
        let event = timeout(remaining, system.next_event()).await;
        let event = event.with_context(|| format!("{name} does not end within {EXIT_TIMEOUT:?}"))??;
        match event.kind {
            EventKind::Exited { reason } if event.process == *name && reason == "exit code 0" => {
                break signalled.elapsed();
            }
            EventKind::Exited { reason } => bail!("{} ended: {reason}", event.process),
            EventKind::Started { .. } => {}
        }
    };
    drop(stalled);
    let restarted = async {
        while !matches!(system.next_event().await?.kind, EventKind::Started { .. }) {}
        readiness::wait_until(|| async { readiness::check(client, &target.health_url).await.is_ok() }).await;
        anyhow::Ok(())
    };
    timeout(READY_TIMEOUT, restarted).await.with_context(|| format!("{name} does not come back"))??;
    sleep(HEALTH_PROPAGATION_DELAY).await;

    let loaded = async {
        while customers.log.min_successes_since(&before) < MIN_SUCCESSES {
            sleep(POLL_INTERVAL).await;
        }
    };
    timeout(READY_TIMEOUT, loaded).await.context("too few requests: the restart proves nothing")?;

    let after = customers.log.successes();
    let failures = customers.log.failures().split_off(failures_before);
    let total: u64 = after.values().sum::<u64>() - before.values().sum::<u64>();
    print_step(
        &format!("{name:<10}"),
        &format!(
            "exit code 0 after {:.1} s, {total} requests, {} failed",
            exit_time.as_secs_f64(),
            failures.len()
        ),
    );
    for failure in failures.iter().take(MAX_SHOWN_FAILURES) {
        print_line(&format!("    {}", styled(Style::Bad, failure)));
    }
    Ok(())
}
