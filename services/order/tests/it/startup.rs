//! Invalid settings, which the process reports in one line before anything else.

use shoppee_kit::testing::refuses_to_start;

#[test]
fn invalid_settings_end_the_start_with_one_clear_line() {
    let client = [("SERVICE_CLIENT_ID", "order"), ("SERVICE_CLIENT_SECRET", "hunter22 and some more")];
    for (name, value) in [
        ("DATABASE_URL", "no url"),
        ("REDIS_URL", "x"),
        ("AUTH_URL", "http://auth:50051/path"),
        ("PRODUCT_URL", "http://product:50052,"),
        ("ORDER_TTL", "0s"),
        ("PAYMENT_PROVIDER", "cash"),
    ] {
        let settings = [&client[..], &[(name, value)]].concat();
        let output = refuses_to_start(env!("CARGO_BIN_EXE_shoppee-order"), &settings);
        assert!(output.contains(name) && !output.contains("hunter22"), "{name}: {output}");
    }
    let output = refuses_to_start(env!("CARGO_BIN_EXE_shoppee-order"), &client[..1]);
    assert!(output.contains("SERVICE_CLIENT_SECRET") || output.contains("service-client-secret"), "{output}");
}
