use std::process::ExitCode;

fn main() -> ExitCode {
    shoppee_bench::main()
}
