//! The summary after a start: addresses, demo credentials and next commands.

use crate::{
    output::{Style, print_line, styled},
    run_file::RunFile,
    secrets::Secrets,
};

pub fn show(run: &RunFile, secrets: &Secrets, title: &str, stop: &str) {
    print_line("");
    print_line(&format!("{}  {}", styled(Style::Bold, "Shoppee"), styled(Style::Good, title)));
    print_line("");
    for (index, gateway) in run.gateways.iter().enumerate() {
        let label =
            if run.gateways.len() == 1 { "gateway".to_owned() } else { format!("gateway {}", index + 1) };
        row(&label, &styled(Style::Notice, &gateway.url));
    }
    let first = &run.gateways[0].url;
    row("shop", &styled(Style::Notice, &format!("{first}/")));
    row("back office", &format!("{first}/admin"));
    if let Some(demo) = &run.demo {
        row("flash sale", demo);
    }
    row("REST", &format!("{first}/api/v1/products"));
    row("WebSocket", &format!("{}/ws", first.replacen("http", "ws", 1)));
    row("API page", &format!("{first}/docs"));
    for (name, service) in &run.services {
        let addr = service.grpc.rsplit('/').next().unwrap_or(&service.grpc);
        row(&format!("gRPC {name}"), addr);
    }
    print_line("");
    for sign_in in std::iter::once(&secrets.admin).chain(&secrets.customers) {
        row(&sign_in.username, &sign_in.password);
    }
    print_line("");
    row("logs", &run.logs);
    row("see it work", "scripts/demo");
    row("stop", stop);
    print_line("");
}

pub fn row(label: &str, value: &str) {
    print_line(&format!("  {} {value}", styled(Style::Dim, &format!("{label:<12}"))));
}
