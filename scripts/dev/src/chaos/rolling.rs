//! A rolling restart: every process is stopped with SIGTERM and started again, one after the other, while customers shop.
//! Passes where no request failed, no event was lost, and each process ended well and in time.

use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep, timeout};

use super::{Options, behind_nginx, clingers, customers::Customers};
use crate::{
    keeper::What,
    parts::{gateway_name, local},
    ready,
    screen::{Ink, done, ink, say},
    up::system::System,
};

/// A process must have ended within it, as orchestrators kill it soon after.
const END_WITHIN: Duration = Duration::from_secs(25);
/// A process that was started again must be ready within it.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// For the others to see that it is back: they look every second.
const SEEN_WITHIN: Duration = Duration::from_millis(2500);
const LOOK: Duration = Duration::from_millis(100);
/// Requests of each kind that must succeed from a stop to the next: a stop during which nothing happened proves nothing.
const LEAST: u64 = 20;
/// Shown of what failed.
const SHOWN: usize = 20;

/// A process to stop, and how to get at it.
#[derive(Clone, Debug)]
struct Target {
    name: String,
    /// Where customers or other services connect to.
    port: u16,
    /// Where it says whether it is ready.
    health: String,
    is_gateway: bool,
}

pub async fn run(system: &mut System, options: &Options, seed: u64) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let url = behind_nginx(system, &client).await?;
    let customers = Customers::begin(&url, &system.secrets.admin, options.customers, seed).await?;
    done("customers", &format!("{} of them, each with a socket, behind nginx at {url}", options.customers));
    for clinging in if options.quick { &[false][..] } else { &[false, true] } {
        if *clinging {
            say("  the same with half-sent requests, silent peers and unread sockets:");
        }
        for target in targets(system, options.quick) {
            restart(system, &client, &customers, &target, *clinging).await?;
        }
    }
    let ledger = customers.ledger.clone();
    let audit = customers.end().await?;
    let (answered, failed) = (ledger.answered(), ledger.failed());
    let counts: Vec<String> = answered.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    say(&format!("  {}", ink(Ink::Dim, &counts.join(", "))));
    say(&format!(
        "  {} requests, {} failed; {} events, {} gone astray; sockets came back {} times",
        answered.values().sum::<u64>() + failed.len() as u64,
        failed.len(),
        audit.events,
        audit.problems.len(),
        audit.reconnects
    ));
    let wrong: Vec<String> = failed.into_iter().chain(audit.problems).collect();
    if !wrong.is_empty() {
        bail!("{} things went wrong:\n  {}", wrong.len(), wrong[..wrong.len().min(SHOWN)].join("\n  "));
    }
    Ok(())
}

fn targets(system: &System, quick: bool) -> Vec<Target> {
    let plan = &system.plan;
    let gateways = plan.gateways.iter().enumerate().map(|(index, port)| Target {
        name: gateway_name(index),
        port: *port,
        health: local(*port),
        is_gateway: true,
    });
    let services = plan.replicas().map(|(name, _, at)| Target {
        name,
        port: at.grpc,
        health: local(at.metrics),
        is_gateway: false,
    });
    // The first of each kind has no number but for the gateways'.
    let counts = |target: &Target| !quick || !target.name.contains('-') || target.name == gateway_name(0);
    gateways.chain(services).filter(counts).collect()
}

/// Stops one process, and waits until it is back and everybody has seen it.
async fn restart(
    system: &mut System,
    client: &reqwest::Client,
    customers: &Customers,
    target: &Target,
    clinging: bool,
) -> anyhow::Result<()> {
    let name = &target.name;
    let held = match (clinging, target.is_gateway) {
        (false, _) => None,
        (true, true) => Some(clingers::to_gateway(target.port, customers.token()).await?),
        (true, false) => Some(clingers::to_service(target.port).await?),
    };
    let (before, failed) = (customers.ledger.answered(), customers.ledger.failed().len());
    let pid = system.pid(name).and_then(|pid| Pid::from_raw(pid.cast_signed())).context("no process")?;
    let asked = Instant::now();
    kill_process(pid, Signal::TERM)?;
    let took = loop {
        let patience = END_WITHIN.saturating_sub(asked.elapsed());
        let news = timeout(patience, system.hear()).await;
        let news = news.with_context(|| format!("{name} does not end within {END_WITHIN:?}"))??;
        match news.what {
            What::Ended { how } if news.part == *name && how == "exit code 0" => break asked.elapsed(),
            What::Ended { how } => bail!("{} ended: {how}", news.part),
            What::Started { .. } => {}
        }
    };
    drop(held);
    let back = async {
        while !matches!(system.hear().await?.what, What::Started { .. }) {}
        ready::until(|| async { ready::ready(client, &target.health).await.is_ok() }).await;
        anyhow::Ok(())
    };
    timeout(READY_WITHIN, back).await.with_context(|| format!("{name} does not come back"))??;
    sleep(SEEN_WITHIN).await;

    let enough = async {
        while customers.ledger.least_since(&before) < LEAST {
            sleep(LOOK).await;
        }
    };
    timeout(READY_WITHIN, enough).await.context("hardly anybody shops: that proves nothing")?;

    let after = customers.ledger.answered();
    let failures = customers.ledger.failed().split_off(failed);
    let all: u64 = after.values().sum::<u64>() - before.values().sum::<u64>();
    done(
        &format!("{name:<10}"),
        &format!("exit code 0 after {:.1} s, {all} requests, {} failed", took.as_secs_f64(), failures.len()),
    );
    for failure in failures.iter().take(SHOWN) {
        say(&format!("    {}", ink(Ink::Bad, failure)));
    }
    Ok(())
}
