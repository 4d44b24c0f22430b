use std::process::ExitCode;

fn main() -> ExitCode {
    shoppee_kit::process::main("shoppee-order", shoppee_order::start)
}
