//! Invalid settings: the process exits with one line.

use shoppee_kit::testing::refuses_to_start;

#[test]
fn invalid_settings_fail_the_start_with_one_line() {
    for (name, value) in [
        ("REDIS_URL", "x"),
        ("AUTH_URL", "ftp://auth:50051"),
        ("ORDER_URL", ""),
        ("CORS_ORIGINS", "shop.example"),
        ("TRUSTED_PROXIES", "everybody"),
        ("RATE_LIMITS", "user=many"),
        ("LISTEN_ADDR", "8080"),
    ] {
        let said = refuses_to_start(env!("CARGO_BIN_EXE_shoppee-gateway"), &[(name, value)]);
        assert!(said.contains(name), "{name}: {said}");
    }
}
