//! Settings the process refuses, in one line and before anything else.

use shoppee_kit::testing::refuses_to_start;

#[test]
fn wrong_settings_end_the_start_with_one_clear_line() {
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
        let said = refuses_to_start(env!("CARGO_BIN_EXE_shoppee-order"), &settings);
        assert!(said.contains(name) && !said.contains("hunter22"), "{name}: {said}");
    }
    let said = refuses_to_start(env!("CARGO_BIN_EXE_shoppee-order"), &client[..1]);
    assert!(said.contains("SERVICE_CLIENT_SECRET") || said.contains("service-client-secret"), "{said}");
}
