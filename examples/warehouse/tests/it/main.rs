//! The settings of the warehouse. `scripts/chaos warehouse` tests its work.

use std::process::Command;

#[test]
fn a_missing_credential_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_warehouse")).env_clear().output().expect("runs");
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).expect("text");
    assert!(error.contains("--client-id") && error.contains("--client-secret"), "{error}");
}
