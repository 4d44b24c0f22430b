//! The auth service process.

use std::process::ExitCode;

fn main() -> ExitCode {
    shoppee_kit::lifecycle::main("shoppee-auth", shoppee_auth::start)
}
