use std::process::ExitCode;

fn main() -> ExitCode {
    shoppee_kit::lifecycle::main("shoppee-product", shoppee_product::start)
}
