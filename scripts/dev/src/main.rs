use std::process::ExitCode;

fn main() -> ExitCode {
    shoppee_dev::main()
}
