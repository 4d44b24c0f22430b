use std::process::ExitCode;

fn main() -> ExitCode {
    shoppee_kit::lifecycle::main("shoppee-order", shoppee_order::start)
}
