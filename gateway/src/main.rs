use std::process::ExitCode;

fn main() -> ExitCode {
    shoppee_kit::process::main("shoppee-gateway", shoppee_gateway::start)
}
