//! What somebody who has just started the system wants to know.

use crate::{
    run_file::RunFile,
    screen::{Ink, ink, say},
    secrets::Secrets,
};

pub fn show(run: &RunFile, secrets: &Secrets, title: &str, stop: &str) {
    say("");
    say(&format!("{}  {}", ink(Ink::Bold, "Shoppee"), ink(Ink::Good, title)));
    say("");
    for (index, gateway) in run.gateways.iter().enumerate() {
        let label =
            if run.gateways.len() == 1 { "gateway".to_owned() } else { format!("gateway {}", index + 1) };
        row(&label, &ink(Ink::Notice, &gateway.url));
    }
    let first = &run.gateways[0].url;
    row("REST", &format!("{first}/api/v1/products"));
    row("WebSocket", &format!("{}/ws", first.replacen("http", "ws", 1)));
    row("API page", &format!("{first}/docs"));
    for (name, service) in &run.services {
        let addr = service.grpc.rsplit('/').next().unwrap_or(&service.grpc);
        row(&format!("gRPC {name}"), addr);
    }
    say("");
    for sign_in in std::iter::once(&secrets.admin).chain(&secrets.customers) {
        row(&sign_in.username, &sign_in.password);
    }
    say("");
    row("logs", &run.logs);
    row("see it work", "scripts/demo");
    row("stop", stop);
    say("");
}

fn row(label: &str, value: &str) {
    say(&format!("  {} {value}", ink(Ink::Dim, &format!("{label:<12}"))));
}
