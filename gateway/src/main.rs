use std::process::ExitCode;

fn main() -> ExitCode {
    shoppee_kit::lifecycle::main("shoppee-gateway", shoppee_gateway::start)
}
