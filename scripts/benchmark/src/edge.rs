//! The cost of the layers between a client and a handler. The route is `/.well-known/jwks.json`, which passes every layer
//! and calls no service. Each row is a separate gateway with one layer more than the row above. The difference is the
//! processor time of that layer in the gateway. Redis' time for limits shows only in the rate. If a server keeps less
//! than one core busy, wrk is the bottleneck.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use shoppee_kit::{
    caller::{TokenType, Verifier},
    client,
    clock::Clock,
};
use shoppee_proto::auth::v1::{GetJwksRequest, auth_service_client::AuthServiceClient};

use crate::{
    load::{self, Sample},
    servers::{BenchServer, Gateway, HIGH_LIMITS, RunningSystem},
    table,
};

const ROUTE: &str = "/.well-known/jwks.json";
/// Samples of each server, taken in turns.
const SAMPLES: usize = 3;
/// Iterations of the loops inside this process.
const ITERATIONS: usize = 200_000;
/// The number of verifiers without the token in their cache.
const UNCACHED_VERIFIERS: usize = 1000;

#[derive(Debug, Args)]
pub struct Options {
    /// The gateway's binary
    #[arg(long)]
    gateway: PathBuf,
    /// The run.json of the running system
    #[arg(long)]
    run: PathBuf,
    /// The duration of each sample
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    let running = RunningSystem::read(&options.run)?;
    let token = running.sign_in().await?;
    let bearer = Some(format!("Authorization: Bearer {token}"));
    let variants = [
        ("gateway, no limits, no logs", "off", "off", None),
        ("+ logs and traces, to nowhere", "off", "info", None),
        ("+ limits in Redis", HIGH_LIMITS, "info", None),
        ("+ a token", HIGH_LIMITS, "info", bearer),
    ];
    let mut servers = Vec::new();
    for (name, limits, log, header) in variants {
        let gateway = Gateway { binary: &options.gateway, limits, log, settings: &[] };
        servers.push(gateway.start(&running, name, ROUTE, header).await?);
    }
    servers.insert(0, BenchServer::baseline_http(&servers[0].target.url).await?);

    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); servers.len()];
    for _ in 0..SAMPLES {
        for (server, samples) in servers.iter().zip(&mut samples) {
            samples.push(load::run_wrk(&server.target, Duration::from_secs(options.seconds)).await?);
        }
    }
    report(&servers, samples)?;
    measure_operations(&running, &token).await
}

fn report(servers: &[BenchServer], samples: Vec<Vec<Sample>>) -> anyhow::Result<()> {
    let medians: Vec<Sample> =
        samples.into_iter().map(load::median).collect::<Option<_>>().context("no samples")?;
    let baseline = medians.first().context("no baseline")?;
    let mut rows = Vec::new();
    let mut previous = None;
    for (server, sample) in servers.iter().zip(&medians) {
        let difference =
            previous.map_or_else(String::new, |previous| format!("{:+.1}", sample.cost - previous));
        previous = Some(sample.cost);
        rows.push(vec![
            server.name.to_owned(),
            format!("{:.0}", sample.rate),
            format!("{:.2}", sample.rate / baseline.rate),
            format!("{:.1}", sample.cost),
            difference,
            format!("{:.2}", sample.rate * sample.cost / 1e6),
            format!("{:.2}", sample.p99),
        ]);
    }
    table::print(&["", "requests/s", "of bare", "µs cpu each", "more", "cores busy", "p99 ms"], &rows);
    Ok(())
}

/// Measures single operations of the gateway in loops of their own.
async fn measure_operations(running: &RunningSystem, token: &str) -> anyhow::Result<()> {
    let mut auth = AuthServiceClient::new(client::channel(&running.services.auth.grpc)?);
    let keys = auth.get_jwks(GetJwksRequest::default()).await?.into_inner();
    let verifier = Verifier::new(Clock::default());
    verifier.update(keys.clone());
    verifier.verify(token, TokenType::Access)?;
    let cached = microseconds_per_call(ITERATIONS, || {
        drop(std::hint::black_box(verifier.verify(token, TokenType::Access)));
    });
    let uncached: Vec<_> =
        std::iter::repeat_with(|| Verifier::new(Clock::default())).take(UNCACHED_VERIFIERS).collect();
    for verifier in &uncached {
        verifier.update(keys.clone());
    }
    let mut uncached = uncached.iter().cycle();
    let first = microseconds_per_call(UNCACHED_VERIFIERS, || {
        drop(std::hint::black_box(uncached.next().map(|verifier| verifier.verify(token, TokenType::Access))));
    });
    metrics_exporter_prometheus::PrometheusBuilder::new()
        .set_buckets(&[0.001, 0.01, 0.1])?
        .install_recorder()?;
    // The labels are allocated for each request, as in the gateway.
    let counted = microseconds_per_call(ITERATIONS, || {
        metrics::histogram!(
            "measured", "method" => "GET", "route" => ROUTE.to_string(), "status" => 200.to_string()
        )
        .record(0.001);
    });
    table::print_line("");
    table::print(
        &["inside the gateway", "µs"],
        &[
            vec!["a cached token (at most 3)".to_owned(), format!("{cached:.2}")],
            vec!["a token that is not cached".to_owned(), format!("{first:.1}")],
            vec!["one histogram of three labels".to_owned(), format!("{counted:.2}")],
        ],
    );
    anyhow::ensure!(cached <= 3.0, "a cached token takes more than 3 µs");
    Ok(())
}

/// Returns the average duration of a call in microseconds.
#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
fn microseconds_per_call(iterations: usize, mut call: impl FnMut()) -> f64 {
    let began = Instant::now();
    for _ in 0..iterations {
        call();
    }
    began.elapsed().as_secs_f64() * 1e6 / iterations as f64
}
