//! The program behind `scripts/bench`: measures the shop and a baseline on the same machine in turns, and prints one table.

mod baseline_grpc;
mod baseline_http;
mod catalogue;
mod edge;
mod envoy;
mod holds;
mod load;
mod memory;
mod orders;
mod sale;
mod search;
mod servers;
mod table;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures a Shoppee that runs on this machine.
#[derive(Debug, Parser)]
#[command(name = "scripts/bench")]
struct Command {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Debug, Subcommand)]
enum Benchmark {
    /// The cost of each layer of the gateway, compared with a bare axum handler that sends the same bytes
    Edge(edge::Options),
    /// The catalogue's rates and latencies, compared with bare handlers, bare SQL, and a small shop
    Catalogue(catalogue::Options),
    /// The memory of a gateway without scrapes after 2 000 000 requests, compared with 200 000
    Memory(memory::Options),
    /// Orders over the whole path, compared with pgbench that writes the same rows
    Orders(orders::Options),
    /// Holds at the product service alone, compared with pgbench that writes the same rows
    Holds(holds::Options),
    /// A flash sale over all gateways, and the latency of refusals once it is sold out
    Sale(sale::Options),
    /// The process of the baseline gRPC service
    #[command(hide = true)]
    BaselineService(baseline_grpc::ServiceOptions),
    /// The process of the baseline gateway of that service
    #[command(hide = true)]
    BaselineGateway(baseline_grpc::GatewayOptions),
    /// The process of the baseline HTTP handler
    #[command(hide = true)]
    BaselineHttp(baseline_http::Options),
}

pub fn main() -> ExitCode {
    let command = Command::parse();
    let run = async {
        match command.benchmark {
            Benchmark::Edge(options) => edge::run(options).await,
            Benchmark::Catalogue(options) => catalogue::run(options).await,
            Benchmark::Memory(options) => memory::run(options).await,
            Benchmark::Orders(options) => orders::run(options).await,
            Benchmark::Holds(options) => holds::run(options).await,
            Benchmark::Sale(options) => sale::run(options).await,
            Benchmark::BaselineService(options) => baseline_grpc::run_service(options).await,
            Benchmark::BaselineGateway(options) => baseline_grpc::run_gateway(options).await,
            Benchmark::BaselineHttp(options) => baseline_http::run(options).await,
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            table::print_line(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
