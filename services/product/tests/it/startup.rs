//! Tests of refused settings: the process ends with one line before it opens a port.

use shoppee_kit::testing::{Database, refuses_to_start};

#[test]
fn invalid_settings_end_the_start_with_one_line() {
    for (name, value) in [
        ("DATABASE_URL", "no url"),
        ("REDIS_URL", "x"),
        ("AUTH_URL", "auth:50051"),
        ("DATABASE_READ_URLS", "postgres://nobody@127.0.0.1:1/none,mysql://root:hunter22@host/shop"),
        ("CACHE_L2_TTL", "soon"),
        ("SHOP_CURRENCY", "euro"),
    ] {
        let output = refuses_to_start(env!("CARGO_BIN_EXE_shoppee-product"), &[(name, value)]);
        assert!(output.contains(name) && !output.contains("hunter22"), "{name}: {output}");
    }
}

#[tokio::test]
async fn a_read_replica_that_refuses_the_connection_ends_the_start() {
    let database = Database::create().await;
    let gone = format!("{}_gone", database.url("product"));
    let url = database.url("product");
    let settings = [("DATABASE_URL", url.as_str()), ("DATABASE_READ_URLS", gone.as_str())];
    let output = refuses_to_start(env!("CARGO_BIN_EXE_shoppee-product"), &settings);
    assert!(output.contains("DATABASE_READ_URLS") && output.contains("does not exist"), "{output}");
}
