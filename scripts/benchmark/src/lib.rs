//! The program behind `scripts/bench`: looks at the shop and at the limit of the machine in turns, and prints one table.

mod bare;
mod catalogue;
mod edge;
mod envoy;
mod hop;
mod load;
mod memory;
mod search;
mod system;
mod table;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures a Shoppee that runs on this machine.
#[derive(Debug, Parser)]
#[command(name = "scripts/bench")]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// What the gateway's layers cost, against a bare axum handler with the same bytes
    Edge(edge::Options),
    /// How fast the catalogue is, against bare handlers, bare SQL, and a small shop
    Catalogue(catalogue::Options),
    /// The memory that a gateway without scrapes holds after 2 000 000 requests, beside after 200 000
    Memory(memory::Options),
    /// The bare gRPC service, in a process of its own
    #[command(hide = true)]
    BareService(hop::ServiceOptions),
    /// The bare handler before it
    #[command(hide = true)]
    BareHop(hop::HopOptions),
    /// The bare handler, in a process of its own
    #[command(hide = true)]
    Bare(bare::Options),
}

pub fn main() -> ExitCode {
    let command = Command::parse();
    let run = async {
        match command.what {
            What::Edge(options) => edge::run(options).await,
            What::Catalogue(options) => catalogue::run(options).await,
            What::Memory(options) => memory::run(options).await,
            What::BareService(options) => hop::serve(options).await,
            What::BareHop(options) => hop::run(options).await,
            What::Bare(options) => bare::run(options).await,
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            table::say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
