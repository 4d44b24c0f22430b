use std::process::ExitCode;

fn main() -> ExitCode {
    shoppee_kit::process::main("shoppee-product", shoppee_product::start)
}
