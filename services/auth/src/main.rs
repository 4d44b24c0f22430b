//! `shoppee-auth`: accounts, sessions and tokens of the shop.

use std::process::ExitCode;

fn main() -> ExitCode {
    shoppee_kit::process::main("shoppee-auth", shoppee_auth::start)
}
