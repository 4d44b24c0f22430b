//! The demo against a deployed shop, of which it has the addresses and the admin's password.

use crate::lifecycle::Checkout;

#[test]
fn the_demo_runs_against_the_addresses_of_a_deployed_shop() {
    let shop = Checkout::new("deployed");
    shop.succeeds("up", &["--detach", "--gateways", "2", "--no-seed"]);
    let run = shop.run_file();
    let text = |pointer| run.pointer(pointer).and_then(|text| text.as_str()).expect(pointer);
    let (one, two) = (text("/gateways/0/url"), text("/gateways/1/url"));

    let without = Checkout::new("without").with("ADMIN_PASSWORD", String::new());
    let output = without.fails("demo", &["--url", one]);
    assert_eq!(output, "ADMIN_PASSWORD is not set: the demo signs in as admin to ship the order");

    let wrong = Checkout::new("wrong").with("ADMIN_PASSWORD", "not this one".to_owned());
    let output = wrong.fails("demo", &["--url", one]);
    assert!(output.contains("401") && output.lines().count() == 1, "{output}");

    let elsewhere = Checkout::new("elsewhere").with("ADMIN_PASSWORD", text("/admin/password").to_owned());
    for (url, error) in [
        ("shop.example", "not the address of a shop"),
        ("http://127.0.0.1:1", "Connection refused"),
        (text("/services/auth/metrics"), "no Shoppee answers there"),
    ] {
        let output = elsewhere.fails("demo", &["--url", url]);
        assert!(output.contains(error) && output.lines().count() == 1, "{output}");
    }

    let output = elsewhere.fails("demo", &["--url", one, "--admin-user", "admin"]);
    assert!(output.contains("nothing is in stock") && output.contains("--stock"), "{output}");
    let output =
        elsewhere.succeeds("demo", &["--url", one, "--url", two, "--admin-user", "admin", "--stock"]);
    assert!(output.contains(&format!("REST {one}, socket {two}")), "{output}");
    assert!(output.contains("all 4 events seen"), "{output}");
    // The first run created products, so that the second creates none.
    let output = elsewhere.succeeds("demo", &["--url", one, "--stock"]);
    assert!(output.contains("all 4 events seen") && !output.contains("POST /products"), "{output}");
    assert!(!output.contains(text("/admin/password")), "{output}");
}
