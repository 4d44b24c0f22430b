//! What stands between a client and a handler, and what each part of it costs. The route is `/.well-known/jwks.json`,
//! which passes every layer and calls nobody. Each row is a gateway of its own with one thing more than the row
//! above it, so that the difference is what that thing costs this process; what Redis spends on limits shows in the
//! rate alone. Who keeps less than one core busy could do more: then wrk is the limit.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use shoppee_kit::{
    caller::{Kind, Verifier},
    client,
    clock::Clock,
};
use shoppee_proto::auth::v1::{GetJwksRequest, auth_service_client::AuthServiceClient};

use crate::{
    load::{self, Seen},
    system::{FAR_LIMITS, Gateway, Running, Started},
    table,
};

const ROUTE: &str = "/.well-known/jwks.json";
/// Looks at each server, in turns.
const ROUNDS: usize = 3;
/// Of the small loops inside this process.
const REPEATS: usize = 200_000;
/// Verifiers that have never seen the token.
const FRESH: usize = 1000;

#[derive(Debug, Args)]
pub struct Options {
    /// The gateway's binary
    #[arg(long)]
    gateway: PathBuf,
    /// The run.json of the system that runs
    #[arg(long)]
    run: PathBuf,
    /// How long each look lasts
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    let running = Running::read(&options.run)?;
    let token = running.sign_in().await?;
    let bearer = Some(format!("Authorization: Bearer {token}"));
    let variants = [
        ("gateway, no limits, no logs", "off", "off", None),
        ("+ logs and traces, to nowhere", "off", "info", None),
        ("+ limits in Redis", FAR_LIMITS, "info", None),
        ("+ a token", FAR_LIMITS, "info", bearer),
    ];
    let mut servers = Vec::new();
    for (name, limits, log, header) in variants {
        let gateway = Gateway { binary: &options.gateway, limits, log, settings: &[] };
        servers.push(gateway.start(&running, name, ROUTE, header).await?);
    }
    servers.insert(0, Started::bare(&servers[0].target.url).await?);

    let mut seen: Vec<Vec<Seen>> = vec![Vec::new(); servers.len()];
    for _ in 0..ROUNDS {
        for (server, seen) in servers.iter().zip(&mut seen) {
            seen.push(load::look(&server.target, Duration::from_secs(options.seconds)).await?);
        }
    }
    report(&servers, seen)?;
    inside(&running, &token).await
}

fn report(servers: &[Started], seen: Vec<Vec<Seen>>) -> anyhow::Result<()> {
    let medians: Vec<Seen> = seen.into_iter().map(load::median).collect::<Option<_>>().context("no looks")?;
    let limit = medians.first().context("no limit")?;
    let mut rows = Vec::new();
    let mut before = None;
    for (server, seen) in servers.iter().zip(&medians) {
        let more = before.map_or_else(String::new, |before| format!("{:+.1}", seen.cost - before));
        before = Some(seen.cost);
        rows.push(vec![
            server.name.to_owned(),
            format!("{:.0}", seen.rate),
            format!("{:.2}", seen.rate / limit.rate),
            format!("{:.1}", seen.cost),
            more,
            format!("{:.2}", seen.rate * seen.cost / 1e6),
            format!("{:.2}", seen.p99),
        ]);
    }
    table::print(&["", "requests/s", "of bare", "µs cpu each", "more", "cores busy", "p99 ms"], &rows);
    Ok(())
}

/// The small things, in loops of their own.
async fn inside(running: &Running, token: &str) -> anyhow::Result<()> {
    let mut auth = AuthServiceClient::new(client::channel(&running.services.auth.grpc)?);
    let keys = auth.get_jwks(GetJwksRequest::default()).await?.into_inner();
    let verifier = Verifier::new(Clock::default());
    verifier.update(keys.clone());
    verifier.verify(token, Kind::Access)?;
    let cached = each(REPEATS, || drop(std::hint::black_box(verifier.verify(token, Kind::Access))));
    let fresh: Vec<_> = std::iter::repeat_with(|| Verifier::new(Clock::default())).take(FRESH).collect();
    for verifier in &fresh {
        verifier.update(keys.clone());
    }
    let mut fresh = fresh.iter().cycle();
    let first =
        each(FRESH, || drop(std::hint::black_box(fresh.next().map(|new| new.verify(token, Kind::Access)))));
    metrics_exporter_prometheus::PrometheusBuilder::new()
        .set_buckets(&[0.001, 0.01, 0.1])?
        .install_recorder()?;
    // With labels made for each request, as the gateway does it.
    let counted = each(REPEATS, || {
        metrics::histogram!(
            "measured", "method" => "GET", "route" => ROUTE.to_string(), "status" => 200.to_string()
        )
        .record(0.001);
    });
    table::say("");
    table::print(
        &["inside the gateway", "µs"],
        &[
            vec!["a token that was seen before (at most 3)".to_owned(), format!("{cached:.2}")],
            vec!["a token for the first time".to_owned(), format!("{first:.1}")],
            vec!["one histogram of three labels".to_owned(), format!("{counted:.2}")],
        ],
    );
    anyhow::ensure!(cached <= 3.0, "a token that was seen before takes more than 3 µs");
    Ok(())
}

/// Microseconds that one call takes.
#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
fn each(repeats: usize, mut what: impl FnMut()) -> f64 {
    let began = Instant::now();
    for _ in 0..repeats {
        what();
    }
    began.elapsed().as_secs_f64() * 1e6 / repeats as f64
}
